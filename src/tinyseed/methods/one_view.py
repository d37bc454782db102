"""Methods for which student and teacher look at one view of each image, and the queue that some of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinyseed.data.augmentation import View
from tinyseed.methods.base import Forward, Setup, StepOutput
from tinyseed.methods.distillation import Distillation, augmentation, teacher_bands
from tinyseed.methods.parts import queues, shapes
from tinyseed.methods.views import Views
from tinyseed.settings.base import QUEUE_SIZES
from tinyseed.settings.train import DistillSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class QueueSettings(DistillSettings):
    """Settings of methods with a queue."""

    queue_size: int | Literal["auto"] = "auto"
    """Rows in the queue; auto: the largest power of two up to half the data set, at most 65,536."""

    MOST_ROWS: ClassVar[int] = 65_536
    """Largest queue that "auto" chooses."""

    OWN: ClassVar = frozenset({"queue_size"})
    RANGES: ClassVar = {"queue_size": QUEUE_SIZES}

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the queue's size chosen for this number of images."""
        if self.queue_size != "auto":
            return self
        return self.replaced(queue_size=min(self.MOST_ROWS, queues.auto_queue_size(images)))


class OneView(Distillation):
    """A student that looks at the same view of each image as its teacher.

    Args:
        setup: what the method is built from.
        dim: of the student's head; None: the teacher's.

    Attributes:
        settings: of the method.
    """

    def __init__(self, setup: Setup, dim: int | None = None) -> None:
        frozen, settings = setup.teacher, setup.settings
        assert frozen is not None
        super().__init__(
            setup.encoder(dim or frozen.dim),
            frozen,
            setup.group,
            teacher_bands=teacher_bands(settings, frozen.input),
            targets=setup.targets,
        )
        self.settings = settings

    def views(self, image_size: int) -> tuple[View, ...]:
        """One."""
        return (self.view(augmentation(self.settings), image_size),)

    def both(self, forward: Forward, views: "tuple[shapes.Images, ...]") -> "tuple[Any, shapes.Embeddings]":
        """What the student's module gives for the view, and the teacher's unit rows [n, d] of it."""
        batch = Views.of(views)
        teacher = self.targets(batch)  # first, while no activations are kept for the backward pass
        return forward(batch.seen(0, self.encoder.input)), teacher


class OneViewAndQueue(OneView):
    """The same with a queue, into which the teacher's rows of each step go.

    Attributes:
        queue: the teacher's rows of earlier images.
    """

    def __init__(self, setup: Setup, dim: int | None = None) -> None:
        super().__init__(setup, dim)
        self.queue = setup.queue(self._teacher.dim)

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Push the teacher's rows of all processes, so that every process holds the same queue."""
        for output in outputs:
            assert output.rows is not None
            self.queue.push(self.group.gather(output.rows))

    def teacher_queues(self) -> "tuple[queues.Queue, ...]":
        """The queue."""
        return (self.queue,)

    def state(self) -> Mapping[str, Any]:
        """The queue."""
        return {"queue.": self.queue}
