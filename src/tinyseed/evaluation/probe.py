"""A linear probe on features that are kept: L2 chosen on a part of the training images. Imports data and this room.

Serves `evaluate linear --protocol fast`, `evaluate transfer --mode linear` and `evaluate retention`.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tinyseed.data.split import held_out_split
from tinyseed.evaluation.bank import Photos
from tinyseed.evaluation.common import device
from tinyseed.evaluation.figures import class_figures
from tinyseed.evaluation.logistic import Linear, fit_logistic
from tinyseed.evaluation.state import Figures

L2_GRID = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)

FEWEST_HELD_OUT = 5
"""With fewer validation images there is nothing to choose by; the middle L2 is taken."""


def probe(
    train: Photos,
    test: Photos,
    classes: int,
    *,
    l2: tuple[float, ...] = L2_GRID,
    seed: int = 0,
    metric: str = "top1",
) -> Figures:
    """Choose an L2 on 10 % of the training images, solve on all of them, measure on the test images.

    Args:
        train: labelled features.
        test: the same of the test images; labels from `classes` on count as wrong.
        classes: of the training data.
        l2: strengths to choose from; a single one is taken as it is.
        seed: of the validation part.
        metric: figure that the choice is made by, "top1" or "mean_per_class"; of equal ones the lower
            cross-entropy wins.

    Returns:
        `top1`, `top5`, `mean_per_class` in per cent, the `l2` chosen, `validation` (the chosen one's figure there)
        where there was a choice, and `converged`.
    """
    where = device()
    features, labels = train.features.to(where), train.labels
    chosen, found = _choose(features, labels, classes, l2, seed=seed, metric=metric)
    fitted = fit_logistic(features, labels, (chosen,), classes)
    figures: Figures = class_figures(fitted.scores(test.features.to(where), 0), test.labels)
    return figures | {"l2": chosen} | found | {"converged": bool(fitted.converged[0])}


def _choose(
    features: Tensor, labels: Tensor, classes: int, l2: tuple[float, ...], *, seed: int, metric: str
) -> tuple[float, Figures]:
    learned, held_out = (torch.from_numpy(part) for part in held_out_split(len(labels), seed))
    if len(l2) == 1:
        return l2[0], {}
    if len(held_out) < FEWEST_HELD_OUT or len(np.unique(labels[learned].numpy())) < 2:
        return sorted(l2)[len(l2) // 2], {}
    held_in = learned.to(features.device)
    fitted = fit_logistic(features[held_in], labels[learned], l2, classes)
    ranks = [
        _rank(fitted, problem, features[held_out.to(features.device)], labels[held_out], metric)
        for problem in range(len(l2))
    ]
    best = max(range(len(l2)), key=lambda problem: ranks[problem])
    return l2[best], {"validation": ranks[best][0]}


def _rank(fitted: Linear, problem: int, features: Tensor, labels: Tensor, metric: str) -> tuple[float, float]:
    scores = fitted.scores(features, problem)
    return class_figures(scores, labels)[metric], -float(cross_entropy(scores, labels))


def solver_notes(row: Figures) -> tuple[str, ...]:
    """What has to be said about a probe's figures: nothing where the solver has converged."""
    if row.get("converged", True):
        return ()
    return ("the linear probe's solver stopped before its gradient was below 1e-5",)
