"""Clusters instead of single images: codes by Sinkhorn-Knopp, their prediction, and SwAV's swapped one.

Axes here: k prototypes, v crops of an image, of which the first l are large.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax

from tinyseed.objectives.similarity import check_temperature, common_dtype
from tinyseed.shapes import Scalar

Scores = Float[Tensor, "n k"]
"""Similarities between embeddings and prototypes."""

Codes = Float[Tensor, "n k"]
"""How an image is divided among the prototypes; rows sum to 1."""


def _single_process(rows: Tensor) -> Tensor:
    return rows


@torch.no_grad()
def sinkhorn(
    scores: Scores,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    gather: Callable[[Tensor], Tensor] = _single_process,
) -> Codes:
    """Codes that follow the scores and use all prototypes equally: Sinkhorn-Knopp, over the images of all processes.

    Alternately each prototype is given the same share of all images, and each image a total of 1. Computed with
    logarithms, so that no ε is too small: nothing overflows, and no prototype or image loses all its weight.

    Args:
        scores: [n, k], this process' images; n may differ between processes.
        epsilon: ε > 0; smaller follows the scores more closely.
        iterations: rounds; 0 gives softmax(scores / ε).
        gather: joins the [1, k] tensors of all processes to [processes, k], on each of them.

    Returns:
        [n, k], rows sum to 1; float64 where the scores are, else float32. No gradient.

    Raises:
        ValueError: ε is not above 0, or there are fewer than 0 iterations.

    Source: Cuturi, NeurIPS 2013 (arXiv 1306.0895); Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), equation 3.
    Differs: SwAV's code exponentiates first, which overflows in half precision, and in float32 below ε = 0.012.
    """
    check_temperature("epsilon", epsilon)
    if iterations < 0:
        raise ValueError(f"iterations: {iterations}: give 0 or more")
    with torch.autocast(scores.device.type, enabled=False):
        logs = scores.to(common_dtype(scores)) / epsilon
        for _ in range(iterations):
            logs = logs - gather(logs.logsumexp(0, keepdim=True)).logsumexp(0)
            logs = logs.log_softmax(1)
        return logs.softmax(1)


class CodeTerms(NamedTuple):
    """The loss, and what is obtained with it at no extra cost.

    Attributes:
        loss: mean over the images of the cross-entropy H(code, p), in nats; the scores get its gradient.
        code_entropy: mean over the images of the codes' own entropy, in nats: the lower bound of the loss.
    """

    loss: Scalar
    code_entropy: Scalar


def code_terms(scores: Scores, codes: Codes, *, temperature: float = 0.1) -> CodeTerms:
    """Mean of H(code, softmax(scores / τ)): how well the scores predict given codes.

    Args:
        scores: [n, k], the only one that gets a gradient.
        codes: [n, k], rows sum to 1.
        temperature: τ > 0.

    Returns:
        Nats; float64 where an input is float64, else float32, also under autocast.

    Raises:
        ValueError: the temperature is not above 0.

    Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), equation 2.
    """
    check_temperature("temperature", temperature)
    with torch.autocast(scores.device.type, enabled=False):
        dtype = common_dtype(scores, codes)
        given = codes.detach().to(dtype)
        loss = -(given * log_softmax(scores.to(dtype) / temperature, 1)).sum(1).mean()
        return CodeTerms(loss, -torch.xlogy(given, given).sum(1).mean())


def swav_loss(
    scores: Float[Tensor, "v n k"], codes: Float[Tensor, "l n k"], *, temperature: float = 0.1
) -> Scalar:
    """Swapped prediction: the code of each large crop is predicted from every other crop of the same image.

    For each large crop the mean over the other crops of H(code, softmax(scores / τ)), then the mean over large crops
    and images. Only the scores get a gradient.

    Args:
        scores: [v, n, k], of all crops with all prototypes; the l large crops first.
        codes: [l, n, k], rows sum to 1; 1 ≤ l ≤ v.
        temperature: τ > 0.

    Returns:
        Nats; float64 where an input is float64, else float32, also under autocast.

    Raises:
        ValueError: the temperature is not above 0, there is a single crop, or there are more codes than crops.

    Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), equations 1, 2 and 4 (multi-crop).
    """
    check_temperature("temperature", temperature)
    crops, large = len(scores), len(codes)
    if crops < 2 or not 1 <= large <= crops:
        raise ValueError(f"codes: of {large} crops: give those of 1 to all of at least 2 crops, not {crops}")
    with torch.autocast(scores.device.type, enabled=False):
        dtype = common_dtype(scores, codes)
        codes = codes.detach().to(dtype)
        every = codes.sum(0)
        total = scores.new_zeros((), dtype=dtype)
        for crop, of_crop in enumerate(scores):
            others = every - codes[crop] if crop < large else every
            total = total - (others * log_softmax(of_crop.to(dtype) / temperature, 1)).sum(1).mean()
        return total / (large * (crops - 1))
