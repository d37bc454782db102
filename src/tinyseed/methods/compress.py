"""CompRess: the student keeps a queue of its own, and ranks the images there as the teacher ranks them in its queue.

So the student needs no head onto the teacher's dimension.

Source: Abbasi Koohpayegani, Tejankar & Pirsiavash, CompRess: Self-Supervised Learning by Compressing Representations,
NeurIPS 2020 (arXiv 2010.14713), sections 3 (CompRess-2q) and 3.1 (CompRess-1q).
Differs: the student's queue is filled with its own vectors; the published runs fill it from a copy of the student that
follows it with momentum 0.999, which takes a second forward pass (their train_student_without_momentum.py does not).
So a large learning rate outdates the queue: with the default, or less, the student learns. Queues begin empty, not with
random rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinyseed.errors import InputError
from tinyseed.memory import require_memory
from tinyseed.methods.base import Forward, MethodSpec, Setup, StepOutput
from tinyseed.methods.one_view import OneViewAndQueue, QueueSettings
from tinyseed.methods.parts import compress as objective
from tinyseed.methods.parts import queues, shapes, torch
from tinyseed.settings.base import LARGEST, Range


@dataclass(frozen=True, kw_only=True)
class CompressSettings(QueueSettings):
    """`tinyseed distill --method compress`; the defaults are CompRess-2q's."""

    lr: float = 0.01
    student_temperature: float = 0.04
    """Temperature of the student's similarities."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's similarities."""
    student_queue: bool = True
    """Compare the student with its own vectors of other images (CompRess-2q); otherwise with the teacher's, onto whose
    dimension its head then maps (CompRess-1q)."""
    projector: Literal["none", "mlp", "mlp-bn", "mlp-bn-3", "linear"] = "none"
    """The student's head onto the teacher's dimension; none: its features are what is compared."""

    OWN: ClassVar = frozenset({"student_temperature", "teacher_temperature", "student_queue", "projector"})
    RANGES: ClassVar = {
        "student_temperature": Range(0, LARGEST, above=True),
        "teacher_temperature": Range(0, LARGEST, above=True),
    }


class Compress(OneViewAndQueue):
    """The method: a student, and a queue of the vectors of each network.

    Attributes:
        student_queue: the student's rows of the images in the teacher's queue; None: the teacher's serve both.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.student_queue: queues.Queue | None = None
        width, dim, size = self.encoder.dim, self._teacher.dim, self.queue.size
        if self.settings.student_queue:
            require_memory(4 * size * (width + dim), size, "queue_size")
            self.student_queue = queues.Queue(size, width)
        elif width != dim:
            remedy = (
                f"the student has {width} dimensions, the teacher {dim}; give linear or mlp, or leave out "
                "`student_queue`"
            )
            raise InputError(self.settings.projector, remedy, argument="projector")

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """Both networks' similarities of the same view to the images of the queues (paper, equations 1 and 2)."""
        del step
        student, teacher = self.both(forward, views)
        rows = self.queue.rows()
        terms = objective.compress_terms(
            student,
            teacher,
            rows if self.student_queue is None else self.student_queue.rows(),
            rows,
            student_temperature=self.settings.student_temperature,
            teacher_temperature=self.settings.teacher_temperature,
        )
        both = teacher if self.student_queue is None else torch.cat([teacher, student.detach()], 1)
        return StepOutput(terms.loss, both, terms.target_entropy)

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Push the rows of all processes, each image's at the same place of both queues."""
        for output in outputs:
            assert output.rows is not None
            gathered = self.group.gather(output.rows)
            self.queue.push(gathered[:, : self.queue.dim])
            if self.student_queue is not None:
                self.student_queue.push(gathered[:, self.queue.dim :])

    def state(self) -> Mapping[str, Any]:
        """The queues."""
        own = {} if self.student_queue is None else {"student_queue.": self.student_queue}
        return {**super().state(), **own}


COMPRESS = MethodSpec(
    name="compress",
    label="CompRess",
    about="CompRess: the student ranks the images of its own queue as the teacher ranks them in another",
    settings=CompressSettings,
    build=Compress,
    collapse_hint="A lower `lr`, which keeps the student's queue up to date, or another temperature",
    loss_note="Divergence from the teacher's similarities: 0 where they are the same. It rises while the queues fill.",
)
