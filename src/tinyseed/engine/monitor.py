"""The monitor of a run: does the network learn?

It is evaluated on held-out images, by the same code and on the same images as its teacher.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.data.base import Source
from tinyseed.data.labels import align_labels
from tinyseed.engine.data import RunData
from tinyseed.engine.run_folder import Metrics, Quarantine
from tinyseed.engine.runtime import Runtime
from tinyseed.engine.usable_teacher import require_usable
from tinyseed.evaluation.features import BankKey, FeatureBank, cached, embed_images, evaluating, view_batches
from tinyseed.evaluation.health import effective_rank, neighbor_agreement
from tinyseed.evaluation.neighbors import top1
from tinyseed.files import digest
from tinyseed.methods.base import Method
from tinyseed.methods.distillation import teacher_bands
from tinyseed.models.contract import InputContract
from tinyseed.models.teacher import Teacher
from tinyseed.settings.train import DistillSettings, TrainSettings
from tinyseed.shapes import Embeddings, Features, Images

KNN_NEIGHBORS = 10
FEWEST_HELD_OUT = 3
"""With fewer held-out images nothing can be measured."""

FEW = 16
"""Training images on which a teacher is looked at where too few images are held out."""

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
        self.quarantine = quarantine
        self.workers = 0 if settings.workers == "auto" else settings.workers
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

    def measure(self, method: Method) -> Metrics:
        """k-NN, neighbor agreement, effective rank and the method's own metrics of the network as it is now.

        k-NN is in per cent, agreement and ratio are fractions. Nothing where too few images are held out.
        """
        encoder = method.encoder
        if not self.possible:
            return {}
        with evaluating(encoder):
            student = Network(encoder.features, encoder.input)
            held_out = self._embed(student, *self._held_out)
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

    def _measure_teacher(self, teacher: Teacher, bands: tuple[int, ...] | None) -> None:
        """Look at the teacher's features of the held-out images, or of a few training images where there are none."""
        network = Network(teacher.features, teacher.input, f"{teacher.key}-features", bands)
        with_head = Network(teacher, teacher.input, f"{teacher.key}-rows", bands)
        seen = self._held_out if self.possible else (self.data.source, self.data.training[:FEW])
        features, rows = (self._embed(each, *seen) for each in (network, with_head))
        self.note = require_usable(
            teacher.spec, features.features, rows.features, lambda: self._alike(network, *seen)
        )
        if not self.possible:
            return
        metrics: Metrics = {"effective_rank_teacher": effective_rank(features.features)}
        accuracy = self._knn(network, features)
        if accuracy is not None:
            metrics["knn_top1_teacher"] = accuracy
        self.teacher = MeasuredTeacher(features.features, rows.features, metrics)

    def _alike(self, network: Network, source: Source, images: NDArray[np.int64]) -> bool:
        """Whether these images are all the same picture, as far as the network sees them."""
        batches = view_batches(source, images, network.input, workers=self.workers, reader=self.data.reader)
        pixels = torch.cat([batch.pixels for batch in batches])
        chosen = pixels if network.bands is None else pixels[:, list(network.bands)]
        return bool((chosen == chosen[:1]).all())

    @property
    def _held_out(self) -> tuple[Source, NDArray[np.int64]]:
        return self.data.held_out_source, self.data.held_out

    def _embed(self, network: Network, source: Source, images: NDArray[np.int64]) -> FeatureBank:
        """Features of these images; those of a frozen network come from the cache where it has them."""

        def compute() -> FeatureBank:
            return embed_images(
                network.features,
                source,
                images,
                network.input,
                on=self.runtime.device,
                workers=self.workers,
                reader=self.data.reader,
                bands=network.bands,
                autocast=self.runtime.autocast_dtype,
                on_bad=self.quarantine.add,
            )

        if network.digest is None:
            return compute()
        model = f"{network.digest}-{network.input}-{network.bands}-{self.data.reader}"
        chosen = f"{source.fingerprint}-{digest(images)}"
        return cached(BankKey(model, chosen, network.input.size, self.runtime.precision), compute)

    def _knn(self, network: Network, held_out: FeatureBank) -> float | None:
        """k-NN top-1 in per cent against training images; None without labels of two classes."""
        bank_labels = self.data.source.labels
        if bank_labels is None or self.held_out_labels is None:
            return None
        labels = self.held_out_labels[held_out.indices.numpy()]
        bank = self._embed(network, self.data.source, self.data.bank)
        voting = torch.from_numpy(bank_labels[bank.indices.numpy()])
        return top1(bank.features, voting, held_out.features, torch.from_numpy(labels), KNN_NEIGHBORS)


def _held_out_labels(data: RunData) -> NDArray[np.int64] | None:
    """Labels of the held-out source in the numbering of the training source."""
    source = data.held_out_source
    return None if source.labels is None else align_labels(data.source.classes, source.classes, source.labels)
