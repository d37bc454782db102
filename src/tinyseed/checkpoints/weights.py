"""Files of tensors, read without running their code: safetensors files, and what torch.save wrote."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tinyseed.checkpoints.contents import recognize, refuse_false_sizes, shards
from tinyseed.errors import InputError, first_line
from tinyseed.files import replacing

StateDict = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model", "teacher")
"""Keys that a state dict is stored under; DINO's full checkpoints have `teacher`."""
_PARALLEL = "module."


class Unwrapped(NamedTuple):
    """The state dict in a file.

    Attributes:
        state: tensors by name.
        wrapper: the key that it was stored under; "" where it was the file itself.
        parallel: whether names began with the `module.` of parallel training, which is removed here.
    """

    state: StateDict
    wrapper: str
    parallel: bool


def read_weights(path: Path) -> StateDict:
    """The tensors of a weights file by name, on the CPU; see `unwrap`.

    Raises:
        InputError: the file is missing, broken, holds more than tensors, or no state dict.
    """
    return unwrap(read_content(path), path).state


def read_content(path: Path) -> object:
    """All that a file holds, on the CPU: the tensors of a safetensors file by name, or what torch.save was given.

    Contents decide which it is, not the name (`contents.py`). The index of a checkpoint in several files stands for
    all of their tensors.

    Raises:
        InputError: the file is missing, broken, no checkpoint, or only running its code could load it.
    """
    if recognize(path) != "index":
        return _read_one(path)
    state: dict[str, object] = {}
    for shard in shards(path):
        content = _read_one(shard)
        if not isinstance(content, Mapping):
            raise InputError(shard, f"holds a {type(content).__name__} where a state dict is needed")
        state |= content
    return state


def _read_one(path: Path) -> object:
    match recognize(path):
        case "safetensors":
            content = read_safetensors(path)[0]
        case "torch":
            content = _unpickle(path)
        case "index":
            raise InputError(path, "lists files of a checkpoint where one of them is needed")
    refuse_false_sizes(content, path)
    return content


def read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file cannot be read.
    """
    if recognize(path) != "safetensors":
        raise InputError(path, "is not a safetensors file; save it with safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(path, f"cannot be read as a safetensors file ({first_line(error)})") from error


def _unpickle(path: Path) -> object:
    try:
        # Warnings are of the pickle's version; errors say more. A Namespace (DINO's and DeiT's `args`) is plain
        # data: the restricted unpickler makes an empty one and fills its attributes.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            # Mapped, so that of a big file only what is used comes into memory; the old format cannot be.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken file can raise nearly anything
        raise InputError(path, _why_unreadable(path, error)) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    needed = re.search(
        r"(?:GLOBAL|global:?|class) `?([\w.]+\.[\w.]+)`? (?:was not an allowed|whose module)", str(error)
    )
    if needed is None and "Weights only load failed" not in str(error):
        return f"cannot be read as a checkpoint ({first_line(error)}); download or save it again"
    what = f" ({needed.group(1)})" if needed else ""
    return (
        f"holds more than tensors{what}, which only running its code could load; "
        f"save only the state dict: torch.save(model.state_dict(), {path.name!r})"
    )


def unwrap(content: object, path: Path) -> Unwrapped:
    """Find the state dict in what a file holds.

    Raises:
        InputError: there is none.
    """
    if not isinstance(content, Mapping) or not content:
        raise InputError(path, f"holds a {type(content).__name__} where a state dict is needed")
    wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), "")
    state = content[wrapper] if wrapper else content
    if not state:
        raise InputError(path, "holds an empty state dict")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            why = f"is not a state dict: {name!r} is not a tensor but of type {type(value).__name__}"
            raise InputError(path, why)
    named = {str(name): value for name, value in state.items()}
    plain = _without_parallel(named, path)
    return Unwrapped(plain, wrapper, parallel=plain is not named)


def _without_parallel(state: StateDict, path: Path) -> StateDict:
    """Names without the `module.` that each wrapping for parallel training puts before them."""
    # Most of them: a name that lacks it stays as it is, and is then refused by its name.
    while 2 * sum(name.startswith(_PARALLEL) for name in state) > len(state):
        plain = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
        if len(plain) != len(state):
            raise InputError(path, "holds the same tensors twice, with and without 'module.'")
        state = plain
    return state


def write_safetensors(path: Path, state: StateDict, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically.

    Raises:
        RunError: it could not be written; a former file is intact.
    """
    # Contiguous and apart: safetensors knows neither memory formats nor tensors that share their memory.
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata)
