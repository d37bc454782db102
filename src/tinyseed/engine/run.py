"""A run: what it consists of, and how it starts, is evaluated, saved, resumed and finished."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
from tinyseed.engine.monitor import Monitor
from tinyseed.engine.optim import build_optimizer, scaled_lr
from tinyseed.engine.run_folder import Metrics, Quarantine, RunFolder
from tinyseed.engine.runtime import Runtime, share_statistics, start, worker_count
from tinyseed.engine.schedule import Schedule
from tinyseed.errors import InputError, argument
from tinyseed.files import write_json
from tinyseed.methods.base import Forward, Method, MethodSpec, Setup
from tinyseed.methods.catalog import spec_of
from tinyseed.methods.distillation import teacher_bands
from tinyseed.models.teacher import Teacher
from tinyseed.progress import Progress, duration
from tinyseed.report.page import write_report
from tinyseed.settings.train import DistillSettings, TrainSettings
from tinyseed.signals import StopRequest


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


@dataclass
class Clock:
    """The time of a run.

    Attributes:
        elapsed: seconds of training done, the same on all processes.
        began: when this process would have begun, had it never been interrupted.
        saved_at: when the last checkpoint was written.
    """

    elapsed: float = 0.0
    began: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Count from here."""
        self.began = time.monotonic() - self.elapsed

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
        step: optimizer steps done.
    """

    settings: TrainSettings
    folder: RunFolder
    runtime: Runtime
    data: RunData
    plan: Plan
    learner: Learner
    monitor: Monitor
    log: Log
    clock: Clock = field(default_factory=Clock)
    step: int = 0

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
        """Whether to evaluate after this step; at the end of the run `finish` does."""
        return self.epoch_ended and self.epoch % self.settings.evaluate_every == 0 and not self.done

    @property
    def views(self) -> TrainingViews:
        """How an image becomes the views that the method takes."""
        wanted = self.method.views(self.settings.image_size)
        data = self.data
        return TrainingViews(data.source, wanted, self.settings.seed, data.training, data.reader)

    def batches(self) -> Iterator[TrainingBatch]:
        """This process' batches from the current step on, on its device; waiting for them is timed."""
        on_gpu = self.runtime.device.type == "cuda"
        workers = worker_count(self.settings.workers, on_gpu)
        loaded = training_batches(
            self.views, self.plan, first_step=self.step, workers=workers, pin_memory=on_gpu
        )
        self.clock.start()
        self.log.restart()
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
        if self.runtime.is_main:
            self.folder.log(metrics)
        total = self.total_steps
        seconds_left = self.clock.elapsed / self.step * (total - self.step)
        self.log.show(metrics, total, seconds_left, final=self.done)

    def evaluate(self) -> None:
        """Evaluate the network on held-out images and log it; the first process does it for all."""
        if self.runtime.is_main:
            metrics = self.monitor.measure(self.method)
            self.folder.log({"step": self.step, "epoch": self.epoch, **metrics})
            self.log.evaluated(self.epoch, metrics)
        self.runtime.barrier()
        self.log.restart()

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
        """Write the checkpoint; losses that have not been logged yet are looked at first.

        Raises:
            RunError: a loss is not finite, or the checkpoint cannot be written.
        """
        self.log.require_finite(self.step)
        if self.runtime.is_main:
            content = checkpoint.Checkpoint(
                step=self.step,
                elapsed=self.clock.elapsed,
                images=len(self.data.training),
                module=self.method.module.state_dict(),
                method=self.method.state_dict(),
                optimizer=self.learner.optimizer.state_dict(),
                precision=self.runtime.plugin.state_dict(),
            )
            checkpoint.save(content, self.folder.checkpoint)
        self.clock.saved_at = time.monotonic()
        self.runtime.barrier()

    def restore(self) -> None:
        """Continue where the last checkpoint was written.

        Raises:
            InputError: the checkpoint is broken, or the data set is another one than the run began with.
        """
        with argument("resume"):
            last = checkpoint.load(self.folder.checkpoint)
        if last.images != len(self.data.training):
            remedy = f"has {len(self.data.training)} training images; the run began with {last.images}"
            raise InputError(", ".join(self.settings.data), remedy, argument="data")
        self.method.module.load_state_dict(last.module)
        self.method.load_state_dict(last.method)
        self.learner.optimizer.load_state_dict(last.optimizer)
        self.runtime.plugin.load_state_dict(last.precision)
        self.step, self.clock.elapsed = last.step, last.elapsed
        if self.runtime.is_main:
            self.folder.forget_after(self.step)
            trained = f"epoch {self.epoch}, {duration(last.elapsed)} of training"
            self.log.progress.say(f"resumed at step {self.step} ({trained})")

    def finish(self) -> Metrics:
        """Evaluate once more, save, and write the model, summary.json and report.html; returns the summary."""
        self.evaluate()
        self.save()
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
        logged = list(self.folder.logged())
        evaluations = [line for line in logged if "loss" not in line]
        losses = [line["loss"] for line in logged if "loss" in line]
        minutes = round(self.clock.elapsed / 60, 2)
        summary: Metrics = {"command": spec.command, "steps": self.step, "minutes": minutes}
        if evaluations:
            first, last = evaluations[0], evaluations[-1]
            summary |= {"epochs": last["epoch"]}
            summary |= {name: value for name, value in last.items() if name not in {"step", "epoch"}}
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

    Raises:
        InputError: data, teacher or settings are wrong.
    """
    keep_freed_memory()
    data, spec = open_data(settings), spec_of(settings)
    teacher = open_teacher(settings) if isinstance(settings, DistillSettings) else None
    runtime = start(settings)
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
    if runtime.is_main:
        write_beginning(settings, folder, data, teacher)
    learner = build_learner(settings, method, plan, runtime)
    with Progress(quiet=quiet or not runtime.is_main) as progress:
        progress.say(f"{spec.label}: {settings.networks}")
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
        )
        if folder.checkpoint.exists():
            run.restore()
        elif runtime.is_main:
            folder.forget_after(-1)  # of a run that was killed before its first checkpoint
        runtime.barrier()
        yield run


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
    """Write what is known before the first step: config.json, lineage.json, an empty quarantine.jsonl."""
    folder.make()
    write_json(folder.config, {"command": spec_of(settings).command, **settings.as_json()})
    if not folder.lineage.exists():
        write_json(folder.lineage, lineage(settings, data, teacher))
    folder.quarantine.touch()


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
    )
    return Learner(method, forward, optimizer, schedule)
