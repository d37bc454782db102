"""SEED: a student learns where a frozen teacher places an image among a queue of others.

Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021 (arXiv 2101.04731); small
crops and their queue as in main_small-patch.py and seed/small_patch_builder.py of its published code.
Differs: the queues begin empty, or with `queue_warmup` filled with embeddings; the published code's begin with random
unit rows, which its first 256 steps replace.
That code also has a teacher's temperature of 1e-4 in place of the paper's 0.01, and sets the learning rate once per
epoch: see the recipes seed-imagenet-code and seed-imagenet-small-patches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tinyseed.data.augmentation import View
from tinyseed.errors import InputError
from tinyseed.methods.base import Forward, Group, MethodSpec, Setup, StepOutput
from tinyseed.methods.crops import SMALL_CROPS, require_small_crops, small_crop_size
from tinyseed.methods.distillation import Distillation, augmentation, teacher_bands
from tinyseed.methods.one_view import QueueSettings
from tinyseed.methods.parts import affinity, crops, encoder, patches, queues, shapes, teacher, torch
from tinyseed.methods.parts import seed as objective
from tinyseed.methods.patch_grids import require_grid, require_patches
from tinyseed.methods.views import Targets, Views
from tinyseed.settings.base import IMAGE_SIDES, LARGEST, Range
from tinyseed.settings.train import TeacherOutput, TrainSettings, check_scale

_TOGETHER: tuple[TeacherOutput, ...] = ("rows", "patches")


@dataclass(frozen=True, kw_only=True)
class SeedSettings(QueueSettings):
    """`tinyseed distill`; the defaults are the paper's (section 4.1)."""

    student_temperature: float = 0.2
    """Temperature of the student's similarities."""
    queue_warmup: bool = False
    """Fill the queues with the teacher's embeddings of random views before the first step, which takes as many images
    as the queue has rows. By default they begin empty."""
    teacher_temperature: float | Literal["auto"] = 0.01
    """Temperature of the teacher's similarities; the smaller, the closer to InfoNCE. auto: the one at which the
    teacher's target has the perplexity `target_perplexity`, measured on the held-out images."""
    target_perplexity: float = 2.0
    """For `teacher_temperature` auto: over how many images the teacher's target spreads on average, as its perplexity
    (e to the mean entropy in nats); 1 is the image itself alone."""
    projector: Literal["mlp", "linear"] = "mlp"
    """The student's head onto the teacher's dimension."""
    large_crops: int = 1
    """Number of views of each image at the full image size: 1, or 2 whose losses are averaged. In each, teacher and
    student see the same."""
    small_crops: int = 0
    """Number of small crops beside them, which teacher and student see, too. They are compared with a second queue of
    the same size, into which the first small crop of each image goes; published: 6."""
    small_crop_size: int | Literal["auto"] = "auto"
    """Side length of the small crops in pixels; auto: 3/7 of the image size (96 of 224) in steps of 8. A teacher that
    takes images of one size only sees them enlarged to that size."""
    small_crop_scale: tuple[float, float] = (0.05, 0.14)
    """Smallest and largest fraction of the image's area that a small crop covers."""
    small_crop_weight: float = 1.0
    """Weight of the small crops' mean loss, which is added to that of the large views."""
    patch_affinity_weight: float = 0.0
    """Weight of patch affinity, for students that will detect or segment: they also learn how similar the places of an
    image are to each other, from the teacher's patches or its last feature map, in the first large view. 0: none."""
    patch_affinity_temperature: float = 0.1
    """Temperature of these similarities, of both networks."""

    OWN: ClassVar = frozenset(
        {"queue_warmup", "student_temperature", "teacher_temperature", "target_perplexity"}
        | {"projector", "small_crop_weight", "patch_affinity_weight", "patch_affinity_temperature"}
    )
    RANGES: ClassVar = {
        "student_temperature": Range(0, LARGEST, above=True),
        "teacher_temperature": Range(0, LARGEST, above=True),
        "target_perplexity": Range(1, LARGEST, above=True),
        "large_crops": Range(1, 2),
        "small_crops": SMALL_CROPS,
        "small_crop_size": IMAGE_SIDES,
        "small_crop_weight": Range(0, LARGEST, above=True),
        "patch_affinity_weight": Range(0, LARGEST),
        "patch_affinity_temperature": Range(0, LARGEST, above=True),
    }

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        check_scale("small_crop_scale", self.small_crop_scale)
        if self.small_crops and self.teacher_engine in ("onnx", "int8"):
            remedy = "computes images of one size only; give torch or compile, or `small_crops` 0"
            raise InputError(self.teacher_engine, remedy, argument="teacher_engine")

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the sizes of the queue and of the small crops chosen."""
        size = small_crop_size(self.small_crop_size, self.image_size)
        return super().settled(images).replaced(small_crop_size=size)


class Seed(Distillation):
    """The method: a student, a queue of the teacher's embeddings, and one for small crops where there are any.

    Small crops pass both networks at a resolution of their own. The loss is the mean over the large views, plus a
    weight times the mean over the small crops.
    """

    def __init__(
        self,
        settings: SeedSettings,
        student: "encoder.Encoder",
        frozen: "teacher.Teacher",
        queue: "queues.Queue",
        group: Group | None = None,
        *,
        small_queue: "queues.Queue | None" = None,
        teacher_bands: tuple[int, ...] | None = None,
        targets: Targets | None = None,
    ) -> None:
        super().__init__(student, frozen, group, teacher_bands=teacher_bands, targets=targets)
        self.settings = settings
        self.queue = queue
        self.small_queue = small_queue
        if self._compares_patches:
            self.module = patches.PatchEncoder(student)
        elif settings.large_crops + settings.small_crops > 1:
            self.module = crops.CropEncoder(student)

    @property
    def _compares_patches(self) -> bool:
        return self.settings.patch_affinity_weight > 0

    def views(self, image_size: int) -> tuple[View, ...]:
        """The large views, then the small crops."""
        settings, drawn = self.settings, augmentation(self.settings)
        large = (self.view(drawn, image_size),) * settings.large_crops
        if not settings.small_crops:
            return large
        low, high = settings.small_crop_scale
        sides = self._small_sides(image_size)
        return large + (self.view(replace(drawn, crop_scale=(low, high)), *sides),) * settings.small_crops

    def step(self, forward: Forward, views: "tuple[shapes.ImagesOfAnySize, ...]", step: int) -> StepOutput:
        """Both networks see the same views; the loss compares where they place them (paper, equations 1 to 4)."""
        del step
        settings, batch = self.settings, Views.of(views)
        teacher = self._targets(batch)  # first, while no activations are kept for the backward pass
        given = forward(*self._seen(batch))
        embeddings, cells = given if self._compares_patches else (given, None)
        student = embeddings.split([len(rows) for rows in teacher])
        terms = [
            objective.seed_terms(
                student[kind],
                teacher[kind],
                queue.rows(),
                student_temperature=settings.student_temperature,
                teacher_temperature=self._teacher_temperature,
            )
            for kind, queue in enumerate(self._queues())
        ]
        loss = terms[0].loss
        if len(terms) > 1:
            loss = loss + settings.small_crop_weight * terms[1].loss
        if cells is not None:
            loss = loss + settings.patch_affinity_weight * self._divergence(cells, batch)
        return StepOutput(loss, self._queued(teacher, len(batch[0])), terms[0].target_entropy)

    def _targets(self, batch: Views) -> "list[torch.Tensor]":
        """The teacher's rows of all large views [v·n, d], and of all small crops where there are any."""
        settings = self.settings
        kinds = [[self._rows(batch, place) for place in range(settings.large_crops)]]
        if settings.small_crops:
            _, side = self._small_sides(self.encoder.input.size)
            places = range(settings.large_crops, settings.large_crops + settings.small_crops)
            kinds.append([self.targets(batch, place, side) for place in places])
        return [rows[0] if len(rows) == 1 else torch.cat(rows) for rows in kinds]

    def _rows(self, batch: Views, place: int) -> "shapes.Embeddings":
        """The teacher's rows of a large view; those of the first come in one pass with the patches that are wanted."""
        if place > 0 or not self._compares_patches:
            return self.targets(batch, place)
        return self.targets.together(batch, 0, _TOGETHER)["rows"]

    def _seen(self, batch: Views) -> "list[shapes.ImagesOfAnySize]":
        """All views as the student expects them."""
        settings, expected = self.settings, self.encoder.input
        small = expected
        if settings.small_crops:
            small = replace(expected, size=self._small_sides(expected.size)[0])
        kinds = [expected] * settings.large_crops + [small] * settings.small_crops
        return [batch.seen(place, kind) for place, kind in enumerate(kinds)]

    def _queued(self, teacher: "Sequence[torch.Tensor]", images: int) -> "shapes.Embeddings":
        """What is to enter each queue, one after the other: the first view of its kind of each image."""
        return teacher[0][:images] if len(teacher) == 1 else torch.cat([rows[:images] for rows in teacher])

    def _small_sides(self, image_size: int) -> tuple[int, int]:
        """Sides of the small crops for student and teacher."""
        size = small_crop_size(self.settings.small_crop_size, image_size)
        return size, self.teacher_side(size, image_size)

    def _divergence(self, cells: "shapes.Patches", batch: Views) -> "shapes.Scalar":
        """How the places of each image relate for the student, and for the teacher (`objectives/affinity.py`)."""
        target = self.targets.together(batch, 0, _TOGETHER)["patches"]
        require_grid("teacher", self._teacher.spec, target.shape[1])
        return affinity.patch_affinity(cells, target, temperature=self.settings.patch_affinity_temperature)

    def _queues(self) -> "tuple[queues.Queue, ...]":
        """The queue of the large views, and that of the small crops."""
        return (self.queue,) if self.small_queue is None else (self.queue, self.small_queue)

    @property
    def _teacher_temperature(self) -> float:
        given = self.settings.teacher_temperature
        assert given != "auto", "calibrate chooses it"
        return given

    def calibrate(
        self,
        settings: TrainSettings,
        teacher_rows: "shapes.Embeddings | None",
        agree: Callable[[float], float],
    ) -> tuple[TrainSettings, str | None]:
        """Choose the teacher's temperature, if it is to be chosen."""
        given = self.settings
        if given.teacher_temperature != "auto":
            return settings, None
        if teacher_rows is None:
            remedy = (
                "is measured on held-out images, of which there are too few; give a number, or `val_data`"
            )
            raise InputError("auto", remedy, argument="teacher_temperature")
        perplexity, size = given.target_perplexity, self.queue.size
        if perplexity >= size + 1:
            remedy = (
                f"the queue has {size:,} rows; give a number below {size + 1:,}, or a larger `queue_size`"
            )
            raise InputError(perplexity, remedy, argument="target_perplexity")
        chosen = agree(objective.temperature_for(teacher_rows, perplexity, size))
        self.settings = replace(given, teacher_temperature=chosen)
        images = min(len(teacher_rows), objective.CALIBRATED_ON)
        note = (
            f"teacher temperature {chosen:g}: its target spreads over {perplexity:g} images on average "
            f"(measured on {images:,} held-out images)"
        )
        return settings.replaced(teacher_temperature=chosen), note

    @property
    def preview_images(self) -> int:
        """As many as the queue has rows, where it is to be filled."""
        return self.queue.size if self.settings.queue_warmup else 0

    def preview(self, views: "tuple[shapes.ImagesOfAnySize, ...]") -> None:
        """Push the teacher's rows."""
        batch = Views.of(views)
        rows = self._queued(self._targets(batch), len(batch[0]))
        self.advance([StepOutput(torch.zeros(()), rows)])

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Push the teacher's rows of all processes, so that every process holds the same queues."""
        kinds = self._queues()
        for output in outputs:
            assert output.rows is not None
            for queue, rows in zip(kinds, output.rows.chunk(len(kinds)), strict=True):
                queue.push(self.group.gather(rows))

    def teacher_queues(self) -> "tuple[queues.Queue, ...]":
        """All of them; rows that came with patches may differ from other students' in the last digits."""
        return () if self._compares_patches else self._queues()

    def state(self) -> Mapping[str, Any]:
        """The queues; the teacher is frozen and has no state."""
        return dict(zip(("", "small."), self._queues(), strict=False))

    def health(self, teacher_rows: "shapes.Embeddings") -> dict[str, float]:
        """Mean entropy of the teacher's target over the queue, in nats."""
        rows = self.queue.rows()
        entropy = objective.target_entropy(
            teacher_rows.to(rows.device), rows, teacher_temperature=self._teacher_temperature
        )
        return {"target_entropy": float(entropy.mean())}


def build(setup: Setup) -> Seed:
    """The method of a run.

    Raises:
        InputError: the network cannot take the small crops.
    """
    frozen, settings = setup.teacher, setup.settings
    assert frozen is not None
    bands = teacher_bands(settings, frozen.input)
    queue = setup.queue(frozen.dim)
    student = setup.encoder(frozen.dim)
    if settings.small_crops:
        require_small_crops(student, settings.small_crop_size, settings.NETWORK)
    if settings.patch_affinity_weight > 0:
        require_patches(settings, student, frozen)
    return Seed(
        settings,
        student,
        frozen,
        queue,
        setup.group,
        small_queue=setup.queue(frozen.dim) if settings.small_crops else None,
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
