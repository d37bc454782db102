"""An encoder with a linear classifier on its features, for methods that train it on classes."""

from torch import Tensor, nn

from tinyseed.models.backbones import seeded
from tinyseed.models.encoder import Encoder, at_least_float32
from tinyseed.shapes import Images


class ClassifiedEncoder(nn.Module):
    """Encoder and classifier in one module, so that DDP sees one forward pass per step.

    Attributes:
        encoder: backbone, without a head.
        classifier: from the backbone's features to a score for each class.
    """

    def __init__(self, encoder: Encoder, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        with seeded(seed):
            self.classifier = nn.Linear(encoder.width, classes)

    def forward(self, images: Images) -> Tensor:
        """Scores [n, classes], at least float32."""
        return at_least_float32(self.classifier(self.encoder.backbone(images)))
