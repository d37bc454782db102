"""Encoded bytes become an upright 8-bit RGB image, or BadImage saying why.

Color profiles are not applied, and of 16-bit color images Pillow keeps the upper byte.
"""

import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tinyseed.errors import first_line

MOST_PIXELS = 500_000_000
"""Larger images are refused: 500 MP are 2 GB once decoded. (WebP has a limit of its own in Pillow, 179 MP.)"""

_TIFF_STARTS = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x2b\x00", b"MM\x00\x2b", b"MM\x2a\x00", b"II\x00\x2a")

_UPRIGHT = {  # EXIF orientation → what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIXTEEN_TO_EIGHT = ((np.arange(65536) + 128) // 257).astype(np.uint8)

_pillow_settings = threading.RLock()


class BadImage(Exception):  # noqa: N818  (the name says what it is)
    """These bytes cannot be read as an image; the message says why in a few words."""


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF is not parsed at opening: Pillow looks there for dpi, which is slow and may warn."""

    def _read_dpi_from_exif(self) -> None:
        pass


def decode(data: bytes, *, draft_size: int | None = None) -> Image.Image:
    """Decode JPEG, PNG, WebP, BMP, TIFF or GIF (first frame).

    EXIF orientation is applied. Transparent images are put on white. 16-bit grayscale is scaled by 1/257. Integers
    of 32 bits count as 8 or 16 bits if they fit, floats as 0 to 1; anything else is stretched from its smallest to
    its largest value; NaN and infinity become the smallest.

    Args:
        data: the whole encoded file.
        draft_size: for JPEG, decode at 1/2, 1/4 or 1/8 of the size, which is faster, if the short side keeps at
            least this many pixels.

    Returns:
        An upright image of mode RGB, never smaller than draft_size unless the file is.

    Raises:
        BadImage: empty, of another format, damaged, truncated, or of more than 500 MP.
    """
    return _decoded(data, draft_size, to_rgb)


def decode_stored(data: bytes) -> Image.Image:
    """As `decode`, but in the mode that the file is stored in: no conversion to RGB.

    Raises:
        BadImage: as `decode`.
    """
    return _decoded(data, None, _as_it_is)


def is_tiff(data: bytes) -> bool:
    """Whether a file's first bytes are those of a TIFF."""
    return data.startswith(_TIFF_STARTS)


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _decoded(
    data: bytes, draft_size: int | None, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    opener = _opener(data)
    try:
        with _undisturbed() if _may_warn(opener, data) else nullcontext():
            image = opener(BytesIO(data))
            _check_size(image)
            if draft_size is not None and opener is _Jpeg:
                _draft(image, draft_size)
            image.load()
        return _upright(convert(image), image)
    except (BadImage, MemoryError):  # a lack of memory is no fault of the image
        raise
    except Exception as error:
        raise BadImage(f"damaged {opener.format}: {first_line(error)[:120]}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to 8-bit RGB; one that is RGB already is returned unchanged.

    Raises:
        BadImage: a float image without any finite value.
    """
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(image)).convert("RGB")
    if image.mode == "La":  # Pillow has no shorter way
        image = image.convert("LA")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _opener(data: bytes) -> type[ImageFile.ImageFile]:
    """The format by its first bytes; Image.open would try one after the other, with its own size limit."""
    if data.startswith(b"\xff\xd8\xff"):
        return _Jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if is_tiff(data):
        return TiffImageFile
    if data.startswith(b"BM"):
        return BmpImageFile
    raise BadImage("not a JPEG, PNG, WebP, BMP, TIFF or GIF" if data else "empty: 0 bytes")


def _may_warn(opener: type[ImageFile.ImageFile], data: bytes) -> bool:
    return opener in (TiffImageFile, GifImageFile) or (opener is PngImageFile and b"acTL" in data)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Pillow without warnings and with our size limit: settings of the process, so one thread at a time."""
    with _pillow_settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BadImage(f"too large: {width} × {height} pixels, more than {MOST_PIXELS // 1_000_000} MP")


def _draft(image: Image.Image, size: int) -> None:
    width, height = image.size
    for scale in (8, 4, 2):
        if min(width, height) // scale >= size > 0:
            image.draft(None, (width // scale, height // scale))
            return


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Undo the EXIF orientation; for TIFF Pillow itself has done so."""
    if isinstance(source, TiffImageFile):
        return image
    exif = source.info.get("exif")
    if exif is None and "Raw profile type exif" in source.info:  # how ImageMagick writes EXIF into PNG
        lines = source.info["Raw profile type exif"].splitlines()
        exif = bytes.fromhex("".join(lines[3:]))
    if not isinstance(exif, bytes):
        return image
    method = _UPRIGHT.get(_orientation(exif))
    return image if method is None else image.transpose(method)


def _orientation(exif: bytes) -> int:
    """The orientation tag of the first directory; 1 (upright) if there is none or the EXIF is damaged.

    Pillow's own reader parses all tags and warns about damaged ones.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == 0x0112:
                return value if kind == 3 else 1  # 3: SHORT
    except struct.error:
        pass
    return 1


def _on_white(image: Image.Image) -> Image.Image:
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    eight = _SIXTEEN_TO_EIGHT[values]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight[values == transparent] = 255
    return Image.fromarray(eight).convert("RGB")


def _stretched(image: Image.Image) -> NDArray[np.uint8]:
    """Values of 32 bits to 0..255."""
    values = np.asarray(image, np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise BadImage("no finite value")
    low, high = values[finite].min(), values[finite].max()
    whole = 1.0 if image.mode == "F" else 255.0 if high <= 255 and image.format != "PNG" else 65535.0
    if low >= 0 and high <= whole:
        low, high = 0.0, whole
    scaled = (np.where(finite, values, low) - low) * (255 / (high - low) if high > low else 0.0)
    return np.rint(scaled).astype(np.uint8)
