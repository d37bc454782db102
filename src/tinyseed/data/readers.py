"""Encoded images become cropped views, in a worker process: 8-bit RGB, or float32 bands.

A reader is chosen once, from the channels that a network expects. It decodes and crops; `render_view` does the rest on
the device. Readers are small, picklable, and equal by value; their text is part of cache keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image

from tinyseed.data.augmentation import View
from tinyseed.data.bands import decode_bands, missing_packages, to_unit
from tinyseed.data.base import Source
from tinyseed.data.crop import (
    CROP_DRAWS,
    Box,
    center_box,
    crop_box,
    jpeg_size,
    largest_reduction,
    reduced_box,
)
from tinyseed.data.decode import cropped, decode, is_tiff
from tinyseed.errors import InputError
from tinyseed.shapes import Interpolation

Planes = NDArray[np.uint8] | NDArray[np.float32]
"""A view of one image, [c, size, size]: 8-bit RGB, or bands in [0, 1]."""

CropDraws = Float64[np.ndarray, "views 40"]
"""Uniform numbers for the crops of one image, `CROP_DRAWS` for each view."""

_LOOKED_AT = 64
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@runtime_checkable
class Reader(Protocol):
    """How encoded images are decoded and cropped."""

    @property
    def channels(self) -> int:
        """Channels of a view."""
        ...

    def random_views(self, data: bytes, draws: CropDraws, views: Sequence[View]) -> Sequence[Planes]:
        """Cut several random views out of one image, decoded once.

        Args:
            data: the encoded file.
            draws: uniform numbers, a row for each view.
            views: size, and scale and ratio of the crop.

        Raises:
            BadImage: the image cannot be decoded.
        """
        ...

    def evaluation_view(self, data: bytes, size: int, interpolation: Interpolation = "bilinear") -> Planes:
        """Bring an image's short side to 256/224 of the size and cut out the center, with antialiasing.

        Raises:
            BadImage: the image cannot be decoded.
        """
        ...

    def empty(self, size: int) -> Planes:
        """A batch without images, [0, c, size, size]."""
        ...

    def require(self, source: Source, indices: NDArray[np.int64]) -> None:
        """Check once, at the start, that the packages that these images need are installed.

        Raises:
            InputError: one is missing.
        """
        ...


@dataclass(frozen=True)
class RgbReader:
    """Images in 8-bit RGB, whatever they are stored as."""

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    def random_views(
        self, data: bytes, draws: CropDraws, views: Sequence[View]
    ) -> list[UInt8[np.ndarray, "3 _ _"]]:
        """See `Reader`; a large JPEG is decoded at 1/2 to 1/8 where the crop still has twice the view's size."""
        assert draws.shape[1] == CROP_DRAWS
        full = jpeg_size(data)
        decoded: dict[int, Image.Image] = {}
        cut = []
        for view, choose in zip(views, _choices(draws, views), strict=True):
            reduction = 1 if full is None else largest_reduction(full, choose, view.size)
            if reduction not in decoded:
                draft_size = min(full) // reduction if full and reduction > 1 else None
                decoded[reduction] = decode(data, draft_size=draft_size)
            image, size = decoded[reduction], (view.size, view.size)
            if full is None or reduction == 1:
                part = cropped(image, choose(*image.size)).resize(size, Image.Resampling.BILINEAR)
            else:
                part = image.resize(size, Image.Resampling.BILINEAR, box=reduced_box(image, full, choose))
            cut.append(_planes(part))
        return cut

    def evaluation_view(
        self, data: bytes, size: int, interpolation: Interpolation = "bilinear"
    ) -> UInt8[np.ndarray, "3 size size"]:
        """See `Reader`; equals torchvision's Resize and CenterCrop on a Pillow image.

        A JPEG whose short side is more than four times that is decoded at 1/2, 1/4 or 1/8.
        """
        short = _short_side(size)
        image = decode(data, draft_size=2 * short)
        box = center_box(*image.size, short, size)
        return _planes(image.resize((size, size), _FILTERS[interpolation], box=box))

    def empty(self, size: int) -> UInt8[np.ndarray, "0 3 size size"]:
        """See `Reader`."""
        return np.empty((0, 3, size, size), np.uint8)

    def require(self, source: Source, indices: NDArray[np.int64]) -> None:
        """Nothing but Pillow is needed."""


@dataclass(frozen=True)
class BandReader:
    """Images of other channels than red, green and blue, or of more than 8 bits: float32 in [0, 1] from the crop on.

    Attributes:
        channels: bands of an image; a file with another number of them is a `BadImage`.
        pixel_range: the stored values that become 0 and 1; by default 0 and the largest value of an integer's type,
            or 0 and 1 for floats.
    """

    channels: int
    pixel_range: tuple[float, ...] = ()

    def random_views(
        self, data: bytes, draws: CropDraws, views: Sequence[View]
    ) -> list[Float32[np.ndarray, "c _ _"]]:
        """See `Reader`; cut at the same places as RGB images."""
        assert draws.shape[1] == CROP_DRAWS
        stored = decode_bands(data, self.channels)
        height, width = stored.shape[1:]
        cut = []
        for view, choose in zip(views, _choices(draws, views), strict=True):
            left, top, right, bottom = map(int, choose(width, height))
            part = to_unit(stored[:, top:bottom, left:right], self.pixel_range)
            cut.append(_resized(part, view.size, None, "bilinear"))
        return cut

    def evaluation_view(
        self, data: bytes, size: int, interpolation: Interpolation = "bilinear"
    ) -> Float32[np.ndarray, "c size size"]:
        """See `Reader`."""
        stored = decode_bands(data, self.channels)
        height, width = stored.shape[1:]
        box = center_box(width, height, _short_side(size), size)
        return _resized(to_unit(stored, self.pixel_range), size, box, interpolation)

    def empty(self, size: int) -> Float32[np.ndarray, "0 c size size"]:
        """See `Reader`."""
        return np.empty((0, self.channels, size, size), np.float32)

    def require(self, source: Source, indices: "Shaped[np.ndarray, ' n']") -> None:
        """See `Reader`: TIFFs need packages of their own; the first images are looked at."""
        missing = missing_packages()
        for index in indices[:_LOOKED_AT].tolist() if missing else ():
            try:
                found = is_tiff(source.read(index))
            except OSError:
                continue
            if found:
                needed = " and ".join(missing)
                remedy = f"reading TIFFs band by band needs {needed}: pip install tinyseed[bands]"
                raise InputError(source.name(index), remedy)


RGB = RgbReader()


def reader_for(channels: int, pixel_range: tuple[float, ...] = ()) -> RgbReader | BandReader:
    """The reader for images of this many channels; three without a pixel range are 8-bit RGB, the fast path."""
    return RGB if channels == 3 and not pixel_range else BandReader(channels, pixel_range)


def _choices(draws: CropDraws, views: Sequence[View]) -> list[Callable[[int, int], Box]]:
    """For each view a function from an image's width and height to its crop."""
    return [
        partial(crop_box, draws=numbers, scale=view.settings.crop_scale, ratio=view.settings.crop_ratio)
        for numbers, view in zip(draws, views, strict=True)
    ]


def _short_side(size: int) -> int:
    return int(size * 256 / 224)


def _planes(image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _resized(
    values: Float32[np.ndarray, "c h w"], size: int, box: Box | None, interpolation: Interpolation
) -> Float32[np.ndarray, "c size size"]:
    """Each band by itself, antialiased."""
    planes = [
        Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), _FILTERS[interpolation], box=box)
        for plane in values
    ]
    return np.clip(np.stack([np.asarray(plane) for plane in planes]), 0, 1)  # bicubic overshoots
