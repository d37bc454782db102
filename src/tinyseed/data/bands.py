"""Images with other channels than red, green and blue: satellites, microscopes, X-rays.

decode_bands   encoded bytes → stored values [c, h, w], or BadImage saying why
to_unit        stored values → float32 in [0, 1]
"""

import math
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from tinyseed.data.decode import BadImage, decode_stored, is_tiff
from tinyseed.data.limits import LONGEST_SIDE, MOST_DECODED_BYTES
from tinyseed.errors import first_line

Stored = Shaped[np.ndarray, "c h w"]
"""Values as a file holds them."""

PACKAGES = ("tifffile", "imagecodecs")
"""What TIFFs are read with; the second undoes LZW, JPEG and other compressions."""

_PALETTE, _WHITE_IS_ZERO = 3, 0  # TIFF's PhotometricInterpretation
_ORIENTATION = 274
_UPRIGHT: dict[int, Callable[[Stored], Stored]] = {  # TIFF orientation → what undoes it
    2: lambda stored: stored[:, :, ::-1],
    3: lambda stored: stored[:, ::-1, ::-1],
    4: lambda stored: stored[:, ::-1],
    5: lambda stored: stored.transpose(0, 2, 1),
    6: lambda stored: stored.transpose(0, 2, 1)[:, :, ::-1],
    7: lambda stored: stored.transpose(0, 2, 1)[:, ::-1, ::-1],
    8: lambda stored: stored.transpose(0, 2, 1)[:, ::-1],
}


def decode_bands(data: bytes, channels: int) -> Stored:
    """Decode TIFF of any number of bands (8 to 32 bits), or JPEG, PNG, … of 1, 3 or 4, upright.

    A TIFF's bands may lie pixel by pixel, plane by plane or page by page; of several series the first counts.

    Args:
        data: the whole encoded file.
        channels: number of bands that the image must have.

    Raises:
        BadImage: damaged, of another number of bands, with values that are not intensities, or too large.
    """
    stored = _read_tiff(data) if is_tiff(data) else _read_picture(data)
    if len(stored) != channels:
        have = "1 band" if len(stored) == 1 else f"{len(stored)} bands"
        raise BadImage(f"the file has {have}, {channels} {'was' if channels == 1 else 'were'} asked for")
    if stored.dtype.kind not in "uif":
        raise BadImage(f"its values are of type {stored.dtype}, not integers or floats")
    return stored


def to_unit(stored: Stored, pixel_range: tuple[float, ...] = ()) -> Float32[np.ndarray, "c h w"]:
    """Stored values as [0, 1]; those outside the range are clipped, NaN becomes 0.

    >>> to_unit(np.array([[[0, 50, 200]]], np.uint8), (0, 100)).tolist()
    [[[0.0, 0.5, 1.0]]]
    """
    low, high = pixel_range or (0.0, _greatest(stored.dtype))
    with np.errstate(over="ignore"):  # a double's largest numbers become infinite and are clipped
        values = stored.astype(np.float32)
    values -= np.float32(low)
    values *= np.float32(1 / (high - low))
    if stored.dtype.kind == "f":
        values[np.isnan(values)] = 0
    return np.clip(values, 0, 1, out=values)


def _greatest(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def missing_packages() -> list[str]:
    """Packages that reading TIFFs needs and that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


@lru_cache(maxsize=1)
def _tifffile() -> Any:  # noqa: ANN401  (a module)
    import logging

    import tifffile

    # BadImage says what is wrong with a file; tifffile would also log a line for each damaged tag.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def _read_tiff(data: bytes) -> Stored:
    try:
        with _tifffile().TiffFile(BytesIO(data)) as file:
            series, page = file.series[0], file.pages[0]
            if page.photometric == _PALETTE:
                raise BadImage("its values are places in a palette, not intensities")
            _check_cost(series, page)
            stored = _planes(series.asarray(maxworkers=1), series.axes)
            orientation = page.tags.valueof(_ORIENTATION, 1)
            inverted = page.photometric == _WHITE_IS_ZERO
    except (BadImage, MemoryError):
        raise
    except ImportError as error:
        raise BadImage("reading TIFFs band by band needs tifffile: pip install tinyseed[bands]") from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise BadImage(f"damaged TIFF: {first_line(error)[:120]}") from error
    if inverted and stored.dtype.kind == "u":
        stored = np.iinfo(stored.dtype).max - stored
    return _UPRIGHT[orientation](stored) if orientation in _UPRIGHT else stored


def _check_cost(series: Any, page: Any) -> None:  # noqa: ANN401  (of tifffile)
    """Before memory is taken: for the stored values, and for their 4 bytes each in [0, 1]."""
    if max(series.shape, default=0) > LONGEST_SIDE:
        raise BadImage(f"too large: more than {LONGEST_SIDE:,} pixels on a side")
    tile = math.prod(page.chunks) * series.dtype.itemsize
    needed = max(series.size * (series.dtype.itemsize + 4), tile)
    if needed > MOST_DECODED_BYTES:
        limit = MOST_DECODED_BYTES / 2**30
        raise BadImage(f"too large: {needed / 2**30:.1f} GiB for its values, more than {limit:g}")


def _planes(values: Shaped[np.ndarray, "..."], axes: str) -> Stored:
    """Values whose axes are named as tifffile does (Y, X; S sample, C channel, I page, …) as [c, h, w]."""
    others = [at for at, axis in enumerate(axes) if axis not in "YX" and values.shape[at] != 1]
    if "Y" not in axes or "X" not in axes or len(others) > 1:
        shape = " × ".join(map(str, values.shape))
        raise BadImage(f"its axes {axes} ({shape}) are not the bands of one image")
    ones = [at for at, axis in enumerate(axes) if axis not in "YX" and at not in others]
    order = [*ones, *others, axes.index("Y"), axes.index("X")]
    ordered = values.transpose(order)
    return ordered.reshape(-1, *ordered.shape[-2:])


def _read_picture(data: bytes) -> Stored:
    """JPEG, PNG and Pillow's other formats, whose bands are those of its modes."""
    if data.startswith(b"\x89PNG") and data[24:25] == b"\x10" and data[25:26] != b"\x00":
        raise BadImage("of a PNG with 16-bit colors only 8 bits can be read; store it as TIFF")
    image = decode_stored(data)
    if image.mode in ("P", "PA"):
        raise BadImage("its values are places in a palette, not intensities")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "I":
        image = Image.fromarray(np.asarray(image).astype(np.uint16)) if _fits(image) else image
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _fits(image: Image.Image) -> bool:
    """Whether the values of a 32-bit image, as which older Pillows open 16-bit PNGs, fit into 16 bits."""
    low, high = image.getextrema()
    return isinstance(low, int) and isinstance(high, int) and low >= 0 and high <= 65535
