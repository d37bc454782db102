"""SEED: a student learns where a frozen teacher places an image among a queue of others.

Source: Fang et al., SEED: Self-supervised Distillation for Visual Representation, ICLR 2021 (arXiv 2101.04731).
Imports objectives, models and data; never another method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.methods.method import Alone, Forward, Group, StepOutput, prepared
from tinyseed.models.encoder import Encoder
from tinyseed.models.teacher import Teacher
from tinyseed.objectives.queue import Queue
from tinyseed.objectives.seed import seed_terms
from tinyseed.shapes import Images


@dataclass(frozen=True, kw_only=True)
class SeedConfig:
    """SEED's settings; defaults are the paper's (section 4.1)."""

    queue_size: int | Literal["auto"] = "auto"
    """Rows in the queue; auto: the largest power of two up to half the data set, at most 65,536."""
    student_temperature: float = 0.2
    """Temperature of the student's similarities."""
    teacher_temperature: float = 0.01
    """Temperature of the teacher's similarities; smaller is closer to InfoNCE."""
    projector: Literal["mlp", "linear"] = "mlp"
    """The student's head onto the teacher's dimension."""
    projector_hidden: int | Literal["auto"] = "auto"
    """Width of the MLP's hidden layer; auto: the trunk's width."""
    blur_probability: float = 0.5
    """Share of the views that are blurred; 0 suits images of 32 px."""


class Seed:
    """The method: student and queue. The teacher is a function that it calls, never a part of it.

    `teacher_bands` are the channels of a view that the teacher sees, from 0; None: all of them.
    """

    def __init__(
        self,
        config: SeedConfig,
        student: Encoder,
        teacher: Teacher,
        queue: Queue,
        group: Group | None = None,
        *,
        teacher_bands: tuple[int, ...] | None = None,
    ) -> None:
        self.config = config
        self.module = self.encoder = student
        self.teacher = teacher
        self.queue = queue
        self.group = group or Alone()
        own, its = student.input, teacher.input
        self.teacher_bands = teacher_bands
        alike = (own.mean, own.std, own.size) == (its.mean, its.std, its.size)
        self._seen_alike = alike and teacher_bands is None

    def views(self, image_size: int) -> tuple[View, ...]:
        """One, at the higher of the two networks' resolutions."""
        settings = ViewSettings(blur_probability=self.config.blur_probability)
        return (View(settings, max(image_size, self.teacher.input.size)),)

    def step(self, forward: Forward, views: tuple[Images, ...], step: int) -> StepOutput:
        """Both networks see the same view; the loss compares where they place it (paper, equations 1 to 4).

        Each sees it at its own resolution and normalised as it expects; of images of other bands than red, green and
        blue the teacher sees those that it is given as such.
        """
        del step
        (view,) = views
        images = prepared(view, self.encoder.input)
        student = forward(images)
        teacher = self.teacher(images if self._seen_alike else self._for_teacher(view))
        terms = seed_terms(
            student,
            teacher,
            self.queue.rows(),
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.config.teacher_temperature,
        )
        return StepOutput(terms.loss, teacher, terms.target_entropy)

    def _for_teacher(self, view: Images) -> Float[Tensor, "n _ _ _"]:
        seen = view if self.teacher_bands is None else view[:, list(self.teacher_bands)]
        return prepared(seen, self.teacher.input)

    def adjust_gradients(self, step: int) -> None:
        """Nothing to change."""

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Push the teacher's rows of all processes: each process then holds the same queue."""
        for output in outputs:
            assert output.rows is not None
            self.queue.push(self.group.gather(output.rows))

    def to(self, device: torch.device) -> None:
        """Move teacher and queue."""
        self.teacher.to(device).channels_last()
        self.queue.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """The queue's state; the teacher is frozen and has none."""
        return self.queue.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the queue."""
        self.queue.load_state_dict(state)
