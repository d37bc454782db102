"""CompRess's loss: the student's similarities to its own queue are to be the teacher's to the teacher's queue."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinyseed.objectives.similarity import (
    check_inputs,
    check_temperature,
    common_dtype,
    soft_lookup,
    with_gradient,
)
from tinyseed.objectives.streaming import LEAST_EXPONENT, row_blocks
from tinyseed.shapes import Scalar


class CompressTerms(NamedTuple):
    """The loss, and what is obtained with it at no extra cost.

    Attributes:
        loss: mean over the images of the divergence KL(p_T ‖ p_S), in nats; the student gets its gradient.
        target_entropy: mean over the images of the teacher's own entropy H(p_T), in nats.
    """

    loss: Scalar
    target_entropy: Scalar


def compress_terms(
    student: Float[Tensor, "n s"],
    teacher: Float[Tensor, "n t"],
    student_rows: Float[Tensor, "k s"],
    teacher_rows: Float[Tensor, "k t"],
    *,
    student_temperature: float = 0.04,
    teacher_temperature: float = 0.04,
) -> CompressTerms:
    """Mean divergence between the similarity distributions of teacher and student over the same k other images.

    With p_T = softmax(z_T · teacher_rows / τ_T) and p_S = softmax(z_S · student_rows / τ_S) the loss is
    Σ_j p_T(j) log(p_T(j) / p_S(j)). Its gradient with respect to z_S is (a − b) / τ_S, where a is the mean of the
    student's rows under p_S, a soft look-up, and b that under p_T, for which the rows are passed once, block by block.

    Args:
        student: [n, s], unit rows; only this tensor gets a gradient.
        teacher: [n, t], unit rows of the same images; the dimensions may differ.
        student_rows: [k, s], the student's unit rows of other images; k = 0 gives 0. They may change before `backward`.
        teacher_rows: [k, t], the teacher's of the same images in the same order.
        student_temperature: τ_S > 0.
        teacher_temperature: τ_T > 0.

    Returns:
        Nats; float64 where an input is float64, else float32, also under autocast. A block of scores is held in memory.

    Raises:
        ValueError: a temperature is not above 0, shapes do not fit, or vectors are not floating point.

    Source: Abbasi Koohpayegani et al., CompRess, NeurIPS 2020 (arXiv 2010.14713), equations 1 and 2.
    """
    check_temperature("student_temperature", student_temperature)
    check_temperature("teacher_temperature", teacher_temperature)
    check_inputs("student", student=student, rows=student_rows)
    check_inputs("teacher", teacher=teacher, rows=teacher_rows)
    if len(student) != len(teacher) or len(student_rows) != len(teacher_rows):
        sizes = f"{len(student)} images and {len(student_rows)} rows"
        raise ValueError(f"student: {sizes}: give as many as of the teacher")
    with torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        dtype = common_dtype(student, teacher, student_rows, teacher_rows)
        scaled = student.to(dtype) / student_temperature
        if len(student_rows) == 0:
            loss = entropy = scaled.new_zeros(())
            gradient = torch.zeros_like(scaled)
        else:
            found = soft_lookup(scaled, student_rows.to(dtype))
            target = _target(teacher.to(dtype) / teacher_temperature, teacher_rows, student_rows)
            losses = found.log_normalizer - (scaled * target.values).sum(1) - target.entropy
            gradient = (found.values - target.values) / (student_temperature * len(student))
            loss, entropy = losses.mean(), target.entropy.mean()
    return CompressTerms(with_gradient(student, loss, gradient), entropy)


class _Target(NamedTuple):
    """What the loss needs of the teacher's distribution.

    Attributes:
        values: [n, s], mean of the student's rows under it.
        entropy: [n], nats.
    """

    values: Float[Tensor, "n s"]
    entropy: Float[Tensor, " n"]


def _target(
    queries: Float[Tensor, "n t"], keys: Float[Tensor, "k t"], values: Float[Tensor, "k s"]
) -> _Target:
    """Attention with keys that are not the values, with a running maximum and sums."""
    maximum = queries.new_full((len(queries), 1), -math.inf)
    total, mean_score = (queries.new_zeros(len(queries), 1) for _ in range(2))
    weighted = queries.new_zeros(len(queries), values.shape[1])
    for start, part in row_blocks(keys, len(queries)):
        scores = queries @ part.to(queries.dtype).T
        higher = torch.maximum(maximum, scores.amax(1, keepdim=True))
        kept = (maximum - higher).exp_()
        weights = (scores - higher).clamp_(min=LEAST_EXPONENT).exp_()
        total.mul_(kept).add_(weights.sum(1, keepdim=True))
        mean_score.mul_(kept).add_((weights * scores).sum(1, keepdim=True))
        weighted.mul_(kept).addmm_(weights, values[start : start + len(part)].to(queries.dtype))
        maximum = higher
    entropy = maximum + total.log() - mean_score / total
    return _Target(weighted / total, entropy[:, 0])
