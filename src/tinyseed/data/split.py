"""Which images are held out for validation, and fixed samples of images."""

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.addressed import permutation

HELD_OUT_SHARE = 0.1


def held_out_split(images: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide a data set into a training and a held-out part (10 %), the same for each run with this seed.

    Returns:
        Sorted positions of the training images and of the held-out ones.
    """
    order = permutation(seed, 0, images, "held-out")
    held_out = int(images * HELD_OUT_SHARE)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def sample(indices: NDArray[np.int64], at_most: int, seed: int, name: str) -> NDArray[np.int64]:
    """A fixed random choice of at most `at_most` of these positions, sorted."""
    if len(indices) <= at_most:
        return indices
    return np.sort(indices[permutation(seed, 0, len(indices), name)[:at_most]])
