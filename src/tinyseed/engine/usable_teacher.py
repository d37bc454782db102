"""Whether a teacher tells images apart at all."""

from collections.abc import Callable

from tinyseed.errors import InputError
from tinyseed.shapes import Embeddings, Features

SAME = 1e-5
"""Largest difference, in parts of the largest value, up to which rows are the same. Networks with random weights differ
by 1e-2 and more between images of low contrast."""

IMAGES_ALIKE = "all held-out images look the same, so that nothing can be measured on them"


def require_usable(
    teacher: str, features: Features, rows: Embeddings, alike: Callable[[], bool]
) -> str | None:
    """Refuse a teacher that gives every image the same, from which nothing can be learned.

    Args:
        teacher: as it was given.
        features: its backbone's output for some images.
        rows: what the student would learn from the same images.
        alike: whether these images look the same, in which case the teacher is not at fault.

    Returns:
        A note where the images look the same; None where all is well.

    Raises:
        InputError: features or rows are not finite, or the same for every image.
    """
    for values, what in ((features, "features"), (rows, "embedding")):
        if not bool(values.isfinite().all()):
            remedy = (
                f"the teacher's {what} of the images is not finite (NaN or infinite); its weights are broken"
            )
            raise InputError(teacher, f"{remedy}: give another file, or `precision` 32", argument="teacher")
    if len(rows) < 2 or not (_same(features) or _same(rows)):
        return None
    if alike():
        return IMAGES_ALIKE
    if _same(features):
        remedy = "the teacher gives the same features for every image, so nothing can be learned from it"
        raise InputError(teacher, f"{remedy}; are its weights complete and trained?", argument="teacher")
    remedy = "the teacher's head gives the same embedding for every image, so nothing can be learned from it"
    raise InputError(
        teacher, f"{remedy}; learn its features: give `teacher_output` backbone", argument="teacher"
    )


def _same(values: Features) -> bool:
    return bool((values - values[0]).abs().max() <= SAME * values.abs().max())
