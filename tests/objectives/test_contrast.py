"""InfoNCE and NCE against plain formulas in float64 and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config
from torch.nn.functional import cross_entropy, normalize

from tinyseed.objectives.contrast import binary_nce, info_nce


def unit(generator: torch.Generator, n: int, d: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def direct(queries, positives, rows, temperature: float):
    """MoCo's own way: the positive's score in column 0, all labels 0."""
    positive = (queries * positives).sum(1, keepdim=True)
    scores = torch.cat([positive, queries @ rows.T], 1) / temperature
    return cross_entropy(scores, torch.zeros(len(queries), dtype=torch.int64))


def with_gradient(function, queries, *arguments, **keywords):
    queries = queries.clone().requires_grad_()
    loss = function(queries, *arguments, **keywords)
    loss.backward()
    return loss.item(), queries.grad.double()


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 900),
    d=st.integers(4, 96),
    temperature=st.sampled_from([0.2, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_against_cross_entropy(n, k, d, temperature, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, positives, rows = (unit(generator, m, d, dtype) for m in (n, n, k))
    loss, gradient = with_gradient(info_nce, queries, positives, rows, temperature=temperature)
    expected, expected_gradient = with_gradient(
        direct, *(z.double() for z in (queries, positives, rows)), temperature
    )
    loss_bound, gradient_bound = (1e-6, 1e-5) if dtype == torch.float32 else (1e-12, 1e-12)
    assert abs(loss - expected) <= loss_bound * expected
    assert (gradient - expected_gradient).norm() <= gradient_bound * expected_gradient.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_loss_keeps_its_digits(dtype):
    """A query at its positive and one opposite row: log(1 + exp(−20)), where float32 rounds to log 1."""
    z = torch.tensor([[1.0, 0.0]], dtype=dtype)
    loss, gradient = with_gradient(info_nce, z, z, -z, temperature=0.1)
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    assert loss == pytest.approx(np.log1p(np.exp(-20)), rel=bound)
    assert gradient[0, 0].item() == pytest.approx(-20 / (1 + np.exp(20)), rel=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_rows_give_exactly_zero(dtype):
    z = unit(torch.Generator().manual_seed(0), 3, 8, dtype)
    loss, gradient = with_gradient(info_nce, z, z.flip(0), z[:0])
    assert loss == 0
    assert gradient.count_nonzero() == 0


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    queries, positives, rows = (unit(generator, m, 5, torch.float64) for m in (3, 3, 17))
    assert torch.autograd.gradcheck(lambda z: info_nce(z, positives, rows), queries.requires_grad_())


def test_autocast_gives_the_float32_result():
    generator = torch.Generator().manual_seed(0)
    queries, positives, rows = (unit(generator, m, 16) for m in (6, 6, 700))
    expected = with_gradient(info_nce, queries, positives, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = with_gradient(info_nce, queries, positives, rows)
    assert result[0] == expected[0]
    assert result[1].equal(expected[1])


def test_only_queries_get_a_gradient():
    generator = torch.Generator().manual_seed(0)
    queries, positives, rows = (unit(generator, m, 8).requires_grad_() for m in (4, 4, 30))
    info_nce(queries, positives, rows).backward()
    assert queries.grad is not None
    assert positives.grad is None
    assert rows.grad is None


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_temperature_out_of_range(value):
    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match=f"^temperature: {value}: give"):
        info_nce(z, z, z, temperature=value)


def test_shapes_that_do_not_fit():
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(
            ValueError, match=r"positives: shape \[3, 3\]: give the shape of queries, \[2, 3\]"
        ):
            info_nce(torch.ones(2, 3), torch.ones(3, 3), torch.ones(4, 3))
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


def binary_by_matrix(queries, positives, rows, images: int, temperature: float):
    """CRD's equations 18 and 19 as they stand, with autograd's gradient."""
    prior = len(rows) / images
    positive = torch.exp((queries * positives).sum(1) / temperature)
    negative = torch.exp(queries @ rows.T / temperature)
    own = torch.log(positive / (positive + prior))
    return -(own + torch.log(1 - negative / (negative + prior)).sum(1)).mean()


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 20),
    k=st.integers(1, 600),
    d=st.integers(4, 48),
    images=st.sampled_from([1, 60, 1_281_167]),
    temperature=st.sampled_from([0.2, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_binary_nce_against_its_formula(n, k, d, images, temperature, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, positives, rows = (unit(generator, m, d, dtype) for m in (n, n, k))
    loss, gradient = with_gradient(
        binary_nce, queries, positives, rows, images=images, temperature=temperature
    )
    expected, expected_gradient = with_gradient(
        binary_by_matrix, *(z.double() for z in (queries, positives, rows)), images, temperature
    )
    bound = 1e-5 if dtype == torch.float32 else 1e-9
    assert loss == pytest.approx(expected, rel=bound)
    assert (gradient - expected_gradient).norm() <= 10 * bound * expected_gradient.norm()


def test_binary_nce_stays_finite_where_the_exponential_does_not():
    """exp(1 / 0.01) overflows float32."""
    z = torch.tensor([[1.0, 0.0]])
    loss, gradient = with_gradient(binary_nce, z, z, z, images=1, temperature=0.01)
    assert loss == pytest.approx(100)  # the row that is the same as the positive is sure to be taken for it
    assert gradient.isfinite().all()


def test_binary_nce_gradcheck_and_an_empty_queue():
    generator = torch.Generator().manual_seed(0)
    queries, positives, rows = (unit(generator, m, 5, torch.float64) for m in (3, 3, 17))
    loss = lambda z: binary_nce(z, positives, rows, images=50, temperature=0.5)  # noqa: E731
    assert torch.autograd.gradcheck(loss, queries.requires_grad_())
    value, gradient = with_gradient(binary_nce, queries.detach(), positives, rows[:0], images=50)
    assert value == 0
    assert gradient.count_nonzero() == 0
    with pytest.raises(ValueError, match="images: 0"):
        binary_nce(queries, positives, rows, images=0)
