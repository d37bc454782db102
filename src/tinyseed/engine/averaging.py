"""A moving average of the weights in training, which is evaluated and saved in their place."""

import copy

import torch
from torch import Tensor

from tinyseed.models.encoder import Encoder, freeze


class Average:
    """An exponential moving average of an encoder's weights and of its batch norms' running statistics.

    The statistics are averaged as the weights are, so that they stay those of networks near the average; counters are
    copied. The encoder in training is only read.

    Attributes:
        encoder: the average, frozen, in evaluation mode.
        decay: weight of the former average, at most; see `decay_at`.
    """

    def __init__(self, trained: Encoder, decay: float) -> None:
        self.encoder = freeze(copy.deepcopy(trained))
        self.decay = decay
        self._trained = trained

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights in training.

        Args:
            step: updates before this one.
        """
        weight = 1 - decay_at(step, self.decay)
        average, trained = self.encoder, self._trained
        averages: list[Tensor] = list(average.parameters())
        values: list[Tensor] = list(trained.parameters())
        for mine, theirs in zip(average.buffers(), trained.buffers(), strict=True):
            if mine.is_floating_point():
                averages.append(mine)
                values.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(averages, values, weight)  # pyright: ignore[reportPrivateImportUsage]


def decay_at(step: int, decay: float) -> float:
    """Weight of the former average in an update: small at first, so that random weights are soon forgotten.

    Args:
        step: updates before this one.
        decay: where it ends, 0 to 1.

    Source: tf.train.ExponentialMovingAverage with `num_updates` (TensorFlow): min(decay, (1 + t) / (10 + t)).

    >>> [round(decay_at(step, 0.99), 2) for step in (0, 10, 80, 1000)]
    [0.1, 0.55, 0.9, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))
