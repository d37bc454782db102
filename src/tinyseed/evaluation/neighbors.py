"""k-nearest-neighbor classification of feature matrices: the neighbors' vote, and how often it is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tinyseed.errors import InputError
from tinyseed.evaluation.search import Neighbors, nearest
from tinyseed.shapes import Indices

TOP = 5
"""Ranks in which a right class counts for top-5."""

VOTE_NUMBERS = 1 << 22
"""Votes [n, classes] held at once: 32 MB."""


@dataclass(frozen=True)
class KnnResult:
    """How often the neighbors' vote was right.

    Attributes:
        k: neighbors that voted.
        top1: share of the tested images whose class got the most votes, 0 to 1.
        top5: share whose class was among the five with the most votes, or among the k with k below 5. Classes without
            a vote come last, in their order.
        tested: labeled test images.
        voters: labeled train images.
        unlabeled: images of either split that were left out because they have no label.
        absent: tested images of a class that no train image has; they count as wrong.
    """

    k: int
    top1: float
    top5: float
    tested: int
    voters: int
    unlabeled: int
    absent: int


def knn(
    train: Float[Tensor, "m f"],
    train_labels: Int64[Tensor, " m"],
    test: Float[Tensor, "n f"],
    test_labels: Int64[Tensor, " n"],
    *,
    k: Sequence[int] = (10, 20, 200),
    temperature: float = 0.07,
    weighting: Literal["weighted", "majority"] = "weighted",
    leave_one_out: bool = False,
) -> tuple[KnnResult, ...]:
    """Classify test images by the labels of their nearest train images.

    Args:
        train: features whose labels vote, any scale, any device; similarities are float32 cosines.
        train_labels: classes from 0 on, -1 for unlabeled images.
        test: features to classify, of the same model.
        test_labels: classes in the numbering of `train_labels` (see `align_labels`), -1 for unlabeled.
        k: neighbors that vote; several numbers share one search.
        temperature: a neighbor of similarity s votes with weight exp(s / temperature) ("weighted").
        weighting: "weighted", or "majority": one vote each. Of classes with equal votes the lowest number wins.
        leave_one_out: `test` is `train`, and no image counts as its own neighbor.

    Returns:
        A result for each number of `k`, in their order.

    Raises:
        InputError: a split without labels, a single class to vote for, or fewer labeled train images than `k`.
        RunError: features that are not finite.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
        section 3.4 (weights exp(s/0.07), k 200); top-5 as in DINO's eval_knn.py; ties as in scikit-learn's
        KNeighborsClassifier.
    Differs: an image of a class that no train image has counts as wrong; DINO's code, which always has all classes,
        might count it among the five by the classes' order.
    """
    if leave_one_out and len(train) != len(test):
        raise ValueError(
            f"leave_one_out needs test to be train; {len(test)} and {len(train)} images were given"
        )
    voters, voter_labels = _labeled(train, train_labels)
    tested, tested_labels = _labeled(test, test_labels)
    _refuse(k, voter_labels, tested_labels, leave_one_out=leave_one_out)
    neighbors = nearest(tested, voters, max(k), exclude_self=leave_one_out)
    left_out = len(train) - len(voters) + (0 if leave_one_out else len(test) - len(tested))
    known = torch.isin(tested_labels, voter_labels)
    results = []
    for number in k:
        first = Neighbors(*(part[:, :number].cpu() for part in neighbors))
        ranks = min(TOP, number)
        ranked = vote(first, voter_labels, temperature=temperature, weighting=weighting, ranks=ranks)
        right = (ranked == tested_labels[:, None]) & known[:, None]
        top1, top5 = (float(hits.double().mean()) for hits in (right[:, 0], right.any(1)))
        absent = len(known) - int(known.sum())
        results.append(KnnResult(number, top1, top5, len(tested), len(voters), left_out, absent))
    return tuple(results)


def top1(
    train: Float[Tensor, "m f"],
    train_labels: Int64[Tensor, " m"],
    test: Float[Tensor, "n f"],
    test_labels: Int64[Tensor, " n"],
    k: int = 10,
) -> float | None:
    """Weighted k-NN top-1 in per cent, with as many voters as there are up to k; see `knn`.

    Returns:
        None where nothing can be said: no labeled test image, or voters of fewer than two classes.
    """
    voters = train_labels[train_labels >= 0]
    if len(voters.unique()) < 2 or not bool((test_labels >= 0).any()):
        return None
    (result,) = knn(train, train_labels, test, test_labels, k=(min(k, len(voters)),))
    return 100 * result.top1


def _labeled(
    features: Float[Tensor, "n f"], labels: Indices
) -> tuple[Float[Tensor, "m f"], Int64[Tensor, " m"]]:
    kept = labels >= 0
    if bool(kept.all()):  # the usual case: a large bank is not copied
        return features, labels.cpu()
    return features[kept.to(features.device)], labels[kept].cpu()


def _refuse(k: Sequence[int], voters: Tensor, tested: Tensor, *, leave_one_out: bool) -> None:
    labels_needed = (
        "k-NN needs labels; give a folder with a sub-folder for each class, or Parquet with a label column"
    )
    for labels, name in ((voters, "train_labels"), (tested, "test_labels")):
        if len(labels) == 0:
            raise InputError("no labeled image", labels_needed, argument=name)
    if bool((voters == voters[0]).all()):
        raise InputError("a single class", "give images of at least two classes", argument="train_labels")
    if not k or min(k) < 1:
        raise InputError(min(k, default="(nothing)"), "give a number of at least 1", argument="k")
    most = len(voters) - leave_one_out
    if max(k) > most:
        remedy = f"there are {most} labeled images to vote; give at most that many"
        raise InputError(max(k), remedy, argument="k")


def vote(
    neighbors: Neighbors,
    labels: Int64[Tensor, " m"],
    *,
    temperature: float = 0.07,
    weighting: Literal["weighted", "majority"] = "weighted",
    ranks: int = TOP,
) -> Int64[Tensor, "n _"]:
    """Classes by votes, most votes first: `ranks` of them, or all if there are fewer.

    Of classes with equal votes the lowest number comes first, so classes without a vote come last in their order. Sums
    are float64 on the CPU in a fixed order, so the same neighbors always elect the same class.

    Args:
        neighbors: nearest first, on the CPU.
        labels: class of each image of the bank, from 0 on.
        temperature: see `knn`.
        weighting: see `knn`.
        ranks: number of classes to return.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it has to be above 0")
    voted = labels[neighbors.positions]
    similarities = neighbors.similarities.double()
    # All weights of a row are divided by the largest, which keeps exp() in range at any temperature.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    if weighting == "majority":
        weights = torch.ones_like(similarities)
    classes = int(labels.max()) + 1
    block = max(1, VOTE_NUMBERS // classes)
    blocks = zip(voted.split(block), weights.split(block), strict=True)
    return torch.cat([_elect(*votes, classes, ranks) for votes in blocks])


def _elect(
    voted: Int64[Tensor, "n k"], weights: Float[Tensor, "n k"], classes: int, ranks: int
) -> Int64[Tensor, "n _"]:
    sums = torch.zeros(len(voted), classes, dtype=weights.dtype).scatter_add_(1, voted, weights)
    ranked = []
    for _ in range(min(ranks, classes)):
        winner = sums.argmax(1, keepdim=True)  # of equals the first, so the lowest number
        ranked.append(winner)
        sums.scatter_(1, winner, -1.0)
    return torch.cat(ranked, 1)
