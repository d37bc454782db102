"""The monitor of a run: does the network learn?

It is evaluated on held-out images, by the same code and on the same images as its teacher.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.data.base import Source
from tinyseed.data.labels import align_labels
from tinyseed.data.loader import BadRecord, EvaluationBatch
from tinyseed.data.readers import Reader
from tinyseed.engine.data import RunData
from tinyseed.engine.run_folder import Metrics, Quarantine
from tinyseed.engine.runtime import Runtime
from tinyseed.engine.usable_teacher import require_usable
from tinyseed.evaluation.features import (
    BATCH,
    BankKey,
    FeatureBank,
    cached,
    embed,
    evaluating,
    find,
    folded,
    keep,
    model_digest,
    view_batches,
)
from tinyseed.evaluation.health import effective_rank, neighbor_agreement
from tinyseed.evaluation.neighbors import top1
from tinyseed.files import digest
from tinyseed.methods.base import Method
from tinyseed.methods.distillation import teacher_bands
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.models.teacher import Teacher
from tinyseed.settings.train import DistillSettings, TrainSettings
from tinyseed.shapes import Embeddings, Features, Images

OnBad = Callable[[Sequence[BadRecord]], object]

KNN_NEIGHBORS = 10
FEWEST_HELD_OUT = 3
"""With fewer held-out images nothing can be measured."""

FEW = 16
"""Training images on which a teacher is looked at where too few images are held out."""

KEPT_BYTES = 1 << 28
"""Decoded views that are kept from one evaluation to the next: 256 MiB, 21,000 images of 64 px or 1,700 of 224 px."""

FEWEST_FOR_AGREEMENT = 12
"""With fewer images all others are neighbors, and any two networks agree."""


@dataclass(frozen=True)
class Network:
    """A function from normalized images to features, and the images that it expects.

    Attributes:
        digest: identifies a frozen network, whose features are then kept in the cache.
        bands: the channels that it sees of an image, counted from 0; None: all.
    """

    features: Callable[[Images], Features]
    input: InputContract
    digest: str | None = None
    bands: tuple[int, ...] | None = None


@dataclass(frozen=True)
class MeasuredTeacher:
    """The teacher's features and unit rows of the held-out images, computed once, since it is frozen."""

    features: Features
    rows: Embeddings
    metrics: Metrics


class EvaluationViews:
    """The evaluation views of the monitor's images; a set's first ones are decoded once and kept.

    Attributes:
        on_bad: called with the images of each batch that cannot be read.
        room: bytes that may still be kept.
    """

    def __init__(self, reader: Reader, workers: int, room: int = KEPT_BYTES) -> None:
        self.reader = reader
        self.workers = workers
        self.room = room
        self._kept: dict[tuple[str, int, str], list[EvaluationBatch]] = {}

    def batches(
        self, images: "Seen", contract: InputContract, on_bad: OnBad, *, keep_them: bool
    ) -> Iterator[EvaluationBatch]:
        """All views of a set in order, those that are kept first.

        Args:
            images: the set.
            contract: of the network that sees them; kept views serve all networks of its size and interpolation.
            on_bad: called with the unreadable images of each batch, kept or not.
            keep_them: whether the same views will be asked for again.
        """
        kept = self._kept.setdefault((images.name, contract.size, contract.interpolation), [])
        for batch in list(kept):
            on_bad(batch.bad)
            yield batch
        rest = images.positions[len(kept) * BATCH :]
        if len(rest) == 0:
            return
        complete = True  # kept views are the first of a set, without a gap
        for batch in view_batches(
            images.source,
            rest,
            contract,
            workers=self.workers,
            reader=self.reader,
            on_bad=on_bad,
        ):
            size = batch.pixels.numel() * batch.pixels.element_size()
            complete = complete and keep_them and size <= self.room
            if complete:
                self.room -= size
                kept.append(batch)
            yield batch


@dataclass(frozen=True)
class Seen:
    """A set of images that networks are evaluated on: held-out ones, or the bank of k-NN.

    Attributes:
        again: whether they are seen in each evaluation.
    """

    name: str
    source: Source
    positions: NDArray[np.int64]
    again: bool = True


class Monitor:
    """Evaluates an encoder on held-out images, beside the teacher.

    Attributes:
        possible: whether enough images are held out.
        teacher: what is known of the teacher, where it is possible.
        note: what people should know about the held-out images.

    Raises:
        InputError: the teacher tells no images apart.
    """

    def __init__(
        self,
        settings: TrainSettings,
        data: RunData,
        runtime: Runtime,
        quarantine: Quarantine,
        teacher: Teacher | None,
    ) -> None:
        self.data = data
        self.runtime = runtime
        workers = 0 if settings.workers == "auto" else settings.workers
        room = KEPT_BYTES if runtime.is_main else 0  # the others never evaluate the student
        self.views = EvaluationViews(data.reader, workers, room)
        self.quarantine = quarantine
        self.image_size = settings.image_size
        self.held_out_labels = _held_out_labels(data)
        self.possible = len(data.held_out) >= FEWEST_HELD_OUT
        self.teacher: MeasuredTeacher | None = None
        self.note: str | None = None
        if teacher is not None:
            assert isinstance(settings, DistillSettings)
            self._measure_teacher(teacher, teacher_bands(settings, teacher.input))

    def listing(self, quarantine: Quarantine) -> "Monitor":
        """The same monitor, with what it knows of the teacher; it lists unreadable images in another place."""
        other = copy(self)
        other.quarantine = quarantine
        return other

    def measure(self, method: Method, encoder: Encoder, *, untrained: bool = False) -> Metrics:
        """k-NN, neighbor agreement, effective rank and the method's own metrics of the network as it is now.

        k-NN is in per cent, agreement and ratio are fractions. Nothing where too few images are held out.

        Args:
            method: what is trained.
            encoder: its network, or the moving average of that.
            untrained: whether it is as it was made, from its seed or from given weights: its features are then kept,
                since other runs begin with the same network.
        """
        if not self.possible:
            return {}
        images = len(self.data.held_out) + len(self.data.bank)
        with evaluating(encoder):
            known = f"{model_digest(encoder)}-untrained" if untrained else None
            student = Network(folded(encoder, images), encoder.input, known)
            held_out = self._embed(student, self._held_out)
            accuracy = self._knn(student, held_out)
        metrics: Metrics = {} if accuracy is None else {"knn_top1": accuracy}
        metrics["effective_rank"] = effective_rank(held_out.features)
        if self.teacher is not None:
            metrics |= self.teacher.metrics
            if len(held_out.features) >= FEWEST_FOR_AGREEMENT:
                agreement = neighbor_agreement(self.teacher.features, held_out.features)
                metrics["neighbour_agreement"] = agreement
            if accuracy is not None and self.teacher.metrics.get("knn_top1_teacher"):
                metrics["knn_ratio"] = accuracy / self.teacher.metrics["knn_top1_teacher"]
            metrics |= method.health(self.teacher.rows)
        return metrics

    def teacher_rows(
        self, teacher: Teacher, bands: tuple[int, ...] | None, positions: NDArray[np.int64]
    ) -> Embeddings:
        """The teacher's unit rows of training images, from the cache or from one pass over them."""
        network = Network(teacher, teacher.input, f"{teacher.key}-rows", bands)
        images = Seen(f"{len(positions)} of training", self.data.source, positions, again=False)
        return self._embed(network, images).features

    def _measure_teacher(self, teacher: Teacher, bands: tuple[int, ...] | None) -> None:
        """Look at the teacher's features of the held-out images, or of a few training images where there are none."""
        network = Network(teacher.features, teacher.input, f"{teacher.key}-features", bands)
        few = Seen("few", self.data.source, self.data.training[:FEW])
        seen = self._held_out if self.possible else few
        features, rows = self._embed_twice(teacher, network, seen)
        self.note = require_usable(
            teacher.spec, features.features, rows.features, lambda: self._alike(network, seen)
        )
        if not self.possible:
            return
        metrics: Metrics = {"effective_rank_teacher": effective_rank(features.features)}
        accuracy = self._knn(network, features)
        if accuracy is not None:
            metrics["knn_top1_teacher"] = accuracy
        self.teacher = MeasuredTeacher(features.features, rows.features, metrics)

    def _alike(self, network: Network, images: Seen) -> bool:
        """Whether these images are all the same picture, as far as the network sees them."""
        batches = self.views.batches(images, network.input, self.quarantine.add, keep_them=False)
        pixels = torch.cat([batch.pixels for batch in batches])
        chosen = pixels if network.bands is None else pixels[:, list(network.bands)]
        return bool((chosen == chosen[:1]).all())

    @property
    def _held_out(self) -> Seen:
        return Seen("held-out", self.data.held_out_source, self.data.held_out)

    def _embed_twice(
        self, teacher: Teacher, network: Network, images: Seen
    ) -> tuple[FeatureBank, FeatureBank]:
        """The teacher's features and unit rows of these images, from the cache or from one pass over them."""
        with_head = replace(network, digest=f"{teacher.key}-rows")
        keys = self._key(network, images), self._key(with_head, images)
        features, rows = (find(key) for key in keys)
        if features is not None and rows is not None:
            return features, rows
        joined = replace(network, features=lambda seen: torch.cat(teacher.both(seen), 1))
        bank = self._computed(joined, images)
        parts = bank.features.split([teacher.width, teacher.dim], 1)
        features, rows = (replace(bank, features=part.contiguous()) for part in parts)
        for key, made in zip(keys, (features, rows), strict=True):
            keep(key, made)
        return features, rows

    def _embed(self, network: Network, images: Seen) -> FeatureBank:
        """Features of these images; those of a frozen network come from the cache where it has them."""
        if network.digest is None:
            return self._computed(network, images)
        return cached(self._key(network, images), lambda: self._computed(network, images))

    def _key(self, network: Network, images: Seen) -> BankKey:
        model = f"{network.digest}-{network.input}-{network.bands}-{self.data.reader}"
        chosen = f"{images.source.fingerprint}-{digest(images.positions)}"
        # A CPU's last digits depend on the number of threads; a run has the same metrics whatever ran before it.
        threads = f"-{torch.get_num_threads()}" if self.runtime.device.type == "cpu" else ""
        return BankKey(model, chosen, network.input.size, f"{self.runtime.precision}{threads}")

    def _computed(self, network: Network, images: Seen) -> FeatureBank:
        """Features of these images; the views are kept if the student will see the same."""
        contract = network.input
        as_the_student = (contract.size, contract.interpolation) == (self.image_size, "bilinear")
        keep_them = as_the_student and images.again
        batches = self.views.batches(images, contract, self.quarantine.add, keep_them=keep_them)
        bank = embed(
            network.features,
            batches,
            contract,
            on=self.runtime.device,
            bands=network.bands,
            autocast=self.runtime.autocast_dtype,
            labels=images.source.labels,
        )
        return replace(bank, unreadable=len(images.positions) - len(bank.indices))

    def _knn(self, network: Network, held_out: FeatureBank) -> float | None:
        """k-NN top-1 in per cent against training images; None without labels of two classes."""
        bank_labels = self.data.source.labels
        if bank_labels is None or self.held_out_labels is None:
            return None
        labels = self.held_out_labels[held_out.indices.numpy()]
        bank = self._embed(network, Seen("bank", self.data.source, self.data.bank))
        voting = torch.from_numpy(bank_labels[bank.indices.numpy()])
        return top1(bank.features, voting, held_out.features, torch.from_numpy(labels), KNN_NEIGHBORS)


def _held_out_labels(data: RunData) -> NDArray[np.int64] | None:
    """Labels of the held-out source in the numbering of the training source."""
    source = data.held_out_source
    return None if source.labels is None else align_labels(data.source.classes, source.classes, source.labels)
