"""k-NN against scikit-learn's, against hand-made votes, and its refusals."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tinyseed.errors import InputError
from tinyseed.evaluation import neighbors as module
from tinyseed.evaluation import search
from tinyseed.evaluation.neighbors import knn, vote
from tinyseed.evaluation.search import Neighbors, nearest
from tinyseed.evaluation.splits import align_labels


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
        monkeypatch.setattr(module, "VOTE_NUMBERS", 400)


def untied(votes: np.ndarray) -> np.ndarray:
    first, second = np.sort(votes, axis=1)[:, ::-1][:, :2].T
    return first > second * (1 + 1e-6)


@pytest.mark.parametrize("weighting", ["weighted", "majority"])
@pytest.mark.parametrize("k", [1, 12, 700])
def test_classes_equal_scikit_learn(tiles, weighting, k):
    train, train_labels = clusters(700, 9, 24)
    test, test_labels = clusters(300, 9, 24, seed=1)
    weights = "uniform" if weighting == "majority" else lambda distances: np.exp((1 - distances) / 0.07)
    reference = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    reference.fit(train.double().numpy(), train_labels.numpy())
    votes = reference.predict_proba(test.double().numpy())
    clear = untied(votes)
    assert clear.sum() > 0.7 * len(test)
    ranked = vote(nearest(test, train, k), train_labels, weighting=weighting).numpy()
    np.testing.assert_array_equal(ranked[clear, 0], votes.argmax(1)[clear])
    (result,) = knn(train, train_labels, test, test_labels, k=(k,), weighting=weighting)
    right = votes.argmax(1) == test_labels.numpy()
    ties = (~clear).sum() / len(test)
    assert (
        right[clear].mean() * clear.mean()
        <= result.top1 + 1e-9
        <= right[clear].mean() * clear.mean() + ties + 2e-9
    )


def test_leave_one_out_equals_scikit_learn_one_by_one():
    features, labels = clusters(60, 3, 8)
    right = 0
    for left_out in range(60):
        others = torch.arange(60) != left_out
        reference = KNeighborsClassifier(
            3, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute"
        )
        reference.fit(features[others].double().numpy(), labels[others].numpy())
        right += int(
            reference.predict(features[left_out : left_out + 1].double().numpy())[0] == labels[left_out]
        )
    (result,) = knn(features, labels, features, labels, k=(3,), leave_one_out=True)
    assert result.top1 == pytest.approx(right / 60)
    assert result.top1 < 1
    (naive,) = knn(features, labels, features, labels, k=(1,))
    assert naive.top1 == 1  # each image's nearest is itself: what leave_one_out is there for


def hand_made(similarities: list[float], labels: list[int]) -> tuple[Neighbors, torch.Tensor]:
    return Neighbors(torch.tensor([similarities]), torch.arange(len(labels))[None]), torch.tensor(labels)


def test_votes_by_hand():
    neighbors, labels = hand_made([0.9, 0.5, 0.5, 0.5], [2, 0, 0, 1])
    assert vote(neighbors, labels, weighting="majority").tolist() == [[0, 1, 2]]  # 1 and 2 have a vote each
    # exp(0.9 / T) against 2 exp(0.5 / T): the near one wins where T < 0.4 / log 2 = 0.577
    assert vote(neighbors, labels, temperature=0.57).tolist() == [[2, 0, 1]]
    assert vote(neighbors, labels, temperature=0.59).tolist() == [[0, 2, 1]]
    assert vote(neighbors, labels, temperature=1e-6).tolist() == [[2, 0, 1]]


def tied(images: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features without structure, so that votes of few neighbors are often equal."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, 6, dtype=torch.float64, generator=generator)
    return features, torch.randint(classes, (images,), generator=generator)


@pytest.mark.parametrize("k", [1, 2, 4, 10, 60])
def test_ties_of_majority_votes_are_broken_as_in_scikit_learn(tiles, k):
    train, train_labels = tied(400, 7, 0)
    test, test_labels = tied(300, 7, 1)
    reference = KNeighborsClassifier(k, weights="uniform", metric="cosine", algorithm="brute")
    reference.fit(train.numpy(), train_labels.numpy())
    votes = np.sort(reference.predict_proba(test.numpy()), axis=1)
    if k in (2, 4):
        assert (votes[:, -1] == votes[:, -2]).sum() > 90
    expected = reference.predict(test.numpy())
    ranked = vote(nearest(test, train, k), train_labels, weighting="majority")
    np.testing.assert_array_equal(ranked[:, 0].numpy(), expected)
    (result,) = knn(train, train_labels, test, test_labels, k=(k,), weighting="majority")
    assert result.top1 == (expected == test_labels.numpy()).mean()


def dinos_formula(train, train_labels, test, test_labels, k: int, classes: int) -> tuple[float, float]:
    """The metrics of DINO's eval_knn.py, in float64: all classes sorted by votes, the right one among min(5, k)."""
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    test = test / np.linalg.norm(test, axis=1, keepdims=True)
    similarities = test @ train.T
    top1, top5 = [], []
    for row, label in zip(similarities, test_labels, strict=True):
        votes = np.zeros(classes)
        for neighbor in np.argsort(-row, kind="stable")[:k]:
            votes[train_labels[neighbor]] += np.exp(row[neighbor] / 0.07)
        ranked = np.argsort(-votes, kind="stable")
        top1.append(ranked[0] == label)
        top5.append(label in ranked[: min(5, k)])
    return float(np.mean(top1)), float(np.mean(top5))


@pytest.mark.parametrize("classes", [3, 5, 30])
@pytest.mark.parametrize("k", [1, 3, 5, 10, 200])
def test_top1_and_top5_equal_dinos_formula(tiles, classes, k):
    """Few neighbors leave classes without a vote, which come last in their order."""
    train, train_labels = tied(400, classes, 0)
    test, test_labels = tied(200, classes, 1)
    (result,) = knn(train, train_labels, test, test_labels, k=(k,))
    arrays = (part.numpy() for part in (train, train_labels, test, test_labels))
    assert (result.top1, result.top5) == dinos_formula(*arrays, k, classes)


@pytest.mark.parametrize("weighting", ["weighted", "majority"])
def test_a_class_without_training_images_is_wrong_though_it_may_be_ranked(weighting):
    train, labels = torch.eye(5), torch.tensor([1, 2, 3, 3, 3])
    test, test_labels = torch.eye(5)[:4], torch.tensor([1, 2, 3, 0])
    assert vote(nearest(test, train, 5), labels, weighting=weighting).shape == (4, 4)  # class 0 comes last
    (result,) = knn(train, labels, test, test_labels, k=(5,), weighting=weighting)
    assert (result.absent, result.top5) == (1, 0.75)


def test_several_k_share_a_search_and_equal_single_ones():
    train, train_labels = clusters(300, 8, 8)
    test, test_labels = clusters(100, 8, 8, seed=1)
    together = knn(train, train_labels, test, test_labels, k=(50, 1, 10))
    assert [result.k for result in together] == [50, 1, 10]
    alone = [knn(train, train_labels, test, test_labels, k=(k,))[0] for k in (50, 1, 10)]
    assert list(together) == alone
    assert all(result.top1 <= result.top5 <= 1 for result in together)
    assert together[0].top5 > together[0].top1


def test_unlabeled_images_are_left_out_and_counted():
    train, train_labels = clusters(200, 4, 8)
    test, test_labels = clusters(80, 4, 8, seed=1)
    plain = knn(train, train_labels, test, test_labels, k=(5,))[0]
    noise = torch.randn(30, 8)
    unlabeled = torch.full((30,), -1)
    mixed = knn(
        torch.cat((noise, train)),
        torch.cat((unlabeled, train_labels)),
        torch.cat((test, noise)),
        torch.cat((test_labels, unlabeled)),
        k=(5,),
    )[0]
    assert (mixed.top1, mixed.top5, mixed.tested, mixed.voters) == (plain.top1, plain.top5, 80, 200)
    assert (plain.unlabeled, mixed.unlabeled) == (0, 60)


def test_a_class_that_no_train_image_has_counts_as_wrong():
    train, train_labels = clusters(200, 4, 8)
    test, test_labels = clusters(80, 4, 8, seed=1)
    known = test_labels != 2
    names = ("a", "b", "zebra", "d")
    renamed = torch.from_numpy(align_labels(("a", "b", "c", "d"), names, test_labels.numpy()))
    (result,) = knn(train, train_labels, test, renamed, k=(5,))
    (among_known,) = knn(train, train_labels, test[known], test_labels[known], k=(5,))
    assert result.absent == int((~known).sum()) > 0
    assert result.tested == 80
    assert result.top1 * 80 == pytest.approx(among_known.top1 * int(known.sum()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": torch.full((20,), -1)}, "train_labels=no labeled image: "),
        ({"test_labels": torch.full((10,), -1)}, "test_labels=no labeled image: "),
        ({"train_labels": torch.ones(20, dtype=torch.int64)}, "train_labels=a single class: "),
        ({"k": (5, 21)}, "k=21: there are 20 labeled images to vote"),
        ({"k": (0,)}, "k=0: give a number of at least 1"),
        ({"k": ()}, "k="),
    ],
)
def test_what_cannot_be_answered_is_refused(change, message):
    given = {
        "train": torch.randn(20, 4),
        "train_labels": torch.arange(20) % 3,
        "test": torch.randn(10, 4),
        "test_labels": torch.arange(10) % 3,
        "k": (3,),
    }
    with pytest.raises(InputError) as caught:
        knn(**given | change)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_leave_one_out_has_one_voter_less():
    features, labels = torch.randn(20, 4), torch.arange(20) % 3
    assert knn(features, labels, features, labels, k=(19,), leave_one_out=True)[0].k == 19
    with pytest.raises(InputError, match="there are 19 labeled images to vote"):
        knn(features, labels, features, labels, k=(20,), leave_one_out=True)
    with pytest.raises(ValueError, match="needs test to be train"):
        knn(features, labels, features[:5], labels[:5], k=(2,), leave_one_out=True)


def test_features_of_any_precision_and_gradient():
    train, train_labels = clusters(100, 4, 8)
    half = train.half()
    expected = nearest(half.float(), half.float(), 5)
    assert torch.equal(nearest(half, half, 5).positions, expected.positions)
    assert torch.equal(
        nearest(train.requires_grad_(), train, 5).positions,
        nearest(train.detach(), train.detach(), 5).positions,
    )
    assert knn(half, train_labels, half, train_labels, k=(1,))[0].top1 == 1


def test_collapsed_features_give_an_answer_without_a_warning():
    train_labels = torch.arange(50) % 2
    (result,) = knn(torch.zeros(50, 4), train_labels, torch.zeros(20, 4), torch.arange(20) % 2, k=(10,))
    assert result.top1 == 0.5  # all images get the same class
