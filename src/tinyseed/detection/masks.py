"""Masks by pycocotools: from polygons and run lengths to compressed run lengths, and from these to pixels.

Pycocotools trusts what it is given: wrong run lengths or coordinates make it write outside its memory. So both are
checked here before it sees them.
"""

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tinyseed.detection.annotations import Rle
from tinyseed.errors import InputError

_LONGEST_OUTLINE = 100
"""Longest outline of a polygon, in half perimeters of its image: pycocotools stores five points per pixel of it."""


def pycocotools_mask() -> ModuleType:
    """The module `pycocotools.mask`.

    Raises:
        InputError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError(
            "pycocotools", "detection needs this package: pip install 'tinyseed[detect]'"
        ) from error
    return mask


def compress(segmentation: Any, width: int, height: int) -> Rle | None:  # noqa: ANN401  (what the JSON holds)
    """COCO's polygons or run lengths as compressed run lengths; None where they do not fit the image.

    Polygons are lists of x, y, x, y, …; run lengths (a dict) must have the size of the image and add up to it. A
    damaged or empty mask gives None, and so does a polygon that runs far out of its image.
    """
    if isinstance(segmentation, dict):
        given = _run_lengths(segmentation, width, height)
    else:
        given = _polygons(segmentation, width, height)
    return given if given is not None and pycocotools_mask().area(given) > 0 else None


def _run_lengths(segmentation: dict[str, Any], width: int, height: int) -> Rle | None:
    counts = segmentation.get("counts")
    if isinstance(counts, str | bytes):
        counts = _unpacked(counts)
    if segmentation.get("size") != [height, width] or not isinstance(counts, list):
        return None
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != width * height:
        return None
    whole = {"size": [height, width], "counts": _without_empty_runs(counts)}
    return pycocotools_mask().frPyObjects(whole, height, width)


def _unpacked(packed: str | bytes) -> list[int] | None:
    """Run lengths from COCO's compressed text; None where it is damaged.

    Each number is written in groups of five bits, the lowest first, as the character 48 + bits; 32 is added in all
    groups but the last, whose fifth bit is the sign. From the fourth number on, the difference to the last but one is
    written.

    Source: rleToString and rleFrString of the COCO API (common/maskApi.c).
    """
    counts: list[int] = []
    value = shift = 0
    for code in packed.encode(errors="replace") if isinstance(packed, str) else packed:
        group = code - 48
        if not 0 <= group < 64 or shift > 60:
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts if shift == 0 else None


def _without_empty_runs(counts: list[int]) -> list[int]:
    """The same mask with an empty run only at its beginning: pycocotools ends a mask at two empty runs."""
    if all(counts[1:]):
        return counts
    changes, times = np.unique(np.cumsum(counts[:-1]), return_counts=True)
    total = sum(counts)
    kept = changes[(times % 2 == 1) & (changes < total)]  # two changes at the same pixel cancel
    return np.diff(kept, prepend=0, append=total).tolist()


def _polygons(segmentation: Any, width: int, height: int) -> Rle | None:  # noqa: ANN401
    if not isinstance(segmentation, list):
        return None
    rings = [ring for ring in segmentation if not isinstance(ring, list) or len(ring) >= 6 or len(ring) % 2]
    if not rings or not all(_sound(ring, _LONGEST_OUTLINE * (width + height)) for ring in rings):
        return None
    tool = pycocotools_mask()
    return tool.merge(tool.frPyObjects(rings, height, width))


def _sound(ring: object, longest: float) -> bool:
    """Whether a polygon is pairs of numbers, all in reach of its image, and its outline is not too long."""
    if not isinstance(ring, list) or len(ring) % 2:
        return False
    try:
        given = np.array(ring)
    except ValueError:  # nested, each part of another length
        return False
    if given.ndim != 1 or given.dtype.kind not in "iuf":
        return False
    points = given.astype(np.float64).reshape(-1, 2)
    if not (abs(points) <= longest).all():  # nor NaN
        return False
    way = np.concatenate([points, points[:1]])
    return float(np.abs(np.diff(way, axis=0)).max(1).sum()) <= longest


def decompress(mask: Rle) -> UInt8[np.ndarray, "h w"]:
    """1 on the object, 0 elsewhere."""
    return pycocotools_mask().decode(mask)
