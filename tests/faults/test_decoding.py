"""Hostile and damaged images: bounds before memory is taken, metadata that does no harm, a silent terminal."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyseed.data import limits
from tinyseed.data.bands import decode_bands
from tinyseed.data.decode import BadImage, cropped, decode, to_rgb

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)
COLOR = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, body, checksum=None):
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(width, height, kind=2, between=b"", pixels=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + between + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def tiff(width, height, **tile):
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
    tags |= {322: tile["side"], 323: tile["side"], 324: 8, 325: 9} if tile else {273: 8, 278: height, 279: 9}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + bytes(9)


def bmp(width, height, bits=24, compression=0):
    header = struct.pack("<IHHI", 54, 0, 0, 54 + 1024 * (bits == 8))
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 256 * (bits == 8), 0)
    return b"BM" + header + info + bytes(1024 * (bits == 8)) + b"\1\7" * 50


def webp(width, height):
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0" + size + b"ANIM\6\0\0\0" + bytes(40)


GIF = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;"
WIDE_FRAME = (
    b"GIF89a" + struct.pack("<HHBBB", 9, 9, 128, 0, 0) + bytes(6) + b"!\xf9\4\x08\0\0\0\0"
    b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x44\1\0;"
)
BOMBS = {
    "png": png(30_000, 30_000),
    "png, very wide": png(2**31 - 1, 1),
    "png with transparency": png(15_000, 15_000, 6),
    "gif": GIF,
    "gif, a frame beyond its screen": WIDE_FRAME,
    "webp": webp(16_383, 16_383),
    "tiff": tiff(60_000, 60_000),
    "tiff, one tile": tiff(100, 100, side=65_520),
    "bmp": bmp(60_000, 60_000),
    "bmp, run lengths": bmp(3_000, 3_000, 8, 1),
    "ppm": b"P6 60000 60000 255\n",
    "ppm as text": b"P3 5000 5000 255\n1 2 3",
    "pgm of 100 grays": b"P5 5000 5000 100\n123",
    "jpeg": encoded(COLOR, "JPEG").replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65_500, 65_500), 1),
}


def peak_memory():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_memory_is_taken(name):
    before = peak_memory()
    with pytest.raises(BadImage, match=r"^too large: \S") as caught:
        decode(BOMBS[name])
    assert peak_memory() - before < 50 * 2**20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tiff", "tiff, one tile", "png", "webp"])
def test_bombs_are_refused_for_bands_too(name):
    before = peak_memory()
    with pytest.raises(BadImage, match=r"^too large: "):
        decode_bands(BOMBS[name], 1)
    assert peak_memory() - before < 50 * 2**20


def test_a_tiff_strip_that_inflates_to_a_hundred_times_its_size():
    pixels = zlib.compress(bytes(50_000_000))
    data = encoded(Image.new("L", (100, 100)), "TIFF", compression="tiff_adobe_deflate")
    place = data.index(zlib.compress(bytes(10_000))[:4])  # where its strip begins
    bomb = data + pixels
    strip = {273: len(data), 279: len(pixels)}
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in strip:
            bomb = bomb[:entry] + struct.pack("<HHII", tag, 4, 1, strip[tag]) + bomb[entry + 12 :]
    assert place < len(data)
    before = peak_memory()
    for read in (decode, lambda each: decode_bands(each, 1)):
        try:
            read(bomb)
        except BadImage:
            continue
    assert peak_memory() - before < 45_000_000


def test_progressive_jpegs_of_very_many_scans():
    data = encoded(Image.new("RGB", (1000, 1000), "teal"), "JPEG", progressive=True)
    tables = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda"))
    scans = lambda number: data[:-2] + data[tables:-2] * number + data[-2:]  # noqa: E731
    assert decode(scans(30)).size == (1000, 1000)
    with pytest.raises(BadImage, match=r"^too large: 1000 × 1000 pixels in \d+ scans"):
        decode(scans(4000))


def test_sequential_jpegs_of_very_many_scans():
    data = encoded(Image.new("L", (1000, 1000), 99), "JPEG")
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    # Three components in the frame, and scans of the first alone; libjpeg skips junk between segments.
    three = data[frame + 4 : frame + 9] + b"\3\1\x11\0\2\x11\0\3\x11\0"
    head = (
        data[:frame]
        + b"\xff\xc0"
        + struct.pack(">H", len(three) + 2)
        + three
        + b"\0\0"
        + data[frame + 13 : scan]
    )
    with pytest.raises(BadImage, match=r"1000 × 1000 pixels in 4000 scans"):
        decode(head + data[scan:-2] * 4000 + b"\xff\xd9")


@pytest.mark.parametrize(
    "between",
    [
        chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**22))),
        chunk(b"iTXt", b"comment\0\1\0\0\0" + zlib.compress(bytes(2**22))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**22))),
        chunk(b"iCCP", b"profile\0\0 not compressed"),
        chunk(b"tEXt", b"comment\0text", checksum=1),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 10))) * 80,
        chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"eXIf", b"garbage"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 6\nnot hexadecimal"),
    ],
)
def test_metadata_of_a_png_do_not_cost_the_image(between):
    pixels = RNG.integers(0, 256, (3, 4, 3), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    np.testing.assert_array_equal(np.asarray(decode(png(4, 3, between=between, pixels=rows))), pixels)


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"JFIF\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Adobe",
        b"ICC_PROFILE\0",
        b"Photoshop 3.0\0" + b"8BIM",
    ],
)
def test_metadata_of_a_jpeg_do_not_cost_the_image(marker, body):
    data = encoded(COLOR, "JPEG")
    damaged = data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]
    np.testing.assert_array_equal(np.asarray(decode(damaged)), np.asarray(decode(data)))


def test_the_orientation_survives_damaged_metadata_beside_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(COLOR, "PNG", exif=exif)
    damaged = plain[:33] + chunk(b"iCCP", b"profile\0\0 not compressed") + plain[33:]
    np.testing.assert_array_equal(np.asarray(decode(damaged)), np.asarray(decode(plain)))
    assert decode(damaged).size == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_orientations_that_do_not_exist(kind, orientation):
    if kind not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encoded(COLOR, kind, exif=exif)).size == COLOR.size


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_avif(mode):
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    image = COLOR.convert(mode)
    data = encoded(image, "AVIF", quality=90)
    assert np.abs(np.asarray(decode(data)).astype(int) - np.asarray(image.convert("RGB"))).mean() < 4


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (b"P1 2 1 0 1", [255, 0]),
        (b"P2\n# text\n2 1\n255\n7 9\n", [7, 9]),
        (b"P3 1 1 255 1 2 3", [1, 2, 3]),
        (b"P4 2 1 \x40", [255, 0]),
        (b"P5 2 1 255\n\7\x09", [7, 9]),
        (b"P6 1 1 255\n\1\2\3", [1, 2, 3]),
        (b"P5 2 1 65535\n\0\0\xff\xff", [0, 255]),
        (b"Pf 2 1 -1\n" + struct.pack("<ff", 0, 1), [0, 255]),
    ],
)
def test_ppm(data, pixels):
    image = np.asarray(decode(data))
    assert (image.ravel() if data[1:2] in b"36" else image[..., 0].ravel()).tolist() == pixels


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n",
        b"\xc5\xd0\xd3\xc6" + bytes(40),
        b"\0\0\1\0\1\0" + bytes(40),
        b"icns" + bytes(40),
        b"8BPS\0\1" + bytes(40),
        b"%PDF-1.7\n",
        b"P7\nWIDTH 1\n",
        b"PK\3\4",
        b"\xd7\xcd\xc6\x9a" + bytes(40),
    ],
)
def test_no_other_format_is_decoded_whatever_the_name(data, monkeypatch):
    def run(*_, **__):
        raise AssertionError("another program is run")

    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setattr(os, "system", run)
    with pytest.raises(BadImage, match=r"^not a JPEG"):
        decode(data)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RNG.integers(0, 65536, (50, 40), np.uint16)),
        Image.fromarray(RNG.normal(size=(50, 40)).astype(np.float32)),
        Image.fromarray(RNG.integers(-9, 99999, (50, 40), np.int32)),
        Image.fromarray(RNG.integers(0, 256, (50, 40, 4), np.uint8)),
        Image.fromarray(RNG.integers(0, 256, (50, 40, 2), np.uint8), "LA"),
    ],
    ids=["16 bits", "floats", "integers", "RGBA", "LA"],
)
def test_conversion_in_strips_changes_nothing(image, monkeypatch):
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr("tinyseed.data.decode._STRIP_PIXELS", 280)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), whole)


def test_floats_take_no_copy_in_double_precision():
    image = Image.fromarray(RNG.random((3000, 4000), np.float32))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak_memory()
    to_rgb(image)
    # The result takes 48 MB; all values in float64 would take 96 MB more.
    assert peak_memory() - before < 48e6 + 60e6


def test_a_crop_of_a_very_large_image_is_no_attack(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    box = (1, 2, 60, 40)
    np.testing.assert_array_equal(np.asarray(cropped(COLOR, box)), np.asarray(COLOR)[2:40, 1:60])
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_limits_are_the_documented_ones():
    text = limits.__doc__ or ""
    assert f"{limits.LONGEST_SIDE:,} pixels" in text
    assert f"{limits.MOST_DECODED_BYTES // 4_000_000} million" in text
    assert "1 GiB" in text
    assert "1.5 GiB" in text


def test_no_library_writes_to_the_terminal(tmp_path):
    """In a process of its own, since libtiff writes below Python."""
    exif = Image.Exif()
    exif[0x010E] = "a description that is longer than its place"
    samples = {
        "jpeg in tiff": encoded(COLOR, "TIFF", compression="jpeg").replace(b"\xff\xdb", b"\xff\xee"),
        "deflate": encoded(COLOR, "TIFF", compression="tiff_deflate")[:-30] + b"x" * 30,
        "exif": encoded(COLOR, "JPEG", exif=exif.tobytes()[:-20]),
        "palette": encoded(COLOR.quantize(16), "PNG", transparency=b"\0\x80"),
        "samples": encoded(COLOR, "TIFF").replace(
            struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 21507)
        ),
        "tag": encoded(COLOR, "TIFF", exif=exif).replace(
            struct.pack("<HH", 270, 2), struct.pack("<HHI", 270, 2, 2**30)[:8]
        ),
    }
    for name, data in samples.items():
        (tmp_path / name).write_bytes(data)
    script = """
import pathlib, sys
from tinyseed.data.bands import decode_bands
from tinyseed.data.decode import decode
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for read in (decode, lambda data: decode_bands(data, 3)):
        try: read(path.read_bytes())
        except Exception as error: print(type(error).__name__)
"""
    command = [sys.executable, "-W", "always", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) == {"BadImage"}


def test_mutated_files():
    """The short form; `tests/faults/mutate_images.py 6000` is the long one."""
    done = subprocess.run(
        [sys.executable, str(HERE / "mutate_images.py"), "300"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.match(r"300 files, slowest \S+ s, largest \d+ MiB: (.*)", done.stdout)
    assert found is not None
    assert found[1].count("decoded") >= 7  # the damage is not so great that nothing is tried
