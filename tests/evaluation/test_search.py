"""The nearest images against float64 sorts, for both ways of searching and all that could mislead them."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from tinyseed.errors import RunError
from tinyseed.evaluation import search
from tinyseed.evaluation.search import nearest


def clusters(images: int, classes: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes of features that are not unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (images,), generator=generator)
    noise = torch.randn(images, width, generator=generator)
    scale = 0.5 + 3 * torch.rand(images, 1, generator=generator)
    return (centers[labels] + 1.6 * noise) * scale, labels


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    """The same result whether the similarities fit one tile or are taken in many odd ones."""
    if request.param == "many tiles":
        monkeypatch.setattr(search, "TILE", (97, 211))


@pytest.fixture(params=["float32", "bfloat16", "faiss"])
def scanned(request, monkeypatch):
    """Small banks are scanned, in odd tiles; counts the queries that had to go the exhaustive way."""
    monkeypatch.setattr(search, "SCAN_FROM", 1000)
    monkeypatch.setattr(search, "SCAN_TILE", (97, 611))
    monkeypatch.setattr(search, "native_bf16", lambda on_gpu: request.param == "bfloat16")
    monkeypatch.setattr(search, "has_faiss", lambda: request.param == "faiss")
    exhaustive, sizes = search._exhaustive, []

    def counted(queries, *rest):
        sizes.append(len(queries))
        return exhaustive(queries, *rest)

    monkeypatch.setattr(search, "_exhaustive", counted)
    return sizes


def assert_exact(queries, bank, count, *, exclude_self=False):
    """Similarities to float32's rounding, and positions wherever two images differ by more than that in float64."""
    found = nearest(queries, bank, count, exclude_self=exclude_self)
    cosines = normalize(queries.double(), dim=1) @ normalize(bank.double(), dim=1).T
    if exclude_self:
        cosines.fill_diagonal_(-math.inf)
    expected = cosines.topk(count, 1)
    torch.testing.assert_close(found.similarities.double(), expected.values, atol=2e-6, rtol=0)
    shown = cosines.gather(1, found.positions)
    torch.testing.assert_close(shown, expected.values, atol=2e-6, rtol=0)
    assert all(len(row.unique()) == count for row in found.positions)
    assert bool((found.similarities.diff(dim=1) <= 0).all())


def test_nearest_are_those_of_a_float64_sort(tiles):
    bank, _ = clusters(523, 5, 16)
    queries, _ = clusters(111, 5, 16, seed=1)
    found = nearest(queries, bank, 40)
    cosines = torch.cosine_similarity(queries.double()[:, None], bank.double()[None], dim=2)
    assert torch.equal(found.positions, cosines.argsort(1, descending=True)[:, :40])
    torch.testing.assert_close(
        found.similarities.double(), cosines.gather(1, found.positions), atol=1e-6, rtol=0
    )


def test_an_image_is_not_its_own_neighbor(tiles):
    features, _ = clusters(211, 5, 16)
    for count in (1, 20, 210):
        found = nearest(features, features, count, exclude_self=True)
        assert not (found.positions == torch.arange(211)[:, None]).any()
        assert found.similarities.isfinite().all()
        assert all(len(row.unique()) == count for row in found.positions)


@pytest.mark.parametrize("columns", [1, 2, 39, 40, 41, 159, 160, 161, 1000])
def test_the_grouped_search_is_topk(columns):
    values = torch.randn(13, columns, generator=torch.Generator().manual_seed(columns))
    for count in {1, min(2, columns), min(10, columns), columns}:
        largest, positions = search._largest(values, count)
        expected = values.topk(count, 1)
        assert torch.equal(largest, expected.values)
        assert torch.equal(positions, expected.indices)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_no_numbers_are_refused(bad):
    bank = torch.randn(20, 4)
    queries = bank.clone()
    queries[3, 1] = bad
    with pytest.raises(RunError, match="NaN or infinite"):
        nearest(queries, bank, 3)
    with pytest.raises(RunError, match="NaN or infinite"):
        nearest(bank, queries, 3)


@pytest.mark.parametrize("count", [1, 10, 60])
@pytest.mark.parametrize("kind", ["noise", "clusters", "sorted", "rectified", "half"])
def test_a_scan_is_exact(scanned, kind, count):
    generator = torch.Generator().manual_seed(count)
    if kind == "noise":
        bank, queries = (torch.randn(rows, 64, generator=generator) for rows in (4001, 205))
    else:
        bank, labels = clusters(4001, 9, 64)
        queries, _ = clusters(205, 9, 64, seed=1)
        if kind == "sorted":  # a class at a time, as files often are
            bank = bank[labels.argsort()]
        if kind == "rectified":  # all in one corner, as behind a ReLU: similarities from .8 to .95
            bank, queries = (rows.relu() + 3 for rows in (bank, queries))
        if kind == "half":
            bank, queries = bank.half(), queries.half()
    assert_exact(queries, bank, count)
    assert sum(scanned) < 0.2 * len(queries)


@pytest.mark.parametrize("count", [1, 25])
def test_a_scan_leaves_the_image_itself_out(scanned, count):
    bank, _ = clusters(1300, 9, 48)
    assert_exact(bank, bank, count, exclude_self=True)


def test_rounding_that_would_change_the_order_does_not(scanned):
    """Similarities that differ by less than bfloat16 resolves: in it the order would be another one."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(3000, 32, generator=generator)
    queries = torch.randn(150, 32, generator=generator)
    rounded = normalize(queries, dim=1).bfloat16() @ normalize(bank, dim=1).bfloat16().T
    cosines = normalize(queries.double(), dim=1) @ normalize(bank.double(), dim=1).T
    wrong = rounded.topk(30, 1).indices != cosines.topk(30, 1).indices
    assert wrong.any(1).float().mean() > 0.9
    assert_exact(queries, bank, 30)


@pytest.mark.parametrize("case", ["collapsed", "duplicates", "zeros", "far away", "one cluster of copies"])
def test_features_that_defeat_a_scan_are_searched_exhaustively(scanned, case):
    generator = torch.Generator().manual_seed(1)
    bank, queries = (torch.randn(rows, 40, generator=generator) for rows in (2500, 220))
    if case == "collapsed":
        bank, queries = 1 + 1e-4 * bank, 1 + 1e-4 * queries
    elif case == "duplicates":
        bank = bank[:50].repeat(50, 1)
    elif case == "zeros":
        bank[::2], queries[::3] = 0, 0
    elif case == "far away":
        bank, queries = bank * 1e12, queries * 1e-12
    else:
        bank[700:1900] = queries[5]
    values = nearest(queries, bank, 30).similarities
    expected = (normalize(queries.double(), dim=1) @ normalize(bank.double(), dim=1).T).topk(30, 1).values
    torch.testing.assert_close(values.double(), expected, atol=2e-6, rtol=0)


def test_a_defeated_scan_ends_after_its_first_block(scanned, monkeypatch):
    monkeypatch.setattr(search, "has_faiss", lambda: False)
    bank = torch.ones(2500, 40)
    assert nearest(torch.ones(500, 40), bank, 5).similarities.min() > 0.999999
    assert scanned == [500]


def test_a_bank_too_large_to_be_kept_is_made_anew(scanned, monkeypatch):
    bank, _ = clusters(2111, 5, 32)
    queries, _ = clusters(201, 5, 32, seed=1)
    kept = nearest(queries, bank, 12)
    monkeypatch.setattr(search, "KEPT_BYTES", 0)
    made_anew = nearest(queries, bank, 12)
    assert torch.equal(kept.positions, made_anew.positions)
    assert torch.equal(kept.similarities, made_anew.similarities)


def test_many_neighbors_and_small_banks_are_searched_exhaustively(scanned):
    bank, _ = clusters(1200, 5, 16)
    nearest(bank[:40], bank[:999], 5)
    nearest(bank[:40], bank, 40)
    assert scanned == [40, 40]


def test_faiss_is_taken_where_it_is_faster_only(monkeypatch):
    bank, _ = clusters(1200, 5, 16)
    taken = []
    monkeypatch.setattr(search, "SCAN_FROM", 1000)
    monkeypatch.setattr(search, "has_faiss", lambda: True)
    by_faiss = search._by_faiss
    monkeypatch.setattr(search, "_by_faiss", lambda *given: taken.append(len(given[0])) or by_faiss(*given))
    for native, most in ((True, 1 << 32), (False, 1 << 10), (False, 1 << 32)):
        monkeypatch.setattr(search, "native_bf16", lambda on_gpu, native=native: native)
        monkeypatch.setattr(search, "FAISS_BYTES", most)
        nearest(bank[:40], bank, 5)
    assert taken == [40]
