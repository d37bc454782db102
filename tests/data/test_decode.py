"""Decoded pixels against Pillow, NumPy formulas and hand-made files."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from tinyseed.data import metadata
from tinyseed.data.decode import BadImage, decode, to_rgb

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def over_white(rgba):
    values = np.asarray(rgba.convert("RGBA")).astype(np.float64)
    alpha = values[..., 3:] / 255
    return values[..., :3] * alpha + 255 * (1 - alpha)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(image, **options):
    return encoded(image, "TIFF", **options)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_pixels_back(format, options):
    np.testing.assert_array_equal(pixels(decode(encoded(SMOOTH, format, **options))), pixels(SMOOTH))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossy_formats_equal_bare_pillow(format, mode):
    data = encoded(SMOOTH.convert(mode), format, quality=80)
    np.testing.assert_array_equal(pixels(decode(data)), pixels(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_gray_bilevel_and_palette_become_rgb(mode, format):
    image = SMOOTH.convert(mode)
    np.testing.assert_array_equal(pixels(decode(encoded(image, format))), pixels(image.convert("RGB")))


def test_gif_gives_its_first_frame():
    frames = [Image.new("P", (9, 7), color) for color in (3, 4)]
    for frame in frames:
        frame.putpalette([v for color in range(256) for v in (color, 10 * color % 256, 255 - color)])
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(decode(data))[0, 0], [3, 30, 252])


@pytest.mark.parametrize("progressive", [False, True])
def test_cmyk_jpeg(progressive):
    image = SMOOTH.convert("CMYK")
    data = encoded(image, "JPEG", quality=95, progressive=progressive)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    # The inverse of the plain formula; JPEG leaves an error of a few steps.
    cmyk = np.asarray(image).astype(np.float64)
    expected = (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    assert np.abs(pixels(decode(data)) - expected).mean() < 3


def test_ycck_jpeg_written_by_hand_as_adobe_does():
    # An Adobe APP14 marker with transform 2 says that the four channels are YCCK: here neutral, of K only.
    data = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 255 - 77)), "JPEG", quality=100, subsampling=0)
    at = data.index(b"Adobe")
    assert data[at + 11] == 0  # transform: none
    ycck = data[: at + 11] + b"\x02" + data[at + 12 :]
    expected = Image.open(io.BytesIO(ycck)).convert("RGB")
    assert Image.open(io.BytesIO(ycck)).mode == "CMYK"
    np.testing.assert_array_equal(pixels(decode(ycck)), pixels(expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_on_white(mode, format):
    image = Image.fromarray(RNG.integers(0, 256, (31, 17, 4), np.uint8), "RGBA").convert(mode)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert np.abs(pixels(decode(encoded(image, format, **options))) - over_white(image)).max() <= 1


def test_opaque_alpha_changes_nothing():
    image = SMOOTH.convert("RGBA")
    np.testing.assert_array_equal(pixels(decode(encoded(image, "PNG"))), pixels(SMOOTH))


def test_fully_transparent_is_white_whatever_lies_below():
    image = Image.fromarray(np.dstack([np.asarray(SMOOTH), np.zeros((48, 64), np.uint8)]), "RGBA")
    assert (pixels(decode(encoded(image, "PNG"))) == 255).all()


@pytest.mark.parametrize("transparency", [7, bytes(range(255, -1, -1))])
def test_transparent_palette(transparency):
    image = SMOOTH.quantize(256)
    data = encoded(image, "PNG", transparency=transparency)
    expected = over_white(Image.open(io.BytesIO(data)))
    assert np.abs(pixels(decode(data)) - expected).max() <= 1
    assert (pixels(decode(data)) != pixels(image.convert("RGB"))).any()


def test_transparent_gif():
    image = SMOOTH.quantize(8)
    data = encoded(image, "GIF", transparency=2)
    assert (
        pixels(decode(data))[np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3] == 0] == 255
    ).all()


@pytest.mark.parametrize(("mode", "key"), [("L", 9), ("RGB", (10, 20, 30)), ("1", 0)])
def test_png_color_key(mode, key):
    image = Image.new(mode, (4, 4), 200 if mode == "L" else 1 if mode == "1" else (200, 0, 0))
    image.putpixel((1, 2), key)
    got = pixels(decode(encoded(image, "PNG", transparency=key)))
    assert (got[2, 1] == 255).all()
    np.testing.assert_array_equal(got[0, 0], {"L": [200] * 3, "RGB": [200, 0, 0], "1": [255] * 3}[mode])


def in_lab(image):
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    return lab


PALE = Image.blend(
    SMOOTH, Image.new("RGB", SMOOTH.size, "gray"), 0.6
)  # 8-bit LAB is coarse for strong colors


@pytest.mark.parametrize(
    ("mode", "tolerance"), [("HSV", 8), ("YCbCr", 3), ("RGBX", 0), ("CMYK", 1), ("RGBa", 0)]
)
def test_color_modes_of_pillow_become_rgb(mode, tolerance):
    image = SMOOTH.convert("RGBA").convert("RGBa") if mode == "RGBa" else SMOOTH.convert(mode)
    assert np.abs(pixels(to_rgb(image)) - pixels(SMOOTH)).max() <= tolerance


@pytest.mark.parametrize("mode", ["La", "LA", "PA", "P", "1", "L"])
def test_gray_and_palette_modes_of_pillow_become_rgb(mode):
    image = SMOOTH.convert("LA").convert("La") if mode == "La" else SMOOTH.convert(mode)
    reference = SMOOTH.convert({"La": "L", "LA": "L", "PA": "P"}.get(mode, mode)).convert("RGB")
    np.testing.assert_array_equal(pixels(to_rgb(image)), pixels(reference))


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha_lies_on_white(mode):
    straight = Image.fromarray(RNG.integers(0, 256, (31, 17, 4), np.uint8), "RGBA").convert(mode.upper())
    assert np.abs(pixels(to_rgb(straight.convert(mode))) - over_white(straight)).max() <= 2


def test_lab():
    assert np.abs(pixels(to_rgb(in_lab(PALE))) - pixels(PALE)).max() <= 4
    assert np.abs(pixels(decode(tiff(in_lab(PALE)))) - pixels(PALE)).max() <= 4


def test_rgb_is_not_copied():
    image = SMOOTH.copy()
    assert to_rgb(image) is image


def test_sixteen_bit_gray_is_scaled_and_rounded():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values.astype(np.float64) / 257)
    for data in (encoded(Image.fromarray(values), "PNG"), tiff(Image.fromarray(values))):
        got = pixels(decode(data))
        np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, 2))


def test_sixteen_bit_big_endian_tiff():
    values = RNG.integers(0, 65536, (5, 6), np.uint16)
    image = Image.frombytes("I;16B", (6, 5), values.astype(">u2").tobytes())
    got = pixels(decode(tiff(image)))
    np.testing.assert_array_equal(got[..., 0], np.rint(values / 257))


def test_sixteen_bit_png_with_color_key():
    data = encoded(Image.fromarray(np.array([[1000, 2000]], np.uint16)), "PNG")
    end_of_header = 8 + 25
    data = data[:end_of_header] + chunk(b"tRNS", struct.pack(">H", 2000)) + data[end_of_header:]
    np.testing.assert_array_equal(pixels(decode(data))[0, :, 0], [round(1000 / 257), 255])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 65535], [0, round(100 / 257), 255]),  # 16 bits in 32
        ([0, 100, 255], [0, 100, 255]),  # 8 bits in 32
        ([-10, 0, 90], [0, 26, 255]),  # stretched
        ([0, 65536, 131072], [0, 128, 255]),
        ([70000, 70000, 70000], [0, 0, 0]),
        ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
    ],
)
def test_integer_tiff(values, expected):
    image = Image.fromarray(np.array([values], np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(pixels(decode(tiff(image)))[0, :, 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 1.0], [0, 64, 255]),
        ([0.5, 0.5, 0.5], [128, 128, 128]),
        ([0.0, 1.0, 4.0], [0, 64, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([np.nan, 0.2, np.inf], [0, 51, 0]),
        ([np.nan, 2.0, 4.0], [0, 0, 255]),
        ([-3.4e38, 0.0, 3.4e38], [0, 128, 255]),
    ],
)
def test_float_tiff(values, expected):
    got = pixels(decode(tiff(Image.fromarray(np.array([values], np.float32)))))[0, :, 0]
    np.testing.assert_array_equal(got, expected)


def test_float_tiff_without_a_finite_value():
    with pytest.raises(BadImage, match="finite"):
        decode(tiff(Image.fromarray(np.full((2, 2), np.nan, np.float32))))


def oriented(orientation, byte_order="<"):
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    return mark + struct.pack(byte_order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 90} if format == "JPEG" else {}
    data = encoded(SMOOTH, format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(pixels(decode(data)), pixels(expected))
    assert decode(data).size == ((48, 64) if 5 <= orientation <= 8 else (64, 48))


def test_orientation_six_turns_clockwise():
    # A camera held upright stores rows sideways: the stored left bottom is the top left of the scene.
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 1), (255, 0, 0))
    got = decode(encoded(image, "PNG", exif=b"Exif\0\0" + oriented(6)))
    assert got.size == (2, 3)
    assert got.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("byte_order", "<>")
def test_orientation_in_either_byte_order(byte_order):
    data = encoded(SMOOTH, "JPEG", exif=b"Exif\0\0" + oriented(6, byte_order))
    assert decode(data).size == (48, 64)


@pytest.mark.parametrize("at", ["before the pixels", "after the pixels"])
def test_orientation_of_png_wherever_it_stands(at):
    data = encoded(SMOOTH, "PNG")
    place = data.index(b"IDAT") - 4 if at == "before the pixels" else data.index(b"IEND") - 4
    assert decode(data[:place] + chunk(b"eXIf", oriented(8)) + data[place:]).size == (48, 64)


def test_orientation_in_png_text_as_imagemagick_writes_it():
    raw = b"Exif\0\0" + oriented(6)
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n")
    assert decode(encoded(SMOOTH, "PNG", pnginfo=info)).size == (48, 64)


@pytest.mark.parametrize(
    "exif", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"XX*\0" + b"\0" * 20, oriented(6)[:14]]
)
def test_damaged_exif_is_no_orientation(exif):
    data = encoded(SMOOTH, "JPEG")
    body = b"Exif\0\0" + exif
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    assert decode(data).size == (64, 48)


@pytest.mark.parametrize("size", [(64, 48), (640, 480), (641, 481), (33, 500), (1000, 999)])
@pytest.mark.parametrize("draft_size", [1, 31, 60, 120, 240, 241, 480, 2000])
def test_draft_keeps_the_short_side_and_the_aspect(size, draft_size):
    image = SMOOTH.resize(size)
    got = decode(encoded(image, "JPEG"), draft_size=draft_size)
    scales = [scale for scale in (8, 4, 2, 1) if min(size) // scale >= draft_size or scale == 1]
    assert got.size == tuple(-(-side // scales[0]) for side in size)
    assert min(got.size) >= min(draft_size, *size)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_draft_looks_like_the_shrunk_image(mode):
    image = SMOOTH.resize((640, 480), Image.Resampling.BICUBIC).convert(mode)
    data = encoded(image, "JPEG", quality=95)
    got = decode(data, draft_size=100)
    assert got.size == (160, 120)
    assert np.abs(pixels(got) - pixels(decode(data).resize((160, 120), Image.Resampling.BOX))).mean() < 2


def test_draft_applies_orientation_and_leaves_other_formats():
    exif = b"Exif\0\0" + oriented(6)
    big = SMOOTH.resize((640, 480))
    assert decode(encoded(big, "JPEG", exif=exif), draft_size=120).size == (120, 160)
    assert decode(encoded(big, "PNG"), draft_size=120).size == (640, 480)


@given(st.binary(max_size=60))
@example(oriented(6))
def test_any_exif_is_an_orientation_or_none(exif):
    assert isinstance(metadata._orientation(exif), int)
