"""What a soft look-up gives, and how look-ups over disjoint sets of rows become one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinyseed.shapes import Embeddings


class Lookup(NamedTuple):
    """Result of a soft look-up.

    Attributes:
        values: [n, d], the rows' mean, weighted by softmax(queries · rows).
        log_normalizer: [n], log Σ_j exp(query · row_j).
    """

    values: Embeddings
    log_normalizer: Float[Tensor, " n"]


def merge(values: Float[Tensor, "c n d"], log_normalizer: Float[Tensor, "c n"]) -> Lookup:
    """One look-up from those over c disjoint sets of rows."""
    if len(values) == 1:
        return Lookup(values[0], log_normalizer[0])
    # softmax, not exp(part − whole): the weights sum to 1 even where large log-normalizers round.
    weights = log_normalizer.softmax(0)
    return Lookup(torch.einsum("cn,cnd->nd", weights, values), log_normalizer.logsumexp(0))


def merge_pair(first: Lookup, second: Lookup) -> Lookup:
    """`merge` of two."""
    return merge(
        torch.stack([first.values, second.values]),
        torch.stack([first.log_normalizer, second.log_normalizer]),
    )
