"""Mixed views: the shares have the distribution they should, and pairs do not depend on how a batch is divided."""

import numpy as np
import pytest
import torch
from scipy import stats

from tinyseed.data.mixup import mix_shares, mixed, symmetric_beta


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha):
    draws = np.random.default_rng(0).random((20_000, 2))
    found = symmetric_beta(alpha, draws)
    assert stats.kstest(found, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert ((found >= 0) & (found <= 1)).all()


def test_shares_near_0_and_1_have_the_mean_product_of_the_beta_distribution():
    """Their distance from 1 is lost to rounding, so that their distribution function cannot be compared."""
    found = symmetric_beta(0.05, np.random.default_rng(0).random((100_000, 2)))
    assert np.mean(found * (1 - found)) == pytest.approx(0.05 / (2 * (2 * 0.05 + 1)), rel=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
def test_extreme_numbers_stay_shares(alpha):
    draws = np.array([[0.0, 0.0], [0.0, 0.25], [1 - 2.0**-53, 0.0], [0.5, 0.5], [2.0**-53, 0.75]])
    found = symmetric_beta(alpha, draws)
    assert ((found >= 0) & (found <= 1)).all()


def test_a_share_is_a_function_of_seed_epoch_image_and_view():
    indices = torch.arange(40)
    first = mix_shares(1.0, 3, 2, indices, 0)
    assert torch.equal(mix_shares(1.0, 3, 2, indices[[7, 31]], 0), first[[7, 31]])
    for other in ((4, 2, 0), (3, 1, 0), (3, 2, 1)):
        assert not torch.equal(mix_shares(1.0, *other[:2], indices, other[2]), first)


def test_neighbors_are_mixed_with_each_other():
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.25, 1.0, 0.0, 0.5, 0.9, 0.1])
    found = mixed(images, shares)
    for place, share in enumerate(shares.tolist()):
        expected = share * images[place].double() + (1 - share) * images[place ^ 1].double()
        torch.testing.assert_close(found[place].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(mixed(images[2:4], shares[2:4]), found[2:4])
