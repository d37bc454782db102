"""Public checkpoints by their contents: a file becomes an encoder and a description.

layouts.py finds backbone and head in the file, signatures.py names the network; the images that it expects are
known here. A file is loaded whole or refused: each tensor is used, or belongs to a group that an encoder does not use.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyseed.checkpoints.fit import fit_network, fit_weights, without
from tinyseed.checkpoints.layouts import PLAIN, Parts, take_apart
from tinyseed.checkpoints.signatures import Architecture, architecture_of
from tinyseed.checkpoints.weights import StateDict, read_content
from tinyseed.errors import InputError, argument
from tinyseed.models.backbones import as_backbone, seeded
from tinyseed.models.contract import IMAGENET, InputContract
from tinyseed.models.encoder import Encoder, Projector, ProjectorKind
from tinyseed.models.libraries import SWAV_STD, create, create_on_meta
from tinyseed.models.names import find_model
from tinyseed.models.spec import ModelSpec, Output

# (wrapper, architecture) of files that hold only a backbone → who publishes such, and timm's name with their input.
# Source: facebookresearch/dino (eval_knn.py: ImageNet's mean and std, bicubic); facebookresearch/mae (the same).
_BICUBIC = {
    ("", "torchvision/resnet50"): ("DINO", "torchvision/resnet50"),
    ("", "vit_small_patch16_224"): ("DINO", "vit_small_patch16_224.dino"),
    ("", "vit_small_patch8_224"): ("DINO", "vit_small_patch8_224.dino"),
    ("", "vit_base_patch16_224"): ("DINO", "vit_base_patch16_224.dino"),
    ("", "vit_base_patch8_224"): ("DINO", "vit_base_patch8_224.dino"),
    ("model", "vit_base_patch16_224"): ("MAE", "vit_base_patch16_224.mae"),
    ("model", "vit_large_patch16_224"): ("MAE", "vit_large_patch16_224.mae"),
}

_HEADS: dict[frozenset[int], ProjectorKind] = {
    frozenset({0}): "linear",
    frozenset({0, 2}): "mlp",
    frozenset({0, 1, 3}): "mlp-bn",
    frozenset({0, 1, 3, 4, 6}): "mlp-bn-3",
}
"""Positions of the layers with tensors in a head's nn.Sequential."""


@dataclass(frozen=True)
class ModelDescription:
    """What a model's file, folder or name is.

    Attributes:
        spec: as it was given.
        method: whose checkpoint it is.
        architecture: the backbone's name, which `student` and `teacher` take.
        library: where that network is from.
        width: length of the backbone's features.
        head: kind of the head, "none" without one.
        dim: length of the embedding with what is used.
        epochs: as the file says.
        input: the images that it expects.
        used: number of tensors that are loaded, by "trunk" (the backbone) and "head".
        unused: number of tensors that are not, by group.
        size: bytes of the file.
    """

    spec: str
    method: str
    architecture: str
    library: str
    width: int
    head: str
    dim: int
    epochs: int | None
    input: InputContract
    used: Mapping[str, int]
    unused: Mapping[str, int] = field(default_factory=dict)
    size: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def load_file(path: Path, spec: ModelSpec) -> tuple[Encoder, ModelDescription]:
    """The encoder in a checkpoint file, in evaluation mode, and what the file is.

    Args:
        path: a .pth, .pt, .pth.tar, .bin or .safetensors file.
        spec: its network (`arch`), output and image size.

    Raises:
        InputError: the file is broken, of no known layout, or its tensors do not fit; or it has no head.
    """
    parts = take_apart(read_content(path), path)
    architecture = _architecture(parts, spec.arch, path)
    method, name = _published(parts, architecture, spec.arch)
    with seeded(0):
        made = create(*find_model(name))
    fit_network(made, parts.backbone, path)
    backbone = as_backbone(made, spec.side(made.contract))
    backbone = backbone.with_input(_contract(method, backbone.input))
    projector = _projector(parts, backbone.width, path)
    encoder = with_output(Encoder(backbone, projector), spec.output, path)
    described = describe(encoder, path, method, projector)
    counts = _counts(parts, architecture, len(backbone.network.state_dict()))
    return encoder, replace(described, epochs=parts.epochs, size=path.stat().st_size, **counts)


def _counts(parts: Parts, architecture: Architecture, wanted: int) -> dict[str, Mapping[str, int]]:
    """How many of a file's tensors are used, and how many are not, by group."""
    kept = len(without(parts.backbone, architecture.classifiers))
    unused = {
        **parts.unused,
        "classifier": len(parts.backbone) - kept,
        # A mask token, or CLIP's text tower.
        "parts that timm's converter leaves out": max(0, kept - wanted),
    }
    used = {"trunk": min(kept, wanted), "head": len(parts.head)}
    return {"used": used, "unused": {group: count for group, count in unused.items() if count}}


def _architecture(parts: Parts, arch: str | None, path: Path) -> Architecture:
    if arch is None:
        return architecture_of(parts.backbone, path, _preferred(parts))
    with argument("arch"):
        return Architecture(arch, create_on_meta(*find_model(arch)).classifiers)


def _preferred(parts: Parts) -> list[str]:
    """Names that the kind of file decides for, where several architectures have its tensors."""
    match parts.method:
        case "SwAV":
            return ["swav/"]
        case "DINO":
            return [name for wrapper, name in _BICUBIC if not wrapper]
        case PLAIN.method if not parts.parallel:
            return [name for wrapper, name in _BICUBIC if wrapper == parts.wrapper]
        case _:
            return []


def _published(parts: Parts, architecture: Architecture, arch: str | None) -> tuple[str, str]:
    """Who publishes such files, and the name to build: files of only a backbone are recognized by their wrapper."""
    if arch is None and parts.method == "DINO":
        return _BICUBIC.get(("", architecture.name), ("DINO", architecture.name))
    if arch is not None or architecture.classifiers or parts.parallel or parts.method != PLAIN.method:
        return parts.method, architecture.name
    return _BICUBIC.get((parts.wrapper, architecture.name), (parts.method, architecture.name))


def _contract(method: str, own: InputContract) -> InputContract:
    """The images that a method's networks were trained on, at the size that the backbone is set to.

    Source: facebookresearch/moco (main_moco.py), jacobswan1/SEED (for its students and its SimCLR teacher):
    ImageNet's mean and std; facebookresearch/swav (src/multicropdataset.py): std (0.228, 0.224, 0.225), which
    its networks have; facebookresearch/dino (eval_knn.py): ImageNet's, bicubic.
    """
    match method:
        case PLAIN.method:
            return own
        case "SwAV":
            return replace(own, mean=IMAGENET.mean, std=SWAV_STD, interpolation="bilinear")
        case "DINO" | "MAE":
            return replace(own, mean=IMAGENET.mean, std=IMAGENET.std, interpolation="bicubic")
        case _:
            return replace(own, mean=IMAGENET.mean, std=IMAGENET.std, interpolation="bilinear")


def _projector(parts: Parts, width: int, path: Path) -> Projector | None:
    if not parts.head:
        return None
    positions = {name.partition(".")[0] for name in parts.head}
    numbers = frozenset(int(each) if each.isdecimal() else -1 for each in positions)
    kind = _HEADS.get(numbers)
    if kind is None:
        raise InputError(
            path, f"its head is of no known kind, nothing was loaded: {', '.join(sorted(parts.head))}"
        )
    hidden, dim = _outputs(parts.head, 0), _outputs(parts.head, max(numbers))
    projector = Projector(kind, width, dim, hidden)
    fit_weights(projector, parts.head, name=f"its head ({kind})", source=path)
    return projector


def _outputs(head: StateDict, position: int) -> int:
    """Outputs of a layer by any of its tensors; if others disagree, they are reported when they are fitted."""
    found = (len(value) for name, value in head.items() if name.startswith(f"{position}.") and value.ndim)
    return next(found, 1)


def with_output(encoder: Encoder, output: Output, source: object) -> Encoder:
    """An encoder that gives what was asked for, in evaluation mode.

    Raises:
        InputError: the head was asked for, and there is none.
    """
    if output == "head" and encoder.projector is None:
        raise InputError(output, f"{source} has no head; give backbone", argument="output")
    return (Encoder(encoder.backbone) if output in ("backbone", "trunk") else encoder).eval()


def describe(encoder: Encoder, spec: object, method: str, head: Projector | None = None) -> ModelDescription:
    """What an encoder is, as far as it can say so itself."""
    used = {"trunk": len(encoder.backbone.network.state_dict())}
    if head is not None:
        used["head"] = len(head.state_dict())
    return ModelDescription(
        spec=str(spec),
        method=method,
        architecture=encoder.backbone.name,
        library=encoder.backbone.library,
        width=encoder.width,
        head="none" if head is None else head.kind,
        dim=encoder.dim,
        epochs=None,
        input=encoder.input,
        used=used,
    )
