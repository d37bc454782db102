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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tinyseed.data.base import Concatenation, SourceFormat
from tinyseed.data.cache import REMEDY, read_arrays, write_arrays
from tinyseed.data.folder import Strings
from tinyseed.data.labels import renumbered
from tinyseed.errors import InputError, RunError, first_line
from tinyseed.files import cache_folder, digest, replacing

_LAYOUT = 1  # counts up whenever an older entry would be misread
_BATCH_BYTES = 32 * 2**20
_BATCH_ROWS = 1024
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
_MAPPED_FILES = 256  # each holds a file descriptor, of which a process commonly has 1,024


class Rows(NamedTuple):
    """What a Parquet file holds, except for the images themselves.

    Attributes:
        offsets: [n + 1], where each row's image begins in the flat file.
        labels: [n], -1: none.
        outside: the rows that name a file instead of holding it, ascending.
        paths: the names of those files, relative to the folder of the Parquet file.
    """

    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    outside: NDArray[np.int64]
    paths: Strings
    fingerprint: str


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
        begin, end = self.rows.offsets[index], self.rows.offsets[index + 1]
        return _map_file(self.images_at)[begin:end].tobytes() if end > begin else self._read_outside(index)

    def _read_outside(self, index: int) -> bytes:
        place = int(np.searchsorted(self.rows.outside, index))
        if place == len(self.rows.outside) or self.rows.outside[place] != index:
            return b""
        return Path(
            os.fsdecode(os.path.join(os.fsencode(Path(self.path).parent), self.rows.paths[place]))
        ).read_bytes()

    def name(self, index: int) -> str:
        """File and row, for people."""
        return f"{self.path}#{index}"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path, self.images_at, self.rows_at)


@lru_cache(_MAPPED_FILES)
def _map_file(path: Path) -> NDArray[np.uint8]:
    return np.asarray(np.memmap(path, np.uint8, "r"))


def _reopen(path: str, images_at: Path, rows_at: Path) -> ParquetSource:
    """In a worker process: open what the parent has made."""
    rows = _load(rows_at, images_at, check=False)
    if rows is None:
        raise FileNotFoundError(f"{rows_at}: the rows of {path} have gone while they were in use")
    return ParquetSource(path, images_at, rows_at, rows)


def open_parquet(path: Path) -> ParquetSource:
    """The images of one Parquet file, as a struct with `bytes` (and `path`) or as binary values.

    Classes come from the Hugging Face metadata where it has them, otherwise they are the values as text.

    Raises:
        InputError: the file is damaged or no Parquet, has no rows or no image column, its labels do not fit
            its class names, or the disk of the cache is too small.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
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
    _map_file.cache_clear()
    for old in images_at.parent.glob("[!.]*"):  # of an earlier state of this file
        old.unlink(missing_ok=True)
    with _reading(path), pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        columns = _columns(file.schema_arrow, path)
        _check_space(file.metadata, path, images_at.parent)
        with replacing(images_at, durable=False, remedy=REMEDY) as unfinished:
            table = _stream(columns, _batches(file, columns, path), unfinished)
    labels, classes = table.labels.finish(columns.names, path)
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
        {"classes": json.dumps(classes), "fingerprint": fingerprint},
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:  # UnicodeError: names that are not text
        raise InputError(path, f"cannot be read as Parquet: {first_line(error)[:200]}") from error


class _Columns(NamedTuple):
    image: str
    fields: tuple[str, ...]  # of the struct; none: plain binary values
    label: str | None
    names: tuple[str, ...] | None  # the classes that the metadata declares


def _columns(schema: pa.Schema, path: Path) -> _Columns:
    image = _image_column(schema)
    if image is None:
        found = ", ".join(f"{column.name} ({column.type})" for column in schema) or "none"
        raise InputError(
            path,
            f"has no image column (columns: {found}): it takes a struct with `bytes`, or binary `image`",
        )
    kind = schema.field(image).type
    fields = tuple(
        name for name in ("bytes", "path") if pa.types.is_struct(kind) and kind.get_field_index(name) >= 0
    )
    declared = _declared_classes(schema)
    label = (
        "label"
        if "label" in schema.names
        else next((name for name in declared if name in schema.names), None)
    )
    if label is None or not _is_label(schema.field(label).type):
        return _Columns(image, fields, None, None)
    return _Columns(image, fields, label, declared.get(label))


def _image_column(schema: pa.Schema) -> str | None:
    for column in sorted(schema, key=lambda column: column.name != "image"):
        if pa.types.is_struct(column.type):
            place = column.type.get_field_index("bytes")
            if place >= 0 and _is_binary(column.type.field(place).type):
                return column.name
        elif column.name == "image" and _is_binary(column.type):
            return column.name
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_label(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
    )
    return any(test(kind) for test in tests)


def _declared_classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(str(value) for value in feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _check_space(metadata: pq.FileMetaData, path: Path, folder: Path) -> None:
    if not metadata.num_rows:
        raise InputError(path, "holds no rows: give a file with images")
    groups = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    free = shutil.disk_usage(folder).free
    if sum(groups) > free:
        raise InputError(
            path,
            f"its images need up to {sum(groups) / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB: {REMEDY}",
        )


@dataclass
class _Labels:
    """Collects a label column batch by batch."""

    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)

    def add(self, column: pa.Array) -> None:
        """Take a batch; null is -1."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_integer(column.type):
            filled = pc.fill_null(column.cast(pa.int64()), -1)
            self.numbers.append(filled.to_numpy(zero_copy_only=False))
            return
        values = [None if value is None else str(value) for value in column.to_pylist()]
        codes = [-1 if value is None else self.texts.setdefault(value, len(self.texts)) for value in values]
        self.numbers.append(np.array(codes, np.int64))

    def finish(self, names: tuple[str, ...] | None, path: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Labels from 0, and the classes' names."""
        labels = np.concatenate(self.numbers) if self.numbers else np.empty(0, np.int64)
        if self.texts:
            # Classes are sorted, so that two files of one data set agree.
            classes = list(names) if names and set(self.texts) <= set(names) else sorted(self.texts)
            place = {name: number for number, name in enumerate(classes)}
            return renumbered(labels, [place[text] for text in self.texts]), tuple(classes)
        if names is not None:
            if labels.size and labels.max() >= len(names):
                raise InputError(
                    path,
                    f"has the label {labels.max()} but declares {len(names)} classes: correct its metadata",
                )
            return np.maximum(labels, -1), names
        known = np.unique(labels[labels >= 0])
        return np.where(labels >= 0, np.searchsorted(known, labels), -1), tuple(str(value) for value in known)


@dataclass
class _Streamed:
    """What a file held beside its images."""

    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    labels: _Labels = field(default_factory=_Labels)
    outside: list[int] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)


def _stream(columns: _Columns, batches: Iterator[pa.RecordBatch], target: Path) -> _Streamed:
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
            if columns.label:
                seen.labels.add(batch.column(columns.label))
            row += len(lengths)
    return seen


def _batches(file: pq.ParquetFile, columns: _Columns, path: Path) -> Iterator[pa.RecordBatch]:
    """Small record batches, row group by row group: memory is bounded by a batch and a page of the file."""
    wanted = [f"{columns.image}.{name}" for name in columns.fields] or [columns.image]
    wanted += [columns.label] if columns.label else []
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        per_row = max(1, about.total_byte_size // max(1, about.num_rows))
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // per_row))
        with _reading(path):  # here, so that an error of reading is not taken for one of writing
            yield from file.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=False)


def _image_fields(image: pa.Array, columns: _Columns) -> tuple[pa.Array, pa.Array | None]:
    if not columns.fields:
        return image, None
    values = image.flatten()  # a null struct makes its fields null
    encoded = values[image.type.get_field_index("bytes")]
    return encoded, values[image.type.get_field_index("path")] if "path" in columns.fields else None


def _payload(encoded: pa.Array) -> tuple[memoryview, NDArray[np.int64]]:
    """The values as they lie one after the other, and the length of each; null is empty."""
    encoded = encoded.cast(pa.large_binary())
    if encoded.null_count:
        encoded = pc.fill_null(encoded, pa.scalar(b"", pa.large_binary()))
    _, offsets, data = encoded.buffers()
    bounds = np.frombuffer(offsets, np.int64)[encoded.offset : encoded.offset + len(encoded) + 1]
    return memoryview(data or b"")[bounds[0] : bounds[-1]], np.diff(bounds)


def _note_outside(paths: pa.Array, rows: NDArray[np.int64], first: int, seen: _Streamed) -> None:
    for row in rows.tolist():
        path = paths[row].as_py()
        if path and "\0" not in path:
            seen.outside.append(first + row)
            seen.paths.append(os.fsencode(path))


def _open(spec: str, path: Path) -> Concatenation | None:
    """All files of a folder, of a pattern, or one; None if there are none."""
    if path.is_dir():
        files = _files_of_one_split(path)
    elif path.exists():
        files = [path]
    else:
        files = [Path(found) for found in glob(str(path), recursive=True)]  # noqa: PTH207
    # A concatenation even of one file: it leaves a single class out.
    return Concatenation(tuple(map(open_parquet, sorted(files)))) if files else None


def _files_of_one_split(folder: Path) -> list[Path]:
    files = [
        file
        for file in folder.rglob("*.parquet")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    splits = {split for file in files if (split := re.split(r"[-_.]", file.name)[0].lower()) in _SPLITS}
    if len(splits) > 1:
        remedy = f"holds several splits ({', '.join(sorted(splits))}): name one, as {folder}/{min(splits)}*.parquet"
        raise InputError(folder, remedy)
    return files


def _matches(spec: str, path: Path) -> bool:
    return path.is_dir() or (path.suffix.lower() == ".parquet" and (path.exists() or has_magic(spec)))


PARQUET = SourceFormat("*.parquet", _matches, _open)
