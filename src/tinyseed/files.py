"""Files: written whole or not at all, digests of their contents, and the folder for what is kept between runs."""

import atexit
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from tinyseed.errors import InputError, RunError, first_line
from tinyseed.finite import first_non_finite
from tinyseed.text import public, visible

_UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: Path, *, durable: bool = True, remedy: str = "") -> Iterator[Path]:
    """A path beside this one to write to; at the end it takes this one's place, after an error it is removed.

    Args:
        path: the file to be; missing folders above it are made.
        durable: wait until the disk has it, so that not even a power cut leaves half a file.
        remedy: what to do where the disk is full, for the error.

    Raises:
        RunError: it could not be written (full disk, no permission); a former file is intact.
    """
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        os.close(handle)
        unfinished = Path(name)
        yield unfinished
        unfinished.chmod(0o666 & ~_umask())  # temporary files are for their owner alone
        if durable:
            _flush(unfinished)
        unfinished.replace(path)
        if durable:
            with suppress(OSError):  # some network file systems flush no folders; the file itself is whole
                _flush(path.parent)
    except (OSError, SafetensorError) as error:
        why = reason(error)
        advice = f"; {remedy}" if remedy and why in _FULL else ""
        raise RunError(f"could not save {path}: {why}{advice}") from error
    finally:
        if unfinished is not None:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Whether a file is one that `replacing` writes to, or has left when the process was killed."""
    return path.name.startswith(".") and path.name.endswith(_UNFINISHED)


def sweep(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder that nobody else writes to."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_unfinished(path):
                path.unlink(missing_ok=True)


_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def reason(error: BaseException) -> str:
    """Why a file could not be written, without its temporary name.

    >>> reason(OSError(errno.ENOSPC, "full", "/runs/.a.unfinished"))
    'No space left on device'
    """
    text = first_line(error)
    for full in _FULL:  # safetensors reports it as text only
        if full in text:
            return full
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return text


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


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; file names that are not UTF-8 are written escaped.

    Raises:
        RunError: it could not be written; a former file is intact.
    """
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented; see `json_text`.

    Raises:
        RunError: it could not be written; a former file is intact.
    """
    write_text(path, json_text(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file holds that one of us wrote earlier; None if it is absent, damaged or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def json_text(content: object, indent: int | None = None) -> str:
    r"""JSON without secrets of URLs; what cannot be seen is escaped, and a number that is not finite is null.

    >>> json_text({"name": "é\u202e", "loss": math.nan, "from": ("https://me:secret@host/a",)})
    '{"name": "é\\u202e", "loss": null, "from": ["https://host/a"]}'
    """
    text = json.dumps(_plain(content), indent=indent, ensure_ascii=False)
    return visible(text, keep="\n", escaped=lambda character: json.dumps(character)[1:-1])


def _plain(content: object) -> object:
    match content:
        case str():
            return public(content)
        case float() if not math.isfinite(content):
            return None
        case Mapping():
            return {_plain(name): _plain(value) for name, value in content.items()}
        case list() | tuple():
            return [_plain(value) for value in content]
        case _:
            return content


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file that exists; a line that cannot be written whole is taken back.

    Raises:
        RunError: it could not be written, or the file is not there any more.
    """
    content = (line + "\n").encode("utf-8", "backslashreplace")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            before = os.fstat(handle).st_size
            try:
                while content:
                    content = content[os.write(handle, content) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise RunError(f"could not write to {path}: {reason(error)}") from error


def flush(path: Path) -> None:
    """Wait until the disk has a file.

    Raises:
        RunError: it could not be written.
    """
    try:
        _flush(path)
    except OSError as error:
        raise RunError(f"could not write to {path}: {reason(error)}") from error


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically, in torch's format.

    Raises:
        RunError: a number is not finite, or it could not be written; a former file is intact.
    """
    import torch

    broken = first_non_finite(content)
    if broken is not None:
        raise RunError(f"could not save {path}: {broken} is not finite any more; try a lower `lr`")
    with replacing(path) as unfinished:
        try:
            with unfinished.open("wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise _from_system(error) from error


def _from_system(error: BaseException) -> OSError:
    """The error of the operating system that another one came from, as far as it is known."""
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, OSError):
            return before
        before = before.__cause__ or before.__context__
    return OSError(first_line(error))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU; no code of the file is run.

    Raises:
        InputError: the file cannot be read as a checkpoint.
    """
    import torch

    if not path.is_file():  # reading a pipe would wait for ever
        raise InputError(path, "cannot be read as a checkpoint (it is not a file)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise nearly anything
        raise InputError(path, f"cannot be read as a checkpoint ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(path, f"cannot be read as a checkpoint (it holds a {type(content).__name__})")
    return content


def digest(*parts: object, digits: int = 24) -> str:
    """A short hexadecimal name for these values, the same in each run and on each machine.

    Args:
        parts: arrays and bytes count by their content, tuples and lists by their entries, all else by its text.
        digits: length of the name, even.

    >>> digest("a", "bc", digits=12) == digest("ab", "c", digits=12)
    False
    """
    state = blake2b(digest_size=digits // 2)
    for data in _pieces(parts):
        state.update(f"{len(data)}:".encode())  # the length keeps ("a", "bc") apart from ("ab", "c")
        state.update(data)
    return state.hexdigest()


def _pieces(parts: tuple[object, ...] | list[object]) -> Iterator[bytes | memoryview]:
    for part in parts:
        match part:
            case np.ndarray():
                yield np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
            case bytes():
                yield part
            case tuple() | list():
                yield f"{len(part)} entries".encode()
                yield from _pieces(part)
            case _:
                yield str(part).encode("utf-8", "surrogateescape")


def cache_folder() -> Path:
    """The folder for indexes and fetched files: $TINYSEED_CACHE, else $XDG_CACHE_HOME/tinyseed, else ~/.cache/tinyseed.

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
