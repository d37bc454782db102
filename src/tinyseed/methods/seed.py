"""SEED: a student learns where a frozen teacher places an image among a queue of others.

Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021 (arXiv 2101.04731).
Differs: the queue begins empty; the published code's begins with random unit rows, which its first 256 steps replace.
That code also has a teacher's temperature of 1e-4 in place of the paper's 0.01, and sets the learning rate once per
epoch: see the recipe seed-imagenet-code. Its second script, with six small crops beside the view, is left out here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinyseed.data.augmentation import View
from tinyseed.methods.base import Forward, Group, MethodSpec, Setup, StepOutput
from tinyseed.methods.distillation import Distillation, augmentation, teacher_bands
from tinyseed.methods.parts import encoder, queues, shapes, teacher
from tinyseed.methods.parts import seed as objective
from tinyseed.methods.views import Targets, Views
from tinyseed.settings.base import LARGEST, QUEUE_SIZES, Range
from tinyseed.settings.train import DistillSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class SeedSettings(DistillSettings):
    """`tinyseed distill`; the defaults are the paper's (section 4.1)."""

    queue_size: int | Literal["auto"] = "auto"
    """Rows in the queue; auto: the largest power of two up to half the data set, at most 65,536."""
    student_temperature: float = 0.2
    """Temperature of the student's similarities."""
    teacher_temperature: float = 0.01
    """Temperature of the teacher's similarities; the smaller, the closer to InfoNCE."""
    projector: Literal["mlp", "linear"] = "mlp"
    """The student's head onto the teacher's dimension."""

    OWN: ClassVar = frozenset({"queue_size", "student_temperature", "teacher_temperature", "projector"})
    RANGES: ClassVar = {
        "queue_size": QUEUE_SIZES,
        "student_temperature": Range(0, LARGEST, above=True),
        "teacher_temperature": Range(0, LARGEST, above=True),
    }

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the queue's size chosen for this number of images."""
        size = queues.auto_queue_size(images) if self.queue_size == "auto" else self.queue_size
        return self.replaced(queue_size=size)


class Seed(Distillation):
    """The method: a student and a queue of the teacher's embeddings."""

    def __init__(
        self,
        settings: SeedSettings,
        student: "encoder.Encoder",
        frozen: "teacher.Teacher",
        queue: "queues.Queue",
        group: Group | None = None,
        *,
        teacher_bands: tuple[int, ...] | None = None,
        targets: Targets | None = None,
    ) -> None:
        super().__init__(student, frozen, group, teacher_bands=teacher_bands, targets=targets)
        self.settings = settings
        self.queue = queue

    def views(self, image_size: int) -> tuple[View, ...]:
        """One."""
        return (self.view(augmentation(self.settings), image_size),)

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """Both networks see the same view; the loss compares where they place it (paper, equations 1 to 4)."""
        del step
        batch = Views.of(views)
        teacher = self.targets(batch)  # first, while no activations are kept for the backward pass
        student = forward(batch.seen(0, self.encoder.input))
        terms = objective.seed_terms(
            student,
            teacher,
            self.queue.rows(),
            student_temperature=self.settings.student_temperature,
            teacher_temperature=self.settings.teacher_temperature,
        )
        return StepOutput(terms.loss, teacher, terms.target_entropy)

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Push the teacher's rows of all processes, so that every process holds the same queue."""
        for output in outputs:
            assert output.rows is not None
            self.queue.push(self.group.gather(output.rows))

    def teacher_queues(self) -> "tuple[queues.Queue, ...]":
        """The queue."""
        return (self.queue,)

    def state(self) -> Mapping[str, Any]:
        """The queue; the teacher is frozen and has no state."""
        return {"": self.queue}

    def health(self, teacher_rows: "shapes.Embeddings") -> dict[str, float]:
        """Mean entropy of the teacher's target over the queue, in nats."""
        rows = self.queue.rows()
        entropy = objective.target_entropy(
            teacher_rows.to(rows.device), rows, teacher_temperature=self.settings.teacher_temperature
        )
        return {"target_entropy": float(entropy.mean())}


def build(setup: Setup) -> Seed:
    """The method of a run."""
    frozen, settings = setup.teacher, setup.settings
    assert frozen is not None
    bands = teacher_bands(settings, frozen.input)
    queue = setup.queue(frozen.dim)
    return Seed(
        settings,
        setup.encoder(frozen.dim),
        frozen,
        queue,
        setup.group,
        teacher_bands=bands,
        targets=setup.targets,
    )


SEED = MethodSpec(
    name="seed",
    label="SEED",
    about="Train a small student to reproduce a frozen teacher's representation, on unlabeled images (SEED)",
    settings=SeedSettings,
    build=build,
    collapse_hint="A lower `lr`, a larger `queue_size` or another temperature",
    loss_note="The loss rises while the queue fills, and does not tell whether the features are good.",
    default=True,
)
