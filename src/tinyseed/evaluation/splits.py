"""The labeled images of an evaluation: a train and a test split with one numbering of the classes."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.data.base import Source, listed, notes_of
from tinyseed.data.labels import align_labels
from tinyseed.data.sources import open_source
from tinyseed.data.split import sample
from tinyseed.errors import InputError, argument
from tinyseed.files import digest
from tinyseed.progress import Progress
from tinyseed.settings.evaluation import EvaluationSettings
from tinyseed.shapes import Indices


@dataclass(frozen=True)
class Split:
    """Labeled images of a source.

    Attributes:
        indices: their positions in the source, sorted.
        labels: one class per image, numbered as in the training data; numbers beyond its classes stand for classes
            that it does not have.
    """

    source: Source
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def fingerprint(self) -> str:
        """A digest of these images and their labels."""
        return digest(self.source.fingerprint, self.indices, self.labels)

    def labels_of(self, positions: Indices) -> Indices:
        """The classes of some of these images, by their positions in the source."""
        return torch.from_numpy(self.labels[np.searchsorted(self.indices, positions.numpy())])

    def take(self, places: NDArray[np.int64]) -> "Split":
        """Some of these images, by their places among them."""
        return Split(self.source, self.indices[places], self.labels[places])


@dataclass(frozen=True)
class Splits:
    """The labeled images of an evaluation.

    Attributes:
        classes: names of the training data's classes.
        same: whether train and test are the same images.
        notes: what a reader of the metrics has to know, a sentence each.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    same: bool
    notes: tuple[str, ...]

    @property
    def fingerprints(self) -> dict[str, str]:
        """A digest of each split."""
        return {"train": self.train.fingerprint, "test": self.test.fingerprint}

    @property
    def training_notes(self) -> tuple[str, ...]:
        """What a classifier that is trained on the train split has to note."""
        note = "train and test are the same images: these metrics are of images that were trained on"
        return (note,) if self.same else ()


def open_splits(settings: EvaluationSettings) -> Splits:
    """Open both data sets and match their labels.

    Raises:
        InputError: a path is wrong, labels are missing, the splits have no class in common, or there is a single class.
    """
    sources = {
        "train_data": _labeled_source(settings.train_data, "train_data"),
        "test_data": _labeled_source(settings.test_data, "test_data"),
    }
    classes, tested = sources["train_data"].classes, sources["test_data"].classes
    if not set(classes) & set(tested):
        remedy = (
            f"none of its classes ({listed(tested)}) is a class of `train_data` ({listed(classes)}), and classes are "
            "matched by name: label both alike"
        )
        raise InputError(" ".join(settings.test_data), remedy, argument="test_data")
    notes = list(dict.fromkeys(note for source in sources.values() for note in notes_of(source)))
    for note in notes:
        Progress().say(note)
    splits = {}
    for name, source in sources.items():
        splits[name], unlabeled = _split(source, classes, settings)
        if unlabeled:
            kind = "training" if name == "train_data" else "test"
            notes.append(f"{unlabeled:,} {kind} images without a label left out")
    for name, split in splits.items():
        if not len(split):
            raise InputError("no labeled image", "give images with a class", argument=name)
    train, test = splits.values()
    if len(np.unique(train.labels)) < 2:
        raise InputError("a single class", "give images of at least two classes", argument="train_data")
    notes += _absent_classes(train, test, (*classes, *tested))
    return Splits(train, test, classes, train.fingerprint == test.fingerprint, tuple(notes))


def _labeled_source(specs: tuple[str, ...], name: str) -> Source:
    with argument(name, data=name):
        source = open_source(specs)
    notes = notes_of(source)
    if source.labels is None:
        found = "".join(f" ({note})" for note in notes)
        remedy = f"has no labels{found}; give sub-folders named by class, or a label column"
        raise InputError(" ".join(specs), remedy, argument=name)
    return source


def _split(source: Source, classes: tuple[str, ...], settings: EvaluationSettings) -> tuple[Split, int]:
    """The labeled images of a source, and how many were left out for lack of a label."""
    assert source.labels is not None
    chosen = np.arange(len(source))
    if settings.limit is not None:
        chosen = sample(chosen, settings.limit, seed=settings.seed, name="limit")
    labels = align_labels(classes, source.classes, source.labels)[chosen]
    known = labels >= 0
    return Split(source, chosen[known], labels[known]), int((~known).sum())


def _absent_classes(train: Split, test: Split, names: tuple[str, ...]) -> list[str]:
    """Notes on classes that one split lacks; `names` are those of train, then those of test."""
    trained, tested = set(train.labels.tolist()), set(test.labels.tolist())
    notes = []
    unknown = sorted(tested - trained)
    if unknown:
        images = int(np.isin(test.labels, unknown).sum())
        names_of = listed([names[number] for number in unknown])
        notes.append(
            f"{images:,} test images are of classes without a training image ({names_of}) and count as wrong"
        )
    untested = sorted(trained - tested)
    if untested:
        names_of = listed([names[number] for number in untested])
        notes.append(f"{len(untested)} of {len(trained)} classes have no test image ({names_of})")
    return notes
