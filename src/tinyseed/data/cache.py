"""Entries of the cache folder: arrays and texts in one file with a checksum; a damaged entry counts as absent."""

import errno
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tinyseed.errors import first_line
from tinyseed.files import replacing

REMEDY = "set TINYSEED_CACHE to a folder on a larger disk"

Array = NDArray[np.uint8] | NDArray[np.int64]

_DTYPES: Mapping[str, type[np.uint8] | type[np.int64]] = {"U8": np.uint8, "I64": np.int64}


class Stored(NamedTuple):
    """The content of an entry: arrays by name, and texts by name."""

    arrays: Mapping[str, NDArray[Any]]
    texts: Mapping[str, str]


def write_arrays(path: Path, arrays: Mapping[str, Array], texts: Mapping[str, str]) -> None:
    """Write an entry (a safetensors file with a checksum).

    Raises:
        RunError: it could not be written.
    """
    with replacing(path, durable=False, remedy=REMEDY) as unfinished:
        try:
            save_file(dict(arrays), unfinished, {**texts, "checksum": _checksum(arrays)})
        except SafetensorError as error:  # how its writer reports a full disk
            raise OSError(errno.ENOSPC, first_line(error)) from error


def read_arrays(path: Path, *, mapped: bool = False, check: bool = True) -> Stored | None:
    """Read an entry.

    Args:
        path: the file.
        mapped: map the arrays from the file, shared by all processes, instead of reading them into memory.
        check: compare the checksum; not needed in a worker that opens what its parent has checked.

    Returns:
        The entry, or None if there is none or it is damaged.
    """
    try:
        content = _mapped(path) if mapped else np.fromfile(path, np.uint8)
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        texts = header.pop("__metadata__")
        arrays = {
            name: content[start + begin : start + end].view(_DTYPES[dtype]).reshape(shape)
            for name, (dtype, shape, (begin, end)) in (
                (name, tensor.values()) for name, tensor in header.items()
            )
        }
        expected = texts.pop("checksum")
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, MemoryError):
        return None
    if check and _checksum(arrays) != expected:
        return None
    return Stored(arrays, texts)


def _mapped(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped copy-on-write: the file stays as it is, and PyTorch may write to the array.

    By PyTorch, since NumPy's maps hold a file descriptor each, of which a process may have few.
    """
    import torch

    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    total = 0
    for name in sorted(arrays):
        total = (
            zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), total)) if arrays[name].size else total
        )
    return f"{total:08x}"
