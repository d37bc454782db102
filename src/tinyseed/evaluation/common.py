"""What every evaluation shares: settings, labelled images of both sides, the model. Imports models, data and errors.

An evaluation is a file with its settings and one `run(config) -> Report`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.checkpoints.load import load_model
from tinyseed.data.bands import Bands, bands_of
from tinyseed.data.cache import digest
from tinyseed.data.sources import Source, open_source
from tinyseed.data.split import sample
from tinyseed.errors import InputError, argument
from tinyseed.evaluation.knn import align_labels
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.models.spec import ModelSpec
from tinyseed.models.teacher import weights_digest

_LABELS = "has no labels; give sub-folders named by class, or a label column"
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What every evaluation is told, save the model."""

    train_data: tuple[str, ...]
    """Labelled images to learn the classes from."""
    test_data: tuple[str, ...]
    """Labelled images to tell the class of."""
    image_size: int | Literal["auto"] = "auto"
    """Side of the images in pixels; auto: what the model was trained with."""
    limit: int | None = None
    """Use at most so many images of each side, for a quick look."""
    out: Path | None = None
    """Folder for the report (JSON and Markdown); by default the run folder, where the model is one."""
    workers: int = 0
    """Processes that decode images."""
    seed: int = 0
    """Seed of every random choice."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataConfig):
    """What every evaluation of one model is told."""

    model: str
    """A run folder, a checkpoint file or its URL, a backbone's name (docs/teachers.md), or random:NAME."""
    model_arch: str | None = None
    """Network of a checkpoint file that does not say what it is: a model's name."""


@dataclass(frozen=True)
class Side:
    """Labelled images of a source.

    Attributes:
        indices: their positions in the source, sorted.
        labels: a class each, numbered as in the training data; numbers beyond its classes are of classes that it
            does not have.
    """

    source: Source
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def fingerprint(self) -> str:
        """Which images these are, and their labels."""
        return digest(self.source.fingerprint, self.indices, self.labels)

    def take(self, places: NDArray[np.int64]) -> "Side":
        """Some of these images, by their place among them."""
        return Side(self.source, self.indices[places], self.labels[places])


@dataclass(frozen=True)
class Sides:
    """The labelled images of an evaluation.

    Attributes:
        classes: names of the training data's classes.
        same: train and test are the same images.
        notes: what a reader of the figures has to know, a sentence each.
    """

    train: Side
    test: Side
    classes: tuple[str, ...]
    same: bool
    notes: tuple[str, ...]

    def model_may_see(self) -> tuple[str, ...]:
        """The notes of an evaluation that is trained on the training images."""
        alike = "train and test are the same images: these figures are of images that were trained on"
        return (*self.notes, alike) if self.same else self.notes


def check(config: DataConfig) -> None:
    """Refuse settings out of range.

    Raises:
        InputError: names the first.
    """
    at_least("--limit", config.limit, 1)
    at_least("--workers", config.workers, 0)
    at_least("--seed", config.seed, 0)
    at_least("--image-size", None if config.image_size == "auto" else config.image_size, 8)


def at_least(field: str, value: float | None, least: float) -> None:
    """Refuse a number below the least; None is no number.

    Raises:
        InputError: it is below.
    """
    if value is not None and not value >= least:  # NaN is refused, too
        raise InputError(field, value, f"give a number of at least {least}")


def open_sides(config: DataConfig) -> Sides:
    """Open both data sets and look at their labels.

    Raises:
        InputError: a path is wrong, labels are missing, or there is one class only.
    """
    train, test = (
        _labelled(open_source(specs, field), specs, field)
        for specs, field in ((config.train_data, "--train-data"), (config.test_data, "--test-data"))
    )
    classes = train.classes
    sides, notes = [], []
    for name, source in (("training", train), ("test", test)):
        given = source.labels
        assert given is not None
        chosen = np.arange(len(source))
        if config.limit is not None:
            chosen = sample(chosen, config.limit, seed=config.seed, name="limit")
        labels = align_labels(classes, source.classes, given)[chosen]
        known = labels >= 0
        if not known.all():
            notes.append(f"{int((~known).sum()):,} {name} images without a label left out")
        sides.append(Side(source, chosen[known], labels[known]))
    learned, tested = sides
    if not len(learned) or not len(tested):
        field = "--test-data" if len(learned) else "--train-data"
        raise InputError(field, "no labelled image", "give images with a class")
    if len(np.unique(learned.labels)) < 2:
        raise InputError("--train-data", "a single class", "give images of at least two classes")
    notes += _absent_classes(learned, tested, train.classes, test.classes)
    return Sides(learned, tested, classes, learned.fingerprint == tested.fingerprint, tuple(notes))


def _labelled(source: Source, specs: tuple[str, ...], field: str) -> Source:
    if source.labels is None:
        raise InputError(field, " ".join(specs), _LABELS)
    return source


def _absent_classes(
    train: Side, test: Side, train_classes: tuple[str, ...], test_classes: tuple[str, ...]
) -> list[str]:
    """Which classes one side has and the other has not."""
    learned, tested = set(train.labels.tolist()), set(test.labels.tolist())
    names = [*train_classes, *test_classes]  # align_labels numbers a test class that train lacks so
    notes = []
    unknown = sorted(tested - learned)
    if unknown:
        images = int(np.isin(test.labels, unknown).sum())
        told = _listed([names[number] for number in unknown])
        notes.append(
            f"{images:,} test images are of classes without a training image ({told}): wrong by rule"
        )
    untested = sorted(learned - tested)
    if untested:
        told = _listed([names[number] for number in untested])
        notes.append(f"{len(untested)} of {len(learned)} classes have no test image ({told})")
    return notes


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown}, and {len(names) - _NAMED} more"


def open_model(
    spec: str,
    image_size: int | Literal["auto"],
    *,
    arch: str | None = None,
    field: str = "--model",
    round_size: bool = False,
) -> Encoder:
    """A model in evaluation mode; its input contract says the images' size.

    Raises:
        InputError: there is no such model, or it cannot take images of this size.
    """
    size = None if image_size == "auto" else image_size
    with argument(field.removeprefix("--"), arch="model_arch"):
        return load_model(ModelSpec(spec, arch=arch, image_size=size, round_size=round_size))


def model_digest(encoder: Encoder) -> str:
    """What decides a trunk's features: its weights and the images that it expects."""
    return f"{weights_digest(encoder.backbone.state_dict())}-{encoder.input}"


def bands_seen(contract: InputContract) -> Bands | None:
    """How a network's images are read; None: as 8-bit RGB."""
    return bands_of(contract.channels, contract.pixel_range)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
