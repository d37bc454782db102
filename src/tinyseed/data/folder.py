"""Images as files: a folder, or a text file of paths.

A million paths are one blob and its offsets, mapped from a file in the cache: no Python objects, and workers
share them.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.base import SourceFormat
from tinyseed.data.cache import read_arrays, write_arrays
from tinyseed.errors import InputError
from tinyseed.files import cache_folder, digest

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")

_WANTED = frozenset(extension.encode() for extension in EXTENSIONS)
_LAYOUT = 1  # counts up whenever an older index would be misread
_UNSETTLED_NS = 2_000_000_000  # the coarsest clock of a file system in use
_KEPT_INDEXES = 4
_CHECKED_LINES = 100_000
_SAMPLED_LINES = 1_000


@dataclass(frozen=True)
class Strings:
    """Byte strings as one blob.

    Attributes:
        text: all strings, one after the other.
        offsets: [n + 1], where each begins; the last is the end.
    """

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, strings: list[bytes]) -> "Strings":
        """Join a list."""
        return cls(np.frombuffer(b"".join(strings), np.uint8), _offsets([_lengths(strings)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.text[self.offsets[index] : self.offsets[index + 1]].tobytes()


class Index(NamedTuple):
    """What a folder or list holds.

    Attributes:
        paths: relative to the root (or absolute, from a list).
        labels: the class of each (-1: none), or None.
        folders: the root and each folder below, relative to it.
        mtimes: of the folders, in ns; -1: not to be trusted.
    """

    paths: Strings
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    folders: Strings
    mtimes: NDArray[np.int64]
    fingerprint: str


class FileSource:
    """Image files below a root. `read` raises OSError for a file that has gone or cannot be read."""

    def __init__(self, root: bytes, stored_at: Path, index: Index) -> None:
        self.root = root
        self.stored_at = stored_at
        self.paths = index.paths
        self.labels = index.labels
        self.classes = index.classes
        self.fingerprint = index.fingerprint

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The encoded image file."""
        with open(self._path(index), "rb", buffering=0) as file:  # noqa: PTH123  (a Path costs as much as the reading)
            return file.read()

    def name(self, index: int) -> str:
        """The file's path, for people."""
        return _readable(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(self.root, self.paths[index])

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.root, self.stored_at)


def _reopen(root: bytes, stored_at: Path) -> FileSource:
    """In a worker process: map the index that the parent has made."""
    index = _load(stored_at, check=False)
    if index is None:
        raise FileNotFoundError(
            f"{stored_at}: the index of {_readable(root)} was removed while it was in use"
        )
    return FileSource(root, stored_at, index)


def open_folder(path: Path) -> FileSource | None:
    """The images in a folder and below; the first sub-folder of each one names its class.

    A folder's own images come first, then its sub-folders', each sorted by the bytes of the name. Hidden
    entries are skipped. Links are followed, except those that lead back to a folder above them.

    Returns:
        The source, or None if there is no image.

    Raises:
        InputError: a folder in it cannot be listed.
    """
    root = os.fsencode(path.absolute())
    shelf = cache_folder() / f"folders-{_LAYOUT}" / digest(os.path.realpath(root))
    for stored_at in _newest_first(shelf):
        index = _load(stored_at)
        if index is not None and _unchanged(root, index):
            return FileSource(root, stored_at, index)
    try:
        index = _index_folder(root)
    except OSError as error:
        raise InputError(
            path,
            f"{_readable(os.fsencode(error.filename or root))} cannot be listed: {error.strerror}",
        ) from error
    return _keep(shelf, root, index) if len(index.paths) else None


def open_list(path: Path) -> FileSource:
    """The images named in a text file: one path per line, relative to the file's folder; # starts a comment line.

    Raises:
        InputError: the file is empty, or names what does not exist (all lines are checked up to 100,000,
            otherwise the first 1,000).
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    if b"\0" in content:
        raise InputError(path, "is not a text file: write one path per line")
    root = os.fsencode(path.absolute().parent)
    shelf = cache_folder() / f"lists-{_LAYOUT}" / digest(root, path.name)
    fingerprint = digest(content)
    stored_at = shelf / fingerprint
    index = stored = _load(stored_at)
    if index is None:
        lines = [line for raw in content.splitlines() if (line := raw.strip()) and not line.startswith(b"#")]
        index = Index(Strings.of(lines), None, (), Strings.of([]), np.empty(0, np.int64), fingerprint)
    if not len(index.paths):
        raise InputError(path, "names no image: write one path per line")
    _check_existence(root, index.paths, path)
    return FileSource(root, stored_at, stored) if stored else _keep(shelf, root, index)


def _check_existence(root: bytes, paths: Strings, path: Path) -> None:
    checked = len(paths) if len(paths) <= _CHECKED_LINES else _SAMPLED_LINES
    missing = [at for at in range(checked) if not os.path.isfile(os.path.join(root, paths[at]))]  # noqa: PTH113
    if missing:
        raise InputError(
            path,
            f"{len(missing)} of the {checked} paths checked are not files, the first "
            f"{_readable(paths[missing[0]])}: relative paths start from the folder of this text file",
        )


class _Folder(NamedTuple):
    relative: bytes
    mtime_ns: int
    settled: bool
    images: list[bytes]


def _index_folder(root: bytes) -> Index:
    blobs: list[bytes] = []
    lengths: list[NDArray[np.int64]] = []
    names: list[bytes] = []
    mtimes: list[int] = []
    trusted: list[int] = []
    # One blob per folder as the walk goes, so that a million names are never a million objects in memory.
    for relative, mtime_ns, settled, images in _walk(root):
        prefix = relative + b"/" if relative else b""
        blobs.append(prefix + prefix.join(images) if images else b"")
        lengths.append(_lengths(images) + len(prefix))
        names.append(relative)
        mtimes.append(mtime_ns)
        trusted.append(mtime_ns if settled else -1)
    paths = Strings(np.frombuffer(b"".join(blobs), np.uint8), _offsets(lengths))
    folders = Strings.of(names)
    labels, classes = _labels(names, [len(part) for part in lengths])
    fingerprint = digest(paths.text, paths.offsets, folders.text, folders.offsets, np.array(mtimes, np.int64))
    return Index(paths, labels, classes, folders, np.array(trusted, np.int64), fingerprint)


def _walk(root: bytes) -> Iterator[_Folder]:
    ahead: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
    while ahead:
        relative, above = ahead.pop()
        folder = os.path.join(root, relative)
        status = os.stat(folder)  # noqa: PTH116  (before the listing: a change during it then shows as a newer time)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        # A file added within the file system's clock tick after the listing would leave the time as it is.
        settled = abs(time.time_ns() - status.st_mtime_ns) > _UNSETTLED_NS
        images, below = _list(folder)
        yield _Folder(relative, status.st_mtime_ns, settled, images)
        ahead.extend((os.path.join(relative, name), (*above, identity)) for name in reversed(below))


def _list(folder: bytes) -> tuple[list[bytes], list[bytes]]:
    images: list[bytes] = []
    below: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == 46:  # a leading dot: hidden
                continue
            try:
                if entry.is_dir():
                    below.append(name)
                elif b"." in name and name.rpartition(b".")[2].lower() in _WANTED and entry.is_file():
                    images.append(name)
            except OSError:  # a link to itself
                continue
    images.sort()
    below.sort()
    return images, below


def _labels(folders: list[bytes], counts: list[int]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    tops = [folder.partition(b"/")[0] for folder in folders]
    classes = sorted({top for top, count in zip(tops, counts, strict=True) if top and count})
    if len(classes) < 2:
        return None, ()
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.repeat(np.array([numbers.get(top, -1) for top in tops], np.int64), counts)
    return labels, tuple(_readable(name) for name in classes)


def _lengths(strings: list[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, strings), np.int64, len(strings))


def _offsets(lengths: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([[0], *lengths]).cumsum(dtype=np.int64)


def _unchanged(root: bytes, index: Index) -> bool:
    try:
        return all(
            os.stat(os.path.join(root, index.folders[at])).st_mtime_ns == mtime  # noqa: PTH116
            for at, mtime in enumerate(index.mtimes.tolist())
        )
    except OSError:
        return False


def _keep(shelf: Path, root: bytes, index: Index) -> FileSource:
    """Store an index and map it from there; a few older ones stay, for processes that still use them."""
    stored_at = shelf / index.fingerprint
    write_arrays(
        stored_at,
        {
            "paths": index.paths.text,
            "path_offsets": index.paths.offsets,
            "labels": np.empty(0, np.int64) if index.labels is None else index.labels,
            "folders": index.folders.text,
            "folder_offsets": index.folders.offsets,
            "mtimes": index.mtimes,
        },
        {"classes": json.dumps(index.classes), "fingerprint": index.fingerprint},
    )
    for old in _newest_first(shelf)[_KEPT_INDEXES:]:
        old.unlink(missing_ok=True)
    return FileSource(root, stored_at, _load(stored_at, check=False) or index)


def _load(stored_at: Path, *, check: bool = True) -> Index | None:
    stored = read_arrays(stored_at, mapped=True, check=check)
    if stored is None:
        return None
    arrays, texts = stored
    classes = tuple(json.loads(texts["classes"]))
    return Index(
        Strings(arrays["paths"], arrays["path_offsets"]),
        arrays["labels"] if classes else None,
        classes,
        Strings(arrays["folders"], arrays["folder_offsets"]),
        arrays["mtimes"],
        texts["fingerprint"],
    )


def _newest_first(shelf: Path) -> list[Path]:
    try:
        found = [path for path in shelf.iterdir() if not path.name.startswith(".")]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []


def _readable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


FOLDER = SourceFormat(
    "a folder of images",
    matches=lambda _, path: path.is_dir(),
    open=lambda _, path: open_folder(path),
)
LIST = SourceFormat(
    "a text file of paths (.txt or .list)",
    matches=lambda _, path: path.suffix.lower() in (".txt", ".list") and path.is_file(),
    open=lambda _, path: open_list(path),
)
