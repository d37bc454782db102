"""The training loop.

Read `train_together`, then `train_step`: views → method.step (the loss) → optimizer → method.advance (queue, momentum
encoder). What a run consists of, and how it starts, saves and ends, is in run.py; what several runs of one pass over
the data share, and how one fails without the others, in shared.py and runs.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyseed.data.addressed import uniforms
from tinyseed.data.loader import TrainingBatch
from tinyseed.engine.optim import clip_gradients
from tinyseed.engine.processes import connected
from tinyseed.engine.rendering import rendered
from tinyseed.engine.run import Run
from tinyseed.engine.run_folder import Metrics, open_run_folder
from tinyseed.engine.runs import open_runs
from tinyseed.engine.students import Index
from tinyseed.errors import RunError, argument
from tinyseed.locks import refuse_held
from tinyseed.methods.base import StepOutput
from tinyseed.methods.views import Views
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
    (outcome,) = train_together({"": settings}, quiet=quiet).values()
    if isinstance(outcome, RunError):
        raise outcome
    return outcome


def train_students(
    settings: Mapping[str, TrainSettings], *, quiet: bool = False
) -> dict[str, Metrics | RunError]:
    """Train several students with one teacher, or one with several settings, in folders beside each other.

    Args:
        settings: of each run by its name, as `settings.several.several` makes them.
        quiet: whether to show no progress.

    Returns:
        As `train_together`; runs that were finished before are not trained again.

    Raises:
        InputError: settings, data or folders are wrong; nothing was trained.
        RunError: all runs failed for the same reason; their last checkpoints are intact.
        Stopped: a signal asked to stop; the runs were saved.
    """
    index = Index(settings)
    with argument("out"):
        refuse_held(index.out)
    index.look()
    finished = index.finished()
    remaining = {name: of_run for name, of_run in settings.items() if name not in finished}
    outcomes = finished | train_together(remaining, index, quiet=quiet)
    return {name: outcomes[name] for name in settings}


def train_together(
    settings: Mapping[str, TrainSettings], index: Index | None = None, *, quiet: bool = False
) -> dict[str, Metrics | RunError]:
    """Train runs on the same views of the same images; each is what it would be alone, and leaves its own folder.

    Args:
        settings: of each run by its name; they differ only in what a student has for itself.
        index: of their common folder, where there are several.
        quiet: whether to show no progress.

    Returns:
        The metrics of each run's summary.json, or what has ended it before; its last checkpoint is then intact.

    Raises:
        InputError: settings, data or folders are wrong; nothing was trained.
        RunError: all runs failed for the same reason; their last checkpoints are intact.
        Stopped: a signal asked to stop; the runs were saved.
    """
    for of_run in settings.values():
        of_run.check()
        with argument("out"):
            refuse_held(of_run.out)
        open_run_folder(of_run)
    with connected(), open_runs(settings, index, quiet=quiet) as runs, stop_request() as request:
        runs.evaluate([run for run in runs.all if run.evaluation_missing], request)
        runs.preview()
        with closing(runs.batches()) as batches:
            while going := runs.next(request):
                for run, outputs in zip(going, train_step(going, batches), strict=True):
                    run.took(outputs)
                runs.write_logs(going)
                runs.evaluate([run for run in going if run.going and run.evaluation_due], request)
                stop, save_due = runs.agree(going, request)
                if stop:
                    runs.save_and_stop(stop)
                runs.save([run for run in going if save_due or run.checkpoint_due])
    return {name: run.outcome for name, run in zip(settings, runs.all, strict=True)}


def train_step(runs: Sequence[Run], batches: Iterator[TrainingBatch]) -> list[list[StepOutput]]:
    """One step of each run's optimizer, then the methods' changes of state.

    The views of a micro-batch are rendered once; each run has done its backward pass before the next one begins, so
    that the activations of one student are kept at a time.

    Returns:
        The output of each micro-batch, for each run.
    """
    micro_batches = runs[0].settings.accumulate
    steps = [Step(run, []) for run in runs]
    for micro in range(micro_batches):
        views = rendered(next(batches))
        for step in steps:
            step.forward_backward(views, last=micro == micro_batches - 1)
    for step in steps:
        step.update()
    for step in steps:  # all have read the queue that they may have in common
        step.advance()
    return [step.outputs for step in steps]


@dataclass
class Step:
    """A run's part of a step.

    Attributes:
        outputs: of the micro-batches so far.
        chance: the states of the random generators after them, for dropout.
    """

    run: Run
    outputs: list[StepOutput]
    chance: list[Tensor] | None = None

    def forward_backward(self, views: Views, *, last: bool) -> None:
        """Add the gradients of a micro-batch."""
        run, micro_batches = self.run, self.run.settings.accumulate
        if self.chance is None:
            seed_dropout(run)
        else:
            restore_chance(self.chance, run.runtime.device)
        with unsynchronized(run, last=last):
            with run.runtime.autocast():
                output = run.method.step(run.learner.forward, views, run.step)
            run.runtime.fabric.backward(output.loss / micro_batches)
        if not last:  # other runs draw from the same generators before the next micro-batch
            self.chance = chance(run.runtime.device)
        self.outputs.append(output)

    def update(self) -> None:
        """Step with the optimizer."""
        run, optimizer = self.run, self.run.learner.optimizer
        for group in optimizer.param_groups:
            group["lr"] = run.lr
        run.method.adjust_gradients(run.step)
        if run.settings.clip_gradients is not None:
            run.runtime.unscale(optimizer)
            clip_gradients(run.method.module, run.settings.clip_gradients)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def advance(self) -> None:
        """Update what follows the trained weights: the method's state, and their average."""
        run = self.run
        run.method.advance(self.outputs)
        if run.learner.average is not None:
            run.learner.average.update(run.step)


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


def chance(device: torch.device) -> list[Tensor]:
    """The states of the random generators that networks draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore_chance(states: Sequence[Tensor], device: torch.device) -> None:
    """Let the random generators go on from earlier states."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
