"""The training loop.

Read `train`, then `train_step`: views → method.step (the loss) → optimizer → method.advance (queue, momentum encoder).
What a run consists of, and how it starts, saves and ends, is in run.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import numpy as np
import torch

from tinyseed.data.addressed import uniforms
from tinyseed.data.loader import TrainingBatch
from tinyseed.data.render import render_view
from tinyseed.engine.processes import connected
from tinyseed.engine.run import Run, open_run
from tinyseed.engine.run_folder import Metrics, open_run_folder
from tinyseed.errors import argument
from tinyseed.locks import refuse_held
from tinyseed.methods.base import StepOutput
from tinyseed.settings.train import TrainSettings
from tinyseed.signals import stop_request


def train(settings: TrainSettings, *, quiet: bool = False) -> Metrics:
    """Train as the settings say and leave a complete run folder.

    Returns:
        The metrics of summary.json.

    Raises:
        InputError: settings, data or folders are wrong; nothing was trained.
        RunError: the run failed; its last checkpoint is intact.
        Stopped: a signal asked to stop; the run was saved.
    """
    settings.check()
    with argument("out"):
        refuse_held(settings.out)
    folder = open_run_folder(settings)
    with connected(), open_run(settings, folder, quiet=quiet) as run, stop_request() as request:
        if run.evaluation_missing:
            run.evaluate(request)
        with closing(run.batches()) as batches:
            while not run.done:
                lr = run.lr
                run.log.add(train_step(run, batches, lr))
                run.step += 1
                if run.log_due:
                    run.write_log(lr)
                if run.evaluation_due:
                    run.evaluate(request)
                stop, save_due = run.agree(request)
                if stop:
                    run.save_and_stop(stop)
                if save_due or run.checkpoint_due:
                    run.save()
        return run.finish(request)


def train_step(run: Run, batches: Iterator[TrainingBatch], lr: float) -> list[StepOutput]:
    """One step of the optimizer, then the method's change of state; returns the output of each micro-batch."""
    method, optimizer, micro_batches = run.method, run.learner.optimizer, run.settings.accumulate
    for group in optimizer.param_groups:
        group["lr"] = lr
    seed_dropout(run)
    outputs: list[StepOutput] = []
    for micro in range(micro_batches):
        batch = next(batches)
        views = tuple(render_view(*pair) for pair in zip(batch.pixels, batch.draws, strict=True))
        with unsynchronized(run, last=micro == micro_batches - 1):
            with run.runtime.autocast():
                output = method.step(run.learner.forward, views, run.step)
            run.runtime.fabric.backward(output.loss / micro_batches)
        outputs.append(output)
    method.adjust_gradients(run.step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.advance(outputs)
    return outputs


def unsynchronized(run: Run, *, last: bool) -> AbstractContextManager[Any]:
    """Let DDP exchange gradients once per step: in its last micro-batch."""
    if run.runtime.group.size == 1 or last:
        return nullcontext()
    return run.runtime.fabric.no_backward_sync(run.learner.forward)  # pyright: ignore[reportArgumentType]  (Fabric wrapped it)


def seed_dropout(run: Run) -> None:
    """Dropout and drop path depend on (seed, step, process) too, so that a resumed run repeats them."""
    process = np.array([run.runtime.group.rank])
    draw = uniforms(run.settings.seed, run.step, process, "dropout", 1)[0, 0]
    torch.manual_seed(int(draw * 2**53))
