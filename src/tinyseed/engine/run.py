"""A run: what it consists of, and how it starts, is evaluated, saved, resumed and finished."""

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from tinyseed.checkpoints.load import load_teacher
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.data.loader import Plan, TrainingBatch, TrainingViews, keep_freed_memory, training_batches
from tinyseed.data.readers import BandReader
from tinyseed.data.split import sample
from tinyseed.engine import checkpoint
from tinyseed.engine.data import MEASURED_ON, RunData, measured, open_data
from tinyseed.engine.lineage import lineage
from tinyseed.engine.log import Log
from tinyseed.engine.made_from import MadeFrom
from tinyseed.engine.monitor import Monitor
from tinyseed.engine.optim import build_optimizer, restore_optimizer, scaled_lr
from tinyseed.engine.run_folder import Metrics, Quarantine, RunFolder, finite, open_run_folder
from tinyseed.engine.runtime import Runtime, share_statistics, start, worker_count
from tinyseed.engine.schedule import Schedule
from tinyseed.errors import InputError, RunError, argument, first_line
from tinyseed.files import flush, sweep, write_json, write_text
from tinyseed.finite import first_non_finite
from tinyseed.locks import Lock, locked
from tinyseed.methods.base import Forward, Method, MethodSpec, Setup
from tinyseed.methods.catalog import spec_of
from tinyseed.methods.distillation import teacher_bands
from tinyseed.models.teacher import Teacher
from tinyseed.progress import Progress, duration
from tinyseed.report.page import write_report
from tinyseed.settings.train import DistillSettings, TrainSettings
from tinyseed.signals import Stopped, StopRequest


@dataclass(frozen=True)
class Learner:
    """What is trained, and what trains it.

    Attributes:
        forward: the method's module as Fabric wrapped it (mixed precision, DDP).
    """

    method: Method
    forward: Forward
    optimizer: Optimizer
    schedule: Schedule


EVALUATION_SHARE, CHECKPOINT_SHARE = 0.05, 0.02
"""Most of the training time that evaluations (`evaluate_every` "auto") and checkpoints after epochs take."""


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
class Run:
    """A run in progress: `step` and `clock` advance, the rest is set up once.

    Attributes:
        settings: complete; nothing in them is "auto".
        lock: on the folder; the first process has it for all.
        made_from: the images and the teacher, to be recognized when the run is resumed.
        step: optimizer steps done.
        evaluations: on the first process, the lines of metrics.jsonl that evaluations wrote.
    """

    settings: TrainSettings
    folder: RunFolder
    runtime: Runtime
    data: RunData
    plan: Plan
    learner: Learner
    monitor: Monitor
    log: Log
    lock: Lock | None
    made_from: MadeFrom
    clock: Clock = field(default_factory=Clock)
    step: int = 0
    evaluations: list[Metrics] = field(default_factory=list)

    @property
    def method(self) -> Method:
        """What is trained."""
        return self.learner.method

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.plan.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether the schedule has ended."""
        return self.step >= self.total_steps

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as far as they are known."""
        return self.learner.schedule.total_steps(self.step, self.clock.elapsed)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.learner.schedule.lr(self.step, self.clock.elapsed)

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was the last of an epoch."""
        return self.step % self.plan.steps_per_epoch == 0

    @property
    def log_due(self) -> bool:
        """Whether a line of metrics.jsonl is to be written after this step."""
        return self.step % self.settings.log_every == 0 or self.epoch_ended

    @property
    def evaluation_due(self) -> bool:
        """Whether to evaluate after this step, the same for all processes; at the end of the run `finish` does."""
        if not self.epoch_ended or self.done:
            return False
        every = self.settings.evaluate_every
        if every != "auto":
            return self.epoch % every == 0
        return self._agreed(self.clock.allows(self.clock.evaluations, EVALUATION_SHARE))

    @property
    def checkpoint_due(self) -> bool:
        """Whether to save after this step because an epoch ended; at the end of the run `finish` does."""
        if not self.epoch_ended or self.done:
            return False
        return self._agreed(self.clock.allows(self.clock.checkpoints, CHECKPOINT_SHARE))

    def _agreed(self, here: bool) -> bool:
        """Whether something is so for one of the processes; their clocks differ."""
        return any(self.runtime.largest([float(here)]))

    @property
    def views(self) -> TrainingViews:
        """How an image becomes the views that the method takes."""
        wanted = self.method.views(self.settings.image_size)
        data = self.data
        return TrainingViews(data.source, wanted, self.settings.seed, data.training, data.reader)

    def batches(self) -> Generator[TrainingBatch, None, None]:
        """This process' batches from the current step on, on its device; waiting for them is timed."""
        on_gpu = self.runtime.device.type == "cuda"
        workers = worker_count(self.settings.workers, on_gpu)
        loaded = training_batches(
            self.views, self.plan, first_step=self.step, workers=workers, pin_memory=on_gpu
        )
        self.clock.start()
        self.log.restart()
        with closing(loaded):
            while True:
                began = time.perf_counter()
                batch = next(loaded)
                self.log.waited += time.perf_counter() - began
                self.log.quarantine.add(batch.bad)
                yield batch.to(self.runtime.device)

    def write_log(self, lr: float) -> None:
        """Write a line of metrics.jsonl and show it.

        Raises:
            RunError: the loss of a step since the last line was NaN or infinite.
        """
        window = self.log.window(self.step, self.settings.batch_size)
        metrics = {"step": self.step, "epoch": self.epoch, "lr": lr, **window}
        self.require_folder()
        if self.runtime.is_main:
            self.folder.log(metrics)
        total = self.total_steps
        seconds_left = self.clock.elapsed / self.step * (total - self.step)
        self.log.show(metrics, total, seconds_left, final=self.done)

    @property
    def evaluation_missing(self) -> bool:
        """Whether the evaluation after the last step is still to be done: before the first one, or after a stop."""
        if self.step > 0 and (self.settings.evaluate_every == "auto" or not self.evaluation_due):
            return False
        return self.runtime.largest([float(self._evaluated)]) == [0]

    @property
    def _evaluated(self) -> bool:
        """Whether the network was evaluated after the last step; the first process knows."""
        return any(line["step"] == self.step for line in self.evaluations)

    def evaluate(self, request: StopRequest) -> None:
        """Evaluate the network on held-out images and log it, once per step; the first process does it for all.

        Raises:
            RunError: a weight is not finite.
            Stopped: a signal asked to stop, and the run was saved; the evaluation is done when it is resumed.
        """
        self.require_finite()
        self.require_folder()
        if self.runtime.is_main and not self._evaluated:
            metrics: Metrics | None = None
            with self.clock.evaluations.counted(), suppress(Stopped), request.at_once():
                metrics = self.monitor.measure(self.method)
            if metrics is not None:
                line = finite({"step": self.step, "epoch": self.epoch, **metrics})
                self.folder.log(line)
                self.evaluations.append(line)
                self.log.evaluated(self.epoch, metrics)
        self.runtime.barrier()
        (number,) = self.runtime.largest([float(request.number)])
        if number:
            self.save_and_stop(int(number))
        self.log.restart()

    def state(self) -> dict[str, Any]:
        """State dicts of all that changes in training, by their names in a checkpoint."""
        return {
            "module": self.method.module.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "precision": self.runtime.plugin.state_dict(),
        }

    def require_finite(self) -> None:
        """Look at the losses that have not been logged yet, and at all state: a loss is older than its step's update.

        Raises:
            RunError: on all processes, if something is not finite on one of them.
        """
        self.log.require_finite(self.step)
        broken = first_non_finite(self.state())
        if any(self.runtime.largest([float(broken is not None)])):
            what = broken or "the state of another process"
            raise RunError(f"{what} is not finite after step {self.step}; {self.log.way_out()}")

    def require_folder(self) -> None:
        """Look whether the folder is still this run's, so that nothing is written elsewhere.

        Raises:
            RunError: it was removed or replaced.
        """
        if self.lock is not None:
            self.lock.require()

    def agree(self, request: StopRequest) -> tuple[int, bool]:
        """Agree with the other processes on the time, the signal to stop at, and whether a checkpoint is due.

        Clocks and signals differ between processes, steps and learning rates must not: the largest of each counts for
        all. Several processes agree only where a line of the log is due.

        Returns:
            The number of the signal, 0 for none; and whether a checkpoint is due.
        """
        if not self.log_due and self.runtime.group.size > 1:
            return 0, False
        overdue = self.clock.overdue(self.settings.checkpoint_minutes)
        here = [float(request.number), self.clock.now, float(overdue)]
        number, self.clock.elapsed, due = self.runtime.largest(here)
        return int(number), bool(due)

    def save(self) -> None:
        """Write the checkpoint, after the lines of metrics.jsonl that it continues.

        Raises:
            RunError: a loss or a weight is not finite, or the checkpoint cannot be written.
        """
        self.require_finite()
        self.require_folder()
        if self.runtime.is_main:
            content = checkpoint.Checkpoint(
                step=self.step,
                elapsed=self.clock.elapsed,
                images=len(self.data.training),
                evaluations=self.evaluations,
                made_from=self.made_from.as_json(),
                **self.state(),
            )
            with self.clock.checkpoints.counted():
                flush(self.folder.metrics)
                checkpoint.save(content, self.folder.checkpoint)
        self.clock.saved_at = time.monotonic()
        self.runtime.barrier()

    def save_and_stop(self, number: int) -> NoReturn:
        """Save, since this signal asks to stop.

        Raises:
            Stopped: always.
        """
        self.save()
        message = f"stopped at step {self.step} and saved; resume with `resume`"
        raise Stopped(number, message if self.runtime.is_main else "")

    def restore(self) -> None:
        """Continue where the last checkpoint was written.

        Raises:
            InputError: the checkpoint is broken, or images or teacher are others than the run began with.
        """
        with argument("resume"):
            last = checkpoint.load(self.folder.checkpoint)
        if last.images != len(self.data.training):
            remedy = f"has {len(self.data.training)} training images; the run began with {last.images}"
            raise InputError(", ".join(self.settings.data), remedy, argument="data")
        self.made_from.require(last.made_from, self.settings, self.data)
        try:
            self.method.module.load_state_dict(last.module)
            self.method.load_state_dict(last.method)
            restore_optimizer(self.learner.optimizer, last.optimizer)
            self.runtime.plugin.load_state_dict(last.precision)
        except Exception as error:  # of an edited file, or of another version of a network's library
            remedy = (
                f"does not fit the run's networks ({first_line(error)}); give another `out` to train anew"
            )
            raise InputError(self.folder.checkpoint, remedy, argument="resume") from error
        broken = first_non_finite(self.state())
        if broken is not None:  # an earlier version of tinyseed did not look
            remedy = f"{broken} is not finite; give another `out` and a lower `lr` to train anew"
            raise InputError(self.folder.checkpoint, remedy, argument="resume")
        self.step, self.clock.elapsed = last.step, last.elapsed
        if self.runtime.is_main:
            self.evaluations = self.folder.forget_after(self.step, last.evaluations)
            trained = f"epoch {self.epoch}, {duration(last.elapsed)} of training"
            self.log.progress.say(f"resumed at step {self.step} ({trained})")

    def finish(self, request: StopRequest) -> Metrics:
        """Evaluate once more, save, and write the model, summary.json and report.html; returns the summary."""
        self.evaluate(request)
        self.save()
        self.require_folder()
        spec, encoder = spec_of(self.settings), self.method.encoder
        summary = self._summary(spec)
        if self.runtime.is_main:
            save_encoder(self.folder.path, encoder, file=spec.model_file, metadata={"method": spec.command})
            write_json(self.folder.summary, summary)
            write_report(self.folder.path)
        self.runtime.barrier()
        return summary

    def _summary(self, spec: MethodSpec) -> Metrics:
        """The last evaluation beside the one before the first step (random init), and what the run took."""
        evaluations = self.evaluations
        losses = [line["loss"] for line in self.folder.logged() if "loss" in line]
        minutes = round(self.clock.elapsed / 60, 2)
        summary: Metrics = {"command": spec.command, "steps": self.step, "minutes": minutes}
        if evaluations:
            first, last = evaluations[0], evaluations[-1]
            summary |= {"epochs": last["epoch"]} if "epoch" in last else {}
            summary |= {name: value for name, value in last.items() if name not in {"step", "epoch"}}
            if first["step"] == 0:
                untrained = ("knn_top1", "neighbour_agreement", "effective_rank")
                summary |= {f"{name}_random": first[name] for name in untrained if name in first}
        if losses:
            summary["loss"] = losses[-1]
        summary["parameters"] = sum(
            parameter.numel() for parameter in self.method.encoder.backbone.parameters()
        )
        if self.method.teacher is not None:
            summary["parameters_teacher"] = self.method.teacher.parameters_count
        summary["unreadable_images"] = len(self.log.quarantine)
        return summary


@contextmanager
def open_run(settings: TrainSettings, folder: RunFolder, *, quiet: bool) -> Iterator[Run]:
    """Set a run up, or restore it from its last checkpoint; its progress is shown until the context is left.

    Nothing is written to the folder before all of the run is known to be right.

    Raises:
        InputError: data, teacher or settings are wrong, or another process has the folder.
    """
    keep_freed_memory()
    data, spec = open_data(settings), spec_of(settings)
    teacher = open_teacher(settings) if isinstance(settings, DistillSettings) else None
    runtime = start(settings)
    quiet = quiet or not runtime.is_main
    with claimed(settings, runtime) as lock, Progress(quiet=quiet) as progress:
        settings = settle(settings, folder, data, runtime)
        plan = Plan(
            images=data.training,
            batch_size=settings.batch_size,
            seed=settings.seed,
            micro_batches=settings.accumulate,
            rank=runtime.group.rank,
            processes=runtime.group.size,
        )
        method = spec.build(Setup(settings, teacher, runtime.group, plan.steps_per_epoch))
        learner = build_learner(settings, method, plan, runtime)
        progress.say(f"{spec.label}: {settings.networks}")
        for note in data.notes:
            progress.say(note)
        progress.begin("step")
        quarantine = Quarantine(folder, len(data.training), runtime.group.size)
        run = Run(
            settings=settings,
            folder=folder,
            runtime=runtime,
            data=data,
            plan=plan,
            learner=learner,
            monitor=Monitor(settings, data, runtime, quarantine, teacher),
            log=Log(folder, runtime.group, progress, quarantine),
            lock=lock,
            made_from=MadeFrom.of(settings, data, teacher),
        )
        if run.monitor.note is not None:
            progress.say(run.monitor.note)
        resumed = folder.checkpoint.exists()
        if resumed:
            run.restore()
        if runtime.is_main:
            write_beginning(settings, folder, data, teacher)
            if not resumed:
                folder.forget_after(-1)  # of a run that was killed before its first checkpoint
        runtime.barrier()
        quarantine.begin()
        yield run


@contextmanager
def claimed(settings: TrainSettings, runtime: Runtime) -> Iterator[Lock | None]:
    """The run's folder, held by the first process for all of them.

    Raises:
        InputError: on all processes, if another run has the folder or has meanwhile written to it.
    """
    refused, lock = None, None
    with ExitStack() as held:
        if runtime.is_main:
            try:
                with argument("out"):
                    lock = held.enter_context(locked(settings.out))
                open_run_folder(settings)  # another run may have ended while data and teacher were loaded
                sweep(settings.out / "checkpoints")
            except (InputError, RunError) as error:
                refused = error
        if any(runtime.largest([float(refused is not None)])):
            raise refused or RunError("the first process could not take the folder; see its message")
        yield lock


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
        teacher = load_teacher(
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
    expected = teacher.input
    if size not in ("auto", expected.size):
        remedy = f"it has to be a multiple of {expected.multiple}; give {expected.size}"
        if expected.fixed:
            remedy = f"this teacher takes images of {expected.size} px only; give that"
        raise InputError(size, remedy, argument="teacher_image_size")
    teacher_bands(settings, expected)  # refuses wrong ones before anything is measured
    return teacher


def settle(settings: TrainSettings, folder: RunFolder, data: RunData, runtime: Runtime) -> TrainSettings:
    """Replace each "auto" by what it comes to; a resumed run keeps what it began with."""
    workers = worker_count(settings.workers, runtime.device.type == "cuda")
    mean, std = settings.channel_mean, settings.channel_std
    if isinstance(data.reader, BandReader) and not mean:
        mean, std = (tuple(folder.settled(name) or ()) for name in ("channel_mean", "channel_std"))
        if not mean:
            images = sample(data.training, MEASURED_ON, settings.seed, "channels")
            mean, std = measured(data.source, images, data.reader, settings.image_size, workers)
            both = runtime.largest([*mean, *std])  # the same for all processes to the last bit
            mean, std = tuple(both[: len(mean)]), tuple(both[len(mean) :])
    settled = settings.replaced(
        channel_mean=mean, channel_std=std, precision=runtime.precision, workers=workers
    )
    before = folder.settled("queue_size")
    if getattr(settings, "queue_size", None) == "auto" and before is not None:
        settled = settled.replaced(queue_size=before)
    return settled.settled(len(data.training))


def write_beginning(
    settings: TrainSettings, folder: RunFolder, data: RunData, teacher: Teacher | None
) -> None:
    """Write what is known before the first step: config.json, lineage.json, an empty quarantine.jsonl.

    Raises:
        RunError: a file cannot be written.
    """
    write_json(folder.config, {"command": spec_of(settings).command, **settings.as_json()})
    if not folder.lineage.exists():
        write_json(folder.lineage, lineage(settings, data, teacher))
    if not folder.quarantine.exists():
        write_text(folder.quarantine, "")


def _warmup_start(settings: TrainSettings) -> float | None:
    """Learning rate at the first step of the warm-up; see `Schedule.start`."""
    if settings.warmup_lr is not None:
        return scaled_lr(settings, settings.warmup_lr)
    return settings.lr if settings.schedule == "cosine-epoch" else None


def build_learner(settings: TrainSettings, method: Method, plan: Plan, runtime: Runtime) -> Learner:
    """Move a method to the device; Fabric wraps its module (mixed precision, DDP) and its optimizer."""
    spec = spec_of(settings)
    if spec.sync_batch_norm:
        share_statistics(method.module, runtime)
    method.to(runtime.device)
    module: nn.Module = method.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = build_optimizer(settings, module, fused=spec.fused_sgd)
    forward, optimizer = runtime.fabric.setup(module, optimizer)
    schedule = Schedule(
        peak=scaled_lr(settings, settings.lr),
        steps_per_epoch=plan.steps_per_epoch,
        epochs=settings.epochs,
        warmup_epochs=None if settings.warmup_epochs == "auto" else settings.warmup_epochs,
        max_minutes=settings.max_minutes,
        final=scaled_lr(settings, settings.final_lr),
        shape=settings.schedule,
        auto_warmup_epochs=spec.warmup_epochs,
        start=_warmup_start(settings),
    )
    return Learner(method, forward, optimizer, schedule)
