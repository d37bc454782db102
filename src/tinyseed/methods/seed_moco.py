"""SEED and MoCo v2 together: a student learns from its teacher, and from a second view of the image.

Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), table 4, last row; Chen et al., Improved Baselines with
Momentum Contrastive Learning, 2020 (arXiv 2003.04297).
Differs: SEED's paper leaves open how the two share the student. Here each has a head of its own on one backbone and one
forward pass of the first view serves both; what is saved is SEED's. The weight of MoCo's loss is our default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinyseed.data.augmentation import View
from tinyseed.errors import InputError
from tinyseed.methods.base import Forward, MethodSpec, Setup, StepOutput
from tinyseed.methods.momentum_contrast import MomentumContrast
from tinyseed.methods.one_view import OneViewAndQueue, QueueSettings
from tinyseed.methods.parts import addressed, encoder, heads, numpy, shapes, torch
from tinyseed.methods.parts import seed as objective
from tinyseed.methods.views import Views
from tinyseed.settings.base import LARGEST, Range

DIM = 128
"""Dimension of MoCo's embedding."""


@dataclass(frozen=True, kw_only=True)
class SeedMoCoSettings(QueueSettings):
    """`tinyseed distill --method seed-moco`; the defaults are those of both papers. Both queues are of one size."""

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
        {"student_temperature", "teacher_temperature", "projector"}
        | {"ssl_weight", "ssl_temperature", "encoder_momentum"}
    )
    RANGES: ClassVar = {
        "student_temperature": Range(0, LARGEST, above=True),
        "teacher_temperature": Range(0, LARGEST, above=True),
        "ssl_weight": Range(0, LARGEST),
        "ssl_temperature": Range(0, LARGEST, above=True),
        "encoder_momentum": Range(0, 1),
    }

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        if self.mixup:
            remedy = (
                "MoCo looks for the image in its other view, which would be another mixture; leave it out"
            )
            raise InputError(self.mixup, remedy, argument="mixup")


@dataclass(frozen=True)
class SeedMoCoOutput(StepOutput):
    """Result of one micro-batch, whose `rows` are the teacher's.

    Attributes:
        keys: unit rows [n, 128] for MoCo's queue.
    """

    keys: "torch.Tensor | None" = None


class SeedMoCo(OneViewAndQueue):
    """The method: a student with two heads, a queue of the teacher's embeddings, and MoCo's key encoder and queue.

    Both networks of SEED look at the first of two views; the second is that of MoCo's keys.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        settings, student = self.settings, self.encoder
        head = _moco_head(student.width, settings.seed)
        self.module = heads.Heads(student, head)
        self.contrast = MomentumContrast(
            encoder.Encoder(student.backbone, head),
            setup.queue(DIM),
            momentum=settings.encoder_momentum,
            temperature=settings.ssl_temperature,
            seed=settings.seed,
            group=setup.group,
        )

    def views(self, image_size: int) -> tuple[View, ...]:
        """Two, drawn alike."""
        return super().views(image_size) * 2

    def taught(self, views: tuple[View, ...]) -> tuple[View, ...]:
        """The first one."""
        return views[:1]

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> SeedMoCoOutput:
        """The student places a view of an image as its teacher does, and finds the image again by its other view."""
        batch, settings = Views.of(views), self.settings
        keys = self.contrast.keys(batch.seen(1, self.encoder.input), step)
        (student, queries), teacher = self.both(forward, batch)
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
        super().advance(outputs)
        self.contrast.follow()
        for output in outputs:
            assert isinstance(output, SeedMoCoOutput)
            assert output.keys is not None
            self.contrast.push(output.keys)

    def state(self) -> Mapping[str, Any]:
        """Both queues and the key encoder; the teacher is frozen and has no state."""
        of_moco = {f"moco.{prefix}": part for prefix, part in self.contrast.state().items()}
        return {**super().state(), **of_moco}

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


def _moco_head(width: int, seed: int) -> "encoder.Projector":
    """MoCo v2's head, drawn from a seed of its own: SEED's may have the same shape, and is not to begin as this one."""
    draw = addressed.uniforms(seed, 0, numpy.array([0]), "moco-head", 1)[0, 0]
    head = encoder.build_projector("mlp", width, DIM, seed=int(draw * 2**53))
    assert head is not None
    return head


SEED_MOCO = MethodSpec(
    name="seed-moco",
    label="SEED + MoCo-v2",
    about="SEED, and MoCo v2 on the student: it also learns to find an image again by another view",
    settings=SeedMoCoSettings,
    build=SeedMoCo,
    collapse_hint="A lower `lr`, a lower `ssl_weight`, a larger `queue_size` or another temperature",
    loss_note="The loss rises while the queues fill, and does not tell whether the features are good.",
)
