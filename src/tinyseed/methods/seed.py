"""SEED: a student learns where a frozen teacher places an image among a queue of others.

Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021 (arXiv 2101.04731).
Differs: the queue begins empty; the published code's begins with random unit rows, which its first 256 steps replace.
That code also has a teacher's temperature of 1e-4 in place of the paper's 0.01, and sets the learning rate once per
epoch: see the recipe seed-imagenet-code. Its second script, with six small crops beside the view, is left out here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tinyseed.data.augmentation import View
from tinyseed.errors import InputError
from tinyseed.methods.base import Forward, Group, MethodSpec, Setup, StepOutput
from tinyseed.methods.distillation import Distillation, augmentation, teacher_bands
from tinyseed.methods.parts import affinity, encoder, patches, queues, shapes, teacher
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
    patch_affinity_weight: float = 0.0
    """Weight of patch affinity, for students that will detect or segment: they also learn how similar the places of an
    image are to each other, from the teacher's patches or its last feature map. 0: none."""
    patch_affinity_temperature: float = 0.1
    """Temperature of these similarities, of both networks."""

    OWN: ClassVar = frozenset(
        {"queue_size", "student_temperature", "teacher_temperature", "projector"}
        | {"patch_affinity_weight", "patch_affinity_temperature"}
    )
    RANGES: ClassVar = {
        "queue_size": QUEUE_SIZES,
        "student_temperature": Range(0, LARGEST, above=True),
        "teacher_temperature": Range(0, LARGEST, above=True),
        "patch_affinity_weight": Range(0, LARGEST),
        "patch_affinity_temperature": Range(0, LARGEST, above=True),
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
        if self._compares_patches:
            self.module = patches.PatchEncoder(student)

    @property
    def _compares_patches(self) -> bool:
        return self.settings.patch_affinity_weight > 0

    def views(self, image_size: int) -> tuple[View, ...]:
        """One."""
        return (self.view(augmentation(self.settings), image_size),)

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """Both networks see the same view; the loss compares where they place it (paper, equations 1 to 4)."""
        del step
        batch = Views.of(views)
        if self._compares_patches:
            return self._with_patches(forward, batch)
        teacher = self.targets(batch)  # first, while no activations are kept for the backward pass
        return self._compared(forward(batch.seen(0, self.encoder.input)), teacher)

    def _compared(self, student: "shapes.Embeddings", teacher: "shapes.Embeddings") -> StepOutput:
        terms = objective.seed_terms(
            student,
            teacher,
            self.queue.rows(),
            student_temperature=self.settings.student_temperature,
            teacher_temperature=self.settings.teacher_temperature,
        )
        return StepOutput(terms.loss, teacher, terms.target_entropy)

    def _with_patches(self, forward: Forward, batch: Views) -> StepOutput:
        """SEED's loss and, by its weight, how the places of each image relate (`objectives/affinity.py`)."""
        settings = self.settings
        given = self.targets.together(batch, 0, ("rows", "patches"))
        require_grid("teacher", self._teacher.spec, given["patches"].shape[1])
        student, cells = forward(batch.seen(0, self.encoder.input))
        output = self._compared(student, given["rows"])
        divergence = affinity.patch_affinity(
            cells, given["patches"], temperature=settings.patch_affinity_temperature
        )
        return replace(output, loss=output.loss + settings.patch_affinity_weight * divergence)

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Push the teacher's rows of all processes, so that every process holds the same queue."""
        for output in outputs:
            assert output.rows is not None
            self.queue.push(self.group.gather(output.rows))

    def teacher_queues(self) -> "tuple[queues.Queue, ...]":
        """The queue; that of rows that came with patches may differ from others' in the last digits."""
        return () if self._compares_patches else (self.queue,)

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
    student = setup.encoder(frozen.dim)
    if settings.patch_affinity_weight > 0:
        require_patches(settings, student, frozen)
    return Seed(
        settings,
        student,
        frozen,
        queue,
        setup.group,
        teacher_bands=bands,
        targets=setup.targets,
    )


def require_patches(settings: SeedSettings, student: "encoder.Encoder", frozen: "teacher.Teacher") -> None:
    """Look whether both networks give patches that can be compared, as far as that is known before a batch comes.

    Raises:
        InputError: one does not, or the teacher is computed by an engine that gives none.
    """
    if settings.teacher_engine not in ("auto", "torch"):
        remedy = "gives no patches, which `patch_affinity_weight` needs; give torch"
        raise InputError(settings.teacher_engine, remedy, argument="teacher_engine")
    if "patches" not in frozen.gives:
        remedy = f"its patches are needed for `patch_affinity_weight`, and {frozen.architecture} does not give them"
        raise InputError(frozen.spec, remedy, argument="teacher")
    require_grid(settings.NETWORK, settings.student, patches.count_patches(student.backbone))


def require_grid(network: str, name: str, cells: int) -> None:
    """Look whether a network's patches are a grid that can be compared.

    Raises:
        InputError: they are not.
    """
    if affinity.is_grid(cells):
        return
    remedy = "`patch_affinity_weight` needs a square grid of patches or a feature map, and it gives none"
    if cells == 1:
        remedy = (
            "its last feature map has a single cell, and `patch_affinity_weight` compares cells; give a larger "
            "`image_size`, or `small_stem` for a ResNet"
        )
    raise InputError(name, remedy, argument=network)


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
