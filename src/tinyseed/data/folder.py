"""Images as files: a folder, or a text file of paths.

A million paths are one blob and its offsets, mapped from a file in the cache: no Python objects, and workers
share them.
"""

import codecs
import json
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.base import SourceFormat, counted, listed
from tinyseed.data.cache import read_arrays, write_arrays
from tinyseed.data.reading import read_file, require_resources
from tinyseed.errors import InputError, RunError
from tinyseed.files import cache_folder, digest
from tinyseed.progress import say_once

EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"),
    *("jpe", "jfif", "mpo", "apng", "avif", "ppm", "pgm", "pbm", "pnm", "pfm"),
)
"""The files of a folder that are taken for images; which format one has is seen from its contents."""

_WANTED = frozenset(extension.encode() for extension in EXTENSIONS)
_MACHINE_MADE = frozenset(
    [b"@eaDir", b"__MACOSX", b"#recycle", b"@Recycle", b"$RECYCLE.BIN", b"System Volume Information"]
)  # thumbnails and deleted files that network drives, macOS and Windows keep beside the images
_LAYOUT = 2  # counts up whenever an older index would be misread
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
        notes: what was left out, a sentence each.
    """

    paths: Strings
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    folders: Strings
    mtimes: NDArray[np.int64]
    fingerprint: str
    notes: tuple[str, ...] = ()


class FileSource:
    """Image files below a root. `read` raises OSError for a file that has gone or cannot be read.

    Attributes:
        stored_at: where the index is kept, for worker processes to map; None where the cache cannot be written.
        notes: what was left out of the folder.
    """

    def __init__(self, root: bytes, stored_at: Path | None, index: Index) -> None:
        self.root = root
        self.stored_at = stored_at
        self.index = index
        self.paths = index.paths
        self.labels = index.labels
        self.classes = index.classes
        self.fingerprint = index.fingerprint
        self.notes = tuple(f"{_readable(root)}: {note}" for note in index.notes)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The encoded image file."""
        return read_file(self._path(index))

    def name(self, index: int) -> str:
        """The file's path, for people."""
        return _readable(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(self.root, self.paths[index])

    def __reduce__(self) -> tuple[object, ...]:
        if self.stored_at is None:
            return FileSource, (self.root, None, self.index)
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
    entries are skipped. Links are followed, except those that lead back to a folder above them. The source's notes
    say how many other files there are, and which sub-folders cannot be listed.

    Returns:
        The source, or None if there is no image.

    Raises:
        InputError: the folder cannot be listed.
    """
    root = os.fsencode(path.absolute())
    shelf = cache_folder() / f"folders-{_LAYOUT}" / digest(os.path.realpath(root))
    for stored_at in _newest_first(shelf):
        index = _load(stored_at)
        if index is not None and _unchanged(root, index):
            return FileSource(root, stored_at, index)
    index = _indexed(path)
    return _keep(shelf, root, index) if len(index.paths) else None


def notes_on(path: Path) -> tuple[str, ...]:
    """What there is in a folder without images.

    Raises:
        InputError: the folder cannot be listed.
    """
    return _indexed(path).notes


def _indexed(path: Path) -> Index:
    try:
        return _index_folder(os.fsencode(path.absolute()))
    except OSError as error:
        raise InputError(path, f"cannot be listed: {error.strerror}") from error


def open_list(path: Path) -> FileSource:
    """The images named in a text file: one path per line, relative to the file's folder; # starts a comment line.

    UTF-8 and UTF-16 are recognized, with and without a byte order mark or quotes around a path. Where paths do
    not exist as they are written, Windows' encoding and both Unicode forms of accented letters are tried.

    Raises:
        InputError: the file is empty, or names what does not exist (all lines are checked up to 100,000,
            otherwise the first 1,000).
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    root = os.fsencode(path.absolute().parent)
    shelf = cache_folder() / f"lists-{_LAYOUT}" / digest(root, path.name)
    fingerprint = digest(content.removeprefix(codecs.BOM_UTF8))
    stored_at = shelf / fingerprint
    stored = _load(stored_at)
    if stored is not None and not _missing(root, stored.paths):
        return FileSource(root, stored_at, stored)
    paths = _paths_of(content, root, path)
    return _keep(shelf, root, Index(paths, None, (), Strings.of([]), np.empty(0, np.int64), fingerprint))


def _paths_of(content: bytes, root: bytes, path: Path) -> Strings:
    lines = [_unquoted(line) for line in _lines(content, path)]
    if not lines:
        raise InputError(path, "names no image: write one path per line")
    given = Strings.of(lines)
    missing = _missing(root, given)
    for spelling in _SPELLINGS if missing else ():
        other = Strings.of([spelling(line) for line in lines])
        if not _missing(root, other):
            return other
    if missing:
        raise InputError(path, _what_is_missing(root, given, missing))
    return given


def _lines(content: bytes, path: Path) -> list[bytes]:
    """The lines that name something, in UTF-8 or in an unknown encoding of one byte per letter."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode("utf-8", "replace")
    if b"\0" in content:
        raise InputError(path, "is not a text file in UTF-8: write one path per line")
    raw = content.removeprefix(codecs.BOM_UTF8).replace(b"\r", b"\n").split(b"\n")
    return [line for each in raw if (line := each.strip()) and not line.startswith(b"#")]


def _unquoted(line: bytes) -> bytes:
    return line[1:-1] if len(line) > 2 and line[:1] == line[-1:] and line[:1] in (b'"', b"'") else line


def _from_windows(line: bytes) -> bytes:
    return line.decode("cp1252", "replace").encode()


def _normalized(form: Literal["NFC", "NFD"]) -> Callable[[bytes], bytes]:
    """Accented letters as one character (NFC) or two (NFD, as macOS may write them)."""
    return lambda line: unicodedata.normalize(form, os.fsdecode(line)).encode("utf-8", "surrogateescape")


_SPELLINGS: tuple[Callable[[bytes], bytes], ...] = (_from_windows, _normalized("NFC"), _normalized("NFD"))


def _missing(root: bytes, paths: Strings) -> list[int]:
    """The places of those, of the paths that are checked, that are not files."""
    return [at for at in range(_checked(paths)) if not os.path.isfile(os.path.join(root, paths[at]))]  # noqa: PTH113


def _checked(paths: Strings) -> int:
    return len(paths) if len(paths) <= _CHECKED_LINES else _SAMPLED_LINES


def _what_is_missing(root: bytes, paths: Strings, missing: list[int]) -> str:
    first = paths[missing[0]]
    remedy = "relative paths start from the folder of this text file"
    before, _, after = first.replace(b"\t", b" ").replace(b",", b" ").rpartition(b" ")
    if b"://" in first:
        remedy = "URLs are not read; download the images first"
    elif after and before and os.path.isfile(os.path.join(root, before.rstrip())):  # noqa: PTH113
        remedy = (
            "write the path alone, without a label behind it; labels come from sub-folders or Parquet files"
        )
    return (
        f"{len(missing)} of the {_checked(paths)} paths checked are not files, the first "
        f"{_readable(first)}: {remedy}"
    )


class _Listing(NamedTuple):
    """The entries of one folder: images, folders below, and how many others of each kind there are."""

    images: list[bytes]
    below: list[bytes]
    left_out: Counter[str]


_UNLISTED = _Listing([], [], Counter())


class _Folder(NamedTuple):
    relative: bytes
    mtime_ns: int
    settled: bool
    listing: _Listing
    failure: str = ""  # why it could not be listed


def _index_folder(root: bytes) -> Index:
    blobs: list[bytes] = []
    lengths: list[NDArray[np.int64]] = []
    names: list[bytes] = []
    mtimes: list[int] = []
    trusted: list[int] = []
    left_out: Counter[str] = Counter()
    failures: dict[bytes, str] = {}
    # One blob per folder as the walk goes, so that a million names are never a million objects in memory.
    for relative, mtime_ns, settled, (images, _, others), failure in _walk(root):
        prefix = relative + b"/" if relative else b""
        blobs.append(prefix + prefix.join(images) if images else b"")
        lengths.append(_lengths(images) + len(prefix))
        names.append(relative)
        mtimes.append(mtime_ns)
        trusted.append(mtime_ns if settled else -1)
        left_out += others
        if failure:
            failures[relative] = failure
    paths = Strings(np.frombuffer(b"".join(blobs), np.uint8), _offsets(lengths))
    folders = Strings.of(names)
    counts = [len(part) for part in lengths]
    labels, classes = _labels(names, counts)
    fingerprint = digest(paths.text, paths.offsets, folders.text, folders.offsets, np.array(mtimes, np.int64))
    notes = _notes(left_out, failures, _without_images(names, counts, failures))
    return Index(paths, labels, classes, folders, np.array(trusted, np.int64), fingerprint, notes)


def _walk(root: bytes) -> Iterator[_Folder]:
    """Each folder and those below it. One that cannot be listed is passed on as such, except for the root.

    Raises:
        OSError: the root cannot be listed.
        RunError: the process has too many files open.
    """
    ahead: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
    while ahead:
        relative, above = ahead.pop()
        folder = os.path.join(root, relative)
        try:
            status = os.stat(folder)  # noqa: PTH116  (before the listing: a change during it then shows as a newer time)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            # A file added within the file system's clock tick after the listing would leave the time as it is.
            settled = abs(time.time_ns() - status.st_mtime_ns) > _UNSETTLED_NS
            listing = _list(folder)
        except OSError as error:
            require_resources(error)
            if not relative:
                raise
            yield _Folder(relative, 0, False, _UNLISTED, error.strerror or type(error).__name__)
            continue
        yield _Folder(relative, status.st_mtime_ns, settled, listing)
        ahead.extend((os.path.join(relative, name), (*above, identity)) for name in reversed(listing.below))


def _list(folder: bytes) -> _Listing:
    images: list[bytes] = []
    below: list[bytes] = []
    left_out: Counter[str] = Counter()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == 46 or name in _MACHINE_MADE:  # a leading dot: hidden
                continue
            try:
                if entry.is_dir():
                    below.append(name)
                elif (extension := _extension(name)) not in _WANTED:
                    left_out[_kind(extension)] += 1
                elif entry.is_file():
                    images.append(name)
                else:
                    left_out["broken links" if entry.is_symlink() else "not regular files"] += 1
            except OSError:  # a link to itself
                left_out["broken links"] += 1
    images.sort()
    below.sort()
    return _Listing(images, below, left_out)


def _extension(name: bytes) -> bytes:
    return name.rpartition(b".")[2].lower() if b"." in name else b""


def _kind(extension: bytes) -> str:
    """What a note calls files of this extension."""
    if not extension:
        return "without an extension"
    return f".{extension.decode()}" if extension.isalnum() and len(extension) <= 8 else "of other names"


def _notes(left_out: Counter[str], failures: dict[bytes, str], empty: list[bytes]) -> tuple[str, ...]:
    """What a user has to know about the files and folders that are not used."""
    notes = []
    if left_out:
        kinds = listed([f"{count:,} {kind}" for kind, count in left_out.most_common()])
        notes.append(f"left out {counted(left_out.total(), 'file')} not read as images ({kinds})")
    if failures:
        names = listed([f"{_readable(name)}: {why}" for name, why in failures.items()])
        notes.append(f"left out {counted(len(failures), 'folder')} that cannot be listed ({names})")
    if empty:
        names = listed(list(map(_readable, empty)))
        notes.append(f"{counted(len(empty), 'sub-folder')} without an image that can be read ({names})")
    return tuple(notes)


def _without_images(folders: list[bytes], counts: list[int], failures: dict[bytes, str]) -> list[bytes]:
    """Folders of the first level, each of which would be a class, that hold no image."""
    images: Counter[bytes] = Counter()
    for folder, count in zip(folders, counts, strict=True):
        images[folder.partition(b"/")[0]] += count
    return sorted(top for top, count in images.items() if top and not count and top not in failures)


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
    arrays = {
        "paths": index.paths.text,
        "path_offsets": index.paths.offsets,
        "labels": np.empty(0, np.int64) if index.labels is None else index.labels,
        "folders": index.folders.text,
        "folder_offsets": index.folders.offsets,
        "mtimes": index.mtimes,
    }
    texts = {
        "classes": json.dumps(index.classes),
        "notes": json.dumps(index.notes),
        "fingerprint": index.fingerprint,
    }
    try:
        write_arrays(stored_at, arrays, texts)
    except RunError as error:  # a full cache costs the next run some time, and this one nothing
        say_once(f"{error}; the images are listed again next time")
        return FileSource(root, None, index)
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
        tuple(json.loads(texts["notes"])),
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
