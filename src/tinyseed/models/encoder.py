"""An encoder: trunk, projector, unit rows; and the files it is saved in. Imports this room, errors, shapes.

A finished model is two safetensors files. The trunk's has exactly the tensor names of its own library; the
metadata of both say what is needed to build them again.
"""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyseed.errors import InputError
from tinyseed.models.backbones import Backbone, build_backbone, seeded
from tinyseed.models.contract import InputContract
from tinyseed.models.names import OWNERS
from tinyseed.models.weights import fit_weights, read_safetensors, write_safetensors
from tinyseed.shapes import Embeddings, Features, Images, Interpolation

ProjectorKind = Literal["linear", "mlp", "mlp-bn", "mlp-bn-3"]
"""One linear layer; two with a ReLU between them; the same with batch norm before the ReLU; three such."""
_KINDS: dict[str, ProjectorKind] = {kind: kind for kind in get_args(ProjectorKind)}

MODEL_FILES = ("student.safetensors", "encoder.safetensors")
PROJECTOR_FILE = "projector.safetensors"

# A row of zeros stays one, and its gradient stays finite.
_SMALLEST_NORM = 1e-6


class Projector(nn.Sequential):
    """The head between a trunk's features and the embedding.

    Attributes:
        width: length of the features that come in.
        dim: length of the embedding that goes out.
        hidden: width of the MLP's hidden layer.
    """

    def __init__(self, kind: ProjectorKind, width: int, dim: int, hidden: int) -> None:
        super().__init__(*_layers(kind, width, dim, hidden))
        self.kind = kind
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
    """A head from `width` to `dim` with random weights, or none.

    Args:
        kind: see `ProjectorKind`.
        width: length of the trunk's features.
        dim: length of the embedding.
        hidden: width of the MLP's hidden layers; by default the trunk's.
        seed: the same seed gives the same weights, and leaves the global generator as it was.

    Source: "mlp" is MoCo-v2's head (arXiv 2003.04297), which SEED (arXiv 2101.04731) takes over; "mlp-bn" is
    SimCLR's (arXiv 2002.05709) and SwAV's (arXiv 2006.09882), "mlp-bn-3" that of SimCLR v2 (arXiv 2006.10029).
    Differs: SimCLR's own code has a batch norm after the last layer, too; the checkpoints that we read have none.
    """
    if kind == "none":
        return None
    with seeded(seed):
        return Projector(kind, width, dim, hidden or width)


class Encoder(nn.Module):
    """Trunk and projector; without a projector the embedding is the normalised trunk output."""

    def __init__(self, backbone: Backbone, projector: Projector | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    @property
    def width(self) -> int:
        """Length of the trunk's features."""
        return self.backbone.width

    @property
    def dim(self) -> int:
        """Length of the embedding."""
        return self.width if self.projector is None else self.projector.dim

    @property
    def input(self) -> InputContract:
        """The images that it expects."""
        return self.backbone.input

    def features(self, images: Images) -> Features:
        """The trunk's outputs, of any scale, at least float32; what k-NN and linear probes use."""
        return _at_least_float32(self.backbone(images))

    def forward(self, images: Images) -> Embeddings:
        """Unit rows, normalised in float32 at least, whatever the precision of the networks."""
        return self.head(self.backbone(images))

    def head(self, features: Features) -> Embeddings:
        """What `forward` makes of the trunk's outputs."""
        rows = features if self.projector is None else self.projector(features)
        return functional.normalize(_at_least_float32(rows), dim=1, eps=_SMALLEST_NORM)


def _at_least_float32(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def freeze(encoder: Encoder) -> Encoder:
    """Evaluation mode, no gradients; the same encoder comes back."""
    return encoder.eval().requires_grad_(False)


def save_encoder(
    folder: Path,
    encoder: Encoder,
    *,
    file: str = "student.safetensors",
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a trunk's file, and `projector.safetensors` where there is a projector.

    Args:
        folder: made where it is missing.
        encoder: on any device, in any memory format.
        file: the trunk's file.
        metadata: more to say about it. `mean`, `std` (numbers and commas), `image_size` and `interpolation` take
            the place of the backbone's own input.

    Returns:
        The trunk's file.

    Raises:
        RunError: a file could not be written; a former one is intact.
    """
    if encoder.projector is not None:
        state = encoder.projector.state_dict()
        write_safetensors(folder / PROJECTOR_FILE, state, _describe_projector(encoder.projector))
    described = _describe_backbone(encoder.backbone, metadata or {})
    described["projector"] = "none" if encoder.projector is None else encoder.projector.kind
    write_safetensors(folder / file, encoder.backbone.network.state_dict(), described)
    return folder / file


def _describe_backbone(backbone: Backbone, more: dict[str, str]) -> dict[str, str]:
    contract = {
        "mean": ",".join(map(str, backbone.input.mean)),
        "std": ",".join(map(str, backbone.input.std)),
        "image_size": str(backbone.input.size),
        "interpolation": backbone.input.interpolation,
        "normalisation": "RGB divided by 255, minus mean, divided by std",
    }
    if backbone.input.channels != 3 or backbone.input.pixel_range:
        contract |= _describe_bands(backbone.input)
    build = {
        "format": "pt",
        "tinyseed_version": version("tinyseed"),
        "about": f"trunk trained by tinyseed; tensor names are those of {backbone.library}",
        "backbone": backbone.name,
        "library": backbone.library,
        "library_version": version(OWNERS.get(backbone.library, backbone.library)),
        "width": str(backbone.width),
        "small_stem": str(backbone.build.small_stem).lower(),
        "built_size": str(backbone.build.built_size or ""),
    }
    return contract | more | build


def _describe_bands(contract: InputContract) -> dict[str, str]:
    span = ",".join(map(str, contract.pixel_range))
    return {
        "channels": str(contract.channels),
        "pixel_range": span or "auto",
        "normalisation": f"bands from {span or 'the range of their type'} to 0,1, minus mean, divided by std",
    }


def _describe_projector(projector: Projector) -> dict[str, str]:
    return {
        "format": "pt",
        "tinyseed_version": version("tinyseed"),
        "about": "projector of the trunk beside it: features to embedding, before normalisation",
        "kind": projector.kind,
        "in": str(projector.width),
        "out": str(projector.dim),
        "hidden": str(projector.hidden),
    }


def load_encoder(path: str | Path, *, field: str = "--model") -> Encoder:
    """The encoder of a run folder, or the trunk of one exported file, in evaluation mode.

    Args:
        path: a folder with student.safetensors or encoder.safetensors, and its projector where it has one; or
            such a file, which is taken for the trunk alone.
        field: the flag that named it, for errors.

    Raises:
        InputError: there is no model at this path, or it is broken.
    """
    path = Path(path).expanduser()
    file = model_file(path) if path.is_dir() else path
    if file is None:
        raise InputError(field, path, f"holds neither {' nor '.join(MODEL_FILES)}; has the run finished?")
    backbone = _load_backbone(file, field)
    projector = None
    if path.is_dir() and (path / PROJECTOR_FILE).is_file():
        projector = _load_projector(path / PROJECTOR_FILE, backbone.width, field)
    return Encoder(backbone, projector).eval()


def model_file(folder: Path) -> Path | None:
    """The trunk's file in a run folder; None where there is none."""
    return next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)


def _load_backbone(file: Path, field: str) -> Backbone:
    if not file.is_file():
        raise InputError(field, file, "no such file or folder")
    if file.suffix != ".safetensors":
        raise InputError(field, file, _foreign(field))
    state, metadata = read_safetensors(file, field)
    try:
        name, width = metadata["backbone"], int(metadata["width"])
        built_size = int(metadata["built_size"]) if metadata["built_size"] else None
        small_stem = metadata["small_stem"] == "true"
        mean, std = _numbers(metadata["mean"]), _numbers(metadata["std"])
        size = int(metadata["image_size"])
        span = metadata.get("pixel_range", "auto")
        pixel_range = () if span == "auto" else _numbers(span)
        channels = int(metadata.get("channels", "3"))
        if not len(mean) == len(std) == channels:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise InputError(field, file, _foreign(field)) from error
    backbone = build_backbone(
        name, small_stem=small_stem, image_size=built_size, channels=channels, seed=0, field=field
    )
    fit_weights(backbone.network, state, name=name, source=file, field=field)
    if backbone.width != width:
        raise InputError(
            field, file, f"its features have {width} numbers, this {backbone.library}'s {backbone.width}"
        )
    bicubic = metadata.get("interpolation") == "bicubic"
    interpolation: Interpolation = "bicubic" if bicubic else "bilinear"
    backbone.input = replace(
        backbone.input,
        mean=mean,
        std=std,
        size=size,
        interpolation=interpolation,
        pixel_range=pixel_range,
    )
    return backbone


def _foreign(field: str) -> str:
    how = "the model's name, and the file as --teacher-weights" if field == "--teacher" else "a run folder"
    return f"is no model that tinyseed wrote; give {how}"


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _load_projector(file: Path, width: int, field: str) -> Projector:
    state, metadata = read_safetensors(file, field)
    try:
        kind, given = metadata["kind"], int(metadata["in"])
        dim, hidden = int(metadata["out"]), int(metadata["hidden"])
    except (KeyError, ValueError) as error:
        raise InputError(field, file, "is no projector that tinyseed wrote") from error
    if kind not in _KINDS or given != width:
        raise InputError(field, file, f"takes {given} features ({kind}), the trunk beside it gives {width}")
    projector = build_projector(_KINDS[kind], width, dim, hidden, seed=0)
    assert projector is not None
    fit_weights(projector, state, name=f"the {kind} projector", source=file, field=field)
    return projector
