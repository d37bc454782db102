"""Addressed randomness: the published vectors, a slow independent cipher, and independence of all addresses."""

import hashlib
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from tinyseed.data import addressed
from tinyseed.data.addressed import SORTED_BELOW, bijection, order, permutation, philox, uniforms

# philox4x32, 10 rounds, from kat_vectors of Random123: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    """The paper's definition on Python integers."""
    left0, right0, left1, right1 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * left0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * left1, 2**32)
        left0, right0, left1, right1 = high1 ^ right0 ^ k0, low1, high0 ^ right1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [left0, right0, left1, right1]


def slow_uniform(seed: int, epoch: int, index: int, name: str, place: int) -> float:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=8).digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    block = slow_philox([index % 2**32, index // 2**32, place // 2, 0], key)
    high, low = block[2 * (place % 2) :][:2]
    return ((high << 32 | low) >> 11) / 2**53


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_published_vectors(counter: str, key: str, output: str) -> None:
    lanes = np.array(words(counter), np.uint64)[:, None]
    assert philox(lanes, tuple(words(key)))[:, 0].tolist() == words(output)
    assert slow_philox(words(counter), words(key)) == words(output)


def test_uniforms_equal_the_slow_definition() -> None:
    indices = np.array([0, 1, 7, 2**32 - 1, 2**32, 2**40 + 3], np.int64)
    for seed, epoch, name in ((0, 0, "crop-0"), (2**70, 199, "colour-1")):
        got = uniforms(seed, epoch, indices, name, 5)
        expected = [[slow_uniform(seed, epoch, i, name, p) for p in range(5)] for i in indices.tolist()]
        assert got.tolist() == expected


def test_a_row_depends_on_its_index_alone() -> None:
    many = uniforms(3, 5, np.arange(1000), "crop-0", 40)
    assert np.array_equal(uniforms(3, 5, np.array([7]), "crop-0", 40)[0], many[7])
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(uniforms(3, 5, shuffled, "crop-0", 40), many[shuffled])
    assert np.array_equal(uniforms(3, 5, np.arange(1000), "crop-0", 3), many[:, :3])
    # So many blocks an image that the images are worked through in several parts.
    long = uniforms(3, 5, np.arange(20), "crop-0", 2000)
    assert np.array_equal(long[:, :40], many[:20])


def test_uniformity() -> None:
    draws = uniforms(0, 0, np.arange(20_000), "crop-0", 10)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.chisquare(np.histogram(column, 256, (0, 1))[0]).pvalue > 1e-4
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    low_bits = (draws * 2**53).astype(np.uint64) & 0xFF
    assert stats.chisquare(np.bincount(low_bits.ravel(), minlength=256)).pvalue > 1e-4


def test_addresses_are_independent() -> None:
    n = 20_000
    indices = np.arange(n)
    draws = np.column_stack(
        (
            uniforms(0, 0, indices, "crop-0", 3),
            uniforms(0, 0, indices, "crop-1", 3),
            uniforms(0, 1, indices, "crop-0", 3),
            uniforms(1, 0, indices, "crop-0", 3),
            uniforms(0, 0, indices + 1, "crop-0", 3),  # adjacent images
        )
    )
    correlation = np.corrcoef(draws, rowvar=False) - np.eye(draws.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(n)
    for other in range(3, 15):
        joint = np.histogram2d(draws[:, 0], draws[:, other], 16, ((0, 1), (0, 1)))[0]
        assert stats.chisquare(joint.ravel()).pvalue > 1e-5


def test_name_and_numbers_do_not_run_together() -> None:
    index = np.array([0])
    assert uniforms(1, 11, index, "a", 1) != uniforms(11, 1, index, "a", 1)
    assert uniforms(1, 1, index, "1/a", 1) != uniforms(1, 11, index, "a", 1)


def test_permutation_is_one_and_each_epoch_has_its_own() -> None:
    first, second = permutation(0, 0, 10_000), permutation(0, 1, 10_000)
    assert first.dtype == np.int64
    assert np.array_equal(np.sort(first), np.arange(10_000))
    assert abs(stats.spearmanr(first, second).statistic) < 0.05
    assert abs(stats.spearmanr(first, np.arange(10_000)).statistic) < 0.05
    assert np.array_equal(first, permutation(0, 0, 10_000))
    assert permutation(0, 0, 0).shape == (0,)


def test_all_orders_are_equally_likely() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        order = tuple(permutation(0, epoch, 4).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_the_values_stay_what_they_are() -> None:
    """A run that is resumed after an upgrade has to see the views it would have seen."""
    assert permutation(0, 0, 10).tolist() == [0, 6, 8, 3, 2, 1, 7, 5, 4, 9]
    assert uniforms(0, 0, np.array([5]), "crop-0", 2)[0].tolist() == [0.9730409834982622, 0.7467363025583688]


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (0, -1)])
def test_negative_addresses_are_refused(seed: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        uniforms(seed, epoch, np.array([0]), "crop-0", 1)
    with pytest.raises(ValueError, match="at least 0"):
        permutation(seed, epoch, 3)
    with pytest.raises(ValueError, match="at least 0"):
        order(seed, epoch, SORTED_BELOW)


@pytest.mark.parametrize("size", [*range(1, 40), 127, 128, 129, 255, 256, 257, 4095, 4096, 4097, 65_537])
def test_the_bijection_is_one(size: int) -> None:
    found = bijection(3, 5, size, np.arange(size))
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(size))


def test_slices_of_the_bijection_are_slices_of_the_whole() -> None:
    size = 30_011
    whole = bijection(0, 7, size, np.arange(size))
    places = np.random.default_rng(0).permutation(size)[:500]
    assert np.array_equal(bijection(0, 7, size, places), whole[places])
    for start, stop in ((0, 1), (4090, 4100), (30_000, size)):
        assert np.array_equal(bijection(0, 7, size, np.arange(start, stop)), whole[start:stop])


@pytest.mark.parametrize("size", [4, 5, 16, 33])
def test_the_bijection_puts_everything_everywhere_equally_often(size: int) -> None:
    counts, epochs = np.zeros((size, size)), 600
    for epoch in range(epochs):
        counts[np.arange(size), bijection(0, epoch, size, np.arange(size))] += 1
    statistic = ((counts - epochs / size) ** 2).sum() / (epochs / size)
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > 1e-4


def test_the_bijection_leaves_no_trace_of_the_order() -> None:
    size = 100_003
    first, second = (bijection(0, epoch, size, np.arange(size)) for epoch in (0, 1))
    for one, other in (
        (first, np.arange(size)),
        (first, second),
        (first[1:], first[:-1]),
        (first[317:], first[:-317]),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(size)
        joint = np.histogram2d(one, other, 16)[0]
        assert stats.chisquare(joint.ravel()).pvalue > 1e-5
    steps = np.diff(first) % size  # of a random order, each as often as any other
    assert stats.chisquare(np.histogram(steps, 256, (0, size))[0]).pvalue > 1e-5
    # A batch is spread over the whole data set, in which images are often sorted by class.
    batches = first[: size // 256 * 256].reshape(-1, 256)
    assert abs(batches.mean(1).std() / (size / np.sqrt(12 * 256)) - 1) < 0.15
    assert not np.array_equal(first, bijection(1, 0, size, np.arange(size)))
    assert not np.array_equal(first, bijection(0, 0, size, np.arange(size), "other"))


def test_the_order_of_few_images_is_the_sorted_one_and_of_many_the_bijection(monkeypatch) -> None:
    monkeypatch.setattr(addressed, "SORTED_BELOW", 5000)
    for size in (1000, 4999):
        assert np.array_equal(order(4, 2, size)(10, 300), permutation(4, 2, size)[10:300])
    many = order(4, 2, 5000)(4990, 5100)
    assert np.array_equal(many, bijection(4, 2, 5000, np.arange(4990, 5000)))


def test_the_order_of_many_images_is_not_held() -> None:
    tracemalloc.start()
    places = order(0, 0, 10**9)
    assert len(np.unique(places(10**8, 10**8 + 4096))) == 4096
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_bijections_values_stay_what_they_are() -> None:
    assert bijection(0, 0, 10, np.arange(10)).tolist() == [2, 5, 8, 7, 1, 4, 3, 0, 6, 9]
    assert order(0, 0, 10**7)(0, 4).tolist() == [1433182, 7878875, 7539513, 8499560]
