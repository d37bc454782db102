"""The only training loop. Imports every room below.

Read `train` from top to bottom; a step is `train_step`: views → method.step (the loss) → optimizer → method.advance
(queue, momentum encoder). The loss of SEED is one hop further, in objectives/seed.py.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from tinyseed.data.addressed import uniforms
from tinyseed.data.loader import Plan, TrainingBatch, keep_freed_memory, training_batches
from tinyseed.data.render import render_view
from tinyseed.engine import checkpoint
from tinyseed.engine.build import (
    RunData,
    build_method,
    build_plan,
    build_schedule,
    build_teacher,
    build_views,
    open_data,
    settle,
)
from tinyseed.engine.config import RunConfig, as_json, check, title
from tinyseed.engine.finish import finish
from tinyseed.engine.lineage import lineage
from tinyseed.engine.optim import build_optimizer
from tinyseed.engine.progress import Display, Status, duration
from tinyseed.engine.quarantine import Quarantine
from tinyseed.engine.run_folder import Figures, RunFolder, open_run_folder
from tinyseed.engine.runtime import Runtime, start
from tinyseed.engine.schedule import Schedule
from tinyseed.engine.signals import Stopped, StopRequest, stop_request
from tinyseed.engine.watch import Watch
from tinyseed.errors import InputError, RunError
from tinyseed.methods.method import Forward, Method, StepOutput


@dataclass
class Window:
    """What has happened since the last line of metrics.jsonl."""

    losses: list[Tensor] = field(default_factory=list)
    entropy: Tensor | None = None
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)


@dataclass
class Run:
    """A run while it goes. What changes: step, elapsed, window and the latest k-NN; the rest is set up once."""

    config: RunConfig
    folder: RunFolder
    runtime: Runtime
    data: RunData
    plan: Plan
    schedule: Schedule
    method: Method
    forward: Forward
    optimizer: Optimizer
    quarantine: Quarantine
    watch: Watch
    display: Display
    step: int = 0
    elapsed: float = 0.0
    latest: Figures = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.plan.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether the schedule has ended."""
        return self.step >= self.schedule.total_steps(self.step, self.elapsed)


def train(config: RunConfig, *, quiet: bool = False) -> Figures:
    """Train as the settings say and leave a complete run folder.

    Returns:
        The figures of summary.json.

    Raises:
        InputError: settings, data or folders are wrong; nothing was trained.
        RunError: the run failed; its last checkpoint is whole.
        Stopped: asked to stop by a signal, after saving.
    """
    check(config)
    folder = open_run_folder(config)
    if folder.summary.exists():
        raise InputError("--resume", config.out, "this run is finished; give another --out to train again")
    data = open_data(config)
    with stop_request() as request:
        run = prepare(config, folder, data, quiet=quiet)
        with run.display:
            if run.step == 0:
                evaluate(run)
            loop(run, request)
            return finish_run(run)


def prepare(config: RunConfig, folder: RunFolder, data: RunData, *, quiet: bool) -> Run:
    """Set everything up; restore the last checkpoint of a resumed run."""
    keep_freed_memory()
    teacher = build_teacher(config)
    runtime = start(config)
    config = settle(config, folder, data, runtime)
    plan = build_plan(config, data, runtime)
    method = build_method(config, teacher, plan, runtime)
    method.to(runtime.device)
    if runtime.is_main:
        folder.make()
        folder.write_json(folder.config, as_json(config))
        if not folder.lineage.exists():
            folder.write_json(folder.lineage, lineage(config, data, teacher))
        folder.quarantine.touch()
    module = method.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    forward, optimizer = runtime.fabric.setup(module, build_optimizer(config, module))
    quarantine = Quarantine(folder, len(data.training), runtime.group.size)
    run = Run(
        config=config,
        folder=folder,
        runtime=runtime,
        data=data,
        plan=plan,
        schedule=build_schedule(config, plan),
        method=method,
        forward=forward,
        optimizer=optimizer,
        quarantine=quarantine,
        watch=Watch(config, data, runtime, quarantine, teacher),
        display=Display(title(config), quiet=quiet or not runtime.is_main),
    )
    if folder.checkpoint.exists():
        restore(run)
    elif runtime.is_main:
        folder.forget_after(-1)  # of a run that was killed before its first checkpoint
    runtime.barrier()
    return run


def loop(run: Run, request: StopRequest) -> None:
    """Steps until the schedule ends or a signal asks to stop."""
    views = build_views(run.config, run.data, run.method)
    assert run.config.workers != "auto", "settle() came first"
    on_gpu = run.runtime.device.type == "cuda"
    batches = training_batches(
        views, run.plan, first_step=run.step, workers=run.config.workers, pin_memory=on_gpu
    )
    began = time.monotonic() - run.elapsed
    run.window = Window()
    while not run.done:
        lr = run.schedule.lr(run.step, run.elapsed)
        train_step(run, batches, lr)
        run.step += 1
        epoch_ended = run.step % run.plan.steps_per_epoch == 0
        log_now = run.step % run.config.log_every == 0 or epoch_ended
        if log_now:
            log_window(run, lr)
        if epoch_ended and run.epoch % run.config.evaluate_every == 0 and not run.done:
            evaluate(run)
        number, save_due = 0, False
        if log_now or run.runtime.group.size == 1:
            number, save_due = agree(run, request, elapsed=time.monotonic() - began)
        if epoch_ended or save_due or number:
            save(run)
        if number:
            raise Stopped(number, f"stopped at step {run.step}, saved; go on with --resume")


def agree(run: Run, request: StopRequest, elapsed: float) -> tuple[int, bool]:
    """Set the time that the schedule goes by, and tell the signal to stop at, and whether a checkpoint is due.

    Clocks and signals differ between processes, steps and learning rates must not: the largest of each counts for all.
    """
    overdue = time.monotonic() - run.saved_at > run.config.checkpoint_minutes * 60
    number, run.elapsed, save_due = run.runtime.largest([float(request.number), elapsed, float(overdue)])
    return int(number), bool(save_due)


def train_step(run: Run, batches: Iterator[TrainingBatch], lr: float) -> None:
    """One step of the optimizer, then the method's change of state."""
    runtime, method = run.runtime, run.method
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    _address_dropout(run)
    outputs: list[StepOutput] = []
    for micro in range(run.config.accumulate):
        batch = _next_batch(run, batches)
        views = tuple(render_view(*pair) for pair in zip(batch.pixels, batch.draws, strict=True))
        unfinished = micro < run.config.accumulate - 1
        with unsynchronised(run, unfinished):
            with runtime.autocast():
                output = method.step(run.forward, views, run.step)
            runtime.fabric.backward(output.loss / run.config.accumulate)
        outputs.append(output)
    method.adjust_gradients(run.step)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    method.advance(outputs)
    run.window.losses.append(torch.stack([output.loss.detach() for output in outputs]).mean())
    run.window.entropy = outputs[-1].target_entropy


def unsynchronised(run: Run, unfinished: bool) -> AbstractContextManager[Any]:
    """Let DDP exchange gradients once a step: at its last micro-batch."""
    if run.runtime.group.size == 1 or not unfinished:
        return nullcontext()
    return run.runtime.fabric.no_backward_sync(run.forward)  # pyright: ignore[reportArgumentType]  (Fabric wrapped it)


def _next_batch(run: Run, batches: Iterator[TrainingBatch]) -> TrainingBatch:
    began = time.perf_counter()
    batch = next(batches)
    run.window.waited += time.perf_counter() - began
    run.quarantine.add(batch.bad)
    return batch.to(run.runtime.device)


def _address_dropout(run: Run) -> None:
    """Dropout and drop path take their numbers from (seed, step, process) too, so that a resumed run repeats them."""
    process = np.array([run.runtime.group.rank])
    draw = uniforms(run.config.seed, run.step, process, "dropout", 1)[0, 0]
    torch.manual_seed(int(draw * 2**53))


def log_window(run: Run, lr: float) -> None:
    """Write a line of metrics.jsonl and show it.

    Raises:
        RunError: the loss of a step since the last line was NaN or infinite.
    """
    window, run.window = run.window, Window()
    losses = torch.stack(window.losses)
    losses = run.runtime.group.gather(losses[None]).mean(0).tolist()
    refuse_non_finite(run, losses)
    seconds = time.perf_counter() - window.began
    figures = {
        "step": run.step,
        "epoch": run.epoch,
        "loss": losses[-1],
        "lr": lr,
        "images_per_s": len(losses) * run.config.batch_size / seconds,
        "data_wait": window.waited / seconds,
    }
    if window.entropy is not None:
        figures["batch_target_entropy"] = float(window.entropy)
    if run.runtime.is_main:
        run.folder.log(figures)
    run.display.update(status(run, figures), final=run.done)


def status(run: Run, figures: Figures) -> Status:
    """Where the run is, for people."""
    total = run.schedule.total_steps(run.step, run.elapsed)
    return Status(
        step=run.step,
        total_steps=total,
        epoch=run.epoch,
        loss=figures["loss"],
        images_per_s=figures["images_per_s"],
        data_wait=figures["data_wait"],
        seconds_left=run.elapsed / run.step * (total - run.step),
        knn_top1=run.latest.get("knn_top1"),
    )


def refuse_non_finite(run: Run, losses: list[float]) -> None:
    """Stop at the first loss that is no number.

    Raises:
        RunError: names the step; the last checkpoint, written before it, is untouched.
    """
    for place, loss in enumerate(losses):
        if not np.isfinite(loss):
            step = run.step - len(losses) + place + 1
            raise RunError(
                f"the loss became {loss} at step {step}; "
                f"{_last_checkpoint(run.folder.checkpoint)}; try a lower --lr or --precision 32"
            )


def _last_checkpoint(path: Path) -> str:
    return f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"


def evaluate(run: Run) -> None:
    """Measure the network on held-out images and log it; the first process does it for all."""
    if run.runtime.is_main:
        run.latest = run.watch.measure(run.method)
        run.folder.log({"step": run.step, "epoch": run.epoch, **run.latest})
        run.display.say(
            f"epoch {run.epoch}: {tell(run.latest)}" if run.latest else "too few held-out images to evaluate"
        )
    run.runtime.barrier()
    run.window = Window()


def tell(figures: Figures) -> str:
    """Evaluation figures in words."""
    parts = []
    if (top1 := figures.get("knn_top1")) is not None:
        teacher = figures.get("knn_top1_teacher")
        parts.append(f"k-NN {top1:.1f} %" + (f" (teacher {teacher:.1f} %)" if teacher is not None else ""))
    if (agreement := figures.get("neighbour_agreement")) is not None:
        parts.append(f"neighbour agreement {100 * float(agreement):.1f} %")
    parts.append(f"effective rank {figures['effective_rank']:.1f}")
    return ", ".join(parts)


def save(run: Run) -> None:
    """Write the checkpoint; a window of losses that holds no number comes first."""
    if run.window.losses:
        refuse_non_finite(run, torch.stack(run.window.losses).tolist())
    if run.runtime.is_main:
        content = checkpoint.Checkpoint(
            step=run.step,
            elapsed=run.elapsed,
            images=len(run.data.training),
            module=run.method.module.state_dict(),
            method=run.method.state_dict(),
            optimizer=run.optimizer.state_dict(),
            precision=run.runtime.plugin.state_dict(),
        )
        checkpoint.save(content, run.folder.checkpoint)
    run.saved_at = time.monotonic()
    run.runtime.barrier()


def restore(run: Run) -> None:
    """Continue where the last checkpoint was written.

    Raises:
        InputError: the data set is another one than the run began with.
    """
    last = checkpoint.load(run.folder.checkpoint)
    if last.images != len(run.data.training):
        raise InputError(
            "--data",
            ", ".join(run.config.data),
            f"has {len(run.data.training)} training images now and had {last.images} when the run began",
        )
    run.method.module.load_state_dict(last.module)
    run.method.load_state_dict(last.method)
    run.optimizer.load_state_dict(last.optimizer)
    run.runtime.plugin.load_state_dict(last.precision)
    run.step, run.elapsed = last.step, last.elapsed
    if run.runtime.is_main:
        run.folder.forget_after(run.step)
        run.display.say(
            f"resumed at step {run.step} (epoch {run.epoch}, {duration(run.elapsed)} of training)"
        )


def finish_run(run: Run) -> Figures:
    """Evaluate once more, save, and write what the run leaves."""
    evaluate(run)
    save(run)
    return finish(
        run.config,
        run.folder,
        run.method,
        run.runtime,
        step=run.step,
        elapsed=run.elapsed,
        bad=len(run.quarantine),
    )
