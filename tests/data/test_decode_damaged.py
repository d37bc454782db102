"""What cannot be decoded is a `BadImage` that says why, whatever the damage; warnings and limits stay as they were."""

import io
import struct
import threading
import warnings
import zlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyseed.data import limits
from tinyseed.data.decode import BadImage, decode

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(image, **options):
    return encoded(image, "TIFF", **options)


def png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><title>404</title>", "not a JPEG"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"BM", "BMP"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (png_header(0, 5), "PNG"),
        (png_header(50_000, 20_000), "too large"),
    ],
)
def test_what_is_no_image_is_told_in_a_few_words(data, reason):
    with pytest.raises(BadImage, match=reason) as caught:
        decode(data)
    assert len(str(caught.value)) < 160
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_bad(format):
    data = encoded(SMOOTH.resize((200, 150)), format)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadImage):
            decode(data[: int(share * len(data))])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "TIFF"])
def test_the_size_limit_is_ours_not_pillows(monkeypatch, format):
    # Pillow warns above MAX_IMAGE_PIXELS and refuses above twice that; 200 MP photographs are no attack.
    data = encoded(SMOOTH, format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(data).size == (64, 48)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(limits, "MOST_DECODED_BYTES", 4 * (64 * 48 - 1))
    with pytest.raises(BadImage, match="too large: 64 × 48"):
        decode(data)


def test_animated_png_with_a_damaged_header_does_not_warn():
    data = encoded(SMOOTH, "PNG")
    end_of_header = 8 + 25
    broken = chunk(b"acTL", struct.pack(">II", 0, 0))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert decode(data[:end_of_header] + broken + data[end_of_header:]).size == (64, 48)
    assert not seen


def test_threads_leave_the_warning_filters_as_they_were():
    data = [encoded(SMOOTH, format) for format in ("TIFF", "GIF", "JPEG")]
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS

    def work():
        for _ in range(30):
            for each in data:
                decode(each)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    assert limit == Image.MAX_IMAGE_PIXELS


EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "a description"
SMALL = SMOOTH.resize((24, 18))
VALID = [
    encoded(SMALL, "JPEG", exif=EXIF),
    encoded(SMALL, "JPEG", progressive=True),
    encoded(SMALL.convert("CMYK"), "JPEG"),
    encoded(SMALL, "PNG", exif=EXIF),
    encoded(SMALL.quantize(16), "PNG", transparency=b"\0\x80"),
    encoded(SMALL, "PNG", save_all=True, append_images=[SMALL.rotate(90)]),
    encoded(SMALL, "WEBP", exif=EXIF),
    encoded(SMALL, "WEBP", save_all=True, append_images=[SMALL.rotate(90)]),
    encoded(SMALL, "BMP"),
    encoded(SMALL.quantize(16), "BMP"),
    encoded(SMALL.quantize(16), "GIF", save_all=True, append_images=[SMALL.quantize(8)], transparency=1),
    tiff(SMALL, exif=EXIF),
    tiff(SMALL, compression="tiff_deflate"),
    tiff(SMALL, compression="jpeg"),
    tiff(Image.fromarray(np.linspace(-1, 3, 30, dtype=np.float32).reshape(5, 6))),
    tiff(Image.fromarray(np.arange(30, dtype=np.int32).reshape(5, 6))),
    tiff(SMALL.convert("1"), compression="group4"),
]


def decodes_or_is_bad(data):
    """Warnings are errors here, so that one would show as a failure."""
    with mock.patch.object(
        limits, "MOST_DECODED_BYTES", 4 * 10**6
    ):  # damaged sizes otherwise cost gigabytes of zeros
        try:
            assert decode(data).mode == "RGB"
        except BadImage:
            return


@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:12] for data in VALID)]))
@settings(max_examples=150, deadline=None)
def test_random_bytes_never_raise_anything_else(data, start):
    decodes_or_is_bad(start + data)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_never_raise_anything_else(draw):
    data = bytearray(draw.draw(st.sampled_from(VALID)))
    for _ in range(draw.draw(st.integers(1, 4))):
        # Headers are where damage does harm.
        place = draw.draw(st.one_of(st.integers(0, min(80, len(data)) - 1), st.integers(0, len(data) - 1)))
        data[place] = draw.draw(st.integers(0, 255))
    decodes_or_is_bad(bytes(data[: draw.draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]))
