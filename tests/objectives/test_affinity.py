"""Patch affinity against the direct formula, cell by cell in NumPy's float64, and closed forms."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tinyseed.objectives.affinity import is_grid, patch_affinity

Cells = NDArray[np.float64]


def pooled(cells: Cells, side: int) -> Cells:
    """[p, f] to [side², f]: the mean over rows ⌊i h / side⌋ to ⌈(i + 1) h / side⌉, and columns alike."""
    high = math.isqrt(len(cells))
    grid = cells.reshape(high, high, -1)
    spans = [(i * high // side, -((-(i + 1) * high) // side)) for i in range(side)]
    return np.stack([grid[a:b, c:d].mean((0, 1)) for a, b in spans for c, d in spans])


def distribution(cells: Cells, a: int, temperature: float) -> Cells:
    """Over the cells other than a."""
    unit = cells / np.linalg.norm(cells, axis=1, keepdims=True)
    scores = np.delete(unit @ unit[a], a) / temperature
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def reference(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    found = []
    for fine, coarse in zip(student.detach().double().numpy(), teacher.double().numpy(), strict=True):
        side = math.isqrt(min(len(fine), len(coarse)))
        own, target = pooled(fine, side), pooled(coarse, side)
        for a in range(side**2):
            p, q = (distribution(each, a, temperature) for each in (target, own))
            found.append((p * (np.log(p) - np.log(q))).sum())
    return float(np.mean(found))


def scene(p: int, q: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(p + 7 * q)
    shapes = (3, p, 5), (3, q, 8)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return (3 * student).to(dtype), teacher.relu().add(0.1).to(dtype)


GRIDS = [(4, 4), (9, 9), (16, 4), (49, 9), (9, 49), (25, 16)]


@pytest.mark.parametrize(("p", "q"), GRIDS)
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_the_loss_is_its_formula(p, q, temperature):
    student, teacher = scene(p, q)
    expected = reference(student, teacher, temperature)
    assert patch_affinity(student, teacher, temperature=temperature).item() == pytest.approx(
        expected, rel=1e-12
    )
    narrow = patch_affinity(student.float(), teacher.float(), temperature=temperature)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("p", "q"), GRIDS)
def test_the_gradient_is_that_of_finite_differences_and_the_students_alone(p, q):
    student, teacher = scene(p, q)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda cells: patch_affinity(cells, teacher, temperature=0.3), student)
    teacher.requires_grad_()
    patch_affinity(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    # lengths do not count, so the gradient is orthogonal to each cell where no cells are joined
    if p <= q:
        assert (student.grad * student).sum(2).abs().max() < 1e-10


def test_rotated_and_scaled_cells_have_the_same_affinities():
    _, teacher = scene(16, 16)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    lengths = torch.rand(3, 16, 1, dtype=torch.float64) + 0.5
    assert abs(patch_affinity(teacher @ rotation * lengths, teacher).item()) < 1e-12


def test_alike_cells_of_the_student_miss_the_teachers_entropy():
    """The student's distribution is then uniform: the divergence is log(p − 1) less the teacher's entropy."""
    _, teacher = scene(9, 9)
    entropies = []
    for cells in teacher.numpy():
        for a in range(9):
            p = distribution(cells, a, 0.1)
            entropies.append(-(p * np.log(p)).sum())
    alike = torch.ones(3, 9, 5, dtype=torch.float64)
    assert patch_affinity(alike, teacher).item() == pytest.approx(math.log(8) - np.mean(entropies), rel=1e-12)


def test_cells_of_zeros_and_half_precision_stay_finite():
    student, teacher = scene(16, 16, torch.float32)
    student[:, 3], teacher[:, 5] = 0, 0
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = patch_affinity(student, teacher, temperature=0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert student.grad.isfinite().all()
    expected = patch_affinity(student.detach(), teacher, temperature=0.01)
    assert torch.equal(loss.detach(), expected)  # not in bfloat16
    assert patch_affinity(student.detach().bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("p", "q", "temperature", "told"),
    [
        (1, 4, 0.1, "student: 1 cells: give those of a square grid"),
        (4, 8, 0.1, "teacher: 8 cells: give those of a square grid"),
        (4, 4, 0.0, "temperature: 0.0: give a finite number above 0"),
        (4, 4, math.inf, "temperature: inf: give a finite number above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(p, q, temperature, told):
    with pytest.raises(ValueError, match=told):
        patch_affinity(torch.rand(2, p, 3), torch.rand(2, q, 3), temperature=temperature)


def test_grids():
    assert [count for count in range(50) if is_grid(count)] == [4, 9, 16, 25, 36, 49]
