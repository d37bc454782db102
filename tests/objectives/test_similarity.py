"""The look-up against NumPy in float64, both of its paths, and its promise of no [n, k] matrix."""

import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from tinyseed.objectives import kernels
from tinyseed.objectives.kernels import MAX_DIM, lookup_by_kernel
from tinyseed.objectives.similarity import soft_lookup, with_own_row
from tinyseed.objectives.streaming import lookup_by_stream


def lookup_in_blocks(queries: torch.Tensor, rows: torch.Tensor):
    return lookup_by_stream((queries,), rows, (None,))[0]


PATHS = (lookup_by_kernel, lookup_in_blocks)


def reference(queries: torch.Tensor, rows: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    q, r = queries.double().numpy(), rows.double().numpy()
    scores = q @ r.T
    top = scores.max(1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(1, keepdims=True)
    return weights / total @ r, (top + np.log(total))[:, 0]


def vectors(n: int, k: int, d: int, dtype: torch.dtype = torch.float32, scale: float = 5.0):
    generator = torch.Generator().manual_seed(1000 * n + 10 * k + d)
    queries = normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1) * scale
    rows = normalize(torch.randn(k, d, generator=generator, dtype=torch.float64), dim=1)
    return queries.to(dtype), rows.to(dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("n", [1, 33])
@pytest.mark.parametrize("k", [1, 2, 513, 2049])
@pytest.mark.parametrize("d", [2, 31, 128])
def test_both_paths_equal_numpy(path, dtype, tolerance, n, k, d):
    queries, rows = vectors(n, k, d, dtype)
    values, log_normalizer = reference(queries, rows)
    found = path(queries, rows)
    assert found.values.dtype == found.log_normalizer.dtype == dtype
    np.testing.assert_allclose(found.values, values, atol=tolerance, rtol=0)
    np.testing.assert_allclose(found.log_normalizer, log_normalizer, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("d", [MAX_DIM["cpu"], MAX_DIM["cpu"] + 1, 2048])
def test_large_dimensions(d):
    queries, rows = vectors(9, 1500, d)
    values, log_normalizer = reference(queries, rows)
    found = soft_lookup(queries, rows)
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    np.testing.assert_allclose(found.log_normalizer, log_normalizer, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_scores_neither_overflow_nor_lose_their_weights(scale):
    """At a temperature of 1e-4 the parts' weights have to sum to 1 although their log-normalizers round."""
    queries, rows = vectors(7, 4099, 16, scale=scale)
    reference_values, _ = reference(queries, rows)
    direct = (queries @ rows.T).softmax(1) @ rows
    error = np.abs(soft_lookup(queries, rows).values.numpy() - reference_values).max()
    assert error <= 1.5 * np.abs(direct.numpy() - reference_values).max() + 1e-6


@pytest.mark.parametrize("threads", [1, 3, 7, 64])
@pytest.mark.parametrize("budget", [1, 64 << 20])
def test_any_split_over_cores_gives_the_same(monkeypatch, threads, budget):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(kernels, "PARTIAL_BYTES", budget)
    queries, rows = vectors(5, 5003, 24)
    values, log_normalizer = reference(queries, rows)
    found = soft_lookup(queries, rows)
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    np.testing.assert_allclose(found.log_normalizer, log_normalizer, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_no_rows(n):
    found = soft_lookup(torch.ones(n, 3), torch.ones(0, 3))
    assert found.values.equal(torch.zeros(n, 3))
    assert found.log_normalizer.equal(torch.full((n,), -torch.inf))


def test_no_queries():
    found = soft_lookup(torch.ones(0, 3), torch.ones(4, 3))
    assert found.values.shape == (0, 3)
    assert found.log_normalizer.shape == (0,)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_first(half):
    queries, rows = vectors(3, 600, 16, half)
    found = soft_lookup(queries, rows)
    assert found.values.dtype == torch.float32
    assert found.values.equal(soft_lookup(queries.float(), rows.float()).values)


@pytest.mark.parametrize("d", [16, 600])
def test_autocast_does_not_touch_it(d):
    queries, rows = vectors(3, 600, d)
    expected = soft_lookup(queries, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_lookup(queries, rows)
        assert torch.is_autocast_enabled("cpu")
    assert found.values.equal(expected.values)
    assert found.log_normalizer.equal(expected.log_normalizer)


def test_rows_need_not_be_contiguous():
    queries, rows = vectors(3, 600, 32)
    found = soft_lookup(queries[:, ::2], rows[::3, ::2])
    expected = soft_lookup(queries[:, ::2].contiguous(), rows[::3, ::2].contiguous())
    torch.testing.assert_close(found.values, expected.values)


def test_own_row_equals_one_more_row():
    queries, rows = vectors(6, 50, 12, torch.float64)
    own = normalize(
        torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1
    )
    found = with_own_row(soft_lookup(queries, rows), queries, own)
    for i in range(6):
        values, log_normalizer = reference(queries[i : i + 1], torch.cat([own[i : i + 1], rows]))
        np.testing.assert_allclose(found.offset[i], values[0] - own[i].numpy(), atol=1e-14)
        np.testing.assert_allclose(
            found.excess[i], log_normalizer[0] - float(queries[i] @ own[i]), rtol=1e-12
        )


def test_rows_far_below_the_best_do_not_slow_the_matmuls_down():
    """exp of a difference of −90 to −100 is subnormal: the look-up took 140 times as long before it was bounded."""
    generator = torch.Generator().manual_seed(0)
    dim = MAX_DIM["cpu"] + 64
    center = normalize(torch.randn(1, dim, generator=generator), dim=1)
    near = normalize(center + 0.1 * normalize(torch.randn(200, dim, generator=generator), dim=1), dim=1)
    far = torch.randn(1800, dim, generator=generator)
    far = normalize(far - (far @ center.T) * center, dim=1)
    queries = near[:32] / 0.01

    def seconds(rows: torch.Tensor) -> float:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            lookup_in_blocks(queries, rows)
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(torch.cat([near, far])) < 15 * seconds(near.repeat(10, 1))
