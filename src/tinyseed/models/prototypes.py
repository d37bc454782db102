"""An encoder with prototypes: unit vectors that embeddings are compared with (SwAV, online clustering)."""

import torch
from torch import Tensor, nn

from tinyseed.models.backbones import seeded
from tinyseed.models.crops import embed_crops
from tinyseed.models.encoder import Encoder

# A unit row that is normalized again may change in its last digit, and frozen prototypes would drift.
_UNIT_TOLERANCE = 1e-6


class PrototypeEncoder(nn.Module):
    """Encoder and prototypes in one module, so that DDP sees one forward pass per step.

    Attributes:
        encoder: backbone and head.
        prototypes: from an embedding to its similarity with each prototype; weight [k, d], unit rows.
    """

    def __init__(self, encoder: Encoder, prototypes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        with seeded(seed):
            self.prototypes = nn.Linear(encoder.dim, prototypes, bias=False)
        self.normalize_prototypes()

    def forward(self, *crops: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [v·n, d] and scores [v·n, k] of v crops of n images, [n, c, h, w] each.

        Scores are float32 at least.
        """
        embeddings = embed_crops(self.encoder, crops)
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings, self.prototypes(embeddings)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Bring each prototype to unit length; one that has it stays as it is, to the bit."""
        weight = self.prototypes.weight
        length = weight.norm(dim=1, keepdim=True)
        weight.div_(torch.where((length - 1).abs() < _UNIT_TOLERANCE, 1.0, length))
