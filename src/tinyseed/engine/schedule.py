"""Learning rate and how long a run is. Imports nothing of tinyseed."""

import math
from dataclasses import dataclass


def learning_rate(progress: float, warmup: float, peak: float) -> float:
    """Linear warm-up, then a half cosine down to zero.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run that warms up, 0 to 1.
        peak: learning rate at the end of the warm-up.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017 (arXiv 1608.03983), one cycle; SEED section 4.1.

    >>> [round(learning_rate(p, 0.1, 1.0), 3) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@dataclass(frozen=True)
class Schedule:
    """How far a run is, counted in steps, or in minutes where `max_minutes` is set.

    Attributes:
        peak: learning rate after the warm-up, scaled to the batch.
        warmup_epochs: number, or None for 5 epochs but at most a tenth of the run.
    """

    peak: float
    steps_per_epoch: int
    epochs: int
    warmup_epochs: float | None
    max_minutes: float | None

    def total_steps(self, step: int, elapsed: float) -> int:
        """Steps of the whole run; with `max_minutes` as far as the pace until now (seconds) tells."""
        if self.max_minutes is None:
            return self.epochs * self.steps_per_epoch
        limit = self.max_minutes * 60
        if elapsed >= limit:
            return step
        pace = elapsed / step if step and elapsed > 0 else limit
        return step + max(1, math.ceil((limit - elapsed) / pace))

    def lr(self, step: int, elapsed: float) -> float:
        """Learning rate of a step; the first step of a warm-up is already above zero."""
        total = max(1, self.total_steps(step, elapsed))
        warmup_steps = (
            5 * self.steps_per_epoch
            if self.warmup_epochs is None
            else self.warmup_epochs * self.steps_per_epoch
        )
        longest = 0.1 if self.warmup_epochs is None else 0.9
        warmup = min(warmup_steps / total, longest)
        progress = step / total
        if self.max_minutes is not None:
            progress = max(progress, elapsed / (self.max_minutes * 60))
        if progress < warmup:
            progress += 1 / total
        return learning_rate(min(progress, 1.0), warmup, self.peak)
