"""Learning rate schedules, and how long a run is."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Shape = Literal["cosine", "step"]

DROPS = (0.6, 0.8)
"""Fractions of a run after which the "step" schedule divides by ten: epochs 120 and 160 of 200 in MoCo v1."""

DETECTOR_DROPS = (Fraction(2, 3), Fraction(8, 9))
"""Shares of a detector's training at which its learning rate falls tenfold, as in Detectron's schedules."""

_DETECTOR_WARMUP = 1_000


def learning_rate(
    progress: float, warmup: float, peak: float, final: float = 0.0, shape: Shape = "cosine"
) -> float:
    """Linear warm-up, then a half cosine down to `final`, or division by ten at each of `DROPS`.

    Args:
        progress: fraction of the run that is done, 0 to 1.
        warmup: fraction of the run that warms up, 0 to 1.
        peak: learning rate at the end of the warm-up.
        final: learning rate at the end of the cosine.
        shape: "cosine", or "step".

    Source: Loshchilov & Hutter, SGDR, ICLR 2017 (arXiv 1608.03983), one cycle; SEED section 4.1. "step": MoCo (arXiv
    1911.05722), section 4.

    >>> [learning_rate(p, 0.0, 1.0, shape="step") for p in (0.59, 0.6, 0.8)]
    [1.0, 0.1, 0.01]
    >>> [round(learning_rate(p, 0.1, 1.0), 3) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return peak * progress / warmup
    match shape:
        case "step":
            return peak / 10 ** sum(progress >= drop for drop in DROPS)
        case "cosine":
            return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def detector_rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of a detector's step: linear warm-up over 1,000 steps or a tenth of the run, then tenfold drops.

    Args:
        step: from 0; the first step is already above zero.
        steps: of the whole training.
        peak: learning rate after the warm-up.

    >>> [round(detector_rate(step, 900, 0.02), 5) for step in (0, 89, 599, 600, 800)]
    [0.00022, 0.02, 0.02, 0.002, 0.0002]
    """
    warmup = max(1, min(_DETECTOR_WARMUP, steps // 10))
    drops = sum(step >= steps * drop for drop in DETECTOR_DROPS)
    return peak * min(1.0, (step + 1) / warmup) * 0.1**drops


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run, which lasts for epochs, or for minutes where `max_minutes` is set.

    Attributes:
        peak: learning rate after the warm-up, scaled to the batch.
        warmup_epochs: a number, or None for `auto_warmup_epochs`, but at most a tenth of the run.
        final: learning rate at the end of a cosine, scaled likewise.
        shape: "cosine" and "step" change the learning rate at each step (see `learning_rate`); "cosine-epoch" at each
            epoch (see `_by_epoch`).
        start: learning rate at the first step or epoch of the warm-up, scaled likewise; None: as if it had begun at 0
            one step before the first, or for "cosine-epoch" no warm-up.
    """

    peak: float
    steps_per_epoch: int
    epochs: int
    warmup_epochs: float | None
    max_minutes: float | None
    final: float = 0.0
    shape: Shape | Literal["cosine-epoch"] = "cosine"
    auto_warmup_epochs: float = 5
    start: float | None = None

    def total_steps(self, step: int, elapsed: float) -> int:
        """Steps of the whole run; with `max_minutes` estimated from the pace so far (elapsed seconds)."""
        if self.max_minutes is None:
            return self.epochs * self.steps_per_epoch
        limit = self.max_minutes * 60
        if elapsed >= limit:
            return step
        pace = elapsed / step if step and elapsed > 0 else limit
        return step + max(1, math.ceil((limit - elapsed) / pace))

    def lr(self, step: int, elapsed: float) -> float:
        """Learning rate of a step; the first step of a warm-up is already above zero."""
        if self.shape == "cosine-epoch":
            return self._by_epoch(step // self.steps_per_epoch)
        total = max(1, self.total_steps(step, elapsed))
        warmup_steps = (
            self.auto_warmup_epochs * self.steps_per_epoch
            if self.warmup_epochs is None
            else self.warmup_epochs * self.steps_per_epoch
        )
        longest = 0.1 if self.warmup_epochs is None else 0.9
        warmup = min(warmup_steps / total, longest)
        progress = step / total
        if self.max_minutes is not None:
            progress = max(progress, elapsed / (self.max_minutes * 60))
        if progress < warmup and self.start is not None:
            done = (
                progress * total / max(1.0, warmup * total - 1)
            )  # the last step of the warm-up has the peak
            return self.start + (self.peak - self.start) * min(done, 1.0)
        if progress < warmup:
            progress += 1 / total
        return learning_rate(min(progress, 1.0), warmup, self.peak, self.final, self.shape)

    def _by_epoch(self, epoch: int) -> float:
        """Learning rate of an epoch: the cosine spans the whole run; a warm-up replaces its first epochs.

        So it falls at once where the warm-up ends: after 5 of 200 epochs to 0.998 of the peak.

        Source: `adjust_learning_rate` in the code of MoCo (no warm-up) and of SEED (5 epochs, from the learning rate
        that is not scaled to the batch).
        """
        warmup = (
            min(self.auto_warmup_epochs, 0.1 * self.epochs)
            if self.warmup_epochs is None
            else self.warmup_epochs
        )
        if epoch < warmup and self.start is not None:
            return self.start + (self.peak - self.start) * epoch / warmup
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
