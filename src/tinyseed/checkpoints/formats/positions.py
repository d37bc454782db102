"""Fixed position embeddings: networks that names and shapes do not distinguish may have others."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

_TEMPERATURE = 10_000.0


def sin_cos(side: int, width: int, first: Literal["rows", "columns"]) -> Float[Tensor, "p d"]:
    """Two-dimensional sine-cosine embeddings of a grid of patches, row by row, after zeros for the class token.

    Args:
        side: number of patches along each side.
        width: of an embedding; a multiple of 4.
        first: what the first half of an embedding stands for: its row in the grid (MoCo v3) or its column (MAE).

    Returns:
        One row for the class token, and one for each patch.

    Source: facebookresearch/moco-v3, vits.py; facebookresearch/mae, util/pos_embed.py.
    """
    quarter = width // 4
    places = torch.arange(side, dtype=torch.float64)
    angles = places[:, None] / _TEMPERATURE ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    along = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows, columns = along.repeat_interleave(side, dim=0), along.repeat(side, 1)
    halves = (rows, columns) if first == "rows" else (columns, rows)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), torch.cat(halves, dim=1)]).float()


def are_sin_cos(positions: Tensor, first: Literal["rows", "columns"]) -> bool:
    """Whether position embeddings [1, 1 + p, d] have the values of `sin_cos`, to half precision."""
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[2] % 4 or positions.is_meta:
        return False
    side = math.isqrt(positions.shape[1] - 1)
    if side * side + 1 != positions.shape[1] or side < 2 or not positions.is_floating_point():
        return False
    wanted = sin_cos(side, positions.shape[2], first)
    return bool((positions[0].float() - wanted).abs().max() < 1e-2)
