"""`tinyseed cache`: what is kept on disk between runs, and how to free it."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tinyseed.errors import MISSING, InputError, first_line
from tinyseed.files import cache_folder, read_json
from tinyseed.locks import USED, is_used
from tinyseed.settings.base import Range, Settings
from tinyseed.text import size_text

_ABOUT, _ARRAY = "cache.json", "array.json"
_DAY = 86400

_KINDS: Mapping[str, str] = {
    "teacher-vectors": "a teacher's vectors of random views",
    "crops": "crops of random views",
    "parquet-": "images unpacked from a Parquet file",
    "files": "a downloaded file",
    "features": "features of data sets by frozen models",
    "evaluations": "evaluations that were interrupted",
    "folders-": "listings of folders",
    "lists-": "listings of text files",
    "teachers": "what is known of teachers",
}
"""What the folders of the cache folder hold, by the beginnings of their names."""

_ONE_BY_ONE = ("teacher-vectors", "crops", "parquet-", "files")
"""Kinds whose entries are large, and are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Flags of `tinyseed cache`."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class FreeSettings(Settings):
    """Flags of `tinyseed cache free`."""

    all: bool = False
    """Free everything."""
    older_than: float | None = None
    """Free what was not used for this many days."""

    RANGES: ClassVar = {"older_than": Range(0, 1e6)}


@dataclass(frozen=True)
class Entry:
    """Something that is kept.

    Attributes:
        name: what `free` takes: its path below the cache folder, or the path of a folder of its own.
        kind: what it is.
        of: what it is made from, as far as it says so.
        size: bytes on disk.
        files: how many files it has.
        last_used: seconds since 1970.
        used: whether a run uses it now.
    """

    name: str
    kind: str
    of: str
    size: int
    files: int
    last_used: float
    used: bool


def entries(folder: str | None = None) -> list[Entry]:
    """What is kept: in the cache folder, or in one folder that `--cache` was given.

    Raises:
        InputError: the folder is not a cache.
    """
    if folder is not None:
        return [_given(Path(folder))]
    found = []
    for path in _children(cache_folder()):
        kind = _kind(path.name)
        if kind is None:
            continue
        if path.name.startswith(_ONE_BY_ONE):
            found += [_entry(each, f"{path.name}/{each.name}", kind) for each in _children(path)]
        else:
            found.append(_entry(path, path.name, kind))
    return sorted((entry for entry in found if entry.files), key=lambda entry: -entry.size)


def free(names: Sequence[str], settings: FreeSettings) -> list[Entry]:
    """Remove what is kept and no run uses now.

    Args:
        names: as `entries` has them, or paths of folders that `--cache` was given.
        settings: which of them, or of everything if there are no names.

    Returns:
        What was removed.

    Raises:
        InputError: there is no such entry, a run uses it, or it cannot be removed.
    """
    if not names and not settings.all and settings.older_than is None:
        raise InputError(MISSING, "give names that `tinyseed cache` lists, `all`, or `older_than`")
    known = {entry.name: entry for entry in entries()}
    chosen = [known.get(name) or _named(name) for name in names] if names else list(known.values())
    if settings.older_than is not None:
        before = time.time() - _DAY * settings.older_than
        chosen = [entry for entry in chosen if entry.last_used < before]
    for entry in chosen:
        if entry.used and names:
            raise InputError(entry.name, "a run uses it; wait for it to end")
    removed = [entry for entry in chosen if not entry.used]
    for entry in removed:
        _remove(entry)
    return removed


def freed(removed: Sequence[Entry]) -> str:
    """What was removed, as lines for a terminal."""
    lines = [f"freed {entry.name}" for entry in removed]
    return "\n".join([*lines, f"{size_text(sum(entry.size for entry in removed))} freed"])


def table(listed: Sequence[Entry]) -> str:
    """The entries, the largest first, as lines for a terminal."""
    if not listed:
        return f"{cache_folder()}: nothing is kept"
    lines = [f"{cache_folder()}: {size_text(sum(entry.size for entry in listed))}", ""]
    for entry in listed:
        used = "in use" if entry.used else f"last used {_ago(time.time() - entry.last_used)}"
        of = f" of {entry.of}" if entry.of else ""
        lines.append(f"  {size_text(entry.size):>10}  {entry.name}")
        lines.append(f"  {'':10}  {entry.kind}{of}; {used}")
    return "\n".join([*lines, "", "tinyseed cache free NAME… frees them"])


def as_json(listed: Sequence[Entry]) -> dict[str, Any]:
    """The entries as plain values."""
    return {"folder": str(cache_folder()), "entries": [asdict(entry) for entry in listed]}


def _ago(seconds: float) -> str:
    for unit, length in (("day", _DAY), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds / length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def _kind(name: str) -> str | None:
    return next((kind for start, kind in _KINDS.items() if name == start or _is_layout(name, start)), None)


def _is_layout(name: str, start: str) -> bool:
    return start.endswith("-") and name.startswith(start)


def _given(folder: Path) -> Entry:
    """The cache in a folder of its own."""
    folder = folder.expanduser().absolute()
    if not (folder / _ABOUT).is_file():
        raise InputError(folder, "is not a cache: it has no cache.json; give a folder that `cache` was given")
    return _entry(folder, str(folder), _KINDS["teacher-vectors"])


def _named(name: str) -> Entry:
    """The cache in a folder of its own that is given by its path."""
    if Path(name).expanduser().is_dir():
        return _given(Path(name))
    raise InputError(name, "nothing of this name is kept; give one that `tinyseed cache` lists")


def _entry(path: Path, name: str, kind: str) -> Entry:
    sizes, times = [], [0.0]
    for file in _files(path):
        with suppress(OSError):
            status = file.stat()
            sizes.append(512 * status.st_blocks)
            times.append(status.st_mtime if file.name == USED else max(status.st_mtime, status.st_atime))
    used = is_used(path) or is_used(path / "crops")
    return Entry(name, kind, _of(path), sum(sizes), len(sizes), max(times), used)


def _of(path: Path) -> str:
    """What an entry is made from, where it says so."""
    content = read_json(path / _ABOUT) or {}
    with suppress(KeyError, TypeError):
        names = content["names"]
        return f"{names['teacher']} on {names['data']}" if "teacher" in content["key"] else str(names["data"])
    return ""


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remove(entry: Entry) -> None:
    path = cache_folder() / entry.name  # which an absolute path replaces
    try:
        if not Path(entry.name).is_absolute():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        for part in _parts(path):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        with suppress(OSError):  # somebody has put other files there
            path.rmdir()
    except OSError as error:
        raise InputError(entry.name, f"cannot be removed ({first_line(error)})") from error


def _parts(folder: Path) -> list[Path]:
    """What belongs to the cache in a folder of its own; `cache.json` comes last, so that a part can be freed again."""
    inside = [path for path in _children(folder) if any((path / name).is_file() for name in (_ARRAY, _ABOUT))]
    return [*inside, *(path for name in (USED, _ABOUT) if (path := folder / name).is_file())]
