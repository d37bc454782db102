"""Regression against closed forms in float64."""

import numpy as np
import pytest
import torch
from jaxtyping import config as jaxtyping_config
from torch.nn.functional import normalize

from tinyseed.objectives.regression import regression_loss


def unit(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(rows, dim=1).to(dtype)


@pytest.mark.parametrize(("loss", "factor"), [("l2", 2.0), ("cosine", 1.0)])
def test_it_is_a_multiple_of_one_minus_the_cosine(loss, factor):
    student, teacher = unit(7, 5, 0), unit(7, 5, 1)
    expected = factor * np.mean(1 - (student.numpy() * teacher.numpy()).sum(1))
    assert regression_loss(student, teacher, loss=loss).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", ["l2", "cosine"])
def test_gradcheck_and_the_teacher_gets_no_gradient(loss):
    student, teacher = unit(4, 6, 0).requires_grad_(), unit(4, 6, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: regression_loss(z, teacher, loss=loss), student)
    regression_loss(student, teacher, loss=loss).backward()
    assert teacher.grad is None


def test_through_normalization_both_have_the_same_direction():
    """What the norm takes away: |z|² is 1 whatever the head gives."""
    teacher, raw = unit(4, 6, 1), torch.randn(4, 6, dtype=torch.float64)
    found = []
    for loss in ("l2", "cosine"):
        given = raw.clone().requires_grad_()
        regression_loss(normalize(given, dim=1), teacher, loss=loss).backward()
        found.append(given.grad)
    torch.testing.assert_close(found[0], 2 * found[1])


def test_a_small_loss_keeps_its_digits_and_autocast_changes_nothing():
    teacher = torch.tensor([[1.0, 0.0]])
    student = torch.tensor([[1.0, 1e-5]])
    assert regression_loss(student, teacher).item() == pytest.approx(1e-10, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert regression_loss(student, teacher).item() == pytest.approx(1e-10, rel=1e-5)


def test_wrong_shapes_are_refused():
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"student: shape \[2, 4\]: give the shape of teacher, \[3, 4\]"):
            regression_loss(unit(3, 4, 0)[:2], unit(3, 4, 1))
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
