"""NT-Xent against loops in NumPy, closed forms and gradcheck; parts of a batch against the whole."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tinyseed.objectives.contrast import nt_xent


def unit(n: int, d: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def by_loops(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """SimCLR's equation 1, anchor by anchor, view by view."""
    views = [*first, *second]
    total = 0.0
    for i, anchor in enumerate(views):
        partner = (i + len(first)) % len(views)
        others = [math.exp(float(anchor @ views[j]) / temperature) for j in range(len(views)) if j != i]
        total -= math.log(math.exp(float(anchor @ views[partner]) / temperature) / math.fsum(others))
    return total / len(views)


@pytest.mark.parametrize(("n", "d", "temperature"), [(1, 4, 0.1), (2, 3, 0.5), (7, 16, 0.1), (33, 8, 1.0)])
def test_against_loops(n, d, temperature):
    first, second = unit(n, d, 0), unit(n, d, 1)
    expected = by_loops(first.numpy(), second.numpy(), temperature)
    assert nt_xent(first, second, temperature=temperature).item() == pytest.approx(
        expected, rel=1e-12, abs=1e-14
    )
    single = nt_xent(first.float(), second.float(), temperature=temperature)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_closed_forms():
    """Equal views of orthogonal images: log(1 + (2n − 2) e^(−1/τ)); all views alike: log(2n − 1)."""
    axes = torch.eye(5, dtype=torch.float64)
    expected = math.log1p(8 * math.exp(-1 / 0.5))
    assert nt_xent(axes, axes, temperature=0.5).item() == pytest.approx(expected, rel=1e-12)
    alike = axes[:1].expand(4, 5)
    assert nt_xent(alike, alike).item() == pytest.approx(math.log(7), rel=1e-12)


def test_a_single_image_gives_zero_and_no_gradient():
    first, second = unit(1, 6, 0).requires_grad_(), unit(1, 6, 1).requires_grad_()
    loss = nt_xent(first, second)
    loss.backward()
    assert loss.item() == 0
    assert first.grad.count_nonzero() == second.grad.count_nonzero() == 0


def test_gradcheck_to_both_sides():
    first, second = unit(3, 5, 0).requires_grad_(), unit(3, 5, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.5), (first, second))
    everything = torch.cat([unit(4, 5, 2), first.detach(), second.detach()]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b, c: nt_xent(a, b, c, offset=4, temperature=0.5), (first, second, everything)
    )


def test_the_mean_over_parts_is_the_whole_in_value_and_gradient():
    """What two processes do, with the sum over processes that their gathering makes in the backward pass."""
    first, second = unit(6, 8, 0).requires_grad_(), unit(6, 8, 1).requires_grad_()
    whole = nt_xent(first, second)
    expected = torch.autograd.grad(whole, (first, second))
    everything = torch.cat([first[:3], second[:3], first[3:], second[3:]])
    parts = [
        nt_xent(first[rank * 3 :][:3], second[rank * 3 :][:3], everything, offset=rank * 6)
        for rank in range(2)
    ]
    mean = sum(parts) / 2
    assert mean.item() == pytest.approx(whole.item(), rel=1e-12)
    for gradient, wanted in zip(torch.autograd.grad(mean, (first, second)), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)


def test_autocast_gives_the_float32_result():
    first, second = unit(5, 16, 0, torch.float32), unit(5, 16, 1, torch.float32)
    expected = nt_xent(first, second)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent(first, second) == expected


@pytest.mark.parametrize("offset", [-1, 1])
def test_own_views_have_to_lie_in_everything(offset):
    first, second = unit(2, 3, 0), unit(2, 3, 1)
    with pytest.raises(ValueError, match=f"^offset: {offset}: give a place for 4 of 4 rows"):
        nt_xent(first, second, offset=offset)
    with pytest.raises(ValueError, match=r"^temperature: 0\.0: give"):
        nt_xent(first, second, temperature=0.0)
