"""An encoder: backbone, projector, unit rows."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyseed.models.backbones import Backbone, seeded
from tinyseed.models.contract import InputContract
from tinyseed.settings.train import DEEPENED
from tinyseed.shapes import Embeddings, Features, Images

ProjectorKind = Literal["linear", "mlp", "mlp-bn", "mlp-bn-3"]
"""One linear layer; two with a ReLU between them; the same with batch norm before the ReLU; three such."""

# A row of zeros stays one, and its gradient stays finite.
_SMALLEST_NORM = 1e-6


class Projector(nn.Sequential):
    """The head between a backbone's features and the embedding.

    Attributes:
        kind: one of `ProjectorKind`, or the layers of another head as `layers_of` reads them.
        width: length of the features that come in.
        dim: length of the embedding that goes out.
        hidden: width of the MLP's hidden layer.
    """

    def __init__(self, kind: str, width: int, dim: int, hidden: int) -> None:
        super().__init__(*_modules(layers_of(kind, dim, hidden), width))
        self.kind = kind
        self.width = width
        self.dim = dim
        self.hidden = hidden


class Layer(NamedTuple):
    """One layer of a head.

    Attributes:
        kind: a linear layer, a batch norm, or an activation.
        out: outputs of a linear layer; 0 otherwise.
        plain: a linear layer without bias, or a batch norm without scale and shift.
    """

    kind: Literal["linear", "bn", "relu", "gelu"]
    out: int = 0
    plain: bool = False

    def __str__(self) -> str:
        return (f"linear:{self.out}" if self.kind == "linear" else self.kind) + (
            "-plain" if self.plain else ""
        )


_LAYER = re.compile(r"(?:linear:(?P<out>[1-9]\d{0,6})|(?P<kind>bn|relu|gelu))(?P<plain>-plain)?")
_RELU = Layer("relu")


def layers_of(kind: str, dim: int, hidden: int) -> tuple[Layer, ...]:
    """The layers of a head, by its kind.

    Args:
        kind: one of `ProjectorKind`, or layers one after the other, such as `linear:4096-plain bn relu linear:256-plain
            bn-plain`; `-plain` means without bias, or without scale and shift.
        dim: length of the embedding.
        hidden: width of the hidden layers of a `ProjectorKind`.

    Raises:
        ValueError: it is neither.

    >>> " ".join(map(str, layers_of("mlp-bn", 128, 2048)))
    'linear:2048 bn relu linear:128'
    """
    last, norm = Layer("linear", dim), (Layer("linear", hidden), Layer("bn"), _RELU)
    match kind:
        case "linear":
            return (last,)
        case "mlp":
            return (Layer("linear", hidden), _RELU, last)
        case "mlp-bn":
            return (*norm, last)
        case "mlp-bn-3":
            return (*norm, *norm, last)
        case _:
            return tuple(map(_read_layer, kind.split(" ")))


def _read_layer(text: str) -> Layer:
    found = _LAYER.fullmatch(text)
    if found is None:
        raise ValueError(f"not a layer of a head: {text!r}")
    plain = found["plain"] is not None
    match found["kind"]:
        case "bn":
            return Layer("bn", plain=plain)
        case "relu":
            return _RELU
        case "gelu":
            return Layer("gelu")
        case _:
            return Layer("linear", int(found["out"]), plain)


def is_kind(kind: str) -> bool:
    """Whether `Projector` knows a kind of head."""
    try:
        layers_of(kind, 1, 1)
    except ValueError:
        return False
    return True


def kind_of(layers: Sequence[Layer]) -> str:
    """What `Projector` calls a head of these layers.

    >>> kind_of(layers_of("linear:9 relu linear:4", 0, 0)), kind_of(layers_of("linear:9 gelu linear:4", 0, 0))
    ('mlp', 'linear:9 gelu linear:4')
    """
    dim, hidden = outputs_of(layers)
    named = (kind for kind in get_args(ProjectorKind) if layers_of(kind, dim, hidden) == tuple(layers))
    return next(named, " ".join(map(str, layers)))


def deepened(kind: str, dim: int, hidden: int, layers: int | None = None) -> str:
    """What `Projector` calls an MLP with another number of linear layers; each hidden one is like the first.

    Args:
        kind: "mlp" or "mlp-bn"; with `layers` None any kind, which is returned as it is.
        dim: length of the embedding.
        hidden: width of the hidden layers.
        layers: linear layers, at least 2.

    Raises:
        ValueError: another kind, or fewer layers.

    >>> deepened("mlp", 4, 9, 2), deepened("mlp", 4, 9, 3), deepened("mlp-bn", 4, 9, 3)
    ('mlp', 'linear:9 relu linear:9 relu linear:4', 'mlp-bn-3')
    """
    if layers is None:
        return kind
    if kind not in DEEPENED or layers < 2:
        raise ValueError(f"a {kind} head cannot have {layers} layers")
    *block, last = layers_of(kind, dim, hidden)
    return kind_of((*block * (layers - 1), last))


def outputs_of(layers: Sequence[Layer]) -> tuple[int, int]:
    """Length of the embedding, and width of the first hidden layer."""
    widths = [layer.out for layer in layers if layer.kind == "linear"]
    return widths[-1], widths[0]


def _modules(layers: Sequence[Layer], width: int) -> Iterator[nn.Module]:
    for layer in layers:
        match layer.kind:
            case "linear":
                yield nn.Linear(width, layer.out, bias=not layer.plain)
                width = layer.out
            case "bn":
                yield nn.BatchNorm1d(width, affine=not layer.plain)
            case "relu":
                yield nn.ReLU()
            case "gelu":
                yield nn.GELU()


def build_projector(
    kind: ProjectorKind | Literal["none"],
    width: int,
    dim: int,
    hidden: int | None = None,
    *,
    layers: int | None = None,
    seed: int | None = None,
) -> Projector | None:
    """A head from `width` to `dim` with random weights; None for the kind "none".

    Args:
        kind: see `ProjectorKind`.
        width: length of the backbone's features.
        dim: length of the embedding.
        hidden: width of the MLP's hidden layers; by default the backbone's.
        layers: linear layers of an MLP; by default as many as its kind says.
        seed: the same seed gives the same weights and leaves the global generator as it was.

    Raises:
        ValueError: the kind has a number of layers of its own, or an MLP would have fewer than two.

    Source: "mlp" is MoCo-v2's head (arXiv 2003.04297), which SEED (arXiv 2101.04731) adopts; "mlp-bn" is
    SimCLR's (arXiv 2002.05709) and SwAV's (arXiv 2006.09882), "mlp-bn-3" that of SimCLR v2 (arXiv 2006.10029).
    Differs: SimCLR's own code also has a batch norm after the last layer; the checkpoints that we read have none.
    """
    if kind == "none":
        return None
    hidden = hidden or width
    with seeded(seed):
        return Projector(deepened(kind, dim, hidden, layers), width, dim, hidden)


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
        return at_least_float32(self.backbone(images))

    def forward(self, images: Images) -> Embeddings:
        """Unit rows, normalized at least in float32, whatever the precision of the networks."""
        return self.head(self.backbone(images))

    def head(self, features: Features) -> Embeddings:
        """Embeddings of the backbone's outputs, as `forward` gives them."""
        return unit_rows(features if self.projector is None else self.projector(features))


def embedding_as_features(encoder: Encoder) -> Encoder:
    """An encoder whose features are the embedding of this one: unit rows of the whole network, head included."""
    whole = Backbone(encoder, encoder.backbone.build, encoder.input, encoder.dim)
    whole.training = encoder.training
    return Encoder(whole)


def unit_rows(rows: Embeddings) -> Embeddings:
    """Rows brought to unit length, at least in float32."""
    return functional.normalize(at_least_float32(rows), dim=1, eps=_SMALLEST_NORM)


def at_least_float32(rows: Tensor) -> Tensor:
    """Rows in float32, or as they are in float64."""
    return rows if rows.dtype == torch.float64 else rows.float()


def freeze(encoder: Encoder) -> Encoder:
    """Put an encoder into evaluation mode without gradients, and return it."""
    return encoder.eval().requires_grad_(False)
