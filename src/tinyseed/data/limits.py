"""What an image would cost to decode, found out from its header before memory is taken.

An image may have sides of up to 100,000 pixels, take up to 1 GiB once it is 8-bit RGB (268 million pixels, as Pillow
stores it), and up to 1.5 GiB on the way there: 4 bytes per pixel for RGB, 8 where EXIF rotates it, 9 with transparency,
17 for WebP. Decoders that are written in Python, and progressive JPEGs of very many scans, are limited by their time.
"""

import struct

from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

LONGEST_SIDE = 100_000
"""Pixels."""

MOST_DECODED_BYTES = 2**30
"""Of the decoded image, at 4 bytes per pixel."""

MOST_BYTES = 3 * 2**29
"""Of everything that an image takes while it is decoded."""

_MOST_BLOCK_SCANS = 40_000_000
"""8 × 8 blocks of a JPEG times scans; one takes about 90 ns."""

_MOST_SLOW_VALUES, _MOST_SLOW_BYTES = 2_000_000, 8_000_000
"""Of what Pillow decodes in Python: about 0.9 µs per value, 0.15 µs per byte of text."""

_SLOW_DECODERS = frozenset({"ppm", "ppm_plain", "bmp_rle"})
_STORED_BYTES = {"1": 1, "L": 1, "P": 1}  # per pixel; all other modes take 2 or 4
_WORKING_BYTES = {"WEBP": 13, "AVIF": 12}  # measured, beside the decoded image
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags


class TooLarge(Exception):  # noqa: N818  (says what is wrong, as BadImage does)
    """Decoding would cost too much; the message says how much."""


def check_size(width: int, height: int, bytes_per_pixel: int) -> None:
    """Refuse an image by its size.

    Raises:
        TooLarge: a side or the memory exceeds its limit.
    """
    size = f"{width} × {height} pixels"
    if max(width, height) > LONGEST_SIDE:
        raise TooLarge(f"{size}, more than {LONGEST_SIDE:,} on a side")
    pixels = width * height
    if 4 * pixels > MOST_DECODED_BYTES:
        raise TooLarge(f"{size}, more than {MOST_DECODED_BYTES // 4_000_000} million")
    if pixels * bytes_per_pixel > MOST_BYTES:
        raise TooLarge(f"{size} of {bytes_per_pixel} bytes, more than {MOST_BYTES / 2**30:g} GiB")


def check_header(data: bytes) -> None:
    """Refuse a file whose decoder would take memory as soon as it is opened: WebP, and a GIF's screen.

    Raises:
        TooLarge: as `check_size`.
    """
    if data.startswith(b"GIF8") and len(data) >= 10:
        check_size(*struct.unpack_from("<HH", data, 6), 1)
    elif data[8:12] == b"WEBP":
        size = _webp_size(data)
        if size is not None:
            check_size(*size, 4 + _WORKING_BYTES["WEBP"])


def check_cost(image: ImageFile.ImageFile, data: bytes, full: tuple[int, int], *, turned: bool) -> None:
    """Refuse an opened image that would take too much memory or time to load and to convert to RGB.

    Args:
        image: opened, not loaded.
        data: its file.
        full: its size before a JPEG was asked to be decoded at a fraction of it.
        turned: whether it will be rotated afterwards, for which it is copied.

    Raises:
        TooLarge: a limit is exceeded.
    """
    stored = _STORED_BYTES.get(image.mode, 4)
    per_pixel = stored + (0 if image.mode == "RGB" else 5) + _WORKING_BYTES.get(image.format or "", 0)
    check_size(*image.size, max(per_pixel, 8 if turned else 0))
    if isinstance(image, JpegImageFile):
        check_size(*full, 0)
        _check_scans(image, data, full, 4 * image.width * image.height)
    if isinstance(image, TiffImageFile):
        tile = (image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_LENGTH, 0))
        if all(isinstance(side, int) for side in tile):
            check_size(*tile, 8)
    values = image.width * image.height * len(image.getbands())
    is_slow = any(entry[0] in _SLOW_DECODERS for entry in image.tile)
    if is_slow and (values > _MOST_SLOW_VALUES or len(data) > _MOST_SLOW_BYTES):
        raise TooLarge(
            f"{image.width} × {image.height} pixels in a variant of {image.format} that is slow to decode"
        )


def _check_scans(image: JpegImageFile, data: bytes, full: tuple[int, int], decoded: int) -> None:
    """Refuse a JPEG of several scans that would take too long, or whose coefficients would take too much memory."""
    layers = {identity: across * down for identity, across, down, _ in image.layer}
    if "progressive" not in image.info and _components_of_first_scan(data) == len(image.layer):
        return
    largest = max(layers.values(), default=0) or 1
    weights, scans, position = 0.0, 0, data.find(b"\xff\xda")
    while position >= 0:
        count = data[position + 4] if position + 4 < len(data) else 0
        components = data[position + 5 : position + 5 + 2 * min(count, 4) : 2]
        weights += sum(layers.get(identity, largest) for identity in components) / largest
        scans += 1
        position = data.find(b"\xff\xda", position + 2)
    pixels = full[0] * full[1]
    coefficients = 2 * pixels * sum(layers.values()) / largest
    if weights * pixels / 64 > _MOST_BLOCK_SCANS or coefficients + decoded > MOST_BYTES:
        raise TooLarge(f"{full[0]} × {full[1]} pixels in {scans} scans")


def _components_of_first_scan(data: bytes) -> int:
    position = 2
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 4:
        marker = data[position + 1]
        if marker == 0xDA:
            return data[position + 4]
        is_filler = marker in (0x00, 0xFF)
        position += 1 if is_filler else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF
