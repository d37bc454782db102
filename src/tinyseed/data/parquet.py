"""Images in Parquet files of the Hugging Face convention.

Rows of a Parquet file cannot be read one by one: a row costs the decompression of its whole group. Training
shuffles fully, so when a file is first opened, its encoded images are streamed, batch by batch, into one flat file
in the cache, which is mapped from then on.
"""

import fcntl
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tinyseed.data.base import Concatenation, SourceFormat, counted, listed
from tinyseed.data.cache import REMEDY, read_arrays, write_arrays
from tinyseed.data.columns import REFUSED, Columns, Labels, as_bytes, choose_columns, stored
from tinyseed.data.folder import Strings
from tinyseed.data.reading import read_file, read_part, require_resources
from tinyseed.errors import InputError, RunError, first_line
from tinyseed.files import cache_folder, digest, replacing

_LAYOUT = 2  # counts up whenever an older entry would be misread
_BATCH_BYTES = 32 * 2**20
_BATCH_ROWS = 1024
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
_LOOKED_AT = 1000


class Rows(NamedTuple):
    """What a Parquet file holds, except for the images themselves.

    Attributes:
        offsets: [n + 1], where each row's image begins in the flat file.
        labels: [n], -1: none.
        outside: the rows that name a file instead of holding it, ascending.
        paths: the names of those files, relative to the folder of the Parquet file.
        label: the name of the label column; "": none.
        kind: what the labels are, as `Classes.kind`.
        notes: what was chosen among several columns, and what was not taken.
    """

    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    outside: NDArray[np.int64]
    paths: Strings
    fingerprint: str
    label: str
    kind: str
    notes: tuple[str, ...]


class ParquetSource:
    """The rows of one Parquet file; opened by `open_parquet`."""

    def __init__(self, path: str, images_at: Path, rows_at: Path, rows: Rows) -> None:
        self.path = path
        self.images_at = images_at
        self.rows_at = rows_at
        self.rows = rows
        self.labels = rows.labels if rows.classes else None
        self.classes = rows.classes
        self.fingerprint = rows.fingerprint

    def __len__(self) -> int:
        return len(self.rows.offsets) - 1

    def read(self, index: int) -> bytes:
        """The encoded image file; b"" if the row has none."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin, end = int(self.rows.offsets[index]), int(self.rows.offsets[index + 1])
        if end == begin:
            return self._read_outside(index)
        try:
            return read_part(self.images_at, begin, end)
        except FileNotFoundError as error:
            raise RunError(
                f"{self.images_at}: was removed while it was in use (the cache was emptied, or {self.path} changed)"
            ) from error

    def _read_outside(self, index: int) -> bytes:
        place = int(np.searchsorted(self.rows.outside, index))
        if place == len(self.rows.outside) or self.rows.outside[place] != index:
            return b""
        return read_file(os.path.join(os.fsencode(Path(self.path).parent), self.rows.paths[place]))

    def name(self, index: int) -> str:
        """File and row, for people."""
        return f"{self.path}#{index}"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path, self.images_at, self.rows_at)


def _reopen(path: str, images_at: Path, rows_at: Path) -> ParquetSource:
    """In a worker process: open what the parent has made."""
    rows = _load(rows_at, images_at, check=False)
    if rows is None:
        raise FileNotFoundError(f"{rows_at}: the rows of {path} have gone while they were in use")
    return ParquetSource(path, images_at, rows_at, rows)


def open_parquet(path: Path) -> ParquetSource:
    """The images of one Parquet file, as a struct with `bytes` (and `path`), as binary values or as paths.

    Which columns are read, and which values are classes, is written in `columns`.

    Raises:
        InputError: the file is damaged or no Parquet, has no image column, its labels do not fit its class names,
            or the disk of the cache is too small.
        RunError: the disk is full, or the process has too many files open.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(path, "is not a regular file")
    shelf = cache_folder() / f"parquet-{_LAYOUT}" / digest(os.path.realpath(path))
    images_at = shelf / f"{status.st_size}-{status.st_mtime_ns}.images"
    rows_at = images_at.with_suffix(".rows")
    rows = _load(rows_at, images_at)
    if rows is None:
        with _alone(shelf):
            rows = _load(rows_at, images_at)  # another process may have made it in the meantime
            if rows is None:
                _extract(path, images_at, rows_at, digest(status.st_size, status.st_mtime_ns))
                rows = _load(rows_at, images_at)
    if rows is None:
        raise RunError(f"{rows_at}: cannot be read back from the cache")
    return ParquetSource(str(path), images_at, rows_at, rows)


def _load(rows_at: Path, images_at: Path, *, check: bool = True) -> Rows | None:
    stored = read_arrays(rows_at, check=check)
    if stored is None:
        return None
    arrays, texts = stored
    try:
        size = images_at.stat().st_size
    except OSError:
        return None
    if size != arrays["offsets"][-1]:
        return None
    return Rows(
        arrays["offsets"],
        arrays["labels"],
        tuple(json.loads(texts["classes"])),
        arrays["outside"],
        Strings(arrays["paths"], arrays["path_offsets"]),
        texts["fingerprint"],
        texts["label"],
        texts["kind"],
        tuple(json.loads(texts["notes"])),
    )


@contextmanager
def _alone(shelf: Path) -> Iterator[None]:
    """Of several processes that open the same new file (one a GPU), one does the work and the others wait."""
    shelf.mkdir(parents=True, exist_ok=True)
    with (shelf / ".lock").open("wb") as lock:
        with suppress(OSError):  # a file system without locks: the work is done twice, with the same result
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _extract(path: Path, images_at: Path, rows_at: Path, identity: str) -> None:
    for old in images_at.parent.glob("[!.]*"):  # of an earlier state of this file
        old.unlink(missing_ok=True)
    with _reading(path), pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        columns = choose_columns(file.schema_arrow, path)
        _check_space(file.metadata, path, images_at.parent)
        with replacing(images_at, durable=False, remedy=REMEDY) as unfinished:
            table = _stream(columns, _batches(file, columns, path), unfinished)
    _check_outside(table, path)
    labels, classes, kind, note = table.labels.finish(columns, path)
    offsets = np.concatenate([[0], *table.lengths]).cumsum(dtype=np.int64)
    outside = Strings.of(table.paths)
    fingerprint = digest(identity, offsets, labels, outside.text, *classes)
    write_arrays(
        rows_at,
        {
            "offsets": offsets,
            "labels": labels,
            "outside": np.array(table.outside, np.int64),
            "paths": outside.text,
            "path_offsets": outside.offsets,
        },
        {
            "classes": json.dumps(classes),
            "fingerprint": fingerprint,
            "label": columns.label or "",
            "kind": kind,
            "notes": json.dumps([*columns.notes, *([note] if note else [])]),
        },
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        if isinstance(error, OSError):
            require_resources(error)
        raise InputError(path, f"cannot be read as Parquet: {first_line(error)[:200]}") from error


def _check_space(metadata: pq.FileMetaData, path: Path, folder: Path) -> None:
    groups = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    free = shutil.disk_usage(folder).free
    if sum(groups) > free:
        raise InputError(
            path,
            f"its images need up to {sum(groups) / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB: {REMEDY}",
        )


@dataclass
class _Streamed:
    """What a file held beside its images."""

    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    outside: list[int] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)


def _stream(columns: Columns, batches: Iterator[pa.RecordBatch], target: Path) -> _Streamed:
    seen = _Streamed()
    row = 0
    with target.open("wb") as output:
        for batch in batches:
            encoded, path = _image_fields(batch.column(columns.image), columns)
            payload, lengths = _payload(encoded)
            output.write(payload)
            seen.lengths.append(lengths)
            if path is not None and not lengths.all():
                _note_outside(path, np.flatnonzero(lengths == 0), row, seen)
            if columns.label is not None:
                seen.labels.add(batch.column(columns.label))
            row += len(lengths)
    return seen


def _batches(file: pq.ParquetFile, columns: Columns, path: Path) -> Iterator[pa.RecordBatch]:
    """Small record batches, row group by row group: memory is bounded by a batch and a page of the file."""
    wanted = [f"{columns.image}.{name}" for name in columns.fields] or [columns.image]
    wanted += [] if columns.label is None else [columns.label]
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        per_row = max(1, about.total_byte_size // max(1, about.num_rows))
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // per_row))
        with _reading(path):  # here, so that an error of reading is not taken for one of writing
            yield from file.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=False)


def _image_fields(image: pa.Array, columns: Columns) -> tuple[pa.Array, pa.Array | None]:
    """The encoded images and, where there are any, the paths."""
    image = stored(image)
    if columns.is_path:
        return pa.nulls(len(image), pa.large_binary()), image
    if not columns.fields:
        return image, None
    values = image.flatten()  # a null struct makes its fields null
    fields = {name: values[image.type.get_field_index(name)] for name in columns.fields}
    return fields.get("bytes", pa.nulls(len(image), pa.large_binary())), fields.get("path")


def _payload(encoded: pa.Array) -> tuple[memoryview, NDArray[np.int64]]:
    """The values as they lie one after the other, and the length of each; null is empty."""
    encoded = as_bytes(encoded)
    if encoded.null_count:
        encoded = pc.fill_null(encoded, pa.scalar(b"", pa.large_binary()))
    _, offsets, data = encoded.buffers()
    bounds = np.frombuffer(offsets, np.int64)[encoded.offset : encoded.offset + len(encoded) + 1]
    return memoryview(data or b"")[bounds[0] : bounds[-1]], np.diff(bounds)


def _note_outside(paths: pa.Array, rows: NDArray[np.int64], first: int, seen: _Streamed) -> None:
    paths = as_bytes(paths)
    for row in rows.tolist():
        path = paths[row].as_py()
        if path and b"\0" not in path:
            seen.outside.append(first + row)
            seen.paths.append(path)


def _check_outside(table: _Streamed, path: Path) -> None:
    """Refuse a file that holds no image itself, and names none that exists."""
    if not table.paths or any(lengths.any() for lengths in table.lengths):
        return
    folder = os.fsencode(path.parent)
    looked_at = table.paths[:_LOOKED_AT]
    if not any(os.path.isfile(os.path.join(folder, name)) for name in looked_at):  # noqa: PTH113
        first = looked_at[0].decode("utf-8", "backslashreplace")
        remedy = "relative paths start from the folder of the Parquet file"
        raise InputError(path, f"none of the files that its rows name exists, the first {first}: {remedy}")


def _open(spec: str, path: Path) -> Concatenation | None:
    """All files of a folder, of a pattern, or one; None if there are none."""
    notes: list[str] = []
    if path.is_dir():
        files = _files_of_one_split(path, notes)
    elif path.exists():
        files = [path]
    else:
        files = [Path(found) for found in glob(str(path), recursive=True)]  # noqa: PTH207
    if not files:
        return None
    opened = [open_parquet(file) for file in sorted(files)]
    sources = [source for source in opened if len(source)]
    if not sources:
        raise InputError(spec, "holds no rows: give a file with images")
    if len(sources) < len(opened):
        notes.append(f"left out {counted(len(opened) - len(sources), 'file')} without rows")
    _check_kinds(sources, spec)
    # A concatenation even of one file: it leaves a single class out.
    joined = Concatenation(tuple(sources))
    notes += _summed_notes(sources)
    if joined.labels is None:
        notes += _why_unlabeled(sources)
    joined.notes = tuple(f"{spec}: {note}" for note in notes)
    return joined


def _summed_notes(sources: Sequence[ParquetSource]) -> Iterator[str]:
    times = Counter(note for source in sources for note in source.rows.notes)
    for note, count in times.items():
        yield note if count == len(sources) else f"{note} (in {count} of {len(sources)} files)"


def _why_unlabeled(sources: Sequence[ParquetSource]) -> Iterator[str]:
    names = dict.fromkeys(source.rows.label for source in sources if source.rows.label)
    classes = list(dict.fromkeys(name for source in sources for name in source.classes))
    if names and not any(source.rows.kind == REFUSED for source in sources):
        held = f"a single class ({classes[0]})" if classes else "no value"
        yield f"the column `{', '.join(names)}` is not taken as labels: it holds {held}"


def _check_kinds(sources: Sequence[ParquetSource], spec: str) -> None:
    """Classes are joined by name, so numbers in one file and texts in another have to be the same names."""
    first: dict[str, ParquetSource] = {}
    for source in sources:
        if source.rows.kind not in ("", REFUSED):
            first.setdefault(source.rows.kind, source)
    for kind, other in list(first.items())[1:]:
        expected, one = next(iter(first.items()))
        if not set(other.classes) & set(one.classes):
            raise InputError(
                spec,
                f"the labels are {expected} in {Path(one.path).name} ({listed(one.classes)}) and {kind} in "
                f"{Path(other.path).name} ({listed(other.classes)}): write them alike",
            )


def _files_of_one_split(folder: Path, notes: list[str]) -> list[Path]:
    failures: list[OSError] = []
    files = [
        Path(root, name)
        for root, _, names in os.walk(folder, onerror=failures.append)
        for name in names
        if name.lower().endswith(".parquet")
        and not any(part.startswith(".") for part in Path(root, name).relative_to(folder).parts)
    ]
    for failure in failures:
        require_resources(failure)
    if failures and files:
        notes.append(f"left out {counted(len(failures), 'folder')} that cannot be listed")
    splits = {split for file in files if (split := re.split(r"[-_.]", file.name)[0].lower()) in _SPLITS}
    if len(splits) > 1:
        remedy = f"holds several splits ({', '.join(sorted(splits))}): name one, as {folder}/{min(splits)}*.parquet"
        raise InputError(folder, remedy)
    return files


def _matches(spec: str, path: Path) -> bool:
    return path.is_dir() or (path.suffix.lower() == ".parquet" and (path.exists() or has_magic(spec)))


PARQUET = SourceFormat("*.parquet", _matches, _open)
