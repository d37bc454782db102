"""Arrays that are computed once for each view of each image and kept on disk: a teacher's vectors, or crops.

A store is a folder. `cache.json` says what it was filled from, so that nothing else is ever read from it. Each array
has a folder of its own, each of its views a row of shards: files of up to 256 MiB that hold a checksum for each image,
then the values. Files are sparse; what is not there yet takes no space.

A row counts as there if its checksum fits, so rows that a power cut or a kill has left half written count as absent.
Rows are read with `pread`: a map of a file on a disk that fails, or that somebody shortens, would kill the process, and
the rows of a batch are too far apart to gain from one. No file stays open between two calls.

Any number of processes fill the same store. Whoever has computed a row looks again under the shard's lock, and takes
what another one has written in the meantime, so that all of them go on with the same bits.
"""

import fcntl
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from tinyseed.errors import InputError, RunError, first_line
from tinyseed.files import is_unfinished, read_json, reason, write_json
from tinyseed.locks import USED, Use, alone, in_use

FORMAT = 1
"""Counts up whenever an older store would be misread."""

ABOUT = "cache.json"
"""The file that says what a store was filled from."""

SHARD_BYTES = 1 << 28

_CHECKSUM = 4
_MAKING = ".making"

Values = Shaped[np.ndarray, "n ..."]


@dataclass
class ShardedArray:
    """Values of one shape for each view of each image.

    Attributes:
        folder: of this array.
        shape: of the values for one image.
        dtype: of the values.
        stopped: why nothing more is written; "" as long as all is well.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stopped: str = field(default="", compare=False)

    @property
    def row_bytes(self) -> int:
        """Bytes on disk for one view of one image."""
        return _CHECKSUM + self._values_bytes

    def read(self, view: int, indices: Int64[np.ndarray, " n"]) -> tuple[Values, Bool[np.ndarray, " n"]]:
        """The values of one view of these images, and which of them are there; the others are 0."""
        values = np.zeros((len(indices), *self.shape), self.dtype)
        there = np.zeros(len(indices), np.bool_)
        for shard, places in self._by_shard(indices):
            try:
                handle = os.open(self._path(view, shard), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                for place in places:
                    there[place] = self._read_row(handle, view, int(indices[place]), values[place])
            finally:
                os.close(handle)
        values[~there] = 0
        return values, there

    def keep(self, view: int, indices: Int64[np.ndarray, " n"], values: Values) -> Values:
        """Write what is not there yet; nothing where an earlier writing has failed, or the folder cannot be written to.

        Returns:
            What all readers will see: the values, or those that another process has written before.
        """
        kept = np.array(values, self.dtype)
        for shard, places in self._by_shard(indices):
            if self.stopped:
                break
            try:
                with self._writing(view, shard) as handle:
                    for place in places:
                        self._keep_row(handle, view, int(indices[place]), kept[place])
            except OSError as error:
                self.stopped = reason(error)
        return kept

    def present(self, view: int, indices: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of these images are there, as far as it shows without reading their values."""
        there = np.zeros(len(indices), np.bool_)
        for shard, places in self._by_shard(indices):
            with suppress(OSError):
                sums = np.fromfile(self._path(view, shard), np.uint32, self._rows)
                rows = indices[places] % self._rows
                there[places] = (rows < len(sums)) & (np.append(sums, 0)[np.minimum(rows, len(sums))] != 0)
        return there

    @property
    def _values_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def _rows(self) -> int:
        """Images of a shard."""
        return max(1, SHARD_BYTES // self.row_bytes)

    def _path(self, view: int, shard: int) -> Path:
        return self.folder / f"view-{view:04d}-{shard:05d}"

    def _by_shard(self, indices: Int64[np.ndarray, " n"]) -> Iterator[tuple[int, Int64[np.ndarray, " m"]]]:
        """The shards that these images are in, and the places of their images in `indices`."""
        shards = indices // self._rows
        for shard in np.unique(shards).tolist():
            yield shard, np.flatnonzero(shards == shard)

    @contextmanager
    def _writing(self, view: int, shard: int) -> Iterator[int]:
        self.folder.mkdir(exist_ok=True)  # not its parents: a store that was removed stays so
        handle = os.open(self._path(view, shard), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: the checksums are left
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _read_row(self, handle: int, view: int, index: int, out: Values) -> bool:
        """Whether a row is there; its values are in `out` then, and anything if not."""
        row, buffer = index % self._rows, _bytes_of(out)
        try:
            expected = os.pread(handle, _CHECKSUM, _CHECKSUM * row)
            if len(expected) < _CHECKSUM or not any(expected):
                return False
            length = os.preadv(handle, [buffer], self._offset(row))
        except OSError:
            return False
        return length == len(buffer) and int.from_bytes(expected, "little") == _checksum(buffer, view, index)

    def _keep_row(self, handle: int, view: int, index: int, values: Values) -> None:
        before = np.empty_like(values)
        if self._read_row(handle, view, index, before):
            values[...] = before
            return
        row, buffer = index % self._rows, _bytes_of(values)
        _write(handle, buffer, self._offset(row))
        _write(handle, _checksum(buffer, view, index).to_bytes(_CHECKSUM, "little"), _CHECKSUM * row)

    def _offset(self, row: int) -> int:
        return _CHECKSUM * self._rows + row * self._values_bytes


def _bytes_of(values: Values) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _checksum(content: memoryview, view: int, index: int) -> int:
    """Never 0, which stands for a row that is not there; another one for the same values at another address."""
    return zlib.crc32(content, zlib.crc32(f"{view}/{index}".encode())) or 1


def _write(handle: int, content: memoryview | bytes, offset: int) -> None:
    left = memoryview(content)
    while left:
        done = os.pwrite(handle, left, offset)
        left, offset = left[done:], offset + done


@dataclass(frozen=True)
class Store:
    """The arrays that were computed from one and the same origin; see the top of this file.

    Attributes:
        folder: where it is.
        writable: whether anything can be added.
        use: keeps others from removing it; None where its folder cannot be written to.
    """

    folder: Path
    writable: bool
    use: Use | None

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ShardedArray:
        """The array of this name, to read and to fill.

        Raises:
            InputError: it has values of another shape.
            RunError: it cannot be written.
        """
        found = self.find(name)
        if found is None:
            found = ShardedArray(self.folder / name, shape, dtype)
            if self.writable:
                write_json(found.folder / "array.json", {"shape": shape, "dtype": dtype.str})
        if (found.shape, found.dtype) != (shape, dtype):
            remedy = f"its {name} are {found.dtype} {found.shape}, not {dtype} {shape}; give another folder"
            raise InputError(self.folder, remedy)
        return found if self.writable else self._read_only(found)

    def find(self, name: str) -> ShardedArray | None:
        """The array of this name, if there is one."""
        known = read_json(self.folder / name / "array.json") or {}
        try:
            shape = tuple(int(length) for length in known["shape"])
            found = ShardedArray(self.folder / name, shape, np.dtype(str(known["dtype"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if self.writable else self._read_only(found)

    def close(self) -> None:
        """Let others remove it."""
        if self.use is not None:
            self.use.close()

    @staticmethod
    def _read_only(array: ShardedArray) -> ShardedArray:
        array.stopped = "the folder cannot be written to"
        return array


def open_store(
    folder: Path, key: Mapping[str, Any], about: Mapping[str, Any], *, named_by_key: bool = False
) -> Store:
    """Open a store that was filled from this origin, or begin one.

    Args:
        folder: of the store alone.
        key: all that decides its values: JSON values by a name for people.
        about: what people want to know of it beside.
        named_by_key: the folder's name follows from the key, so that a damaged `cache.json` can be written anew.

    Raises:
        InputError: it was filled from something else, holds other files, or cannot be made.
        RunError: it could not be written.
    """
    content = {"format": FORMAT, "key": _as_read(key), **about}
    if not (folder / ABOUT).exists():
        _begin(folder, content)
    found = read_about(folder)
    if found is None and named_by_key:
        write_json(folder / ABOUT, content)
        found = content
    _require_same(folder, found, content)
    writable = os.access(folder, os.W_OK | os.X_OK)
    return Store(folder, writable, in_use(folder) if writable else None)


def read_about(folder: Path) -> dict[str, Any] | None:
    """What a store says of itself; None if it cannot be read."""
    content = read_json(folder / ABOUT)
    return content if content is not None and isinstance(content.get("key"), dict) else None


def _as_read(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key as it comes back from a file."""
    return json.loads(json.dumps(key))


def _begin(folder: Path, content: Mapping[str, Any]) -> None:
    """Make the folder of a store, unless another process is faster."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, _MAKING):
            if (folder / ABOUT).exists():
                return
            if any(path.name not in (_MAKING, USED) and not is_unfinished(path) for path in folder.iterdir()):
                raise InputError(folder, "is a folder with other files; give a new one, or a cache")
            write_json(folder / ABOUT, content)
    except OSError as error:
        raise InputError(folder, f"cannot be made ({first_line(error)}); give another folder") from error
    except RunError as error:
        raise RunError(f"{error}; give another folder") from error
    finally:
        with suppress(OSError):
            (folder / _MAKING).unlink()


def _require_same(folder: Path, found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    if found is None:
        raise InputError(folder, f"its {ABOUT} cannot be read; remove the folder, or give another one")
    if found.get("format") != FORMAT:
        raise InputError(folder, "was written by another version of tinyseed; give another folder")
    then, now = found["key"], wanted["key"]
    for name in dict.fromkeys((*now, *then)):
        if then.get(name) != now.get(name):
            was, given = _shown(name, found, then), _shown(name, wanted, now)
            raise InputError(
                folder, f"was filled with another {name} ({was}, not {given}); give that, or another folder"
            )


def _shown(name: str, content: Mapping[str, Any], key: Mapping[str, Any]) -> str:
    """A value of a key, after what people call it."""
    title = content.get("names", {}).get(name) if isinstance(content.get("names"), dict) else None
    value = key.get(name)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if title is None else f"{title}, {text}"
