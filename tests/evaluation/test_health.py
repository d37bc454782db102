"""Health measures against closed forms and NumPy's singular values."""

import math

import numpy as np
import pytest
import torch

from tinyseed.evaluation.health import effective_rank, neighbor_agreement


def features(images: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed))


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(features(width, width, seed=7))[0]


def test_the_same_features_agree_wholly():
    teacher = features(80, 16)
    assert neighbor_agreement(teacher, teacher) == 1


def test_rotated_scaled_and_widened_features_agree_wholly():
    teacher = features(80, 16)
    scales = 0.1 + 5 * torch.rand(80, 1, generator=torch.Generator().manual_seed(1))
    student = torch.cat((scales * teacher @ rotation(16), torch.zeros(80, 5)), 1)
    assert neighbor_agreement(teacher, student) == 1


def test_unrelated_features_agree_by_chance():
    agreement = neighbor_agreement(features(400, 16), features(400, 24, seed=1))
    # 4,000 neighbors, each shared with chance 10 / 399: five standard errors are 0.0124
    assert agreement == pytest.approx(10 / 399, abs=0.0124)


def test_agreement_is_the_mean_overlap_of_neighbor_sets():
    teacher, student = features(60, 8), features(60, 8) + 0.8 * features(60, 12, seed=1)[:, :8]
    sets = []
    for matrix in (teacher.double(), student.double()):
        cosines = torch.cosine_similarity(matrix[:, None], matrix[None], dim=2).fill_diagonal_(-2)
        sets.append([set(row.tolist()) for row in cosines.argsort(1, descending=True)[:, :7]])
    expected = np.mean([len(one & other) / 7 for one, other in zip(*sets, strict=True)])
    assert 0.1 < expected < 0.9
    assert neighbor_agreement(teacher, student, neighbors=7) == pytest.approx(expected)


def test_half_of_two_clusters_by_construction():
    """Four images in two pairs: the teacher pairs 01 23, the student 01 23 (agree) or 02 13 (do not)."""
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert neighbor_agreement(teacher, teacher[[1, 0, 3, 2]], neighbors=1) == 1
    assert neighbor_agreement(teacher, teacher[[0, 2, 1, 3]], neighbors=1) == 0


@pytest.mark.parametrize(("images", "expected"), [(0, math.nan), (2, math.nan), (3, 1.0), (11, 1.0)])
def test_few_images(images, expected):
    agreement = neighbor_agreement(features(images, 4), features(images, 6, seed=1))
    assert agreement == pytest.approx(expected, nan_ok=True)


def test_features_that_are_no_numbers_have_no_health():
    broken = features(20, 4)
    broken[3, 2] = math.nan
    assert math.isnan(neighbor_agreement(broken, features(20, 4)))
    assert math.isnan(neighbor_agreement(features(20, 4), broken))
    assert math.isnan(effective_rank(broken))
    assert math.isnan(effective_rank(torch.empty(0, 4)))


def numpy_effective_rank(matrix: torch.Tensor) -> float:
    array = matrix.double().numpy()
    singular = np.linalg.svd(array - array.mean(0), compute_uv=False)
    singular = singular[singular > 1e-5 * singular.max()]
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (30, 30), (2, 5), (300, 3)])
def test_effective_rank_is_that_of_numpys_singular_values(shape):
    matrix = features(*shape) * torch.logspace(0, -2, shape[1]) + 4
    assert effective_rank(matrix) == pytest.approx(numpy_effective_rank(matrix), rel=1e-4)
    assert 1 <= effective_rank(matrix) <= min(shape[0] - 1, shape[1]) * (1 + 1e-9)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_orthogonal_directions_of_equal_strength_count_one_each(rank):
    """Rows ±e_i, i < rank: centred already, singular values all √2."""
    matrix = torch.zeros(2 * rank, 20)
    matrix[:rank, :rank] = torch.eye(rank)
    matrix[rank:, :rank] = -torch.eye(rank)
    assert effective_rank(matrix) == pytest.approx(rank)
    assert effective_rank(1e-3 * matrix @ rotation(20)) == pytest.approx(rank, rel=1e-3)
    assert effective_rank(matrix + 3.0) == pytest.approx(rank, rel=1e-3)  # the mean does not count


def test_unequal_directions_by_the_closed_form():
    """Singular values 3 : 1, so shares 3/4 and 1/4."""
    matrix = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(matrix) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6, 1e-6])
def test_collapsed_features_have_rank_one(value):
    row = value * (1 + torch.rand(64, generator=torch.Generator().manual_seed(0)))
    collapsed = row.expand(500, 64)
    assert effective_rank(collapsed) == 1
    rounding = collapsed * (1 + 6e-8 * features(500, 64))
    assert effective_rank(rounding) == 1
    assert effective_rank(row[None]) == 1
