"""Contrastive losses, which find an image's other view among other images: InfoNCE and NCE (queue), NT-Xent (batch)."""

import math

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from tinyseed.objectives.similarity import (
    check_inputs,
    check_temperature,
    common_dtype,
    soft_lookup,
    with_gradient,
    with_own_row,
)
from tinyseed.objectives.streaming import row_blocks
from tinyseed.shapes import Embeddings, Rows, Scalar


def info_nce(queries: Embeddings, positives: Embeddings, rows: Rows, *, temperature: float = 0.2) -> Scalar:
    """Mean of −log softmax([query · positive, query · rows] / τ) at the positive, MoCo's loss.

    This is SEED's loss with only the own row as the target.

    Args:
        queries: [n, d], unit rows; the only one that gets a gradient.
        positives: [n, d], unit rows, the key of each query.
        rows: [k, d], unit rows of other images (the queue); k = 0 gives 0. They may change before `backward`.
        temperature: τ > 0.

    Returns:
        Nats; float64 where an input is float64, else float32, also under autocast.

    Raises:
        ValueError: the temperature is not above 0, shapes do not fit, or vectors are not floating point.

    Source: van den Oord et al. 2018 (arXiv 1807.03748); in this setting He et al., MoCo, CVPR 2020 (arXiv
    1911.05722), equation 1.
    """
    check_temperature("temperature", temperature)
    check_inputs("queries", queries=queries, positives=positives, rows=rows)
    with torch.no_grad():
        dtype = common_dtype(queries, positives, rows)
        own = positives.to(dtype)
        scaled = queries.to(dtype) / temperature
        view = with_own_row(soft_lookup(scaled, rows), scaled, own)
        gradient = view.offset / (temperature * len(own))
    return with_gradient(queries, view.excess.mean(), gradient)


def binary_nce(
    queries: Embeddings, positives: Embeddings, rows: Rows, *, images: int, temperature: float = 0.07
) -> Scalar:
    """Noise-contrastive estimation: of each vector it is said whether it is the query's own, CRD's loss.

    With h(z) = e^s / (e^s + k / M) and s = query · z / τ: mean over the queries of
    −log h(positive) − Σ_j log(1 − h(row_j)).

    Args:
        queries: [n, d], unit rows; the only one that gets a gradient.
        positives: [n, d], unit rows, the vector that belongs to each query.
        rows: [k, d], unit rows of other images (the queue); k = 0 gives 0. They may change before `backward`.
        images: M ≥ 1, size of the data set that the rows are drawn from.
        temperature: τ > 0.

    Returns:
        Nats; float64 where an input is float64, else float32, also under autocast. A block of scores is held in memory.

    Raises:
        ValueError: the temperature is not above 0, there is no image, shapes do not fit, or vectors are not floating
            point.

    Source: Tian et al., CRD, ICLR 2020 (arXiv 1910.10699), equations 18 and 19; Gutmann & Hyvärinen, AISTATS 2010.
    """
    check_temperature("temperature", temperature)
    check_inputs("queries", queries=queries, positives=positives, rows=rows)
    if images < 1:
        raise ValueError(f"images: {images}: give at least 1")
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        dtype = common_dtype(queries, positives, rows)
        own, scaled = positives.to(dtype), queries.to(dtype) / temperature
        threshold = math.log(len(rows) / images) if len(rows) else -math.inf
        score = (scaled * own).sum(1) - threshold
        losses, pulled = -logsigmoid(score), -torch.sigmoid(-score)[:, None] * own
        for _, part in row_blocks(rows, len(queries)):
            negatives = part.to(dtype)
            scores = scaled @ negatives.T - threshold
            losses -= logsigmoid(-scores).sum(1)
            pulled.addmm_(scores.sigmoid_(), negatives)
        gradient = pulled / (temperature * len(own))
    return with_gradient(queries, losses.mean(), gradient)


def nt_xent(
    first: Embeddings,
    second: Embeddings,
    everything: Rows | None = None,
    *,
    offset: int = 0,
    temperature: float = 0.1,
) -> Scalar:
    """SimCLR's loss: each of 2n views has to find the other view of its image among all 2N − 1 other views.

    Mean over the 2n anchors of −log softmax(anchor · others / τ) at the other view of the same image. Gradients flow
    to the anchors and to `everything`. If each process calls it on its part, with an `everything` whose gradient
    flows back to all of them, the mean of their losses is the loss of the whole batch, and so is its gradient.

    Args:
        first: [n, d], unit rows, a view of each image.
        second: [n, d], unit rows, the other view of each image.
        everything: [k, d], the views of all processes, which contain `first` and then `second` from row `offset`
            on; by default only these two.
        offset: where the own views begin.
        temperature: τ > 0.

    Returns:
        Nats; computed in float64 where an input is float64, else in float32, also under autocast. A single image has
        nothing to be compared with: 0. The [2n, k] scores are held in memory.

    Raises:
        ValueError: the temperature is not above 0, shapes do not fit, or own views lie outside of `everything`.

    Source: Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709), equation 1 and algorithm 1.
    Differs: SimCLR's code adds the means of both views' losses, so its loss and gradient are twice the paper's.
    """
    check_temperature("temperature", temperature)
    images = len(first)
    own = torch.cat([first, second])
    everything = own if everything is None else everything
    check_inputs("first", first=first, second=second, rows=everything)
    if not 0 <= offset <= len(everything) - len(own):
        raise ValueError(f"offset: {offset}: give a place for {len(own)} of {len(everything)} rows")
    with torch.autocast(first.device.type, enabled=False):
        dtype = common_dtype(own, everything)
        scores = own.to(dtype) @ everything.to(dtype).T / temperature
        scores.diagonal(offset).fill_(-math.inf)  # a view is not another view of itself
        partner = torch.arange(2 * images, device=first.device).roll(images) + offset
        return cross_entropy(scores, partner)
