"""The few labelled images of a semi-supervised evaluation: chosen, saved, and read back. Imports data and this room."""

from collections import Counter
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.addressed import uniforms
from tinyseed.errors import InputError
from tinyseed.evaluation.common import Side
from tinyseed.files import write_text

_BROKEN = "give a text file with an image's name in each line"


def balanced_subset(side: Side, fraction: float, seed: int) -> NDArray[np.int64]:
    """Places of a share of the images, the same number of each class (up to one), at least one.

    Whether an image is taken depends on the seed, its position and the other images of its class alone; a
    larger share holds all of a smaller one. A class with too few images gives all of them.

    Args:
        side: labelled images.
        fraction: of them, in (0, 1].
        seed: of the choice.

    Returns:
        Sorted places among the side's images.
    """
    classes, place = np.unique(side.labels, return_inverse=True)
    wanted = max(len(classes), round(fraction * len(side)))
    each, rest = divmod(wanted, len(classes))
    luck = uniforms(seed, 0, side.indices, "semi-subset", 1)[:, 0]
    chosen = []
    for number in range(len(classes)):
        members = np.flatnonzero(place == number)
        order = members[np.argsort(luck[members], kind="stable")]
        chosen.append(order[: each + (number < rest)])
    return np.sort(np.concatenate(chosen))


def save_subset(side: Side, places: NDArray[np.int64], path: Path) -> None:
    """Write the names of these images, one a line.

    Raises:
        RunError: the file could not be written.
    """
    names = [side.source.name(int(index)) for index in side.indices[places]]
    content = "".join(f"{name}\n" for name in names)
    write_text(path, content)


def read_subset(side: Side, path: Path, field: str = "--subset") -> NDArray[np.int64]:
    """Places of the images that a text file names, one a line, as the published ImageNet lists do.

    A line is an image's whole name, or its file's name with or without the folder that it is in.

    Raises:
        InputError: the file cannot be read, or a line names no training image, or several.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(field, path, f"cannot be read: {_BROKEN}") from error
    if not lines:
        raise InputError(field, path, f"is empty: {_BROKEN}")
    found: dict[str, int] = {}
    count: Counter[str] = Counter()
    for place, index in enumerate(side.indices.tolist()):
        for name in _ways_to_say(side.source.name(index)):
            found[name] = place
            count[name] += 1
    places = [_place(line, found, count, field) for line in lines]
    if len(set(places)) < len(places):
        raise InputError(field, path, "names an image twice")
    return np.sort(np.array(places, np.int64))


def _place(line: str, found: dict[str, int], count: Counter[str], field: str) -> int:
    for name in _ways_to_say(line):
        if count[name] == 1:
            return found[name]
    told = f"{count[line]} training images have this name; put their folder before it"
    raise InputError(field, line, told if count[line] else "no training image has this name")


def _ways_to_say(name: str) -> tuple[str, ...]:
    """A whole name, the same from its last folder on, and the bare file name."""
    parts = PurePath(name).parts
    return tuple(dict.fromkeys((name, "/".join(parts[-2:]), parts[-1])))
