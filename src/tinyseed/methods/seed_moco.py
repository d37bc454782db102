"""SEED and MoCo v2 together: a student learns from its teacher, and from a second view of the image.

Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), table 4, last row; Chen et al., Improved Baselines with
Momentum Contrastive Learning, 2020 (arXiv 2003.04297).
Differs: SEED's paper leaves open how the two share the student. Here each has a head of its own on one backbone and one
forward pass of the first view serves both; what is saved is SEED's. The weight of MoCo's loss is our default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from tinyseed.data.addressed import uniforms
from tinyseed.data.augmentation import View
from tinyseed.memory import require_memory
from tinyseed.methods.base import Forward, Group, MethodSpec, Setup, StepOutput
from tinyseed.methods.distillation import Distillation, augmentation, teacher_bands
from tinyseed.methods.momentum_contrast import MomentumContrast
from tinyseed.methods.parts import encoder, heads, queues, shapes, teacher, torch
from tinyseed.methods.parts import seed as objective
from tinyseed.methods.views import Targets, Views
from tinyseed.settings.base import LARGEST, QUEUE_SIZES, Range
from tinyseed.settings.train import DistillSettings, TrainSettings

DIM = 128
"""Dimension of MoCo's embedding."""


@dataclass(frozen=True, kw_only=True)
class SeedMoCoSettings(DistillSettings):
    """`tinyseed distill --method seed-moco`; the defaults are those of both papers."""

    queue_size: int | Literal["auto"] = "auto"
    """Rows in each of the two queues; auto: the largest power of two up to half the data set, at most 65,536."""
    student_temperature: float = 0.2
    """Temperature of the student's similarities to the teacher's rows."""
    teacher_temperature: float = 0.01
    """Temperature of the teacher's similarities; the smaller, the closer to InfoNCE."""
    projector: Literal["mlp", "linear"] = "mlp"
    """The student's head onto the teacher's dimension; that of MoCo is an MLP."""
    ssl_weight: float = 1.0
    """Weight of MoCo's loss beside SEED's; 0 leaves SEED."""
    ssl_temperature: float = 0.2
    """Temperature of MoCo's similarities."""
    encoder_momentum: float = 0.999
    """Momentum of the key encoder, the moving average of the student."""

    OWN: ClassVar = frozenset(
        {"queue_size", "student_temperature", "teacher_temperature", "projector"}
        | {"ssl_weight", "ssl_temperature", "encoder_momentum"}
    )
    RANGES: ClassVar = {
        "queue_size": QUEUE_SIZES,
        "student_temperature": Range(0, LARGEST, above=True),
        "teacher_temperature": Range(0, LARGEST, above=True),
        "ssl_weight": Range(0, LARGEST),
        "ssl_temperature": Range(0, LARGEST, above=True),
        "encoder_momentum": Range(0, 1),
    }

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the queues' size chosen for this number of images."""
        size = queues.auto_queue_size(images) if self.queue_size == "auto" else self.queue_size
        return self.replaced(queue_size=size)


@dataclass(frozen=True)
class SeedMoCoOutput(StepOutput):
    """Result of one micro-batch, whose `rows` are the teacher's.

    Attributes:
        keys: unit rows [n, 128] for MoCo's queue.
    """

    keys: "shapes.Embeddings | None" = None


class SeedMoCo(Distillation):
    """The method: a student with two heads, a queue of the teacher's embeddings, and MoCo's key encoder and queue."""

    def __init__(
        self,
        settings: SeedMoCoSettings,
        student: "encoder.Encoder",
        head: "encoder.Projector",
        frozen: "teacher.Teacher",
        queue: "queues.Queue",
        *,
        keys: "queues.Queue",
        group: Group | None = None,
        teacher_bands: tuple[int, ...] | None = None,
        targets: Targets | None = None,
    ) -> None:
        super().__init__(student, frozen, group, teacher_bands=teacher_bands, targets=targets)
        self.module = heads.Heads(student, head)
        self.settings = settings
        self.queue = queue
        self.contrast = MomentumContrast(
            encoder.Encoder(student.backbone, head),
            keys,
            momentum=settings.encoder_momentum,
            temperature=settings.ssl_temperature,
            seed=settings.seed,
            group=group,
        )

    def views(self, image_size: int) -> tuple[View, ...]:
        """Two, drawn alike; the first is SEED's, and MoCo's keys are of the second."""
        return (self.view(augmentation(self.settings), image_size),) * 2

    def taught(self, views: tuple[View, ...]) -> tuple[View, ...]:
        """The first one."""
        return views[:1]

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> SeedMoCoOutput:
        """The student's view of an image is placed as its teacher places it, and found again by its other view."""
        batch, settings = Views.of(views), self.settings
        teacher = self.targets(batch)
        keys = self.contrast.keys(batch.seen(1, self.encoder.input), step)
        student, queries = forward(batch.seen(0, self.encoder.input))
        terms = objective.seed_terms(
            student,
            teacher,
            self.queue.rows(),
            student_temperature=settings.student_temperature,
            teacher_temperature=settings.teacher_temperature,
        )
        loss = terms.loss + settings.ssl_weight * self.contrast.loss(queries, keys)
        return SeedMoCoOutput(loss, teacher, terms.target_entropy, keys)

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Move the key encoder towards the student, then push the teacher's rows and the keys of all processes."""
        self.contrast.follow()
        for output in outputs:
            assert isinstance(output, SeedMoCoOutput)
            assert output.rows is not None
            assert output.keys is not None
            self.queue.push(self.group.gather(output.rows))
            self.contrast.push(output.keys)

    def teacher_queues(self) -> "tuple[queues.Queue, ...]":
        """The queue of the teacher's rows."""
        return (self.queue,)

    def state(self) -> Mapping[str, Any]:
        """Both queues and the key encoder; the teacher is frozen and has no state."""
        of_moco = {f"moco.{prefix}": part for prefix, part in self.contrast.state().items()}
        return {"queue.": self.queue, **of_moco}

    def to(self, device: "torch.device") -> None:
        """Move queues, key encoder and teacher to a device."""
        super().to(device)
        self.contrast.channels_last()

    def health(self, teacher_rows: "shapes.Embeddings") -> dict[str, float]:
        """Mean entropy of the teacher's target over the queue, in nats."""
        rows = self.queue.rows()
        entropy = objective.target_entropy(
            teacher_rows.to(rows.device), rows, teacher_temperature=self.settings.teacher_temperature
        )
        return {"target_entropy": float(entropy.mean())}


def build(setup: Setup) -> SeedMoCo:
    """The method of a run.

    Raises:
        InputError: the network cannot take the images, or the queues do not fit into memory.
    """
    frozen, settings = setup.teacher, setup.settings
    assert frozen is not None
    bands = teacher_bands(settings, frozen.input)
    require_memory(4 * settings.queue_size * (frozen.dim + DIM), settings.queue_size, "queue_size")
    student = setup.encoder(frozen.dim)
    # Drawn from a seed of its own: otherwise both heads would begin with the same weights where dimensions agree.
    draw = uniforms(settings.seed, 0, np.array([0]), "moco-head", 1)[0, 0]
    head = encoder.build_projector("mlp", student.width, DIM, seed=int(draw * 2**53))
    assert head is not None
    return SeedMoCo(
        settings,
        student,
        head,
        frozen,
        setup.queue(frozen.dim),
        keys=setup.queue(DIM),
        group=setup.group,
        teacher_bands=bands,
        targets=setup.targets,
    )


SEED_MOCO = MethodSpec(
    name="seed-moco",
    label="SEED + MoCo-v2",
    about="SEED, and MoCo v2 on the student: it also learns to find an image again by another view",
    settings=SeedMoCoSettings,
    build=build,
    collapse_hint="A lower `lr`, a lower `ssl_weight`, a larger `queue_size` or another temperature",
    loss_note="The loss rises while the queues fill, and does not tell whether the features are good.",
)
