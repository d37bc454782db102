"""Sinkhorn codes and swapped prediction against loops in NumPy, in float64."""

import math

import numpy as np
import pytest
import torch

from tinyseed.objectives.cluster import code_terms, sinkhorn, swav_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def scores_of(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1).to(dtype)


def sinkhorn_by_matrix(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Algorithm 1 of SwAV's appendix: Q of prototypes × images, rows to 1/k, then columns to 1/n."""
    matrix = np.exp(scores / epsilon).T
    matrix /= matrix.sum()
    prototypes, images = matrix.shape
    for _ in range(iterations):
        for row in range(prototypes):
            matrix[row] /= matrix[row].sum() * prototypes
        for column in range(images):
            matrix[:, column] /= matrix[:, column].sum() * images
    return (matrix / matrix.sum(0)).T


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
@pytest.mark.parametrize("iterations", [0, 1, 3, 10])
def test_codes_against_the_matrix_form(epsilon, iterations):
    scores = scores_of(13, 5)
    expected = sinkhorn_by_matrix(scores.numpy(), epsilon, iterations)
    codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-9, atol=1e-12)
    single = sinkhorn(scores.float(), epsilon=epsilon, iterations=iterations)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_codes_use_all_prototypes_alike_in_the_end():
    codes = sinkhorn(scores_of(40, 4), epsilon=0.2, iterations=60)
    torch.testing.assert_close(codes.sum(1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((4,), 10.0, dtype=torch.float64))


@pytest.mark.parametrize("epsilon", [0.01, 1e-3, 1e-5])
def test_a_small_epsilon_stays_finite(epsilon):
    """exp(1/0.001) has 435 digits; a prototype far from all images keeps its weight, too."""
    scores = scores_of(64, 12, dtype=torch.float32)
    scores[:, 3] = -1.0
    codes = sinkhorn(scores, epsilon=epsilon)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(64))
    assert codes[:, 3].sum() > 0.5


def test_half_precision_and_autocast_are_computed_in_float32():
    scores = scores_of(8, 3).to(torch.bfloat16)
    expected = sinkhorn(scores.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(scores.requires_grad_())
    assert codes.dtype == torch.float32
    assert not codes.requires_grad
    assert codes.equal(expected)


def test_uneven_parts_with_joined_sums_are_the_whole():
    """Two processes in lockstep: each asks for the other's sums, which a replay of the whole run supplies."""
    scores, cut = scores_of(11, 4), 7
    asked: list[torch.Tensor] = []

    def joined(own: torch.Tensor) -> torch.Tensor:
        asked.append(own)
        return own

    sinkhorn(scores, gather=joined)
    assert [tuple(sums.shape) for sums in asked] == [(1, 4)] * 3
    replay = iter(asked)

    def other_part(own: torch.Tensor) -> torch.Tensor:
        rest = next(replay).exp() - own.exp()
        return torch.cat([own, rest.log()])

    part = sinkhorn(scores[:cut], gather=other_part)
    torch.testing.assert_close(part, sinkhorn(scores)[:cut], rtol=1e-9, atol=1e-12)


def swav_by_loops(scores: np.ndarray, codes: np.ndarray, temperature: float) -> float:
    total = 0.0
    for large, code in enumerate(codes):
        others = [crop for crop in range(len(scores)) if crop != large]
        of_crops = []
        for crop in others:
            of_images = []
            for image, logits in enumerate(scores[crop] / temperature):
                normalizer = math.log(math.fsum(math.exp(value) for value in logits))
                of_images.append(
                    -sum(
                        share * (value - normalizer) for share, value in zip(code[image], logits, strict=True)
                    )
                )
            of_crops.append(sum(of_images) / len(of_images))
        total += sum(of_crops) / len(others)
    return total / len(codes)


@pytest.mark.parametrize(("crops", "large"), [(2, 2), (2, 1), (5, 2), (4, 4)])
def test_loss_against_loops(crops, large):
    scores = scores_of(crops, 6, 5)
    codes = torch.softmax(scores_of(large, 6, 5, seed=1) * 5, 2)
    expected = swav_by_loops(scores.numpy(), codes.numpy(), 0.1)
    assert swav_loss(scores, codes).item() == pytest.approx(expected, rel=1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = swav_loss(scores.float(), codes.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-5)


def test_uniform_scores_cost_the_logarithm_of_the_prototypes():
    codes = torch.softmax(scores_of(2, 3, 7), 2)
    assert swav_loss(torch.zeros(8, 3, 7, dtype=torch.float64), codes).item() == pytest.approx(math.log(7))


def test_gradcheck_to_the_scores_alone():
    scores, codes = scores_of(3, 2, 4).requires_grad_(), torch.softmax(scores_of(2, 2, 4), 2)
    assert torch.autograd.gradcheck(lambda z: swav_loss(z, codes, temperature=0.5), scores)
    codes.requires_grad_()
    swav_loss(scores, codes).backward()
    assert codes.grad is None


def test_wrong_arguments_are_named():
    scores = scores_of(2, 2, 4)
    with pytest.raises(ValueError, match=r"^epsilon: 0.0: give"):
        sinkhorn(scores[0], epsilon=0.0)
    with pytest.raises(ValueError, match=r"^iterations: -1: give"):
        sinkhorn(scores[0], iterations=-1)
    with pytest.raises(ValueError, match=r"^codes: of 1 crops"):
        swav_loss(scores[:1], scores[:1])
    with pytest.raises(ValueError, match=r"^codes: of 2 crops"):
        swav_loss(scores[:1], scores)


def test_the_prediction_of_codes_is_a_cross_entropy_with_the_gradient_of_its_formula():
    scores, codes = scores_of(9, 5).requires_grad_(), sinkhorn(scores_of(9, 5, seed=1), epsilon=0.2)
    terms = code_terms(scores, codes, temperature=0.3)
    terms.loss.backward()
    logits = scores.detach().numpy() / 0.3
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert terms.loss.item() == pytest.approx(-(codes.numpy() * log_p).sum(1).mean(), rel=1e-12)
    entropy = -(codes.numpy() * np.log(codes.numpy())).sum(1).mean()
    assert terms.code_entropy.item() == pytest.approx(entropy, rel=1e-12)
    np.testing.assert_allclose(scores.grad.numpy(), (np.exp(log_p) - codes.numpy()) / (0.3 * 9), rtol=1e-10)
    assert torch.autograd.gradcheck(lambda given: code_terms(given, codes).loss, scores)
    assert code_terms(scores, torch.eye(9, 5, dtype=torch.float64)).code_entropy == 0
