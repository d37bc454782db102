"""SEED's loss: the student learns to place an image among the rows of the queue as the teacher does."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinyseed.objectives.similarity import (
    OwnRowLookup,
    check_inputs,
    check_temperature,
    common_dtype,
    may_leave_out,
    soft_lookup,
    soft_lookups,
    with_gradient,
    with_own_row,
)
from tinyseed.shapes import Embeddings, Rows, Scalar

SMALL_LOSS = 2.0**-4
"""Nats. What is left out of the teacher's look-up is a share of a total that includes the own row. For a smaller loss
that could show, so the share is then of the other rows' weight alone."""

CALIBRATED_ON = 1024
"""Images at most that `temperature_for` looks at: all pairs of them."""

TEMPERATURES = (1e-6, 1e3)
"""Between which `temperature_for` looks."""


class SeedTerms(NamedTuple):
    """The loss, and what is obtained with it at no extra cost.

    Attributes:
        loss: mean over the images of the cross-entropy H(p_T, p_S), in nats; the student gets
            its gradient.
        target_entropy: mean over the images of the teacher's own entropy H(p_T), in nats: the lower
            bound of the loss.
    """

    loss: Scalar
    target_entropy: Scalar


def seed_loss(
    student: Embeddings,
    teacher: Embeddings,
    rows: Rows,
    *,
    student_temperature: float = 0.2,
    teacher_temperature: float = 0.01,
) -> Scalar:
    """Mean cross-entropy between the similarity distributions of teacher and student over the rows.

    With z_S, z_T an image's vectors and its own extra row z_T beside the k shared ones:
    p_S = softmax(z_S · rows / τ_S), p_T = softmax(z_T · rows / τ_T), loss = −Σ_j p_T(j) log p_S(j).

    Args:
        student: [n, d], unit rows; only this tensor gets a gradient.
        teacher: [n, d], unit rows of the same images.
        rows: [k, d], unit rows of other images (the queue); k = 0 gives 0. They may change before `backward`.
        student_temperature: τ_S > 0.
        teacher_temperature: τ_T > 0; as it goes to 0, the loss becomes `info_nce`.

    Returns:
        Nats; float64 where an input is float64, else float32, also under autocast.

    Raises:
        ValueError: a temperature is not above 0, shapes do not fit, or vectors are not floating point.

    Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), section 3.2.
    Differs: two soft look-ups in place of two [n, k + 1] score matrices; the same numbers. On the CPU, above 512
    dimensions, rows with less than 2^-28 of the teacher's weight in all may be left out.

    >>> z = torch.tensor([[1.0, 0.0]])
    >>> seed_loss(z, z, torch.tensor([[0.0, 1.0]])).round(decimals=4)
    tensor(0.0067)
    """
    return seed_terms(
        student,
        teacher,
        rows,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    ).loss


def seed_terms(
    student: Embeddings,
    teacher: Embeddings,
    rows: Rows,
    *,
    student_temperature: float = 0.2,
    teacher_temperature: float = 0.01,
) -> SeedTerms:
    """`seed_loss` and the entropy of the teacher's target; arguments and errors are `seed_loss`'s."""
    check_temperature("student_temperature", student_temperature)
    check_temperature("teacher_temperature", teacher_temperature)
    check_inputs("teacher", student=student, teacher=teacher, rows=rows)
    with torch.no_grad():
        dtype = common_dtype(student, teacher, rows)
        own = teacher.to(dtype)
        student_query = student.to(dtype) / student_temperature
        teacher_query = own / teacher_temperature
        # One pass over the rows serves both.
        known = (None, (teacher_query * own).sum(1))
        found, target = soft_lookups((student_query, teacher_query), rows, known)
        student_view = with_own_row(found, student_query, own)
        if may_leave_out(own, rows) and student_view.excess.mean() < SMALL_LOSS:
            target = soft_lookup(teacher_query, rows)
        teacher_view = with_own_row(target, teacher_query, own)
        losses = _cross_entropy(student_view, student_query, teacher_view.offset)
        gradient = (student_view.offset - teacher_view.offset) / (student_temperature * len(own))
        entropies = _cross_entropy(teacher_view, teacher_query, teacher_view.offset)
    return SeedTerms(with_gradient(student, losses.mean(), gradient), entropies.mean())


@torch.no_grad()
def target_entropy(
    teacher: Embeddings, rows: Rows, *, teacher_temperature: float = 0.01
) -> Float[Tensor, " n"]:
    """Entropy of the teacher's target, the softmax over the rows and the image's own row, for each image.

    Near 0 the target is only the own row and SEED equals InfoNCE; near log(k + 1) the teacher carries no information.

    Args:
        teacher: [n, d], unit rows.
        rows: [k, d], unit rows of other images.
        teacher_temperature: τ_T > 0.

    Returns:
        [n], nats, 0 to log(k + 1).

    Raises:
        ValueError: as in `seed_loss`.
    """
    check_temperature("teacher_temperature", teacher_temperature)
    check_inputs("teacher", teacher=teacher, rows=rows)
    own = teacher.to(common_dtype(teacher, rows))
    queries = own / teacher_temperature
    view = with_own_row(soft_lookup(queries, rows), queries, own)
    return _cross_entropy(view, queries, view.offset)


def temperature_for(teacher: Embeddings, perplexity: float, rows: int) -> float:
    """The teacher's temperature at which its target spreads over a number of images on average.

    That number is the perplexity, e to the mean entropy H(p_T) over the images. Each of the n − 1 other images stands
    for r = rows / (n − 1) of the queue, so that a few images tell what a large queue will give: with scores s_j, and
    x_j = (s_j − 1) / τ, Z = 1 + r Σ_j exp(x_j) and H = log Z − r Σ_j exp(x_j) x_j / Z. H grows with τ, so τ is found
    by bisection of its logarithm.

    Args:
        teacher: [n, d], unit rows of different images, n ≥ 2; the first 1,024 are looked at.
        perplexity: above 1 and below rows + 1.
        rows: of the queue.

    Returns:
        τ_T, to three digits; from 1e-6 to 1e3.

    Raises:
        ValueError: fewer than two images, or a perplexity that no temperature gives.
    """
    if len(teacher) < 2:
        raise ValueError(f"teacher: {len(teacher)} images: give at least two")
    if not 1 < perplexity < rows + 1:
        raise ValueError(f"perplexity: {perplexity}: give a number above 1 and below {rows + 1}, rows + 1")
    unit = teacher[:CALIBRATED_ON].double().cpu()
    scores = unit @ unit.T
    gaps = (scores - scores.diagonal()[:, None]).fill_diagonal_(-math.inf)
    low, high = (math.log(end) for end in TEMPERATURES)
    while high - low > 1e-5:  # a share of the temperature
        middle = (low + high) / 2
        above = _mean_entropy(gaps, math.exp(middle), rows / (len(unit) - 1)) > math.log(perplexity)
        low, high = (low, middle) if above else (middle, high)
    return float(f"{math.exp(high):.3g}")


def _mean_entropy(gaps: Float[Tensor, "n n"], temperature: float, each: float) -> float:
    """Mean entropy of softmax over own row (score 0) and others [n, n], of which each stands for several."""
    exponents = gaps / temperature
    weights = each * exponents.exp()
    total = 1 + weights.sum(1)
    spread = torch.where(weights > 0, weights * exponents, 0.0).sum(1)
    return float((total.log() - spread / total).mean())


def _cross_entropy(view: OwnRowLookup, queries: Embeddings, target: Embeddings) -> Float[Tensor, " n"]:
    """H(p, softmax(queries · rows)) of each image, log Z − query · mean row under p.

    Args:
        view: look-up of the queries.
        queries: [n, d], divided by the temperature.
        target: [n, d], the mean row under p, relative to the own row as `view` is: the own row's score cancels.
    """
    return view.excess - (queries * target).sum(1)
