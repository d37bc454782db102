"""Weights files: read without running their code, fitted whole or not at all. Imports errors only.

A weights file is a state dict of a backbone's own library: .safetensors, or .pth, .pt written by torch.save.
"""

import argparse
import contextlib
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinyseed.errors import InputError, RunError

StateDict = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model")
_PARALLEL = "module."
_LISTED = 4


def read_weights(path: Path, field: str) -> StateDict:
    """The tensors of a weights file by name, on the CPU.

    A dict that holds them under `state_dict` or `model` is opened, and the `module.` that data parallelism
    puts before each name is taken off.

    Raises:
        InputError: the file is missing, broken, holds more than tensors, or no state dict.
    """
    state = _state_dict(read_content(path, field), path, field)
    if state and all(name.startswith(_PARALLEL) for name in state):
        return {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return state


def read_content(path: Path, field: str) -> object:
    """All that a file holds, on the CPU: the tensors of a .safetensors file by name, or what torch.save was given.

    Raises:
        InputError: the file is missing, broken, or only running its code could load it.
    """
    if not path.is_file():
        raise InputError(field, path, "no such file")
    return read_safetensors(path, field)[0] if path.suffix == ".safetensors" else _unpickle(path, field)


def read_safetensors(path: Path, field: str) -> tuple[StateDict, dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(field, path, f"is no whole safetensors file ({first_line(error)})") from error


def _unpickle(path: Path, field: str) -> object:
    try:
        # Warnings are of the pickle's version; errors tell more. A Namespace (DINO's and DeiT's `args`) is plain
        # data: the restricted unpickler makes an empty one and fills its attributes.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            # Mapped, so that of a big file only what is used comes into memory; the old format cannot be.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken file can raise nearly anything
        raise InputError(field, path, _why_unreadable(path, error)) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    if "TorchScript" in str(error):
        return (
            "is a TorchScript archive, which is code; "
            "save its weights: torch.save(torch.jit.load(FILE).state_dict(), OUT)"
        )
    needed = re.search(
        r"(?:GLOBAL|global:?|class) `?([\w.]+\.[\w.]+)`? (?:was not an allowed|whose module)", str(error)
    )
    if needed is None and "Weights only load failed" not in str(error):
        return f"is no readable weights file ({first_line(error)}); fetch or save it again"
    what = f" ({needed.group(1)})" if needed else ""
    return (
        f"holds more than tensors{what}, which only running its code could load; "
        f"save the state dict alone: torch.save(model.state_dict(), {path.name!r})"
    )


def _state_dict(content: object, path: Path, field: str) -> StateDict:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content:
        raise InputError(field, path, f"holds a {type(content).__name__} where a state dict is needed")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise InputError(
                field, path, f"is no state dict: {name!r} is a {type(value).__name__}, no tensor"
            )
    return {str(name): value for name, value in content.items()}


def without(left_out: Sequence[str], state: StateDict, wanted: StateDict) -> StateDict:
    """A state dict but for modules that the network does without, unless it wants their tensors after all."""
    prefixes = tuple(f"{module}." for module in left_out)
    return {key: value for key, value in state.items() if key in wanted or not key.startswith(prefixes)}


def fit_weights(
    network: nn.Module,
    state: StateDict,
    *,
    name: str,
    source: object,
    field: str,
    left_out: Sequence[str] = (),
) -> None:
    """Load every tensor of a state dict into a network, or none.

    Args:
        network: whose weights are replaced.
        state: tensors by name. Batch norm's counters may be missing, as in old files; torch allows it, too.
        name: what the network is called in errors.
        source: where the weights came from, for errors.
        field: the flag that gave them.
        left_out: modules of the library's whole model that the network does without (its classifier).

    Raises:
        InputError: lists missing, unexpected and mis-shaped tensors; the network is as it was.
    """
    wanted = network.state_dict()
    given = without(left_out, state, wanted)
    problems = told(misfits(wanted, given))
    if problems:
        raise InputError(field, source, f"does not fit {name}, nothing was loaded: {problems}")
    wanted.update(given)
    network.load_state_dict(wanted, strict=True)


def misfits(wanted: StateDict, given: StateDict) -> dict[str, list[str]]:
    """What keeps tensors from fitting, by "missing", "unexpected" and "mis-shaped"; all empty where they fit.

    Batch norm's counters may be missing, as in old files; torch allows it, too.
    """
    return {
        "missing": [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in given if key not in wanted],
        "mis-shaped": [
            f"{key} {list(given[key].shape)} instead of {list(wanted[key].shape)}"
            for key in wanted
            if key in given and given[key].shape != wanted[key].shape
        ],
    }


def told(groups: dict[str, list[str]]) -> str:
    """Misfits in one line; empty where there are none."""
    return "; ".join(f"{len(keys)} {what} ({few(keys)})" for what, keys in groups.items() if keys)


def few(keys: Collection[str]) -> str:
    """The first few names of a list."""
    listed = ", ".join(list(keys)[:_LISTED])
    return listed if len(keys) <= _LISTED else f"{listed}, …"


def write_safetensors(path: Path, state: StateDict, metadata: dict[str, str]) -> None:
    """Write a safetensors file beside its place, flush it to the disk, then put it there.

    Raises:
        RunError: it could not be written; a former file is intact.
    """
    # Contiguous and apart: safetensors knows neither memory formats nor tensors that share their memory.
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    write_atomically(path, lambda unfinished: save_file(tensors, unfinished, metadata))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file that takes the place of `path` only when it is whole and on the disk.

    Raises:
        RunError: it could not be written; a former file is intact.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        unfinished.chmod(0o666 & ~_umask())  # safetensors' own temporary files are for their owner alone
        _flush(unfinished)
        unfinished.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise RunError(f"could not save {path}: {first_line(error)}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
