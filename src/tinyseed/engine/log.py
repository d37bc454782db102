"""The log of a run: losses and timings collected step by step, written as lines of metrics.jsonl, shown as progress."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinyseed.engine.run_folder import Metrics, Quarantine, RunFolder
from tinyseed.errors import RunError
from tinyseed.methods.base import Group, StepOutput
from tinyseed.progress import Progress, duration


class DivergedError(RunError):
    """A loss or a weight is not finite. Raised on all processes of a run."""


class Log:
    """What has happened since the last line of metrics.jsonl.

    Attributes:
        progress: what is shown on the error stream.
        quarantine: images that could not be read.
        name: of the run among those that train together; empty where it trains alone.
        latest: the metrics of the last evaluation.
        written: the last line of metrics.jsonl about steps.
        waited: seconds spent waiting for data.
    """

    def __init__(
        self, folder: RunFolder, group: Group, progress: Progress, quarantine: Quarantine, *, name: str = ""
    ) -> None:
        self.name = name
        self.folder = folder
        self.group = group
        self.progress = progress
        self.quarantine = quarantine
        self.latest: Metrics = {}
        self.written: Metrics = {}
        self.restart()

    def restart(self) -> None:
        """Begin a new window of steps."""
        self.losses: list[Tensor] = []
        self.entropy: Tensor | None = None
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, outputs: Sequence[StepOutput]) -> None:
        """Note a step; its loss stays on the device until the window is written."""
        self.losses.append(torch.stack([output.loss.detach() for output in outputs]).mean())
        self.entropy = outputs[-1].target_entropy

    def window(self, step: int, batch_size: int) -> Metrics:
        """The metrics of the steps since the last call, up to `step`; a new window begins.

        Raises:
            DivergedError: a loss was NaN or infinite.
        """
        losses = self.group.gather(torch.stack(self.losses)[None]).mean(0).tolist()
        self._refuse_non_finite(step, losses)
        seconds = time.perf_counter() - self.began
        metrics = {
            "loss": losses[-1],
            "images_per_s": len(losses) * batch_size / seconds,
            "data_wait": self.waited / seconds,
        }
        if self.entropy is not None:
            metrics["batch_target_entropy"] = float(self.entropy)
        self.restart()
        return metrics

    def require_finite(self, step: int) -> None:
        """Look at the losses that have not been written yet.

        Raises:
            DivergedError: one is NaN or infinite.
        """
        if self.losses:  # of all processes, so that they end together
            losses = self.group.gather(torch.stack(self.losses)[None]).mean(0).tolist()
            self._refuse_non_finite(step, losses)

    def _refuse_non_finite(self, step: int, losses: Sequence[float]) -> None:
        """Stop at the first loss that is not finite, and name its step."""
        for place, loss in enumerate(losses):
            if not np.isfinite(loss):
                first = step - len(losses) + place + 1
                raise DivergedError(f"the loss became {loss} at step {first}; {self.way_out()}")

    def way_out(self) -> str:
        """What to do after a number that is not finite."""
        path = self.folder.checkpoint
        advice = "try a lower `lr` or `precision` 32 in another `out`"
        if not path.exists():
            return f"there is no checkpoint yet; {advice}"
        return f"the last good checkpoint is {path}: `resume` goes on from it; if that ends in the same way, {advice}"

    def say(self, line: str) -> None:
        """Print a line about this run that stays."""
        self.progress.say(f"{self.name}: {line}" if self.name else line)

    def evaluated(self, epoch: int, metrics: Metrics) -> None:
        """Show the metrics of an evaluation."""
        self.latest = metrics
        summary = f"epoch {epoch}: {describe(metrics)}" if metrics else "too few held-out images to evaluate"
        self.say(summary)


SHOWN = 4
"""Runs whose losses are shown one by one; of more, the range."""


def show(logs: Sequence[Log], total_steps: int, seconds_left: float, *, final: bool) -> None:
    """Show the last lines of the log as progress, in 80 columns; wait is the fraction of time spent waiting for data.

    Args:
        logs: of the runs that train together, at the same step.
        total_steps: of the longest of them.
        seconds_left: until it ends.
        final: whether it has ended.
    """
    lines = [log.written for log in logs]
    known = [log.latest["knn_top1"] for log in logs if log.latest.get("knn_top1") is not None]
    knn = f"  k-NN {_numbers(known, 1)} %" if known else ""
    text = (
        f"epoch {lines[0]['epoch']}  loss {_numbers([line['loss'] for line in lines], 3)}"
        f"  {lines[0]['images_per_s']:,.0f} img/s"
        f"  wait {lines[0]['data_wait']:.0%}{knn}  {duration(seconds_left)} left"
    )
    logs[0].progress.update(lines[0]["step"], total_steps, text, final=final)


def _numbers(values: Sequence[float], digits: int) -> str:
    """One number for each run, or their range.

    >>> _numbers([1.0], 1), _numbers([1, 2, 3], 1), _numbers([1, 2, 3, 4, 5], 1)
    ('1.0', '1.0 2.0 3.0', '1.0–5.0')
    """
    if len(values) > SHOWN:
        return f"{min(values):.{digits}f}–{max(values):.{digits}f}"
    return " ".join(f"{value:.{digits}f}" for value in values)


def describe(metrics: Metrics) -> str:
    """The metrics of an evaluation in words."""
    parts = []
    if (top1 := metrics.get("knn_top1")) is not None:
        teacher = metrics.get("knn_top1_teacher")
        parts.append(f"k-NN {top1:.1f} %" + (f" (teacher {teacher:.1f} %)" if teacher is not None else ""))
    if (agreement := metrics.get("neighbour_agreement")) is not None:
        parts.append(f"neighbor agreement {100 * float(agreement):.1f} %")
    parts.append(f"effective rank {metrics['effective_rank']:.1f}")
    return ", ".join(parts)
