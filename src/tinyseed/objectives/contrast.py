"""InfoNCE: an image's other view is to be found among the rows.

Imports tinyseed.shapes and the look-up beside it (similarity.py).
"""

import torch

from tinyseed.objectives.similarity import (
    check_inputs,
    check_temperature,
    common_dtype,
    soft_lookup,
    with_gradient,
    with_own_row,
)
from tinyseed.shapes import Embeddings, Rows, Scalar


def info_nce(queries: Embeddings, positives: Embeddings, rows: Rows, *, temperature: float = 0.2) -> Scalar:
    """Mean of −log softmax([query · positive, query · rows] / τ) at the positive, MoCo's loss.

    It is SEED's loss with the own row alone as the target.

    Args:
        queries: [n, d], unit rows; the only one that gets a gradient.
        positives: [n, d], unit rows, the key of each query.
        rows: [k, d], unit rows of other images (the queue); k = 0 gives 0. They may change before `backward`.
        temperature: τ > 0.

    Returns:
        Nats; float64 where an input is float64, else float32, also under autocast.

    Raises:
        ValueError: a temperature that is not above 0, shapes that do not fit, or whole numbers for vectors.

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
