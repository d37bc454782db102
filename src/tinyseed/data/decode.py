"""Encoded bytes become an upright 8-bit RGB image, or BadImage saying why.

The format is seen from the first bytes, and only decoders that read nothing but these bytes are used. Color profiles
are not applied, and of 16-bit color images Pillow keeps the upper byte.
"""

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tinyseed.data.limits import MOST_DECODED_BYTES, TooLarge, check_cost, check_header
from tinyseed.data.metadata import turn_of, without_metadata
from tinyseed.errors import first_line

try:
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already
except ImportError:  # before Pillow 11.3
    AvifImagePlugin = None

# BadImage says what is wrong with a file; Pillow and libtiff would also write a line to the terminal for each.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(OSError, AttributeError):  # a Pillow without libtiff, or with its functions hidden
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)

_TIFF_STARTS = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x2b\x00", b"MM\x00\x2b", b"MM\x2a\x00", b"II\x00\x2a")

_STRIP_PIXELS = 2**20
"""Converted at a time where the conversion needs several bytes per pixel beside its result."""

_SIXTEEN_TO_EIGHT = ((np.arange(65536) + 128) // 257).astype(np.uint8)

_pillow_settings = threading.RLock()


class BadImage(Exception):  # noqa: N818  (the name says what it is)
    """These bytes cannot be read as an image; the message says why in a few words."""


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF is not parsed at opening: Pillow looks there for dpi, which is slow and may warn."""

    def _read_dpi_from_exif(self) -> None:
        pass


def decode(data: bytes, *, draft_size: int | None = None) -> Image.Image:
    """Decode JPEG, PNG, WebP, AVIF, BMP, TIFF, GIF or PPM; of several frames the first.

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
        BadImage: empty, of another format, damaged, truncated, or larger than `limits` allows.
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
        return _loaded(opener, data, draft_size, convert)
    except (BadImage, MemoryError):  # a lack of memory is no fault of the image
        raise
    except (TooLarge, Image.DecompressionBombError) as error:
        raise BadImage(f"too large: {first_line(error)[:120]}") from error
    except Exception as error:
        bare = without_metadata(data)
        if bare != data:  # are the pixels damaged, too?
            try:
                return _decoded(bare, draft_size, convert)
            except BadImage:
                pass
        raise BadImage(f"damaged {opener.format}: {first_line(error)[:120]}") from error


def _loaded(
    opener: type[ImageFile.ImageFile],
    data: bytes,
    draft_size: int | None,
    convert: Callable[[Image.Image], Image.Image],
) -> Image.Image:
    check_header(data)
    with _undisturbed() if _may_warn(opener, data) else nullcontext():
        image = opener(BytesIO(data))
        full = image.size
        if draft_size is not None and opener is _Jpeg:
            _draft(image, draft_size)
        check_cost(image, data, full, turned=turn_of(image.info) is not None)
        image.load()
    # Pillow itself has turned a TIFF. A PNG's EXIF may stand behind its pixels.
    turn = None if isinstance(image, TiffImageFile) else turn_of(image.info)
    image = convert(image)
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to 8-bit RGB; one that is RGB already is returned unchanged.

    Raises:
        BadImage: a float image without any finite value.
    """
    if image.mode.startswith("I;16"):
        return _in_strips(image, _from_sixteen_bits)
    if image.mode in ("I", "F"):
        stretch = _stretching(image)
        return _in_strips(image, lambda strip: Image.fromarray(stretch(strip)).convert("RGB"))
    if image.mode == "La" or image.has_transparency_data:
        return _in_strips(image, _without_transparency)
    return image if image.mode == "RGB" else image.convert("RGB")


def cropped(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Crop an image of any size: Pillow takes crops beyond its own limit for an attack."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or (box[2] - box[0]) * (box[3] - box[1]) < limit:
        return image.crop(box)
    with _undisturbed():
        return image.crop(box)


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A conversion done some rows at a time, so that what it needs beside its result stays small."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        whole.paste(convert(image.crop((0, top, image.width, min(image.height, top + rows)))), (0, top))
    return whole


_OPENERS: tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), _Jpeg),
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    (_TIFF_STARTS, TiffImageFile),
    ((b"BM",), BmpImageFile),
)


def _opener(data: bytes) -> type[ImageFile.ImageFile]:
    """The format by its first bytes; Image.open would try one after the other, with its own size limit."""
    for starts, opener in _OPENERS:
        if data.startswith(starts):
            return opener
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if AvifImagePlugin is not None and data[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1"):
        return AvifImagePlugin.AvifImageFile
    if _is_ppm(data):
        return PpmImageFile
    raise BadImage("not a JPEG, PNG, WebP, AVIF, BMP, TIFF, GIF or PPM" if data else "empty: 0 bytes")


def _is_ppm(data: bytes) -> bool:
    """PBM, PGM and PPM, as text or binary, and PFM in gray."""
    return data[:1] == b"P" and data[1:2] in b"123456f" and data[2:3].isspace()


def _may_warn(opener: type[ImageFile.ImageFile], data: bytes) -> bool:
    """Whether Pillow may warn about the file: of EXIF that it parses, and of frames beyond the first."""
    reason = {"TIFF": b"", "GIF": b"", "PNG": b"acTL", "AVIF": b"Exif"}.get(opener.format or "")
    return reason is not None and reason in data


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Pillow without warnings and with our size limit: settings of the process, so one thread at a time."""
    with _pillow_settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow warns above this and refuses above twice this.
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_DECODED_BYTES // 8
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _draft(image: Image.Image, size: int) -> None:
    width, height = image.size
    for scale in (8, 4, 2):
        if min(width, height) // scale >= size > 0:
            image.draft(None, (width // scale, height // scale))
            return


def _without_transparency(image: Image.Image) -> Image.Image:
    """On white."""
    if image.mode == "La":  # Pillow has no shorter way
        image = image.convert("LA")
    image = image.convert("RGBA")
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


def _stretching(image: Image.Image) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """How the values of 32 bits in an image become 0..255, for its strips."""
    low, high = np.inf, -np.inf
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise BadImage("no finite value")
    whole = 1.0 if image.mode == "F" else 255.0 if high <= 255 and image.format != "PNG" else 65535.0
    if low >= 0 and high <= whole:
        low, high = 0.0, whole

    def stretch(strip: Image.Image) -> NDArray[np.uint8]:
        values = np.asarray(strip, np.float64)
        scaled = (np.where(np.isfinite(values), values, low) - low) * (
            255 / (high - low) if high > low else 0.0
        )
        return np.rint(scaled).astype(np.uint8)

    return stretch
