"""Public checkpoints by content: a file becomes an encoder, and says what it is. Imports this room and errors.

layouts.py finds network and head in the file, signatures.py names the network; what its images have to look like
is known here. A file is loaded whole or refused: each tensor is used, or belongs to a group that is known to be
of no use to an encoder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from tinyseed.errors import InputError
from tinyseed.models.backbones import Backbone, fit_backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, Projector, ProjectorKind
from tinyseed.models.layouts import Parts, take_apart
from tinyseed.models.signatures import Architecture, architecture_of, classifiers_of, without
from tinyseed.models.weights import StateDict, fit_weights, read_content

Output = Literal["auto", "head", "trunk"]
"""What an encoder gives: auto means the head's embedding where a file has one, else the trunk's features."""

_IMAGENET = InputContract()

# (wrapper, architecture) of files that hold a trunk alone → who publishes such, and timm's name with their input.
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
class TeacherFile:
    """What a model's file, folder or name is.

    Attributes:
        spec: as it was given.
        method: who makes such files.
        architecture: the trunk's name, which `--student` and `--teacher` take.
        library: where that network is from.
        width: length of the trunk's features.
        head: kind of the head, "none" without one.
        dim: length of the embedding with what is used.
        epochs: as the file tells it.
        input: the images that it expects.
        used: tensors that are loaded, by "trunk" and "head".
        unused: tensors that are not, by group.
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


def load_file(
    path: Path,
    *,
    arch: str | None = None,
    output: Output = "auto",
    image_size: int | None = None,
    round_size: bool = False,
    flag: str = "--teacher",
) -> tuple[Encoder, TeacherFile]:
    """The encoder in a checkpoint file, in evaluation mode, and what the file is.

    Args:
        path: a .pth, .pt, .pth.tar, .bin or .safetensors file.
        arch: the network's name, where its tensors do not tell it.
        output: whether to take the file's head.
        image_size: side of the images in pixels; by default what the network was made for.
        round_size: take the next size that it can see, where it cannot see this one.
        flag: the flag that named the file, for errors.

    Raises:
        InputError: the file is broken, of no known layout, or its tensors do not fit; or it has no head.
    """
    parts = take_apart(read_content(path, flag), path, flag)
    architecture = _architecture(parts, arch, path, flag)
    method, name = _published(parts, architecture, arch)
    backbone = fit_backbone(
        name,
        parts.trunk,
        source=path,
        image_size=image_size,
        round_size=round_size,
        field=flag,
        weights_field=flag,
    )
    backbone.input = _contract(method, backbone)
    projector = _projector(parts, backbone.width, path, flag)
    encoder = with_output(Encoder(backbone, projector), output, path, flag).eval()
    described = describe(encoder, str(path), method, projector)
    counts = _counts(parts, architecture, len(backbone.network.state_dict()))
    return encoder, replace(described, epochs=parts.epochs, size=path.stat().st_size, **counts)


def _counts(parts: Parts, architecture: Architecture, wanted: int) -> dict[str, Mapping[str, int]]:
    """How many of a file's tensors are used, and how many are not, by group."""
    kept = len(without(parts.trunk, architecture.classifiers))
    unused = {
        **parts.unused,
        "classifier": len(parts.trunk) - kept,
        # A mask token, or CLIP's text tower.
        "parts that timm's converter leaves out": max(0, kept - wanted),
    }
    used = {"trunk": min(kept, wanted), "head": len(parts.head)}
    return {"used": used, "unused": {group: count for group, count in unused.items() if count}}


def _architecture(parts: Parts, arch: str | None, path: Path, flag: str) -> Architecture:
    if arch is None:
        return architecture_of(parts.trunk, path, flag, _preferred(parts))
    return Architecture(arch, classifiers_of(arch, flag))


def _preferred(parts: Parts) -> list[str]:
    """Names that the kind of file decides for, where several architectures have its tensors."""
    match parts.method:
        case "SwAV":
            return ["swav/"]
        case "DINO":
            return [name for wrapper, name in _BICUBIC if not wrapper]
        case "state dict" if not parts.parallel:
            return [name for wrapper, name in _BICUBIC if wrapper == parts.wrapper]
        case _:
            return []


def _published(parts: Parts, architecture: Architecture, arch: str | None) -> tuple[str, str]:
    """Who makes such files, and the name to build: trunks alone are known by the wrapper around them."""
    if arch is None and parts.method == "DINO":
        return _BICUBIC.get(("", architecture.name), ("DINO", architecture.name))
    if arch is not None or architecture.classifiers or parts.parallel or parts.method != "state dict":
        return parts.method, architecture.name
    return _BICUBIC.get((parts.wrapper, architecture.name), (parts.method, architecture.name))


def _contract(method: str, backbone: Backbone) -> InputContract:
    """The images that a method's networks were trained on, at the size that the backbone is set to.

    Source: facebookresearch/moco (main_moco.py), jacobswan1/SEED (for its students and its SimCLR teacher):
    ImageNet's mean and std; facebookresearch/swav (src/multicropdataset.py): std (0.228, 0.224, 0.225), which
    its trunks have; facebookresearch/dino (eval_knn.py): ImageNet's, bicubic.
    """
    own = backbone.input
    match method:
        case "state dict":
            return own
        case "SwAV":
            return replace(own, mean=_IMAGENET.mean, std=(0.228, 0.224, 0.225), interpolation="bilinear")
        case "DINO" | "MAE":
            return replace(own, mean=_IMAGENET.mean, std=_IMAGENET.std, interpolation="bicubic")
        case _:
            return replace(own, mean=_IMAGENET.mean, std=_IMAGENET.std, interpolation="bilinear")


def _projector(parts: Parts, width: int, path: Path, flag: str) -> Projector | None:
    if not parts.head:
        return None
    positions = {name.partition(".")[0] for name in parts.head}
    numbers = frozenset(int(each) if each.isdecimal() else -1 for each in positions)
    kind = _HEADS.get(numbers)
    if kind is None:
        told = f"its head is none that is known, nothing was loaded: {', '.join(sorted(parts.head))}"
        raise InputError(flag, path, told)
    hidden, dim = _outputs(parts.head, 0), _outputs(parts.head, max(numbers))
    projector = Projector(kind, width, dim, hidden)
    fit_weights(projector, parts.head, name=f"its head ({kind})", source=path, field=flag)
    return projector


def _outputs(head: StateDict, position: int) -> int:
    """Numbers that a layer gives, by any of its tensors; what is wrong with the others is told when they are fitted."""
    found = (len(value) for name, value in head.items() if name.startswith(f"{position}.") and value.ndim)
    return next(found, 1)


def with_output(encoder: Encoder, output: Output, source: object, flag: str) -> Encoder:
    """An encoder that gives what was asked for.

    Raises:
        InputError: the head was asked for, and there is none.
    """
    if output == "head" and encoder.projector is None:
        raise InputError(f"{flag}-output", "head", f"{source} has no head; give trunk or auto")
    return Encoder(encoder.backbone) if output == "trunk" else encoder


def describe(encoder: Encoder, spec: str, method: str, head: Projector | None) -> TeacherFile:
    """What an encoder is, as far as it can say so itself."""
    used = {"trunk": len(encoder.backbone.network.state_dict())}
    if head is not None:
        used["head"] = len(head.state_dict())
    return TeacherFile(
        spec=spec,
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


def is_export(path: Path) -> bool:
    """Whether a file is one that tinyseed wrote; its metadata says so."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "tinyseed_version" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # told when it is read
