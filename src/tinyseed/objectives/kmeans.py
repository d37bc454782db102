"""k-means: clusters of vectors, which a student can learn as classes."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from tinyseed.objectives.streaming import row_blocks

MOST_ITERATIONS = 50
"""Rounds after which the clusters are taken as they are."""

Vectors = Float[Tensor, "m d"]
Centroids = Float[Tensor, "c d"]


@torch.no_grad()
def kmeans(vectors: Vectors, draws: Float[Tensor, " c"], *, iterations: int = MOST_ITERATIONS) -> Centroids:
    """The means of c clusters: k-means++ chooses vectors to begin with, Lloyd's rounds move them until none changes.

    It does not choose at random itself, and adds in an order that is always the same, on a GPU too.

    Args:
        vectors: [m, d], m ≥ 1.
        draws: [c], uniform numbers in [0, 1) that decide which vectors the clusters begin with.
        iterations: largest number of rounds; 0 returns the vectors to begin with.

    Returns:
        [c, d]. A cluster to which no vector belongs stays where it is; of fewer than c different vectors some are there
        several times.

    Source: Arthur & Vassilvitskii, k-means++, SODA 2007, section 2.2; Lloyd, IEEE Trans. Inf. Theory 28, 1982.
    """
    centroids = _spread(vectors, draws)
    before: Tensor | None = None
    for _ in range(iterations):
        labels = nearest(vectors, centroids)
        if before is not None and torch.equal(labels, before):
            break
        centroids, before = _means(vectors, labels, centroids), labels
    return centroids


@torch.no_grad()
def nearest(vectors: Vectors, centroids: Centroids) -> Int64[Tensor, " m"]:
    """Which centroid is closest to each vector; of equally close ones the first. A block of scores is in memory."""
    half = centroids.square().sum(1) / 2
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.cat(
            [(part @ centroids.T - half).argmax(1) for _, part in row_blocks(vectors, len(centroids))]
        )


def _spread(vectors: Vectors, draws: Float[Tensor, " c"]) -> Centroids:
    """The first vector by chance, then each with a probability that grows with its squared distance to those chosen."""
    chosen = [min(int(draws[0] * len(vectors)), len(vectors) - 1)]
    distances = (vectors - vectors[chosen[0]]).square().sum(1)
    for draw in draws[1:].tolist():
        reached = distances.double().cumsum(0)
        place = int(torch.searchsorted(reached, draw * reached[-1], right=True))
        chosen.append(min(place, len(vectors) - 1))
        distances = torch.minimum(distances, (vectors - vectors[chosen[-1]]).square().sum(1))
    return vectors[chosen]


def _means(vectors: Vectors, labels: Int64[Tensor, " m"], centroids: Centroids) -> Centroids:
    total, counts = torch.zeros_like(centroids), torch.zeros_like(centroids[:, :1])
    for start, part in row_blocks(vectors, len(centroids)):
        belongs = one_hot(labels[start : start + len(part)], len(centroids)).to(part.dtype)
        total.addmm_(belongs.T, part)
        counts += belongs.sum(0)[:, None]
    return torch.where(counts > 0, total / counts.clamp(min=1), centroids)
