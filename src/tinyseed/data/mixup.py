"""Mixup: each view is a weighted mean of an image and its neighbor in the batch.

Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018 (arXiv 1710.09412), equation 1.
Differs: labels are not mixed, since there are none: a teacher's target for the mixed image takes their place. Partners
are adjacent images of an epoch's random order, first and second, third and fourth, so that a pair stays together
however a batch is divided over processes. Each image of each view has a share of its own.
"""

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from tinyseed.data.addressed import uniforms
from tinyseed.shapes import ImagesOfAnySize, Indices


def mix_shares(alpha: float, seed: int, epoch: int, indices: Indices, view: int) -> Float32[Tensor, " n"]:
    """The share that each image has in its mixed view: λ from Beta(α, α), a function of (seed, epoch, index, view).

    Args:
        alpha: α > 0; at 1 all shares are equally likely, near 0 nearly all are near 0 or 1.
        seed: of the views, at least 0.
        epoch: from 0.
        indices: positions of the images in their source.
        view: which of an image's views.

    Raises:
        ValueError: the seed or the epoch is negative.
    """
    draws = uniforms(seed, epoch, indices.numpy(), f"mixup-{view}", 2)
    return torch.from_numpy(symmetric_beta(alpha, draws).astype(np.float32))


def symmetric_beta(alpha: float, draws: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Beta(α, α) numbers from two uniform ones each, without rejection.

    With U, V uniform, T = √(2α (U^(−1/α) − 1)) cos 2πV has Student's t distribution with 2α degrees of freedom, and
    (1 + T / √(2α + T²)) / 2 is Beta(α, α). Here in q = U^(1/α), which cannot overflow.

    Source: Bailey 1994, Polar Generation of Random Variates with the t-Distribution, Mathematics of Computation 62.
    """
    q, cosine = (1 - draws[:, 0]) ** (1 / alpha), np.cos(2 * np.pi * draws[:, 1])
    ratio = (1 - q) * cosine**2
    return 0.5 * (1 + np.sign(cosine) * np.sqrt(ratio / np.maximum(q + ratio, np.finfo(np.float64).tiny)))


def mixed(images: ImagesOfAnySize, shares: Float32[Tensor, " n"]) -> ImagesOfAnySize:
    """Each image by its share, and its neighbor by the rest; nothing waits for the device.

    Args:
        images: [n, c, h, w], n even.
        shares: [n], on the same device.
    """
    pairs = images.unflatten(0, (-1, 2))
    own = shares.view(-1, 2, 1, 1, 1)
    return torch.lerp(pairs.flip(1), pairs, own).flatten(0, 1)
