"""Metrics of classifiers: pure functions of scores and labels, and their mean over seeds.

A label without a score (a class that the training data does not have) counts as wrong.
"""

import statistics
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def class_metrics(scores: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> dict[str, float]:
    """Top-1, top-5 and mean per class in per cent.

    Args:
        scores: one per class; the highest wins, of equal ones the first.
        labels: from 0; those from `classes` on are of classes that have no score.

    Returns:
        `top1`, `top5` (among all classes if there are fewer than five) and `mean_per_class`: the mean, over
        the classes of the labels, of the share of correct top-1 answers.
    """
    ranked = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
    right = ranked == labels[:, None]
    return {
        "top1": 100 * float(right[:, 0].double().mean()),
        "top5": 100 * float(right.any(1).double().mean()),
        "mean_per_class": 100 * mean_per_class(right[:, 0], labels),
    }


def mean_per_class(right: Tensor, labels: Int64[Tensor, " n"]) -> float:
    """The mean over the classes present of each one's share of correct answers, 0 to 1.

    >>> mean_per_class(torch.tensor([True, True, True, False]), torch.tensor([0, 0, 0, 1]))
    0.5
    """
    _, place = labels.unique(return_inverse=True)
    count = torch.bincount(place).double()
    return float((torch.bincount(place, weights=right.double()) / count).mean())


def over_seeds(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric, and its sample standard deviation under `NAME_std` if there are several runs.

    >>> over_seeds([{"top1": 50.0}, {"top1": 52.0}])
    {'top1': 51.0, 'top1_std': 1.4142135623730951}
    """
    metrics: dict[str, float] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        metrics[name] = statistics.fmean(values)
        if len(values) > 1:
            metrics[f"{name}_std"] = statistics.stdev(values)
    return metrics
