"""What a source of images is, the record that a kind of source is registered by, and sources made of other sources."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.labels import renumbered
from tinyseed.files import digest


@runtime_checkable
class Source(Protocol):
    """Encoded images by position. Pickles small, so that worker processes share what lies on disk."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image file; b"" if there is none. Raises OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """A path, or "file.parquet#row": for people."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """[n], positions in `classes`, -1: unlabeled. None: no labels at all."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    @property
    def fingerprint(self) -> str:
        """A short hex digest of what the source lists; it changes with the data."""
        ...


@runtime_checkable
class Noted(Protocol):
    """A source that has something to say when it is opened."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user has to know, a line each: what was left out, and what was chosen among several."""
        ...


def notes_of(source: Source) -> tuple[str, ...]:
    """What a source has to say, to be shown once; most have nothing."""
    return source.notes if isinstance(source, Noted) else ()


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "file"), counted(1200, "file")
    ('1 file', '1,200 files')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(items: Sequence[str], most: int = 5) -> str:
    """The first items, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b, and 1 more'
    """
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown}, and {len(items) - most:,} more"


@dataclass(frozen=True)
class SourceFormat:
    """A kind of source that `open_source` knows; `sources.FORMATS` lists them.

    Attributes:
        description: what to give, for the remedy of errors, as in "a folder of images".
        matches: whether a spec, also given as a path, looks like this kind.
        open: opens it; None if there is nothing of this kind, so that the next format is tried. Raises InputError.
    """

    description: str
    matches: Callable[[str, Path], bool]
    open: Callable[[str, Path], Source | None]


def labels_as(source: Source, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """A source's labels as positions in other classes, matched by name; -1 if there is none.

    For joining sources. Use `align_labels` for test labels: it keeps unknown classes apart from missing labels.

    Returns:
        [n]
    """
    if source.labels is None:
        return np.full(len(source), -1, np.int64)
    place = {name: number for number, name in enumerate(classes)}
    return renumbered(source.labels, [place.get(name, -1) for name in source.classes])


class Concatenation:
    """Sources one after the other; classes merged by name.

    Attributes:
        notes: those of the members.
    """

    def __init__(self, members: tuple[Source, ...]) -> None:
        self.members = members
        self.starts = [0, *accumulate(len(member) for member in members)]
        classes = tuple(dict.fromkeys(name for member in members for name in member.classes))
        self.classes = classes if len(classes) > 1 else ()  # a single class distinguishes nothing
        self.labels: NDArray[np.int64] | None = None
        if self.classes:
            self.labels = np.concatenate([labels_as(member, classes) for member in members])
        self.fingerprint = digest(*(member.fingerprint for member in members))
        self.notes = tuple(dict.fromkeys(note for member in members for note in notes_of(member)))

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
    """Some images of a source, in this order.

    Raises:
        ValueError: an index is outside the source.
    """

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        if indices.size and (indices.min() < 0 or indices.max() >= len(source)):
            raise ValueError(f"indices from {indices.min()} to {indices.max()} of a source of {len(source)}")
        self.source = source
        self.indices = indices
        self.labels = None if source.labels is None else source.labels[indices]
        self.classes = source.classes
        self.fingerprint = digest(source.fingerprint, indices)
        self.notes = notes_of(source)

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
