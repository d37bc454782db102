"""Patch affinity: how similar the places of an image are to each other, for the student as for the teacher."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tinyseed.objectives.similarity import check_temperature, common_dtype
from tinyseed.shapes import Patches, Scalar

# A cell of zeros stays one, and its gradient stays finite.
_SMALLEST_NORM = 1e-6


def patch_affinity(student: Patches, teacher: Float[Tensor, "n q g"], *, temperature: float = 0.1) -> Scalar:
    """Mean KL divergence between the similarity distributions of teacher and student over the cells of an image.

    With cells s_a of the student's grid and t_a of the teacher's, p_T(b | a) = softmax over b ≠ a of cos(t_a, t_b) / τ,
    and p_S(b | a) the same of the student: the loss is the mean over images and cells a of
    Σ_b p_T(b | a) log(p_T(b | a) / p_S(b | a)). Similarities are taken within one network, so both may have cells of
    different length. Where the grids differ, the finer one is brought to the size of the coarser by adaptive average
    pooling.

    Args:
        student: [n, p, f], the cells of a square grid row by row, of any scale; only this tensor gets a gradient.
        teacher: [n, q, g], those of the teacher.
        temperature: τ > 0, of both networks.

    Returns:
        Nats, 0 or more; computed in float64 where an input is float64, else in float32, also under autocast. The
        [n, p, p] similarities of the coarser grid are held in memory.

    Raises:
        ValueError: the temperature is not above 0, or the grids are not square or have a single cell.

    Source: pair-wise distillation of Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019
    (arXiv 1903.04197), section 3.2.
    Differs: a softmax over the other cells and KL in place of squared differences of the cosines, as SEED compares
    images: only the order and the spacing of a cell's neighbors count.

    >>> cells = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    >>> patch_affinity(cells.roll(1, 1), cells).round(decimals=4)
    tensor(9.9986)
    """
    check_temperature("temperature", temperature)
    dtype = common_dtype(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        own, target = _grid("student", student.to(dtype)), _grid("teacher", teacher.detach().to(dtype))
        side = min(own.shape[-1], target.shape[-1])
        log_student, log_teacher = (_log_affinities(grid, side, temperature) for grid in (own, target))
        divergences = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
        return divergences.sum(2).mean()


def is_grid(cells: int) -> bool:
    """Whether this number of cells makes a square grid of more than one cell, which can be compared.

    >>> is_grid(49), is_grid(1), is_grid(50)
    (True, False, False)
    """
    return cells > 1 and math.isqrt(cells) ** 2 == cells


def _grid(name: str, cells: Tensor) -> Float[Tensor, "n f s s"]:
    count = cells.shape[1]
    if not is_grid(count):
        raise ValueError(f"{name}: {count} cells: give those of a square grid, at least 4")
    return cells.transpose(1, 2).unflatten(2, (math.isqrt(count),) * 2)


def _log_affinities(grid: Float[Tensor, "n f s s"], side: int, temperature: float) -> Float[Tensor, "n p o"]:
    """The logarithm of p(b | a) for each of the p = side² cells a and each of the o = p − 1 others b."""
    if grid.shape[-1] != side:
        grid = functional.adaptive_avg_pool2d(grid, side)
    cells = functional.normalize(grid.flatten(2), dim=1, eps=_SMALLEST_NORM)
    similarities = cells.transpose(1, 2) @ cells
    return (_without_diagonal(similarities) / temperature).log_softmax(2)


def _without_diagonal(square: Float[Tensor, "n p p"]) -> Float[Tensor, "n p o"]:
    """Each row without its own entry: in memory these are the first places of rows that are one entry longer."""
    n, p, _ = square.shape
    return square.flatten(1)[:, 1:].reshape(n, p - 1, p + 1)[:, :, :-1].reshape(n, p, p - 1)
