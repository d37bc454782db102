"""Several crops of each image in one forward pass, so that DDP sees one per step."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from tinyseed.models.encoder import Encoder
from tinyseed.shapes import Embeddings


class CropEncoder(nn.Module):
    """An encoder that takes all crops of a batch at once.

    Attributes:
        encoder: backbone and head.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *crops: Tensor) -> Embeddings:
        """Unit rows [v·n, d] of v normalized crops of n images, [n, c, h, w] each, crop by crop."""
        return embed_crops(self.encoder, crops)


def embed_crops(encoder: Encoder, crops: Sequence[Tensor]) -> Embeddings:
    """Unit rows [v·n, d] of v normalized crops of n images, [n, c, h, w] each, crop by crop.

    Consecutive crops of one size pass the backbone together, so that batch norm has one set of statistics for each
    size; all of them pass the head together.

    Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), and its published code.
    """
    return encoder.head(torch.cat([encoder.backbone(group) for group in grouped(crops)]))


def grouped(crops: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive crops of one size joined: [v·n, c, h, w] for each size."""
    return [torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[-1])]
