"""Where indexes are kept between runs, and how they are written. Imports errors and places.

An entry is one file that appears whole (written beside, then renamed); a damaged one counts as absent.
"""

import errno
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tinyseed.errors import RunError
from tinyseed.places import cache_folder

__all__ = ["Stored", "cache_folder", "digest", "read_arrays", "replacing", "write_arrays"]

Array = NDArray[np.uint8] | NDArray[np.int64]

_DTYPES: Mapping[str, type[np.uint8] | type[np.int64]] = {"U8": np.uint8, "I64": np.int64}


class Stored(NamedTuple):
    """The content of an entry: arrays by name, and texts by name."""

    arrays: Mapping[str, NDArray[Any]]
    texts: Mapping[str, str]


def digest(*parts: object) -> str:
    """A short hex name for these values, the same in each run."""
    state = blake2b(digest_size=12)
    for part in parts:
        data = _bytes(part)
        state.update(f"{len(data)}:".encode())  # the length keeps ("a", "bc") apart from ("ab", "c")
        state.update(data)
    return state.hexdigest()


def _bytes(part: object) -> bytes | memoryview:
    if isinstance(part, np.ndarray):
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
    return part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one to write to; at the end it takes this one's place, after an error it is removed.

    Raises:
        RunError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    os.close(handle)
    written = Path(name)
    try:
        yield written
        written.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path.parent}: the disk is full: set TINYSEED_CACHE to a folder on a larger one"
            ) from error
        raise
    finally:
        written.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, Array], texts: Mapping[str, str]) -> None:
    """Write an entry (a safetensors file with a checksum)."""
    with replacing(path) as written:
        save_file(dict(arrays), written, {**texts, "checksum": _checksum(arrays)})


def read_arrays(path: Path, *, mapped: bool = False, check: bool = True) -> Stored | None:
    """Read an entry.

    Args:
        path: the file.
        mapped: map the arrays from the file, shared by all processes, rather than read them into memory.
        check: compare the checksum; a worker that opens what its parent has checked need not.

    Returns:
        The entry, or None where there is none or a damaged one.
    """
    try:
        # Mapped copy-on-write: the file stays as it is, and PyTorch takes the arrays without a warning.
        content = np.asarray(np.memmap(path, np.uint8, "c")) if mapped else np.fromfile(path, np.uint8)
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError):
        return None
    if check and _checksum(arrays) != expected:
        return None
    return Stored(arrays, texts)


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    total = 0
    for name in sorted(arrays):
        total = (
            zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), total)) if arrays[name].size else total
        )
    return f"{total:08x}"
