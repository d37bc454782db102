"""Annotated images: boxes, masks and classes, and a record of the annotations that had to be changed or dropped."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinyseed.data.metadata import turn_of
from tinyseed.data.split import sample
from tinyseed.detection.fields import BadField, is_file
from tinyseed.errors import InputError
from tinyseed.files import digest

Box = tuple[float, float, float, float]
"""Corners x1, y1, x2, y2 in pixels from the image's upper left corner; x2 and y2 lie just outside the object."""

Rle = dict[str, Any]
"""A mask as pycocotools compresses it: `size` (height, width) and `counts`."""

_TOLERANCE = 1.0  # the tools of VOC and COCO place borders up to a pixel outside the image
_SMALLEST = 0.1  # shorter sides, in pixels, can vanish in float32 once the image is resized

_SIDEWAYS = (
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)


@dataclass(frozen=True)
class Instance:
    """One object in an image.

    Attributes:
        box: within the image, with an area above zero.
        label: index into the classes of the split.
        crowd: COCO's mark for a group of objects: not trained on; detecting it counts neither for nor against.
        difficult: VOC's mark: trained on; detecting it counts neither for nor against.
        area: in pixels, as annotated; COCO's small, medium and large objects are defined by it.
        mask: None where masks were not asked for.
    """

    box: Box
    label: int
    crowd: bool = False
    difficult: bool = False
    area: float = 0.0
    mask: Rle | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file, its size in pixels and the objects in it."""

    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...]


@dataclass
class Issues:
    """Images and annotations that were dropped or changed, counted by kind, with the first example of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.first.setdefault(kind, where)

    def bad_object(self, error: BadField, where: str) -> None:
        """Count an object that is dropped since one of its fields cannot be used."""
        self.add(f"objects dropped whose {error.name} cannot be used", f"{where}: {error}")

    def lines(self) -> list[str]:
        """One line for each kind."""
        return [f"{count:,} {kind} (first: {self.first[kind]})" for kind, count in self.counts.items()]


@dataclass(frozen=True)
class AnnotatedSplit:
    """The annotated images of one split (train or test)."""

    classes: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    issues: Issues

    @property
    def boxes(self) -> int:
        """Number of instances, including crowds."""
        return sum(len(image.instances) for image in self.images)

    @property
    def trainable(self) -> tuple[AnnotatedImage, ...]:
        """The images with at least one object that is not a crowd."""
        return tuple(
            image for image in self.images if any(not instance.crowd for instance in image.instances)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Stands for the images (file names and sizes), their annotations and the classes."""
        files = ((image.path.name, image.path.stat().st_size) for image in self.images)
        content = ((image.width, image.height, image.instances) for image in self.images)
        return digest(self.classes, *files, *content)


@dataclass(frozen=True)
class AnnotatedSplits:
    """The train and test split of a detection data set, with the same classes."""

    train_split: AnnotatedSplit
    test_split: AnnotatedSplit

    @property
    def train(self) -> tuple[AnnotatedImage, ...]:
        """The images that a detector is trained on."""
        return self.train_split.trainable

    @property
    def test(self) -> tuple[AnnotatedImage, ...]:
        """The images that a detector is scored on."""
        return self.test_split.images

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train_split.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """What was dropped or changed."""
        splits = {"train": self.train_split, "test": self.test_split}
        return tuple(f"{name}: {line}" for name, split in splits.items() for line in split.issues.lines())

    @property
    def fingerprints(self) -> dict[str, str]:
        """A digest of each split."""
        return {"train": self.train_split.fingerprint, "test": self.test_split.fingerprint}


def clean_box(box: Box, width: int, height: int, issues: Issues, where: str) -> Box | None:
    """A box clipped to its image; None where it has no area or lies outside. Each change is counted in `issues`.

    >>> clean_box((-5.0, 0.0, 4.0, 4.0), 10, 10, Issues(), "a.jpg")
    (0.0, 0.0, 4.0, 4.0)
    """
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        kind = "negative" if x2 < x1 or y2 < y1 else "zero"
        issues.add(f"boxes of {kind} size dropped", where)
        return None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        issues.add("boxes outside their image dropped", where)
        return None
    if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < _SMALLEST:
        issues.add(f"boxes thinner than {_SMALLEST} pixels in their image dropped", where)
        return None
    if max(abs(old - new) for old, new in zip(box, clipped, strict=True)) > _TOLERANCE:
        issues.add("boxes clipped to their image", where)
    return clipped


def limited(count: int, limit: int | None) -> list[int]:
    """Positions of the images to use out of `count`; the same for each run."""
    chosen = np.arange(count)
    return (chosen if limit is None else sample(chosen, limit, seed=0, name="limit")).tolist()


def sized_images(
    paths: Sequence[Path], stated: Sequence[tuple[int, int] | None], issues: Issues
) -> list[tuple[int, int] | None]:
    """Width and height of each image; None where it is to be left out, which is counted in `issues`.

    Args:
        paths: of the images.
        stated: their sizes according to the annotations; None where these do not say.
        issues: counts images that cannot be read, or have another size than stated: their boxes would not fit.

    Raises:
        InputError: an image is missing.
    """
    missing = [path for path in paths if not is_file(path)]
    if missing:
        count = f"{len(missing):,} of {len(paths):,} annotated images are missing"
        raise InputError(missing[0], f"no such image ({count}); add it, or remove it from the annotations")
    return [_checked_size(path, size, issues) for path, size in zip(paths, stated, strict=True)]


def _checked_size(path: Path, stated: tuple[int, int] | None, issues: Issues) -> tuple[int, int] | None:
    size = _upright_size(path)
    if size is None:
        issues.add("unreadable images left out", path.name)
    elif stated is not None and stated != size:
        issues.add("images of another size than annotated left out", path.name)
        return None
    return size


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Of an image as people see it, turned by its EXIF: annotation tools show it so, and it is decoded so."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            width, height = image.size
            return (height, width) if turn_of(image.info) in _SIDEWAYS else (width, height)
    except Exception:  # noqa: BLE001  (a broken header can raise nearly anything)
        return None
