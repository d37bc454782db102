"""k-means against scikit-learn from the same beginning, and against what any clustering has to satisfy."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from tinyseed.objectives import streaming
from tinyseed.objectives.kmeans import kmeans, nearest

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(clusters: int = 5, each: int = 40, d: int = 6, spread: float = 0.6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(clusters, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(clusters, each, d, generator=generator, dtype=torch.float64)
    return (centers[:, None] + spread * noise).flatten(0, 1)


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_rounds_are_scikit_learns(seed):
    vectors = blobs(seed=seed)
    begin = kmeans(vectors, draws(7, seed), iterations=0)
    found = kmeans(vectors, draws(7, seed), iterations=300)
    expected = KMeans(7, init=begin.numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(vectors)
    np.testing.assert_allclose(found.numpy(), expected.cluster_centers_, rtol=1e-9, atol=1e-12)
    assert np.array_equal(nearest(vectors, found).numpy(), expected.labels_)


def test_blocks_give_what_all_vectors_give(monkeypatch):
    vectors, numbers = blobs(each=60), draws(6)
    whole = kmeans(vectors, numbers)
    monkeypatch.setitem(streaming.SCORE_BYTES, "cpu", 1)
    torch.testing.assert_close(kmeans(vectors, numbers), whole, rtol=1e-12, atol=1e-12)


def test_it_begins_with_vectors_that_are_far_apart():
    """k-means++ takes one of each of five tight, distant blobs; by chance alone it would in 4 % of the cases."""
    vectors = blobs(spread=1e-3)
    for seed in range(10):
        begin = kmeans(vectors, draws(5, seed), iterations=0)
        assert sorted(nearest(begin, vectors[::40]).tolist()) == [0, 1, 2, 3, 4]


def test_the_second_vector_is_drawn_by_squared_distance():
    """Of 0, 1 and 3, after 0: weights 0, 1 and 9."""
    vectors = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    for draw, expected in ((0.0, 1.0), (0.099, 1.0), (0.101, 3.0), (0.999, 3.0)):
        chosen = kmeans(vectors, torch.tensor([0.0, draw], dtype=torch.float64), iterations=0)
        assert chosen.flatten().tolist() == [0.0, expected]


def test_fewer_different_vectors_than_clusters():
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(3, 1)
    found = kmeans(vectors, draws(4).float())
    assert found.isfinite().all()
    assert torch.equal(found[nearest(vectors, found)], vectors)
