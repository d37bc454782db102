"""Folders that timm and transformers write: weights, and a config.json that says what they are."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyseed.checkpoints.huggingface import PREFIX, load_transformers
from tinyseed.checkpoints.public import ModelDescription, describe, load_file, with_output
from tinyseed.errors import InputError, first_line
from tinyseed.models.encoder import Encoder
from tinyseed.models.names import is_model_name
from tinyseed.models.spec import ModelSpec

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CONFIG = "config.json"


def library_folder(path: Path) -> Path | None:
    """The folder of timm's or transformers' that a path is, or whose weights it is; None where it is something else.

    Raises:
        InputError: its config.json cannot be read.
    """
    folder = path if path.is_dir() else path.parent if path.name in _WEIGHTS else None
    if folder is None or not (folder / _CONFIG).is_file():
        return None
    return folder if _config(folder).keys() & {"model_type", "architecture"} else None


def load_folder(folder: Path, spec: ModelSpec) -> tuple[Encoder, ModelDescription]:
    """The encoder in a folder of timm's (`save_for_hf`) or transformers' (`save_pretrained`), and what it is.

    Raises:
        InputError: the weights are missing or do not fit, or the library does not know the architecture.
    """
    for given, name in ((spec.arch, "arch"), (spec.prefix, "prefix")):
        if given is not None:
            raise InputError(given, f"{folder} states what it holds; leave this out", argument=name)
    config = _config(folder)
    if "model_type" in config:
        encoder = load_transformers(replace(spec, name=f"{PREFIX}{folder}"))
        return with_output(encoder, spec.output, folder), describe(encoder, folder, "transformers")
    return _load_timm(folder, config, spec)


def _load_timm(folder: Path, config: Mapping[str, Any], spec: ModelSpec) -> tuple[Encoder, ModelDescription]:
    name = str(config["architecture"])
    if not is_model_name(name):
        raise InputError(
            folder, f"its {_CONFIG} names {name}, which the installed timm does not have; update timm"
        )
    file = next((folder / each for each in _WEIGHTS if (folder / each).is_file()), None)
    if file is None:
        raise InputError(folder, f"holds neither {' nor '.join(_WEIGHTS)}; save or download it again")
    published = config.get("pretrained_cfg") or {}
    side = spec.image_size or int((published.get("input_size") or [0])[-1]) or None
    encoder, described = load_file(file, replace(spec, arch=name, image_size=side))
    own = encoder.input
    expected = replace(
        own,
        mean=tuple(map(float, published.get("mean") or own.mean)),
        std=tuple(map(float, published.get("std") or own.std)),
        interpolation="bicubic" if published.get("interpolation") == "bicubic" else "bilinear",
    )
    return encoder.with_input(expected), replace(described, method="timm", input=expected)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            folder / _CONFIG, f"cannot be read ({first_line(error)}); download it again"
        ) from error
    return content if isinstance(content, dict) else {}
