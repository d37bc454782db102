"""The model files that tinyseed writes itself.

A finished model is two safetensors files. The backbone's has exactly the tensor names of its own library; the
metadata of both contain what is needed to build them again.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tinyseed.checkpoints.contents import recognize
from tinyseed.checkpoints.fit import fit_weights, refuse_misfits
from tinyseed.checkpoints.weights import read_safetensors, write_safetensors
from tinyseed.errors import InputError
from tinyseed.models.backbones import Backbone, build_backbone, seeded
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, Projector, is_kind, layers_of, outputs_of
from tinyseed.models.libraries import create_on_meta
from tinyseed.models.names import PACKAGES, find_model, is_model_name
from tinyseed.settings.base import IMAGE_SIDES, WIDTHS

MODEL_FILES = ("student.safetensors", "encoder.safetensors")
PROJECTOR_FILE = "projector.safetensors"

_FOREIGN = "was not written by tinyseed; give a run folder or an exported file"


def save_encoder(
    folder: Path,
    encoder: Encoder,
    *,
    file: str = "student.safetensors",
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a backbone's file, and `projector.safetensors` where there is a projector.

    Args:
        folder: created where it is missing.
        encoder: on any device, in any memory format.
        file: the backbone's file.
        metadata: further entries. `mean`, `std` (numbers and commas), `image_size` and `interpolation` replace those
            of the encoder's own input contract.

    Returns:
        The backbone's file.

    Raises:
        RunError: a file could not be written; a former one is intact.
    """
    if encoder.projector is not None:
        state = encoder.projector.state_dict()
        write_safetensors(folder / PROJECTOR_FILE, state, _projector_metadata(encoder.projector))
    described = _contract_metadata(encoder.input) | (metadata or {}) | _build_metadata(encoder.backbone)
    described["projector"] = "none" if encoder.projector is None else encoder.projector.kind
    write_safetensors(folder / file, encoder.backbone.network.state_dict(), described)
    return folder / file


def _contract_metadata(contract: InputContract) -> dict[str, str]:
    described = {
        "mean": ",".join(map(str, contract.mean)),
        "std": ",".join(map(str, contract.std)),
        "image_size": str(contract.size),
        "interpolation": contract.interpolation,
        "normalisation": "RGB divided by 255, minus mean, divided by std",
    }
    if contract.channels == 3 and not contract.pixel_range:
        return described
    span = ",".join(map(str, contract.pixel_range))
    return described | {
        "channels": str(contract.channels),
        "pixel_range": span or "auto",
        "normalisation": f"bands from {span or 'the range of their type'} to 0,1, minus mean, divided by std",
    }


def _build_metadata(backbone: Backbone) -> dict[str, str]:
    return {
        "format": "pt",
        "tinyseed_version": version("tinyseed"),
        "about": f"backbone trained by tinyseed; tensor names are those of {backbone.library}",
        "backbone": backbone.name,
        "library": backbone.library,
        "library_version": version(PACKAGES.get(backbone.library, backbone.library)),
        "width": str(backbone.width),
        "small_stem": str(backbone.build.small_stem).lower(),
        "built_size": str(backbone.build.built_size or ""),
    }


def _projector_metadata(projector: Projector) -> dict[str, str]:
    return {
        "format": "pt",
        "tinyseed_version": version("tinyseed"),
        "about": "projector of the backbone beside it: features to embedding, before normalization",
        "kind": projector.kind,
        "in": str(projector.width),
        "out": str(projector.dim),
        "hidden": str(projector.hidden),
    }


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of a run folder, or the backbone of one exported file, in evaluation mode.

    Args:
        path: a folder with student.safetensors or encoder.safetensors, and its projector where it has one; or
            such a file, which is taken for the backbone only.

    Raises:
        InputError: there is no model at this path, or it is broken.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return Encoder(_load_backbone(path)).eval()
    file = model_file(path)
    if file is None:
        raise InputError(path, f"holds neither {' nor '.join(MODEL_FILES)}; has the run finished?")
    backbone = _load_backbone(file)
    projector = path / PROJECTOR_FILE
    return Encoder(
        backbone, _load_projector(projector, backbone.width) if projector.is_file() else None
    ).eval()


def model_file(folder: Path) -> Path | None:
    """The backbone's file in a run folder; None where there is none."""
    return next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)


def is_export(path: Path) -> bool:
    """Whether a file is one that tinyseed wrote, by its metadata."""
    if recognize(path) != "safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "tinyseed_version" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # reported when it is read


def _load_backbone(file: Path) -> Backbone:
    if not file.exists():
        raise InputError(file, "no such file or folder")
    if recognize(file) != "safetensors":
        raise InputError(file, _FOREIGN)
    state, metadata = read_safetensors(file)
    try:
        name, width = metadata["backbone"], int(metadata["width"])
        built_size = int(metadata["built_size"]) if metadata["built_size"] else None
        small_stem = metadata["small_stem"] == "true"
        contract = _read_contract(metadata)
        if built_size is not None and built_size not in IMAGE_SIDES:
            raise ValueError
    except (KeyError, ValueError, OverflowError) as error:
        raise InputError(file, _FOREIGN) from error
    channels = contract.channels
    # Names and shapes are compared before a network takes memory: the metadata may name any network, of any size.
    if not is_model_name(name):
        raise InputError(file, f"names the model {name!r}, which this version of its library does not have")
    made = create_on_meta(*find_model(name), built_size, channels, small_stem=small_stem)
    if made.build.built_size != built_size:
        raise InputError(file, _FOREIGN)
    refuse_misfits(made.network.state_dict(), state, name=name, source=file)
    backbone = build_backbone(name, small_stem=small_stem, image_size=built_size, channels=channels, seed=0)
    fit_weights(backbone.network, state, name=name, source=file)
    if backbone.width != width:
        why = f"its features have {width} numbers, those of this {backbone.library} {backbone.width}"
        raise InputError(file, why)
    own = backbone.input
    return backbone.with_input(replace(contract, multiple=own.multiple, fixed=own.fixed))


def _read_contract(metadata: Mapping[str, str]) -> InputContract:
    mean, std = _numbers(metadata["mean"]), _numbers(metadata["std"])
    span, size = metadata.get("pixel_range", "auto"), int(metadata["image_size"])
    if (
        not len(mean) == len(std) == int(metadata.get("channels", "3"))
        or size not in IMAGE_SIDES
        or min(std) <= 0
    ):
        raise ValueError
    return InputContract(
        mean,
        std,
        size,
        "bicubic" if metadata.get("interpolation") == "bicubic" else "bilinear",
        pixel_range=() if span == "auto" else _numbers(span),
    )


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(map(float, text.split(",")))
    if not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def _load_projector(file: Path, width: int) -> Projector:
    state, metadata = read_safetensors(file)
    try:
        kind, given = metadata["kind"], int(metadata["in"])
        dim, hidden = int(metadata["out"]), int(metadata["hidden"])
    except (KeyError, ValueError) as error:
        raise InputError(file, "is not a projector that tinyseed wrote") from error
    if given != width or not is_kind(kind):
        raise InputError(file, f"takes {given} features ({kind}), the backbone beside it gives {width}")
    if outputs_of(layers_of(kind, dim, hidden))[0] != dim:
        raise InputError(file, f"gives {dim} numbers by its metadata, another number by its layers ({kind})")
    for size in (dim, hidden):
        if size not in WIDTHS:
            raise InputError(file, f"has a width of {size}, which tinyseed does not write")
    with torch.device("meta"):  # its metadata may ask for any size
        empty = Projector(kind, width, dim, hidden)
    refuse_misfits(empty.state_dict(), state, name=f"the {kind} projector", source=file)
    with seeded(0):
        projector = Projector(kind, width, dim, hidden)
    fit_weights(projector, state, name=f"the {kind} projector", source=file)
    return projector
