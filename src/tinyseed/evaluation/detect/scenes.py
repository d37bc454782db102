"""What a detection data set holds: images, their boxes and masks, and what had to be left out. Imports errors only."""

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tinyseed.errors import InputError

Box = tuple[float, float, float, float]
"""Corners x1, y1, x2, y2 in pixels from the image's upper left; x2 and y2 lie just outside."""

Rle = dict[str, Any]
"""A mask as pycocotools compresses it: `size` (height, width) and `counts`."""

# VOC's and COCO's own tools place a border up to a pixel outside; that is no mistake to tell.
_TOLERANCE = 1.0


@dataclass(frozen=True)
class Instance:
    """One object of an image.

    Attributes:
        box: inside the image, of some width and height.
        label: position among the data set's classes.
        crowd: a group that COCO does not take apart: not trained on, and neither right nor wrong to find.
        difficult: VOC's mark: trained on, but neither right nor wrong to find.
        area: in pixels, as the annotations have it; what COCO's small, medium and large go by.
        mask: None where masks are not asked for.
    """

    box: Box
    label: int
    crowd: bool = False
    difficult: bool = False
    area: float = 0.0
    mask: Rle | None = None


@dataclass(frozen=True)
class Scene:
    """An image and all that is on it."""

    path: Path
    width: int
    height: int
    instances: tuple[Instance, ...]


@dataclass
class LeftOut:
    """What was dropped or mended, by kind, with the first place of each; nothing is left out silently."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, where: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.first.setdefault(kind, where)

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [f"{count:,} {kind} (first: {self.first[kind]})" for kind, count in self.counts.items()]


@dataclass(frozen=True)
class SceneSet:
    """One side (train or test) of a detection data set."""

    classes: tuple[str, ...]
    scenes: tuple[Scene, ...]
    left_out: LeftOut

    @property
    def boxes(self) -> int:
        """Instances in all, crowds among them."""
        return sum(len(scene.instances) for scene in self.scenes)


def clean_box(box: Box, width: int, height: int, left_out: LeftOut, where: str) -> Box | None:
    """A box cut to its image; None, counted, where it has no size or lies outside.

    >>> clean_box((-5.0, 0.0, 4.0, 4.0), 10, 10, LeftOut(), "a.jpg")
    (0.0, 0.0, 4.0, 4.0)
    """
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)) or x2 <= x1 or y2 <= y1:
        left_out.note("boxes of zero size dropped", where)
        return None
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        left_out.note("boxes outside their image dropped", where)
        return None
    if max(abs(old - new) for old, new in zip(box, inside, strict=True)) > _TOLERANCE:
        left_out.note("boxes cut at the border of their image", where)
    return inside


def measure(paths: list[Path], flag: str) -> list[tuple[int, int] | None]:
    """Width and height of each image by its header; None where it cannot be read.

    Raises:
        InputError: an image is missing.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        told = f"{len(missing):,} of {len(paths):,} annotated images are not there"
        raise InputError(flag, missing[0], f"no such image ({told}); put it there, or take it off the list")
    return [_size(path) for path in paths]


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.size
    except Exception:  # noqa: BLE001  (a broken header can raise nearly anything)
        return None
