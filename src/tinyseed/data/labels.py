"""Class labels in the numbering of other classes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def renumbered(labels: NDArray[np.int64], numbers: Sequence[int]) -> NDArray[np.int64]:
    """Replace each label by the number at its position; -1 (no label) stays -1.

    >>> renumbered(np.array([0, 1, -1]), [5, 7])
    array([ 5,  7, -1])
    """
    return np.array([*numbers, -1], np.int64)[labels]  # label -1 reads the last entry


def align_labels(
    train_classes: Sequence[str], test_classes: Sequence[str], test_labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Test labels in the numbering of the training classes, matched by name.

    A class that the training data does not have gets a number beyond theirs, which no prediction can hit.

    >>> align_labels(("cat", "dog"), ("dog", "emu"), np.array([0, 1, -1]))
    array([ 1,  3, -1])
    """
    place = {name: number for number, name in enumerate(train_classes)}
    beyond = len(train_classes)
    return renumbered(test_labels, [place.get(name, beyond + at) for at, name in enumerate(test_classes)])


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, of which equal ones (ImageNet has two cranes) get their number.

    >>> distinct(["crane", "dog", "crane"])
    ('crane (0)', 'dog', 'crane (2)')
    """
    times = Counter(names)
    return tuple(f"{name} ({at})" if times[name] > 1 else name for at, name in enumerate(names))
