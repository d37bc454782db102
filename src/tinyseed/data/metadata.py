"""What an image file holds beside its pixels: the orientation, which counts, and the rest, which must do no harm."""

import struct
from collections.abc import Callable
from typing import Any

from PIL import Image

_UPRIGHT = {  # EXIF orientation → what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_JPEG_DROPPED = frozenset({0xE0, *range(0xE2, 0xEE), 0xEF, 0xFE})  # all but EXIF and Adobe's kind of color


def turn_of(info: dict[Any, Any]) -> Image.Transpose | None:
    """What brings an image upright, by the EXIF in Pillow's `info`; None if it is upright or the EXIF is damaged."""
    exif = info.get("exif")
    if exif is None and isinstance(
        raw := info.get("Raw profile type exif"), str
    ):  # ImageMagick's EXIF in a PNG
        try:
            exif = bytes.fromhex("".join(raw.splitlines()[3:]))
        except ValueError:
            return None
    return _UPRIGHT.get(_orientation(exif)) if isinstance(exif, bytes) else None


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


def without_metadata(data: bytes) -> bytes:
    """A JPEG, PNG or AVIF without profiles, texts and thumbnails, which may be damaged or too large for Pillow.

    Returns:
        A file of the same pixels and orientation; any other format as it is.
    """
    if data.startswith(_PNG_START):
        return _PNG_START + _pieces(data, 8, _png_chunk)
    if data[4:8] == b"ftyp":
        return data.replace(b"Exif\0", b"free\0")  # the type of an item: one that no reader knows
    return data[:2] + _pieces(data, 2, _jpeg_segment) if data.startswith(b"\xff\xd8") else data


def _pieces(data: bytes, position: int, take: Callable[[bytes, int], tuple[int, bool]]) -> bytes:
    """Those parts that `take` keeps; from a position, it says where a part ends and whether to keep it."""
    kept = []
    while position < len(data):
        end, keep = take(data, position)
        if keep:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def _png_chunk(data: bytes, position: int) -> tuple[int, bool]:
    length = int.from_bytes(data[position : position + 4], "big")
    return position + 12 + length, data[position + 4 : position + 8] in _PNG_KEPT


def _jpeg_segment(data: bytes, position: int) -> tuple[int, bool]:
    marker = data[position : position + 2]
    if (
        len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0x00, 0xDA)
    ):  # from the first scan on, and what is damaged
        return len(data), True
    if marker[1] == 0xFF:
        return position + 1, True
    end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    is_cut = marker[1] == 0xEE and end < position + 16  # Adobe's kind of color has 12 bytes
    return end, marker[1] not in _JPEG_DROPPED and not is_cut
