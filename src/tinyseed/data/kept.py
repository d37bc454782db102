"""Crops that are kept on disk: what the readers cut out of each image, before color."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyseed.data.augmentation import View
from tinyseed.data.readers import Planes, Reader
from tinyseed.data.shards import ShardedArray, Store


@dataclass
class KeptCrops:
    """The crops of a store, an array for each view that a step takes.

    Attributes:
        arrays: of the first view, of the second, …
    """

    arrays: tuple[ShardedArray, ...]

    @classmethod
    def of(cls, store: Store, views: Sequence[View], reader: Reader) -> "KeptCrops":
        """The crops of these views.

        Raises:
            InputError: the store has crops of another size.
            RunError: it cannot be written.
        """
        return cls(tuple(store.array(f"crops-{at}", *_kind(view, reader)) for at, view in enumerate(views)))

    @property
    def note(self) -> str:
        """Why nothing more is kept, for people; "" where all is well."""
        why = next((array.stopped for array in self.arrays if array.stopped), "")
        return why and f"no more crops are kept in {self.arrays[0].folder.parent}: {why}"

    def find(self, epoch: int, index: int) -> tuple[Planes, ...] | None:
        """The crops of an image at this epoch of the views; None if one of them is not there."""
        found = []
        for array in self.arrays:
            values, there = array.read(epoch, np.array([index]))
            if not there[0]:
                return None
            found.append(values[0])
        return tuple(found)

    def keep(self, epoch: int, index: int, views: Sequence[Planes]) -> None:
        """Keep the crops of an image, if the disk has space."""
        for array, view in zip(self.arrays, views, strict=True):
            array.keep(epoch, np.array([index]), view[None])


def _kind(view: View, reader: Reader) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of a view's crop."""
    empty = reader.empty(view.size)
    return empty.shape[1:], empty.dtype
