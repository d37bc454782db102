"""Masks by pycocotools: from polygons and run lengths to compressed run lengths, and from these to pixels."""

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tinyseed.detection.annotations import Rle
from tinyseed.errors import InputError


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

    Polygons are lists of x, y, x, y, …; run lengths (a dict) must have the size of the image. An empty mask gives None.
    """
    if isinstance(segmentation, dict):
        given = _run_lengths(segmentation, width, height)
    else:
        given = _polygons(segmentation, width, height)
    return given if given is not None and pycocotools_mask().area(given) > 0 else None


def _run_lengths(segmentation: dict[str, Any], width: int, height: int) -> Rle | None:
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        return None
    if isinstance(counts, list):
        if sum(counts) != width * height:
            return None
        return pycocotools_mask().frPyObjects(segmentation, height, width)
    if not isinstance(counts, str | bytes):
        return None
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}


def _polygons(segmentation: Any, width: int, height: int) -> Rle | None:  # noqa: ANN401
    if not isinstance(segmentation, list):
        return None
    rings = [
        ring for ring in segmentation if isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0
    ]
    if not rings:
        return None
    tool = pycocotools_mask()
    return tool.merge(tool.frPyObjects(rings, height, width))


def decompress(mask: Rle) -> UInt8[np.ndarray, "h w"]:
    """1 on the object, 0 elsewhere."""
    return pycocotools_mask().decode(mask)
