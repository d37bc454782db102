"""Figures against computations by hand."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from tinyseed.evaluation.figures import class_figures, over_seeds


def test_figures_by_hand():
    scores = torch.tensor([[3.0, 1, 0], [0, 2, 1], [5, 0, 1], [0, 0, 9]])
    figures = class_figures(scores, torch.tensor([0, 1, 1, 2]))
    assert figures["top1"] == 75.0
    assert figures["mean_per_class"] == pytest.approx(100 * (1 + 0.5 + 1) / 3)
    assert figures["top5"] == 100.0  # of three classes


def test_figures_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 12, generator=generator)
    labels = (12 * torch.rand(400, generator=generator) ** 2).long()  # unbalanced
    figures = class_figures(scores, labels)
    expected = {
        "top1": top_k_accuracy_score(labels, scores, k=1, labels=range(12)),
        "top5": top_k_accuracy_score(labels, scores, k=5, labels=range(12)),
        "mean_per_class": balanced_accuracy_score(labels, scores.argmax(1)),
    }
    assert figures == pytest.approx({name: 100 * value for name, value in expected.items()})


def test_a_class_without_a_score_counts_as_wrong():
    figures = class_figures(torch.eye(3), torch.tensor([0, 1, 3]))
    assert figures["top1"] == pytest.approx(200 / 3)
    assert figures["mean_per_class"] == pytest.approx(200 / 3)


def test_a_standard_deviation_needs_two_runs():
    assert over_seeds([{"top1": 4.0}]) == {"top1": 4.0}
    spread = over_seeds([{"top1": 1.0}, {"top1": 2.0}, {"top1": 6.0}])
    assert spread == pytest.approx({"top1": 3.0, "top1_std": 7**0.5})
