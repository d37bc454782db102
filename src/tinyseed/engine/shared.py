"""What runs that train together have in common: the images, the teacher, the devices and the time."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from tinyseed.checkpoints.known import known_teacher
from tinyseed.data.loader import Plan, keep_freed_memory
from tinyseed.data.readers import BandReader
from tinyseed.data.split import sample
from tinyseed.engine.data import MEASURED_ON, RunData, measured, open_data
from tinyseed.engine.made_from import MadeFrom
from tinyseed.engine.runtime import Runtime, start, worker_count
from tinyseed.errors import InputError, argument
from tinyseed.methods.distillation import teacher_bands
from tinyseed.methods.views import FreshTargets, Targets
from tinyseed.models.spec import ModelSpec
from tinyseed.models.teacher import Teacher
from tinyseed.settings.train import DistillSettings, TrainSettings


@dataclass
class Cost:
    """The time that something done now and then takes, in this process, since the run was started or resumed.

    Attributes:
        total: seconds so far.
        last: seconds of the last time.
    """

    total: float = 0.0
    last: float = 0.0

    @contextmanager
    def counted(self) -> Generator[None, None, None]:
        """Count what is done in this context."""
        began = time.monotonic()
        yield
        self.last = time.monotonic() - began
        self.total += self.last

    def fits(self, share: float, seconds: float) -> bool:
        """Whether another time, as long as the last one, stays within this share of so many seconds."""
        return self.total + self.last <= share * seconds


@dataclass
class Clock:
    """The time of a run.

    Attributes:
        elapsed: seconds of training done, the same on all processes.
        began: when this process would have begun, had it never been interrupted.
        saved_at: when the last checkpoint was written.
        started: when this process began to train.
        evaluations, checkpoints: the time that they took.
    """

    elapsed: float = 0.0
    began: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)
    evaluations: Cost = field(default_factory=Cost)
    checkpoints: Cost = field(default_factory=Cost)

    def start(self) -> None:
        """Count from here."""
        self.started = time.monotonic()
        self.began = self.started - self.elapsed

    def allows(self, cost: Cost, share: float) -> bool:
        """Whether something may be done once more, given the share of this process' training time that it may take."""
        return cost.fits(share, time.monotonic() - self.started)

    @property
    def now(self) -> float:
        """Seconds of training done, by this process' clock."""
        return time.monotonic() - self.began

    def overdue(self, minutes: float) -> bool:
        """Whether the last checkpoint is older than this."""
        return time.monotonic() - self.saved_at > minutes * 60


@dataclass
class Shared:
    """What runs have in common whose settings of the data, the views and the teacher are the same.

    Attributes:
        settings: of any of the runs; only those that are the same for all are read here.
        plan: which images make which batch.
        teacher: the frozen teacher of methods that have one.
        targets: what it makes of the views, once for all students.
    """

    settings: TrainSettings
    runtime: Runtime
    data: RunData
    plan: Plan
    teacher: Teacher | None
    targets: Targets | None
    clock: Clock = field(default_factory=Clock)

    @property
    def workers(self) -> int:
        """Processes that decode images, per device."""
        on_this_machine = self.runtime.group.size // self.settings.nodes
        return worker_count(self.settings.workers, self.runtime.device.type == "cuda", on_this_machine)

    @cached_property
    def made_from(self) -> MadeFrom:
        """The images and the teacher, to be recognized when a run is resumed."""
        return MadeFrom.of(self.settings, self.data, self.teacher)

    @cached_property
    def measured_channels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training images; none where the reader has them.

        The same for all processes to the last bit.
        """
        settings, data = self.settings, self.data
        if not isinstance(data.reader, BandReader):
            return (), ()
        images = sample(data.training, MEASURED_ON, settings.seed, "channels")
        mean, std = measured(data.source, images, data.reader, settings.image_size, self.workers)
        both = self.runtime.largest([*mean, *std])
        return tuple(both[: len(mean)]), tuple(both[len(mean) :])


def open_shared(settings: TrainSettings) -> Shared:
    """Open data and teacher, and join or launch the processes.

    Raises:
        InputError: data, teacher or devices are not as the settings want.
    """
    keep_freed_memory()
    data = open_data(settings)
    teacher = open_teacher(settings) if isinstance(settings, DistillSettings) else None
    runtime = start(settings)
    plan = Plan(
        images=data.training,
        batch_size=settings.batch_size,
        seed=settings.seed,
        micro_batches=settings.accumulate,
        rank=runtime.group.rank,
        processes=runtime.group.size,
    )
    targets = None
    if teacher is not None:
        assert isinstance(settings, DistillSettings)
        targets = FreshTargets(teacher, teacher_bands(settings, teacher.input))
    return Shared(settings, runtime, data, plan, teacher, targets)


_OF_TEACHER = ("weights", "arch", "prefix", "output", "image_size", "mean", "std", "interpolation")
"""Fields of a model's specification that are settings of the teacher."""


def open_teacher(settings: DistillSettings) -> Teacher:
    """The frozen teacher of a run.

    Raises:
        InputError: there is no such teacher, or it cannot see the images as the settings want.
    """
    size = settings.teacher_image_size
    names = {name: f"teacher_{name}" for name in _OF_TEACHER}
    with argument("teacher", **names):
        teacher = known_teacher(
            ModelSpec(
                settings.teacher,
                weights=settings.teacher_weights,
                arch=settings.teacher_arch,
                prefix=settings.teacher_prefix,
                output=settings.teacher_output,
                small_stem=settings.small_stem and settings.teacher_weights == "random",
                image_size=settings.image_size if size == "auto" else size,
                mean=settings.teacher_mean,
                std=settings.teacher_std,
                interpolation=settings.teacher_interpolation,
                seed=settings.seed,
            )
        )
    expected = teacher.input
    if size not in ("auto", expected.size):
        remedy = f"it has to be a multiple of {expected.multiple}; give {expected.size}"
        if expected.fixed:
            remedy = f"this teacher takes images of {expected.size} px only; give that"
        raise InputError(size, remedy, argument="teacher_image_size")
    teacher_bands(settings, expected)  # refuses wrong ones before anything is measured
    return teacher
