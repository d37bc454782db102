"""A run: what it consists of, and how it starts, is evaluated, saved, resumed and finished."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tinyseed.checkpoints.saved import save_encoder
from tinyseed.data.loader import Plan
from tinyseed.data.split import sample
from tinyseed.engine import checkpoint
from tinyseed.engine.averaging import Average
from tinyseed.engine.data import RunData
from tinyseed.engine.lineage import lineage
from tinyseed.engine.log import DivergedError, Log
from tinyseed.engine.monitor import Monitor
from tinyseed.engine.optim import build_optimizer, restore_optimizer, scaled_lr
from tinyseed.engine.run_folder import Metrics, RunFolder, finite
from tinyseed.engine.runtime import Runtime, share_statistics
from tinyseed.engine.schedule import Schedule
from tinyseed.engine.shared import Clock, Shared
from tinyseed.engine.teacher_engine import agreement_of, engine_of
from tinyseed.errors import InputError, RunError, argument, first_line
from tinyseed.files import flush, sweep, write_json, write_text
from tinyseed.finite import first_non_finite
from tinyseed.locks import Lock, locked
from tinyseed.methods.base import Forward, Method, MethodSpec, Setup, StepOutput
from tinyseed.methods.catalog import spec_of
from tinyseed.methods.distillation import teacher_bands
from tinyseed.models.encoder import Encoder
from tinyseed.models.teacher import Teacher
from tinyseed.progress import duration
from tinyseed.report.page import write_report
from tinyseed.settings.train import DistillSettings, TrainSettings
from tinyseed.shapes import Embeddings
from tinyseed.signals import Stopped, StopRequest


@dataclass(frozen=True)
class Learner:
    """What is trained, and what trains it.

    Attributes:
        forward: the method's module as Fabric wrapped it (mixed precision, DDP).
        average: the moving average of the encoder, where the settings have one.
    """

    method: Method
    forward: Forward
    optimizer: Optimizer
    schedule: Schedule
    average: Average | None = None

    @property
    def encoder(self) -> Encoder:
        """What is evaluated and saved."""
        return self.method.encoder if self.average is None else self.average.encoder


EVALUATION_SHARE, CHECKPOINT_SHARE = 0.05, 0.02
"""Most of the training time that evaluations (`evaluate_every` "auto") and checkpoints after epochs take."""


@dataclass(eq=False)
class Run:
    """A run in progress: `step` advances, the rest is set up once. It trains alone, or together with others.

    Attributes:
        settings: complete; nothing in them is "auto".
        shared: what it has in common with the runs that train together with it.
        lock: on the folder; the first process has it for all.
        step: optimizer steps done.
        evaluations: on the first process, the lines of metrics.jsonl that evaluations wrote.
        error: what has ended it before its time.
        summary: what is in summary.json, once it is finished.
    """

    settings: TrainSettings
    shared: Shared
    learner: Learner
    monitor: Monitor
    log: Log
    lock: Lock | None
    step: int = 0
    evaluations: list[Metrics] = field(default_factory=list)
    error: RunError | None = None
    summary: Metrics | None = None

    @property
    def folder(self) -> RunFolder:
        """Its files."""
        return self.log.folder

    @property
    def runtime(self) -> Runtime:
        """Where it computes."""
        return self.shared.runtime

    @property
    def data(self) -> RunData:
        """Its images."""
        return self.shared.data

    @property
    def plan(self) -> Plan:
        """Which images make which batch."""
        return self.shared.plan

    @property
    def clock(self) -> Clock:
        """Its time."""
        return self.shared.clock

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
    def going(self) -> bool:
        """Whether it has neither failed nor been finished."""
        return self.error is None and self.summary is None

    @property
    def outcome(self) -> Metrics | RunError:
        """How it ended."""
        if self.error is not None:
            return self.error
        assert self.summary is not None
        return self.summary

    def took(self, outputs: Sequence[StepOutput]) -> None:
        """Count a step of the optimizer."""
        self.log.add(outputs)
        self.step += 1

    def write_log(self) -> None:
        """Write a line of metrics.jsonl.

        Raises:
            DivergedError: the loss of a step since the last line was NaN or infinite.
            RunError: the line cannot be written.
        """
        window = self.log.window(self.step, self.settings.batch_size)
        lr = self.learner.optimizer.param_groups[0]["lr"]
        metrics = {"step": self.step, "epoch": self.epoch, "lr": lr, **window}
        self.require_folder()
        if self.runtime.is_main:
            self.folder.log(metrics)
        self.log.written = metrics

    @property
    def seconds_left(self) -> float:
        """How long the run will still take at the pace so far."""
        return self.clock.elapsed / self.step * (self.total_steps - self.step)

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

        A signal that asks to stop interrupts it; the evaluation is then done when the run is resumed.

        Raises:
            DivergedError: a weight is not finite.
        """
        self.require_finite()
        self.require_folder()
        if self.runtime.is_main and not self._evaluated:
            metrics: Metrics | None = None
            with self.clock.evaluations.counted(), suppress(Stopped), request.at_once():
                untrained = self.step == 0
                metrics = self.monitor.measure(self.method, self.learner.encoder, untrained=untrained)
            if metrics is not None:
                line = finite({"step": self.step, "epoch": self.epoch, **metrics})
                self.folder.log(line)
                self.evaluations.append(line)
                self.log.evaluated(self.epoch, metrics)
        self.runtime.barrier()

    def state(self) -> dict[str, Any]:
        """State dicts of all that changes in training, by their names in a checkpoint."""
        average = self.learner.average
        return {
            "average": {} if average is None else average.encoder.state_dict(),
            "module": self.method.module.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "precision": self.runtime.plugin.state_dict(),
        }

    def require_finite(self) -> None:
        """Look at the losses that have not been logged yet, and at all state: a loss is older than its step's update.

        Raises:
            DivergedError: on all processes, if something is not finite on one of them.
        """
        self.log.require_finite(self.step)
        broken = first_non_finite(self.state())
        if any(self.runtime.largest([float(broken is not None)])):
            what = broken or "the state of another process"
            raise DivergedError(f"{what} is not finite after step {self.step}; {self.log.way_out()}")

    def require_folder(self) -> None:
        """Look whether the folder is still this run's, so that nothing is written elsewhere.

        Raises:
            RunError: it was removed or replaced.
        """
        if self.lock is not None:
            self.lock.require()

    def save(self) -> None:
        """Write the checkpoint, after the lines of metrics.jsonl that it continues.

        Raises:
            DivergedError: a loss or a weight is not finite.
            RunError: the checkpoint cannot be written.
        """
        self.require_finite()
        self.require_folder()
        if self.runtime.is_main:
            content = checkpoint.Checkpoint(
                step=self.step,
                elapsed=self.clock.elapsed,
                images=len(self.data.training),
                evaluations=self.evaluations,
                made_from=self.shared.made_from.as_json(),
                **self.state(),
            )
            with self.clock.checkpoints.counted():
                flush(self.folder.metrics)
                checkpoint.save(content, self.folder.checkpoint)
        self.clock.saved_at = time.monotonic()
        self.runtime.barrier()

    def restore(self) -> float:
        """Continue where the last checkpoint was written; returns the seconds of training done until then.

        Raises:
            InputError: the checkpoint is broken, or images or teacher are others than the run began with.
        """
        with argument("resume"):
            last = checkpoint.load(self.folder.checkpoint)
        if last.images != len(self.data.training):
            remedy = f"has {len(self.data.training)} training images; the run began with {last.images}"
            raise InputError(", ".join(self.settings.data), remedy, argument="data")
        self.shared.made_from.require(last.made_from, self.settings, self.data)
        try:
            self.method.module.load_state_dict(last.module)
            self.method.load_state_dict(last.method)
            if self.learner.average is not None:
                self.learner.average.encoder.load_state_dict(last.average)
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
        self.step = last.step
        if self.runtime.is_main:
            self.evaluations = self.folder.forget_after(self.step, last.evaluations)
            trained = f"epoch {self.epoch}, {duration(last.elapsed)} of training"
            self.log.say(f"resumed at step {self.step} ({trained})")
        return last.elapsed

    def prepare(self) -> None:
        """Let the method of a new run look at what the teacher gives for training images.

        Raises:
            InputError: as the method.
        """
        teacher = self.method.teacher
        if teacher is not None and not self.folder.checkpoint.exists():
            self.method.prepare(lambda at_most: self._teacher_rows(teacher, at_most))

    def _teacher_rows(self, teacher: Teacher, at_most: int) -> Embeddings:
        assert isinstance(self.settings, DistillSettings)
        chosen = sample(self.data.training, at_most, self.settings.seed, "prepared")
        self.log.say(f"the teacher looks at {len(chosen):,} training images first")
        return self.monitor.teacher_rows(teacher, teacher_bands(self.settings, teacher.input), chosen)

    def begin(self) -> None:
        """Write what is known before the first step: config.json, lineage.json, an empty quarantine.jsonl.

        Raises:
            RunError: a file cannot be written.
        """
        if self.runtime.is_main:
            folder, settings = self.folder, self.settings
            write_json(folder.config, {"command": spec_of(settings).command, **settings.as_json()})
            if not folder.lineage.exists():
                began_with = None if self.step else self.method.encoder.backbone
                write_json(folder.lineage, lineage(settings, self.data, self.shared.teacher, began_with))
            if not folder.quarantine.exists():
                write_text(folder.quarantine, "")
            if not folder.checkpoint.exists():
                folder.forget_after(-1)  # of a run that was killed before its first checkpoint
        self.runtime.barrier()
        self.log.quarantine.begin()

    def finish(self) -> None:
        """Save, and write the model, summary.json and report.html; the last evaluation has been done."""
        self.save()
        self.require_folder()
        spec, encoder = spec_of(self.settings), self.learner.encoder
        summary = self._summary(spec)
        if self.runtime.is_main:
            described = {"method": spec.command} | (
                {"ema": str(self.settings.ema)} if self.settings.ema else {}
            )
            save_encoder(self.folder.path, encoder, file=spec.model_file, metadata=described)
            write_json(self.folder.summary, summary)
            write_report(self.folder.path)
        self.runtime.barrier()
        self.summary = summary

    def _summary(self, spec: MethodSpec) -> Metrics:
        """The last evaluation beside the one before the first step (of random or initial weights), and its cost."""
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
                began = "random" if self.settings.initial_weights is None else "initial"
                summary |= {f"{name}_{began}": first[name] for name in untrained if name in first}
        if self.settings.ema:
            summary["ema"] = self.settings.ema
        if losses:
            summary["loss"] = losses[-1]
        summary["parameters"] = sum(
            parameter.numel() for parameter in self.method.encoder.backbone.parameters()
        )
        if self.method.teacher is not None:
            summary["parameters_teacher"] = self.method.teacher.parameters_count
            summary |= agreement_of(self.method.teacher)
        summary["unreadable_images"] = len(self.log.quarantine)
        return summary


@contextmanager
def claimed(out: Path, runtime: Runtime, look: Callable[[], object]) -> Iterator[Lock | None]:
    """A folder, held by the first process for all of them.

    Args:
        out: the folder.
        runtime: the processes.
        look: refuses the folder where it is not as it should be.

    Raises:
        InputError: on all processes, if another run has the folder or has meanwhile written to it.
    """
    refused, lock = None, None
    with ExitStack() as held:
        if runtime.is_main:
            try:
                with argument("out"):
                    lock = held.enter_context(locked(out))
                look()  # another run may have ended while data and teacher were loaded
                sweep(out / "checkpoints")
            except (InputError, RunError) as error:
                refused = error
        if any(runtime.largest([float(refused is not None)])):
            raise refused or RunError("the first process could not take the folder; see its message")
        yield lock


def settle(settings: TrainSettings, folder: RunFolder, shared: Shared) -> TrainSettings:
    """Replace each "auto" by what it comes to; a resumed run keeps what it began with."""
    mean, std = settings.channel_mean, settings.channel_std
    if not mean:
        mean, std = (tuple(folder.settled(name) or ()) for name in ("channel_mean", "channel_std"))
        if not mean:
            mean, std = shared.measured_channels
    settled = settings.replaced(
        channel_mean=mean,
        channel_std=std,
        precision=shared.runtime.precision,
        workers=shared.workers,
        threads=torch.get_num_threads(),
    )
    for name in ("queue_size", "teacher_temperature"):
        before = folder.settled(name)
        if getattr(settings, name, None) == "auto" and before is not None:
            settled = settled.replaced(**{name: before})
    if isinstance(settled, DistillSettings):
        engine = engine_of(settled, folder)
        settled = settled.replaced(view_seed=settled.views_seed, teacher_engine=engine)
    return settled.settled(len(shared.data.training))


def _warmup_start(settings: TrainSettings) -> float | None:
    """Learning rate at the first step of the warm-up; see `Schedule.start`."""
    if settings.warmup_lr is not None:
        return scaled_lr(settings, settings.warmup_lr)
    return settings.lr if settings.schedule == "cosine-epoch" else None


def build_learner(settings: TrainSettings, shared: Shared) -> Learner:
    """Build a method on the device; Fabric wraps its module (mixed precision, DDP) and its optimizer.

    Raises:
        InputError: the settings name no network, or do not fit it.
    """
    spec, runtime, plan = spec_of(settings), shared.runtime, shared.plan
    setup = Setup(
        settings,
        shared.teacher,
        targets=shared.targets,
        group=runtime.group,
        steps_per_epoch=plan.steps_per_epoch,
        resumed=RunFolder(settings.out).checkpoint.exists(),
    )
    method = spec.build(setup)
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
    average = Average(method.encoder, settings.ema) if settings.ema else None  # of weights on their device
    return Learner(method, forward, optimizer, schedule, average)
