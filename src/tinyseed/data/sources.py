"""Where images come from: indexable bytes, with a label where one is known. Imports its own room only."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.cache import digest
from tinyseed.data.folder import EXTENSIONS, open_folder, open_list
from tinyseed.data.named import open_named
from tinyseed.data.parquet import open_parquet
from tinyseed.errors import InputError

_SUPPORTED = "give a folder of images, a text file of paths (.txt or .list), *.parquet or torchvision:NAME"
_PLANNED = re.compile(r"^hf:|://|\.(tar|tgz|zip)(\.\w+)?$", re.IGNORECASE)
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})


@runtime_checkable
class Source(Protocol):
    """Encoded images by position. Pickles small, so that worker processes share what lies on disk."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image file; b"" where there is none. Raises OSError where it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """A path, or "file.parquet#row": for people."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """[n], positions in `classes`, -1: unlabelled. None: no labels at all."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    @property
    def fingerprint(self) -> str:
        """A short hex digest of what the source lists; another one after a change."""
        ...


def open_source(specs: Sequence[str], field: str = "--data") -> Source:
    """Open one data set from one or several specs.

    Args:
        specs: folders (searched recursively, the first sub-folder names the class), text files of paths (.txt
            or .list), Parquet files, patterns of them or folders of them, `torchvision:NAME[:SPLIT][@FOLDER]`.
            Several are one after the other; classes of the same name are one class.
        field: the argument to name in errors.

    Raises:
        InputError: a spec is missing, empty, unreadable or of a kind that is not supported.

    >>> open_source(["no-such-folder"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinyseed.errors.InputError: --data: no-such-folder: does not exist: give a folder of images, ...
    """
    if not specs:
        raise InputError(field, "(nothing)", _SUPPORTED)
    sources = [_open_one(spec, field) for spec in specs]
    return sources[0] if len(sources) == 1 else Concatenation(tuple(sources))


def subset(source: Source, indices: NDArray[np.int64]) -> Source:
    """Some images of a source, in this order.

    Raises:
        ValueError: an index is outside the source.
    """
    if indices.size and (indices.min() < 0 or indices.max() >= len(source)):
        raise ValueError(f"indices from {indices.min()} to {indices.max()} of a source of {len(source)}")
    return Subset(source, indices)


def labels_as(source: Source, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """A source's labels as positions in other classes, matched by name; -1 where there is none.

    For joining sources. Test labels go through evaluation's `align_labels`, which keeps missing classes apart.

    Returns:
        [n]
    """
    if source.labels is None:
        return np.full(len(source), -1, np.int64)
    place = {name: number for number, name in enumerate(classes)}
    return np.array([*(place.get(name, -1) for name in source.classes), -1], np.int64)[source.labels]


class Concatenation:
    """Sources one after the other; classes merged by name."""

    def __init__(self, members: tuple[Source, ...]) -> None:
        self.members = members
        self.starts = [0, *accumulate(len(member) for member in members)]
        classes = tuple(dict.fromkeys(name for member in members for name in member.classes))
        self.classes = classes if len(classes) > 1 else ()  # one class tells nothing
        self.labels: NDArray[np.int64] | None = None
        if self.classes:
            self.labels = np.concatenate([labels_as(member, classes) for member in members])
        self.fingerprint = digest(*(member.fingerprint for member in members))

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, index: int) -> bytes:
        """The encoded image file."""
        member, place = self._at(index)
        return member.read(place)

    def name(self, index: int) -> str:
        """The member's name for it."""
        member, place = self._at(index)
        return member.name(place)

    def _at(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        member = bisect_right(self.starts, index) - 1
        return self.members[member], index - self.starts[member]

    def __reduce__(self) -> tuple[object, ...]:
        return Concatenation, (self.members,)


class Subset:
    """Some images of a source; made by `subset`."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source = source
        self.indices = indices
        self.labels = None if source.labels is None else source.labels[indices]
        self.classes = source.classes
        self.fingerprint = digest(source.fingerprint, indices)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        """The encoded image file."""
        return self.source.read(self._at(index))

    def name(self, index: int) -> str:
        """The source's name for it."""
        return self.source.name(self._at(index))

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int(self.indices[index])

    def __reduce__(self) -> tuple[object, ...]:
        return Subset, (self.source, self.indices)


def _open_one(spec: str, field: str) -> Source:
    path = Path(spec).expanduser()
    if not spec.strip():
        raise InputError(field, "(an empty text)", _SUPPORTED)
    if path.is_dir():
        return open_folder(path, field) or _parquet_folder(path, field)
    if spec.lower().startswith("torchvision:"):
        return open_named(spec, field)
    if _PLANNED.search(spec):
        raise InputError(field, spec, f"is of a kind that is not supported yet: {_SUPPORTED}")
    kind = path.suffix.lower()
    if not path.exists() and has_magic(spec):
        if kind != ".parquet":
            raise InputError(field, spec, f"patterns are for *.parquet only: {_SUPPORTED}")
        return _parquet_files([Path(found) for found in glob(str(path), recursive=True)], spec, field)  # noqa: PTH207
    if not path.exists():
        raise InputError(field, spec, f"does not exist: {_SUPPORTED}")
    if kind == ".parquet":
        return _parquet_files([path], spec, field)
    if kind in (".txt", ".list"):
        return open_list(path, field)
    raise InputError(field, spec, f"is a file of another kind: {_SUPPORTED}")


def _parquet_folder(path: Path, field: str) -> Source:
    files = [
        file
        for file in path.rglob("*.parquet")
        if not any(part[0] == "." for part in file.relative_to(path).parts)
    ]
    if not files:
        raise InputError(
            field, path, f"holds no images ({', '.join(EXTENSIONS)}; no *.parquet either): {_SUPPORTED}"
        )
    splits = {split for file in files if (split := re.split(r"[-_.]", file.name)[0].lower()) in _SPLITS}
    if len(splits) > 1:
        raise InputError(
            field,
            path,
            f"holds several splits ({', '.join(sorted(splits))}): name one, as {path}/{min(splits)}*.parquet",
        )
    return _parquet_files(files, str(path), field)


def _parquet_files(files: list[Path], spec: str, field: str) -> Source:
    if not files:
        raise InputError(field, spec, f"matches no file: {_SUPPORTED}")
    # A concatenation of one, too: it leaves a single class out.
    return Concatenation(tuple(open_parquet(file, field) for file in sorted(files)))
