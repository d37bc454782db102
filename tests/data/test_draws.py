"""What is drawn for a view has the distribution of torchvision's transforms, and does not depend on the batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
from scipy import stats

from tinyseed.data.augmentation import ViewSettings
from tinyseed.data.draws import drawn

SETTINGS = ViewSettings()


def test_draws_have_the_named_distributions() -> None:
    n = 6000
    draws = drawn(SETTINGS, 0, 0, np.arange(n), 0)
    for chosen, probability in (
        (draws.jitter, 0.8),
        (draws.gray, 0.2),
        (draws.sigma > 0, 0.5),
        (draws.flip, 0.5),
    ):
        assert stats.binomtest(int(chosen.sum()), n, probability).pvalue > 1e-4
    for column, reach, middle in ((0, 0.4, 1), (1, 0.4, 1), (2, 0.4, 1), (3, 0.1, 0)):
        uniform = stats.uniform(middle - reach, 2 * reach)
        assert stats.kstest(draws.factors[:, column], uniform.cdf).pvalue > 1e-4
    assert stats.kstest(draws.sigma[draws.sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4
    orders = np.unique(draws.order, axis=0, return_counts=True)[1]
    assert len(orders) == 24
    assert stats.chisquare(orders).pvalue > 1e-4


def test_factors_have_torchvisions_distribution() -> None:
    settings = replace(SETTINGS, brightness=1.7, hue=0.5)
    ours = drawn(settings, 0, 0, np.arange(2000), 0).factors
    jitter = transforms.ColorJitter(1.7, 0.4, 0.4, 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [jitter.make_params([]) for _ in range(2000)]
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        values = [float(parameters[f"{name}_factor"]) for parameters in theirs]
        assert stats.ks_2samp(ours[:, column], values).pvalue > 1e-3


def test_views_of_an_image_differ_and_batches_do_not_matter() -> None:
    indices = np.arange(500)
    first, second = drawn(SETTINGS, 0, 0, indices, 0), drawn(SETTINGS, 0, 0, indices, 1)
    assert abs(np.corrcoef(first.factors[:, 0], second.factors[:, 0])[0, 1]) < 0.2
    part = drawn(SETTINGS, 0, 0, np.array([17, 3]), 0)
    for whole, piece in zip(first, part, strict=True):
        assert np.array_equal(whole[[17, 3]], piece)


def test_the_views_stay_what_they_are() -> None:
    """A resumed run, or a teacher's cache, has to see the same views after an upgrade."""
    draws = drawn(SETTINGS, 0, 0, np.array([5]), 0)
    assert draws.factors[0].tolist() == pytest.approx([0.648259515, 0.994396328, 1.290255661, 0.050169289])
