"""The linear probe: multinomial logistic regression on features, solved to the optimum, with a chosen L2.

Several strengths of L2 are solved at once. They share each pass over the features: their weights stand side by side in
one matrix product.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from tinyseed.data.split import held_out_split
from tinyseed.evaluation.base import Metrics
from tinyseed.evaluation.features import FeatureBank, device
from tinyseed.evaluation.metrics import class_metrics

L2_GRID = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)

FEWEST_HELD_OUT = 5
"""With fewer validation images there is nothing to choose by; the middle L2 is taken."""

HISTORY = 10
HALVINGS = 25
LOGITS_AT_ONCE = 1 << 24
"""Numbers in a block of logits: 64 MB."""

ENOUGH = 1e-4
"""Sufficient decrease of a step, as a share of what the slope promises (Armijo)."""


def probe(
    train: FeatureBank,
    test: FeatureBank,
    classes: int,
    *,
    l2: tuple[float, ...] = L2_GRID,
    seed: int = 0,
    metric: str = "top1",
) -> Metrics:
    """Choose an L2 on 10 % of the training images, solve on all of them, measure on the test images.

    Args:
        train: features of the training images.
        test: features of the test images; labels from `classes` on count as wrong.
        classes: number of classes of the training data.
        l2: strengths to choose from; a single one is taken as it is.
        seed: of the validation part.
        metric: what the choice is made by, "top1" or "mean_per_class"; of equal ones the lower
            cross-entropy wins.

    Returns:
        `top1`, `top5`, `mean_per_class` in per cent, the `l2` chosen, `validation` (the metric there of the chosen one)
        if there was a choice, and `converged`.
    """
    where = device()
    features, labels = train.features.to(where), train.labels
    chosen, found = _choose(features, labels, classes, l2, seed=seed, metric=metric)
    fitted = fit_logistic(features, labels, (chosen,), classes)
    metrics: Metrics = class_metrics(fitted.scores(test.features.to(where), 0), test.labels)
    return metrics | {"l2": chosen} | found | {"converged": bool(fitted.converged[0])}


def _choose(
    features: Tensor, labels: Tensor, classes: int, l2: tuple[float, ...], *, seed: int, metric: str
) -> tuple[float, Metrics]:
    trained, held_out = (torch.from_numpy(part) for part in held_out_split(len(labels), seed))
    if len(l2) == 1:
        return l2[0], {}
    if len(held_out) < FEWEST_HELD_OUT or len(np.unique(labels[trained].numpy())) < 2:
        return sorted(l2)[len(l2) // 2], {}
    held_in = trained.to(features.device)
    fitted = fit_logistic(features[held_in], labels[trained], l2, classes)
    ranks = [
        _rank(fitted, problem, features[held_out.to(features.device)], labels[held_out], metric)
        for problem in range(len(l2))
    ]
    best = max(range(len(l2)), key=lambda problem: ranks[problem])
    return l2[best], {"validation": ranks[best][0]}


def _rank(
    fitted: "Linear", problem: int, features: Tensor, labels: Tensor, metric: str
) -> tuple[float, float]:
    scores = fitted.scores(features, problem)
    return class_metrics(scores, labels)[metric], -float(cross_entropy(scores, labels))


def solver_notes(row: Metrics) -> tuple[str, ...]:
    """A warning about a probe's metrics if the solver has not converged."""
    if row.get("converged", True):
        return ()
    return ("the linear probe's solver stopped before its gradient was below 1e-5",)


@dataclass(frozen=True)
class Standardizer:
    """Brings each feature to mean 0 and standard deviation 1, as it was among the training images."""

    mean: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]

    def __call__(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Features in the precision of the mean."""
        return (features.to(self.mean) - self.mean) * self.scale


def standardizer(features: Float[Tensor, "n f"], block: int = 1 << 14) -> Standardizer:
    """Mean and standard deviation of each feature, summed in float64; a constant feature stays as it is."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for part in features.split(block):
        total += part.double().sum(0)
    mean = total / len(features)
    total = torch.zeros_like(mean)
    for part in features.split(block):
        total += (part.double() - mean).square_().sum(0)
    deviation = (total / len(features)).sqrt()
    constant = deviation <= 1e-6 * (1 + mean.abs())
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    scale = torch.where(constant, 1.0, deviation).reciprocal()
    return Standardizer(mean.to(dtype), scale.to(dtype))


@dataclass(frozen=True)
class Linear:
    """Classifiers, one for each problem.

    Attributes:
        weight, bias: for standardized features.
        loss: mean cross-entropy plus L2/2 · ‖weight‖².
        converged: whether no entry of the gradient is above the tolerance.
        iterations: L-BFGS steps until the last problem was done.
    """

    standardize: Standardizer
    weight: Float[Tensor, "problems f classes"]
    bias: Float[Tensor, "problems classes"]
    loss: Float[Tensor, " problems"]
    converged: Bool[Tensor, " problems"]
    iterations: int

    def scores(self, features: Float[Tensor, "n f"], problem: int) -> Float[Tensor, "n classes"]:
        """Logits of one of the classifiers, on the CPU."""
        weight, bias = self.weight[problem], self.bias[problem]
        block = max(1, LOGITS_AT_ONCE // max(weight.shape))
        parts = [torch.addmm(bias, self.standardize(part), weight).cpu() for part in features.split(block)]
        return torch.cat(parts)


class _Problem(NamedTuple):
    """What is minimised: features as they are kept, labels, and an L2 for each problem."""

    features: Float[Tensor, "n f"]
    labels: Int64[Tensor, " n"]
    standardize: Standardizer
    l2: Float[Tensor, " problems"]
    classes: int


class _Step(NamedTuple):
    point: Float[Tensor, "problems p"]
    loss: Float[Tensor, " problems"]
    gradient: Float[Tensor, "problems p"]


def fit_logistic(
    features: Float[Tensor, "n f"],
    labels: Int64[Tensor, " n"],
    l2: tuple[float, ...],
    classes: int,
    *,
    tolerance: float = 1e-5,
    most_iterations: int = 500,
) -> Linear:
    """Minimize, for each L2: mean cross-entropy of softmax(standardized features · W + b) + L2/2 · ‖W‖².

    L-BFGS with a line search for each problem. The bias is not regularized. The problem is convex, so the result does
    not depend on a learning rate. It is that of scikit-learn's LogisticRegression on standardized features with
    C = 1 / (n · L2).

    Args:
        features: any precision; worked on in float32, or float64 if they are float64. A large bank is never
            copied: blocks of it are standardized as they are needed.
        labels: classes from 0, below `classes`.
        l2: strengths, above 0.
        classes: number of classes.
        tolerance: a problem is done when no entry of its gradient is above it.
        most_iterations: L-BFGS steps at most.

    Source: Nocedal & Wright, Numerical Optimization, 2nd edition, algorithms 7.4 (two loops) and 3.1 (Armijo).
    """
    standardize = standardizer(features)
    problem = _Problem(
        features, labels.to(features.device), standardize, standardize.mean.new_tensor(l2), classes
    )
    point = standardize.mean.new_zeros(len(l2), (features.shape[1] + 1) * classes)
    loss, gradient = _evaluate(problem, point)
    memory = _Memory(len(l2))
    working = gradient.abs().amax(1) > tolerance
    iterations = 0
    while bool(working.any()) and iterations < most_iterations:
        iterations += 1
        step = _search(problem, _Step(point, loss, gradient), memory.direction(gradient), working)
        memory.add(step.point - point, step.gradient - gradient)
        point, loss, gradient = step
        working = working & (gradient.abs().amax(1) > tolerance) & (memory.moved())
    matrix = point.view(len(l2), features.shape[1] + 1, classes)
    converged = gradient.abs().amax(1) <= tolerance
    return Linear(standardize, matrix[:, :-1], matrix[:, -1], loss, converged, iterations)


def _search(
    problem: _Problem,
    before: _Step,
    direction: Float[Tensor, "problems p"],
    working: Bool[Tensor, " problems"],
) -> _Step:
    """For each working problem the longest of the steps 1, 1/2, 1/4 … that lowers the loss enough."""
    point, loss, gradient = before
    slope = (direction * gradient).sum(1).double()
    length = torch.ones_like(slope)
    best = _Step(point.clone(), loss.clone(), gradient.clone())
    open_ones = working.nonzero()[:, 0]
    for _ in range(HALVINGS):
        tried = point[open_ones] + length[open_ones, None].to(point) * direction[open_ones]
        value, slopes = _evaluate(problem._replace(l2=problem.l2[open_ones]), tried)
        # Differences below float32's last digits mean nothing: as low as before is low enough.
        slack = 4 * torch.finfo(point.dtype).eps * loss[open_ones].abs()
        enough = value <= loss[open_ones] + ENOUGH * length[open_ones] * slope[open_ones] + slack
        done = open_ones[enough]
        best.point[done], best.loss[done], best.gradient[done] = tried[enough], value[enough], slopes[enough]
        open_ones = open_ones[~enough]
        if not len(open_ones):
            break
        length[open_ones] /= 2
    return best


def _evaluate(
    problem: _Problem, point: Float[Tensor, "problems p"]
) -> tuple[Float[Tensor, " problems"], Float[Tensor, "problems p"]]:
    """Loss (float64) and gradient of each problem at its point."""
    features, labels, standardize, l2, classes = problem
    width, images, problems = features.shape[1], len(features), len(point)
    matrix = point.view(problems, width + 1, classes)
    weight = matrix[:, :-1].permute(1, 0, 2).reshape(width, problems * classes)
    bias = matrix[:, -1].reshape(problems * classes)
    loss = torch.zeros(problems, dtype=torch.float64, device=point.device)
    slopes, bias_slopes = torch.zeros_like(weight), torch.zeros_like(bias)
    rows = max(1, LOGITS_AT_ONCE // (problems * classes))
    for part, their in zip(features.split(rows), labels.split(rows), strict=True):
        standard = standardize(part)
        logits = torch.addmm(bias, standard, weight).view(-1, problems, classes)
        log_p = logits.log_softmax(2)
        right = their[:, None, None].expand(-1, problems, 1)
        loss -= log_p.gather(2, right)[..., 0].sum(0, dtype=torch.float64)
        residual = log_p.exp_().scatter_add_(2, right, log_p.new_full(right.shape, -1.0))
        residual = residual.view(-1, problems * classes)
        slopes.addmm_(standard.T, residual)
        bias_slopes += residual.sum(0)
    loss = loss / images + 0.5 * l2.double() * matrix[:, :-1].double().square().sum((1, 2))
    gradient = torch.empty_like(matrix)
    gradient[:, :-1] = slopes.view(width, problems, classes).permute(1, 0, 2) / images
    gradient[:, :-1] += l2[:, None, None] * matrix[:, :-1]
    gradient[:, -1] = bias_slopes.view(problems, classes) / images
    return loss, gradient.view(problems, -1)


class _Memory:
    """L-BFGS's last steps and changes of the gradient, of all problems."""

    def __init__(self, problems: int) -> None:
        self.problems = problems
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Float[Tensor, "problems p"], change: Float[Tensor, "problems p"]) -> None:
        """Note a step; a problem that has not moved, or without curvature, gets a pair that does nothing."""
        curvature = (step * change).sum(1)
        useful = curvature > 1e-10 * change.square().sum(1)
        weight = torch.where(useful, 1 / torch.where(useful, curvature, 1.0), 0.0)
        self.pairs = [*self.pairs[-HISTORY + 1 :], (step, change, weight)]

    def moved(self) -> Bool[Tensor, " problems"]:
        """Whose last step went anywhere."""
        return self.pairs[-1][0].abs().amax(1) > 0

    def direction(self, gradient: Float[Tensor, "problems p"]) -> Float[Tensor, "problems p"]:
        """Where to step from a point with this gradient: downhill in any case."""
        direction = -self._solve(gradient)
        downhill = (direction * gradient).sum(1) < 0
        direction = torch.where(downhill[:, None], direction, -gradient)
        if not self.pairs:  # no curvature is known yet
            direction /= gradient.norm(dim=1, keepdim=True).clamp_(min=1)
        return direction

    def _solve(self, gradient: Float[Tensor, "problems p"]) -> Float[Tensor, "problems p"]:
        """The gradient times what is known of the inverse Hessian."""
        result = gradient.clone()
        shares = []
        for step, change, weight in reversed(self.pairs):
            share = weight * (step * result).sum(1)
            shares.append(share)
            result -= share[:, None] * change
        if self.pairs:
            _, change, weight = self.pairs[-1]
            size = change.square().sum(1)
            scale = torch.where(weight > 0, 1 / (weight * size).clamp(min=1e-30), 1.0)
            result *= scale[:, None]
        for (step, change, weight), share in zip(self.pairs, reversed(shares), strict=True):
            result += (share - weight * (change * result).sum(1))[:, None] * step
        return result
