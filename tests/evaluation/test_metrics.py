"""Metrics against computations by hand."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from tinyseed.evaluation.metrics import class_metrics, over_seeds


def test_metrics_by_hand():
    scores = torch.tensor([[3.0, 1, 0], [0, 2, 1], [5, 0, 1], [0, 0, 9]])
    metrics = class_metrics(scores, torch.tensor([0, 1, 1, 2]))
    assert metrics["top1"] == 75.0
    assert metrics["mean_per_class"] == pytest.approx(100 * (1 + 0.5 + 1) / 3)
    assert metrics["top5"] == 100.0  # of three classes


def test_metrics_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 12, generator=generator)
    labels = (12 * torch.rand(400, generator=generator) ** 2).long()  # unbalanced
    metrics = class_metrics(scores, labels)
    expected = {
        "top1": top_k_accuracy_score(labels, scores, k=1, labels=range(12)),
        "top5": top_k_accuracy_score(labels, scores, k=5, labels=range(12)),
        "mean_per_class": balanced_accuracy_score(labels, scores.argmax(1)),
    }
    assert metrics == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_a_class_without_a_score_counts_as_wrong():
    metrics = class_metrics(torch.eye(3), torch.tensor([0, 1, 3]))
    assert metrics["top1"] == pytest.approx(200 / 3)
    assert metrics["mean_per_class"] == pytest.approx(200 / 3)


def test_a_standard_deviation_needs_two_runs():
    assert over_seeds([{"top1": 4.0}]) == {"top1": 4.0}
    spread = over_seeds([{"top1": 1.0}, {"top1": 2.0}, {"top1": 6.0}])
    assert spread == pytest.approx({"top1": 3.0, "top1_std": 7**0.5})
