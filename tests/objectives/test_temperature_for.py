"""The teacher's temperature by the perplexity of its target."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tinyseed.objectives.seed import target_entropy, temperature_for


def unit(n: int, dim: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    return normalize(
        centers.repeat(-(-n // 5), 1)[:n] + 0.5 * torch.randn(n, dim, generator=generator), dim=1
    )


@pytest.mark.parametrize("perplexity", [1.05, 2.0, 5.0, 20.0])
def test_the_target_has_that_perplexity_over_the_other_images(perplexity):
    rows = unit(40)
    found = temperature_for(rows.float(), perplexity, 39)
    entropies = []
    for place in range(40):  # own row and the 39 others, in float64
        scores = rows.numpy() @ rows[place].numpy() / found
        p = np.exp(scores - scores.max())
        p /= p.sum()
        entropies.append(-(p[p > 0] * np.log(p[p > 0])).sum())
    assert math.exp(np.mean(entropies)) == pytest.approx(perplexity, rel=0.02)


def test_each_image_stands_for_several_rows_of_a_larger_queue():
    rows = unit(30)
    found = temperature_for(rows, 3.0, 4 * 29)
    entropies = [
        target_entropy(
            rows[place : place + 1],
            torch.cat([rows[:place], rows[place + 1 :]]).repeat(4, 1),
            teacher_temperature=found,
        )
        for place in range(30)
    ]
    assert torch.cat(entropies).mean().exp().item() == pytest.approx(3.0, rel=0.02)
    assert found < temperature_for(rows, 3.0, 29)


def test_scales_of_similarity_do_not_matter():
    """Rows near each other, as CLIP's are: the cosines are 1 − (1 − s) / 100."""
    rows = unit(30, 12)
    near = torch.cat([rows / 10, torch.full((30, 1), math.sqrt(0.99), dtype=torch.float64)], 1)
    assert temperature_for(near, 2.0, 29) == pytest.approx(temperature_for(rows, 2.0, 29) / 100, rel=0.01)


def test_a_perplexity_that_no_temperature_gives_is_refused():
    for perplexity in (1.0, 30.0, math.inf):
        with pytest.raises(ValueError, match="give a number above 1 and below 30"):
            temperature_for(unit(30), perplexity, 29)
    with pytest.raises(ValueError, match="1 images: give at least two"):
        temperature_for(unit(1), 2.0, 29)
