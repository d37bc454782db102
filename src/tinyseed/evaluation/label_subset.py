"""Label subsets for semi-supervised evaluation: chosen with balanced classes, or read from a list of names."""

from collections import Counter
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.addressed import uniforms
from tinyseed.errors import InputError
from tinyseed.evaluation.splits import Split

PREFIX = "semi-subset-"
"""Begins the names of the files that an evaluation leaves its subsets in."""

_EXPECTED = "give a text file with one image name per line"


class LabelSubset(NamedTuple):
    """Part of a split whose labels are used: its name, and sorted places among the split's images."""

    name: str
    places: NDArray[np.int64]

    def text(self, split: Split) -> str:
        """The names of its images, one per line, as `read_subset` reads them."""
        return "".join(f"{split.source.name(int(index))}\n" for index in split.indices[self.places])


def balanced_subset(split: Split, fraction: float, seed: int) -> LabelSubset:
    """A share of the images with the same number from each class (up to one), at least one each.

    Whether an image is chosen depends only on the seed, its position and the other images of its class; a larger
    share contains a smaller one. A class with too few images gives all of them.

    Args:
        split: labeled images.
        fraction: share of them, in (0, 1].
        seed: of the choice.
    """
    classes, place = np.unique(split.labels, return_inverse=True)
    wanted = max(len(classes), round(fraction * len(split)))
    each, rest = divmod(wanted, len(classes))
    luck = uniforms(seed, 0, split.indices, "semi-subset", 1)[:, 0]
    chosen = []
    for number in range(len(classes)):
        members = np.flatnonzero(place == number)
        order = members[np.argsort(luck[members], kind="stable")]
        chosen.append(order[: each + (number < rest)])
    return LabelSubset(f"{fraction:g}", np.sort(np.concatenate(chosen)))


def read_subset(split: Split, path: Path) -> LabelSubset:
    """The images that a text file names, one per line, as the published ImageNet lists do.

    A line is an image's whole name, or its file's name with or without the folder that it is in.

    Raises:
        InputError: the file cannot be read, or a line names no training image, or several.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read: {_EXPECTED}") from error
    if not lines:
        raise InputError(path, f"is empty: {_EXPECTED}")
    found: dict[str, int] = {}
    count: Counter[str] = Counter()
    for place, index in enumerate(split.indices.tolist()):
        for name in _short_names(split.source.name(index)):
            found[name] = place
            count[name] += 1
    places = [_place(line, found, count) for line in lines]
    if len(set(places)) < len(places):
        raise InputError(path, "names an image twice")
    return LabelSubset(path.stem.removeprefix(PREFIX), np.sort(np.array(places, np.int64)))


def _place(line: str, found: dict[str, int], count: Counter[str]) -> int:
    for name in _short_names(line):
        if count[name] == 1:
            return found[name]
    if count[line]:
        raise InputError(
            line, f"{count[line]} training images have this name; put their folder in front of it"
        )
    raise InputError(line, "no training image has this name")


def _short_names(name: str) -> tuple[str, ...]:
    """A whole name, the same from its last folder on, and the bare file name."""
    parts = PurePath(name).parts
    return tuple(dict.fromkeys((name, "/".join(parts[-2:]), parts[-1])))
