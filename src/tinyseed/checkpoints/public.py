"""Public checkpoints by their contents: a file becomes an encoder and a description.

recognition.py finds out what a file is. It is loaded whole or refused: each tensor is used, or belongs to a group that
an encoder does not use.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyseed.checkpoints.fit import fit_network, fit_weights, without
from tinyseed.checkpoints.formats.base import expects
from tinyseed.checkpoints.recognition import Parts, take_apart
from tinyseed.checkpoints.weights import read_content
from tinyseed.errors import InputError
from tinyseed.models.backbones import as_backbone, seeded
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, Projector, kind_of, outputs_of
from tinyseed.models.libraries import create
from tinyseed.models.names import find_model
from tinyseed.models.spec import ModelSpec, Output


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
        source: where the code that writes such files is.
        note: what users should know of such files.
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
    source: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def load_file(path: Path, spec: ModelSpec) -> tuple[Encoder, ModelDescription]:
    """The encoder in a checkpoint file, in evaluation mode, and what the file is.

    Args:
        path: a .pth, .pt, .pth.tar, .bin or .safetensors file.
        spec: which of its networks (`prefix`), architecture (`arch`), output and image size.

    Raises:
        InputError: the file is broken, of no known format, or its tensors do not fit; or it has no head.
    """
    parts = take_apart(read_content(path), path, spec)
    with seeded(0):
        made = create(*find_model(parts.architecture.name))
    fit_network(made, parts.backbone, path)
    backbone = as_backbone(made, spec.side(made.contract))
    if parts.format.input is not None:
        backbone = backbone.with_input(expects(parts.format.input, backbone.input))
    projector = _projector(parts, backbone.width, path)
    encoder = with_output(Encoder(backbone, projector), spec.output, path)
    described = replace(
        describe(encoder, path, parts.format.name, projector),
        epochs=parts.epochs,
        size=path.stat().st_size,
        source=parts.format.source,
        note=parts.format.note,
        **_counts(parts, len(backbone.network.state_dict())),
    )
    return encoder, described


def _counts(parts: Parts, wanted: int) -> dict[str, Mapping[str, int]]:
    """How many of a file's tensors are used, and how many are not, by group."""
    kept = len(without(parts.backbone, parts.architecture.classifiers))
    unused = Counter(parts.unused)
    unused["classifier"] += len(parts.backbone) - kept
    # A mask token, or CLIP's text tower.
    unused["parts that timm's converter leaves out"] += max(0, kept - wanted)
    used = {"trunk": min(kept, wanted), "head": len(parts.head)}
    return {"used": used, "unused": {group: count for group, count in unused.items() if count}}


def _projector(parts: Parts, width: int, path: Path) -> Projector | None:
    if not parts.layers:
        return None
    dim, hidden = outputs_of(parts.layers)
    projector = Projector(kind_of(parts.layers), width, dim, hidden)
    fit_weights(projector, parts.head, name=f"its head ({projector.kind})", source=path)
    return projector


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
