"""Logistic regression against scikit-learn's, at the same regularization."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tinyseed.evaluation import logistic as module
from tinyseed.evaluation.features import FeatureBank
from tinyseed.evaluation.logistic import L2_GRID, fit_logistic, probe, standardizer

CLASSES, WIDTH = 6, 40


def problem(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes; features as after a ReLU, of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(CLASSES, (images,), generator=generator)
    noise = torch.randn(images, WIDTH, generator=generator)
    scale = torch.logspace(-2, 2, WIDTH)
    return (0.5 * centers[labels] + noise).relu() * scale, labels


def reference(features: torch.Tensor, labels: torch.Tensor, l2: float, tol: float = 1e-9):
    scaler = StandardScaler().fit(features.double().numpy())
    model = LogisticRegression(C=1 / (len(labels) * l2), tol=tol, max_iter=10_000)
    return scaler, model.fit(scaler.transform(features.double().numpy()), labels.numpy())


@pytest.mark.parametrize("blocks", ["one block", "many blocks"])
def test_the_optimum_is_scikit_learns(monkeypatch, blocks):
    if blocks == "many blocks":
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 700)
    features, labels = problem(500, 0)
    strengths = (1e-3, 0.05, 1.0)
    fitted = fit_logistic(features.double(), labels, strengths, CLASSES, tolerance=1e-9)
    assert fitted.converged.all()
    for number, l2 in enumerate(strengths):
        scaler, model = reference(features, labels, l2)
        np.testing.assert_allclose(fitted.weight[number].T.numpy(), model.coef_, atol=2e-5)
        log_p = model.predict_log_proba(scaler.transform(features.double().numpy()))
        loss = -log_p[np.arange(500), labels.numpy()].mean() + 0.5 * l2 * np.square(model.coef_).sum()
        assert float(fitted.loss[number]) == pytest.approx(loss, abs=1e-9)


def test_the_gradient_is_that_of_autograd_and_vanishes_at_the_optimum():
    features, labels = problem(300, 1)
    fitted = fit_logistic(features, labels, (0.01, 0.1), CLASSES)
    standard = standardizer(features.double())(features.double())
    for number, l2 in enumerate((0.01, 0.1)):
        weight = fitted.weight[number].double().requires_grad_()
        bias = fitted.bias[number].double().requires_grad_()
        loss = torch.nn.functional.cross_entropy(standard @ weight + bias, labels)
        loss = loss + 0.5 * l2 * weight.square().sum()
        gradients = torch.autograd.grad(loss, (weight, bias))
        assert max(float(gradient.abs().max()) for gradient in gradients) < 2e-5
        assert float(fitted.loss[number]) == pytest.approx(float(loss.detach()), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_top1_is_within_half_a_point_of_scikit_learns(dtype):
    train, labels = problem(1500, 2)
    test, test_labels = problem(2000, 3)
    fitted = fit_logistic(train.to(dtype), labels, L2_GRID, CLASSES)
    for number, l2 in enumerate(L2_GRID):
        scaler, model = reference(train, labels, l2, tol=1e-6)
        expected = 100 * model.score(scaler.transform(test.double().numpy()), test_labels.numpy())
        scores = fitted.scores(test.to(dtype), number)
        assert 100 * float((scores.argmax(1) == test_labels).double().mean()) == pytest.approx(
            expected, abs=0.5
        )


def test_problems_together_equal_single_ones():
    features, labels = problem(300, 4)
    together = fit_logistic(features, labels, (0.1, 0.001), CLASSES)
    alone = fit_logistic(features, labels, (0.001,), CLASSES)
    torch.testing.assert_close(together.weight[1], alone.weight[0], atol=2e-3, rtol=0)


def test_constant_features_and_absent_classes_are_no_trouble():
    features, labels = problem(200, 5)
    features[:, 3] = 7.0
    fitted = fit_logistic(features, labels, (0.01,), CLASSES + 2)
    assert fitted.converged.all()
    assert float(fitted.weight[0, 3].abs().max()) == 0
    assert int(fitted.scores(features, 0).argmax(1).max()) < CLASSES


def test_the_probe_chooses_on_validation_images_and_reports_it():
    train, labels = problem(400, 6)
    test, test_labels = problem(500, 7)
    sides = [
        FeatureBank(rows, torch.arange(len(of)), of) for rows, of in ((train, labels), (test, test_labels))
    ]
    found = probe(*sides, CLASSES)
    assert found == probe(*sides, CLASSES)
    assert found["l2"] in L2_GRID
    single = probe(*sides, CLASSES, l2=(found["l2"],))
    assert single["top1"] == found["top1"]
    assert "validation" not in single
    worst = probe(*sides, CLASSES, l2=(1e3, found["l2"]))  # so strong that nothing is learned
    assert worst["l2"] == found["l2"]
