"""Is the run learning? Evaluations on held-out images while it trains. Imports evaluation and below.

Teacher and student are measured by the same code on the same images.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.data.sources import Source
from tinyseed.engine.build import RunData
from tinyseed.engine.channels import image_bands, teacher_bands
from tinyseed.engine.config import TrainConfig
from tinyseed.engine.quarantine import Quarantine
from tinyseed.engine.run_folder import Figures
from tinyseed.engine.runtime import Runtime
from tinyseed.evaluation.features import BankKey, FeatureBank, cached, embed_images, evaluating
from tinyseed.evaluation.health import effective_rank, neighbor_agreement
from tinyseed.evaluation.neighbors import top1
from tinyseed.evaluation.splits import align_labels
from tinyseed.methods.method import Method
from tinyseed.methods.seed import Seed
from tinyseed.models.contract import InputContract
from tinyseed.models.teacher import Teacher
from tinyseed.objectives.seed import target_entropy
from tinyseed.shapes import Embeddings, Features, Images

KNN_NEIGHBOURS = 10
FEWEST_HELD_OUT = 3
"""With fewer held-out images there is nothing to measure."""

FEWEST_FOR_AGREEMENT = 12
"""With fewer all other images are neighbours, and any two networks agree."""


@dataclass(frozen=True)
class Network:
    """Something to measure: a function from normalised images to features, and the images that it expects.

    A digest says that it is frozen, and which it is: then its features are kept in the cache. `bands` are the channels
    that it sees of an image, from 0; None: all.
    """

    features: Callable[[Images], Features]
    input: InputContract
    digest: str | None = None
    bands: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TeacherView:
    """How the teacher sees the held-out images; taken once, since it is frozen."""

    features: Features
    rows: Embeddings
    figures: dict[str, float]


class Watch:
    """Measures an encoder on held-out images, beside the teacher."""

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        runtime: Runtime,
        quarantine: Quarantine,
        teacher: Teacher | None,
    ) -> None:
        self.config = config
        self.data = data
        self.runtime = runtime
        self.quarantine = quarantine
        self.held_out_labels = _held_out_labels(data)
        self.possible = len(data.held_out) >= FEWEST_HELD_OUT
        self.teacher = self._measure_teacher(teacher) if teacher is not None and self.possible else None

    def measure(self, method: Method) -> Figures:
        """k-NN, neighbour agreement, effective rank and target entropy of the trained network as it is now.

        k-NN figures are in per cent, agreement and ratio are shares. Nothing where too few images are held out.
        """
        encoder = method.encoder
        if not self.possible:
            return {}
        with evaluating(encoder):
            student = Network(encoder.features, encoder.input)
            held_out = self._embed_held_out(student)
            accuracy = self._knn(student, held_out)
        figures: Figures = {} if accuracy is None else {"knn_top1": accuracy}
        figures["effective_rank"] = effective_rank(held_out.features)
        if self.teacher is not None:
            figures |= self.teacher.figures
            if len(held_out.features) >= FEWEST_FOR_AGREEMENT:
                figures["neighbour_agreement"] = neighbor_agreement(self.teacher.features, held_out.features)
            if accuracy is not None and self.teacher.figures.get("knn_top1_teacher"):
                figures["knn_ratio"] = accuracy / self.teacher.figures["knn_top1_teacher"]
        if isinstance(method, Seed) and self.teacher is not None:
            figures["target_entropy"] = _mean_target_entropy(method, self.teacher.rows)
        return figures

    def _measure_teacher(self, teacher: Teacher) -> TeacherView:
        bands = teacher_bands(self.config, teacher.input)
        network = Network(teacher.features, teacher.input, f"{teacher.digest}-features", bands)
        held_out = self._embed_held_out(network)
        rows = self._embed_held_out(Network(teacher, teacher.input, f"{teacher.digest}-rows", bands))
        figures = {"effective_rank_teacher": effective_rank(held_out.features)}
        accuracy = self._knn(network, held_out)
        if accuracy is not None:
            figures["knn_top1_teacher"] = accuracy
        return TeacherView(held_out.features, rows.features, figures)

    def _embed_held_out(self, network: Network) -> FeatureBank:
        return self._embed(network, self.data.held_out_source, self.data.held_out)

    def _embed(self, network: Network, source: Source, indices: NDArray[np.int64]) -> FeatureBank:
        if network.digest is None:
            return self._embed_anew(network, source, indices)
        chosen = hashlib.sha256(indices.tobytes()).hexdigest()[:16]
        model = f"{network.digest}-{network.input}-{network.bands}-{image_bands(self.config)}"
        key = BankKey(model, f"{source.fingerprint}-{chosen}", network.input.size, self.runtime.precision)
        return cached(key, lambda: self._embed_anew(network, source, indices))

    def _embed_anew(self, network: Network, source: Source, indices: NDArray[np.int64]) -> FeatureBank:
        workers = self.config.workers
        assert workers != "auto", "settle() came first"
        return embed_images(
            network.features,
            source,
            indices,
            network.input,
            on=self.runtime.device,
            workers=workers,
            reader=image_bands(self.config),
            bands=network.bands,
            autocast=self.runtime.autocast_dtype,
            on_bad=self.quarantine.add,
        )

    def _knn(self, network: Network, held_out: FeatureBank) -> float | None:
        """k-NN top-1 in per cent against images of the training part; None without labels of two classes."""
        bank_labels = self.data.source.labels
        if bank_labels is None or self.held_out_labels is None:
            return None
        labels = self.held_out_labels[held_out.indices.numpy()]
        bank = self._embed(network, self.data.source, self.data.bank)
        voting = torch.from_numpy(bank_labels[bank.indices.numpy()])
        return top1(bank.features, voting, held_out.features, torch.from_numpy(labels), KNN_NEIGHBOURS)


def _held_out_labels(data: RunData) -> NDArray[np.int64] | None:
    """Labels of the held-out source in the numbering of the training source."""
    source = data.held_out_source
    return None if source.labels is None else align_labels(data.source.classes, source.classes, source.labels)


def _mean_target_entropy(method: Seed, rows: Embeddings) -> float:
    queue = method.queue.rows()
    entropy = target_entropy(
        rows.to(queue.device), queue, teacher_temperature=method.config.teacher_temperature
    )
    return float(entropy.mean())
