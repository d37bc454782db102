"""Where indexes are kept between runs, and how they are written. Imports tinyseed.errors.

An entry is one file that appears whole (written beside, then renamed); a damaged one counts as absent.
"""

import atexit
import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tinyseed.errors import RunError

Array = NDArray[np.uint8] | NDArray[np.int64]

_DTYPES: Mapping[str, type[np.uint8] | type[np.int64]] = {"U8": np.uint8, "I64": np.int64}


class Stored(NamedTuple):
    """The content of an entry: arrays by name, and texts by name."""

    arrays: Mapping[str, NDArray[Any]]
    texts: Mapping[str, str]


def cache_folder() -> Path:
    """The folder for indexes: $TINYSEED_CACHE, else $XDG_CACHE_HOME/tinyseed, else ~/.cache/tinyseed.

    Where that cannot be written, a temporary folder that lasts as long as the process.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    own = Path(base) / "tinyseed" if Path(base).is_absolute() else Path("~/.cache/tinyseed")
    try:
        folder = Path(os.environ.get("TINYSEED_CACHE") or own).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return _temporary_folder(os.getpid())
    return folder if os.access(folder, os.W_OK | os.X_OK) else _temporary_folder(os.getpid())


@cache
def _temporary_folder(process: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tinyseed-"))

    def remove() -> None:
        if os.getpid() == process:  # a forked child must not take the folder from its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


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
