"""Where in its image a view lies, and how far a JPEG may be reduced while decoding."""

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from PIL import Image

CROP_TRIES = 10
CROP_DRAWS = 4 * CROP_TRIES
"""Uniform numbers that a random crop may need: area, ratio, top and left of each try."""


class Box(NamedTuple):
    """A part of an image in pixels, in Pillow's order."""

    left: float
    top: float
    right: float
    bottom: float


def crop_box(
    width: int,
    height: int,
    draws: Float64[np.ndarray, " 40"],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Choose the part of an image that a view shows, in whole pixels.

    Ten tries; if none fits into the image, its center, as large as the ratios allow.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        draws: uniform numbers in [0, 1), `CROP_DRAWS` of them.
        scale: smallest and largest share of the image's area, uniformly distributed.
        ratio: smallest and largest width / height of the part, its logarithm uniformly distributed.

    Source: torchvision's RandomResizedCrop, which has the same distribution.
    """
    numbers = iter(draws.tolist())
    for area, aspect, down, across in zip(numbers, numbers, numbers, numbers, strict=True):
        target = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect_ratio = ratio[0] * (ratio[1] / ratio[0]) ** aspect
        w, h = round(math.sqrt(target * aspect_ratio)), round(math.sqrt(target / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return Box(left, top, left + w, top + h)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return Box(left, top, left + w, top + h)


def center_box(width: int, height: int, short: int, size: int) -> Box:
    """The part that remains after resizing the short side to `short` and center-cropping to `size` × `size`.

    Source: torchvision's Resize and CenterCrop, rounded as there.
    """
    resized = (
        (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    )
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    across, down = width / resized[0], height / resized[1]
    right, bottom = min(width, (left + size) * across), min(height, (top + size) * down)
    return Box(left * across, top * down, right, bottom)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a JPEG's header, before the EXIF orientation; None if this is not a JPEG."""
    if not data.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header, not a table
            height, width = struct.unpack_from(">HH", data, position + 5)
            return (width, height) if width and height else None
        is_filler = marker == 0xFF
        position += 1 if is_filler else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def largest_reduction(full: tuple[int, int], choose: Callable[[int, int], Box], size: int) -> int:
    """How far (1, 2, 4 or 8) an image may be reduced so that its crop still has twice the view's size.

    Args:
        full: the JPEG header's width and height. EXIF may still swap them, so the worse case counts.
        choose: gives the crop for a width and height.
        size: side of the view in pixels.
    """
    if min(full) < 4 * size:
        return 1
    boxes = (choose(*full), choose(full[1], full[0]))
    side = min(min(box.right - box.left, box.bottom - box.top) for box in boxes)
    return next((reduction for reduction in (8, 4, 2) if side >= 2 * size * reduction), 1)


def reduced_box(image: Image.Image, full: tuple[int, int], choose: Callable[[int, int], Box]) -> Box:
    """The crop's place in an image that was reduced while decoding.

    Args:
        image: reduced and upright.
        full: the JPEG header's width and height, which EXIF may have swapped.
        choose: gives the crop for a width and height.
    """
    upright = (image.width >= image.height) == (full[0] >= full[1])
    width, height = full if upright else (full[1], full[0])
    box = choose(width, height)
    across, down = image.width / width, image.height / height
    right, bottom = min(image.width, box.right * across), min(image.height, box.bottom * down)
    return Box(box.left * across, box.top * down, right, bottom)
