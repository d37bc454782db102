"""Files of tensors, read without running their code: safetensors files, and what torch.save wrote."""

import builtins
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tinyseed.checkpoints.contents import recognize, refuse_false_sizes, shards
from tinyseed.errors import InputError, first_line
from tinyseed.files import replacing

StateDict = dict[str, Tensor]

_DATA = frozenset(
    {
        "argparse",
        "array",
        "collections",
        "copyreg",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "ipaddress",
    }
    | {"logging", "numbers", "pathlib", "random", "re", "types", "typing", "uuid", "zoneinfo"}
)
"""Modules of the standard library whose objects are data that training scripts save beside weights."""
_REFUSED = re.compile(
    r"(?:GLOBAL|global:?|class) `?([\w.]+\.[\w.]+|\w+)`? (?:was not an allowed|whose module|is not|blocked)"
)
_CONTAINER = re.compile(
    r"Can only (append|extend|SETITEMS?) .*but got <class '[\w.]*?Placeholder\(([^']+)\)'>"
)
_MOST = 300
"""Kinds of foreign objects in one file, beyond which it is refused."""


class Placeholder:
    """An inert object in place of one of a class that is not loaded: a configuration, a path, a NumPy number.

    Attributes:
        of: the name of that class.
    """

    of: ClassVar[str] = ""

    def __init__(self, *_: object, **__: object) -> None:
        """Takes whatever the class took, and forgets it."""

    def __setstate__(self, state: object) -> None:
        """Forgets the state, too."""


def read_content(path: Path) -> object:
    """All that a file holds, on the CPU: the tensors of a safetensors file by name, or what torch.save was given.

    Contents decide which it is, not the name (`contents.py`). The index of a checkpoint in several files stands for
    all of their tensors.

    Raises:
        InputError: the file is missing, broken, no checkpoint, or only running its code could load it.
    """
    if recognize(path) != "index":
        return _read_one(path)
    state: dict[object, object] = {}
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
    """What torch.save was given; objects of classes that torch does not trust become placeholders.

    torch's restricted unpickler runs no code of a file. It stops at the first class that it does not know, and is
    started again with a placeholder of that name, so neither the class nor its module is ever looked up.
    """
    known: dict[str, type] = {}
    while True:
        try:
            # Warnings are of the pickle's version; errors say more.
            with (
                warnings.catch_warnings(action="ignore"),
                torch.serialization.safe_globals([(kind, name) for name, kind in known.items()]),
            ):
                return _load(path)
        except Exception as error:  # a broken file can raise nearly anything
            if len(known) > _MOST or not _learn(known, str(error)):
                raise InputError(path, _why_unreadable(path, error, next(iter(known), None))) from error


def _load(path: Path) -> object:
    if path.suffix.lower() != ".safetensors":
        # Mapped, so that of a big file only what is used comes into memory; the old format cannot be.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    with path.open("rb") as file:  # torch goes by this name, and would not look at the contents
        return torch.load(file, map_location="cpu", weights_only=True)


def _learn(known: dict[str, type], message: str) -> bool:
    """Add a placeholder for the class that stopped the unpickler; False where none can help."""
    container = _CONTAINER.search(message)
    if container is not None:  # a subclass of dict or list, which the unpickler fills
        name, make = container[2], list if container[1] in ("append", "extend") else OrderedDict
        if name not in known or not issubclass(known[name], Placeholder):
            return False
        known[name] = type(f"{make.__name__}({name})", (), {"__new__": lambda *_, **__: make()})
        return True
    found = _REFUSED.search(message)
    if found is None:
        return False
    name = found[1] if "." in found[1] else f"builtins.{found[1]}"
    if name in known or not _is_data(name):
        return False
    known[name] = type(f"Placeholder({name})", (Placeholder,), {"of": name})
    return True


def _is_data(name: str) -> bool:
    """Whether an unknown name may be data's; functions of the standard library are code's."""
    module, _, attribute = name.rpartition(".")
    if module == "builtins":
        return isinstance(getattr(builtins, attribute, None), type)
    top = module.partition(".")[0]
    return top in _DATA or top not in sys.stdlib_module_names


def _why_unreadable(path: Path, error: Exception, foreign: str | None) -> str:
    if "Unsupported operand" in str(error):
        return "is damaged, or uses another pickle protocol than torch.save does by itself; save it again without one"
    needed = _REFUSED.search(str(error))
    if needed is None and "Weights only load failed" not in str(error):
        return f"cannot be read as a checkpoint ({first_line(error)}); download or save it again"
    name = foreign if needed is None else needed[1]
    what = f" ({name})" if name else ""
    return (
        f"holds more than tensors{what}, which only running its code could load; "
        f"save only the state dict: torch.save(model.state_dict(), {path.name!r})"
    )


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
