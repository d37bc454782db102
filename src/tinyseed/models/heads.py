"""Several heads on one backbone: for a student that learns from more than one source."""

from torch import nn

from tinyseed.models.encoder import Encoder, Projector, unit_rows
from tinyseed.shapes import Embeddings, Images


class Heads(nn.Module):
    """An encoder with further heads on its backbone, in one module so that DDP sees one forward pass per step.

    Attributes:
        encoder: backbone and the first head.
        further: the other heads, which are dropped after training.
    """

    def __init__(self, encoder: Encoder, *further: Projector) -> None:
        super().__init__()
        self.encoder = encoder
        self.further = nn.ModuleList(further)

    def forward(self, images: Images) -> tuple[Embeddings, ...]:
        """Unit rows of normalized images from each head, the encoder's own first."""
        features = self.encoder.backbone(images)
        return self.encoder.head(features), *(unit_rows(head(features)) for head in self.further)
