"""An encoder: backbone, projector, unit rows."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyseed.models.backbones import Backbone, seeded
from tinyseed.models.contract import InputContract
from tinyseed.shapes import Embeddings, Features, Images

ProjectorKind = Literal["linear", "mlp", "mlp-bn", "mlp-bn-3"]
"""One linear layer; two with a ReLU between them; the same with batch norm before the ReLU; three such."""

# A row of zeros stays one, and its gradient stays finite.
_SMALLEST_NORM = 1e-6


class Projector(nn.Sequential):
    """The head between a backbone's features and the embedding.

    Attributes:
        width: length of the features that come in.
        dim: length of the embedding that goes out.
        hidden: width of the MLP's hidden layer.
    """

    def __init__(self, kind: ProjectorKind, width: int, dim: int, hidden: int) -> None:
        super().__init__(*_layers(kind, width, dim, hidden))
        self.kind: ProjectorKind = kind
        self.width = width
        self.dim = dim
        self.hidden = hidden


def _layers(kind: ProjectorKind, width: int, dim: int, hidden: int) -> list[nn.Module]:
    if kind == "linear":
        return [nn.Linear(width, dim)]
    layers: list[nn.Module] = []
    for before in (width, hidden)[: 2 if kind == "mlp-bn-3" else 1]:
        norm = [] if kind == "mlp" else [nn.BatchNorm1d(hidden)]
        layers += [nn.Linear(before, hidden), *norm, nn.ReLU()]
    return [*layers, nn.Linear(hidden, dim)]


def build_projector(
    kind: ProjectorKind | Literal["none"],
    width: int,
    dim: int,
    hidden: int | None = None,
    *,
    seed: int | None = None,
) -> Projector | None:
    """A head from `width` to `dim` with random weights; None for the kind "none".

    Args:
        kind: see `ProjectorKind`.
        width: length of the backbone's features.
        dim: length of the embedding.
        hidden: width of the MLP's hidden layers; by default the backbone's.
        seed: the same seed gives the same weights and leaves the global generator as it was.

    Source: "mlp" is MoCo-v2's head (arXiv 2003.04297), which SEED (arXiv 2101.04731) adopts; "mlp-bn" is
    SimCLR's (arXiv 2002.05709) and SwAV's (arXiv 2006.09882), "mlp-bn-3" that of SimCLR v2 (arXiv 2006.10029).
    Differs: SimCLR's own code also has a batch norm after the last layer; the checkpoints that we read have none.
    """
    if kind == "none":
        return None
    with seeded(seed):
        return Projector(kind, width, dim, hidden or width)


class Encoder(nn.Module):
    """Backbone and projector; without a projector the embedding is the normalized features."""

    def __init__(self, backbone: Backbone, projector: Projector | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    @property
    def width(self) -> int:
        """Length of the backbone's features."""
        return self.backbone.width

    @property
    def dim(self) -> int:
        """Length of the embedding."""
        return self.width if self.projector is None else self.projector.dim

    @property
    def input(self) -> InputContract:
        """The images that it expects."""
        return self.backbone.input

    def with_input(self, contract: InputContract) -> "Encoder":
        """An encoder over the same networks that expects other images."""
        other = Encoder(self.backbone.with_input(contract), self.projector)
        other.training = self.training
        return other

    def features(self, images: Images) -> Features:
        """The backbone's outputs, of any scale, at least float32; what k-NN and linear probes use."""
        return _at_least_float32(self.backbone(images))

    def forward(self, images: Images) -> Embeddings:
        """Unit rows, normalized at least in float32, whatever the precision of the networks."""
        return self.head(self.backbone(images))

    def head(self, features: Features) -> Embeddings:
        """Embeddings of the backbone's outputs, as `forward` gives them."""
        rows = features if self.projector is None else self.projector(features)
        return functional.normalize(_at_least_float32(rows), dim=1, eps=_SMALLEST_NORM)


def embedding_as_features(encoder: Encoder) -> Encoder:
    """An encoder whose features are the embedding of this one: unit rows of the whole network, head included."""
    whole = Backbone(encoder, encoder.backbone.build, encoder.input, encoder.dim)
    whole.training = encoder.training
    return Encoder(whole)


def _at_least_float32(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def freeze(encoder: Encoder) -> Encoder:
    """Put an encoder into evaluation mode without gradients, and return it."""
    return encoder.eval().requires_grad_(False)
