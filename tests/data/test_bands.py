"""Files of several bands against the arrays that were written into them."""

from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image

from tinyseed.data import bands as module
from tinyseed.data.bands import decode_bands, to_unit
from tinyseed.data.decode import BadImage


def values(channels: int, dtype: str = "uint16", height: int = 20, width: int = 27) -> np.ndarray:
    generator = np.random.default_rng(channels)
    if np.dtype(dtype).kind == "f":
        return generator.random((channels, height, width)).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, (channels, height, width), dtype, endpoint=True)


def tiff(array: np.ndarray, layout: str = "chunky", **settings) -> bytes:
    file = BytesIO()
    settings = {"photometric": "minisblack", **settings}
    match layout:
        case "chunky":
            tifffile.imwrite(file, np.moveaxis(array, 0, 2), planarconfig="contig", **settings)
        case "planar":
            tifffile.imwrite(file, array, planarconfig="separate", **settings)
        case "pages":
            tifffile.imwrite(file, array, **settings)
    return file.getvalue()


def picture(array: np.ndarray, mode: str | None = None, kind: str = "png", **settings) -> bytes:
    file = BytesIO()
    stored = np.ascontiguousarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, 2))
    image = Image.fromarray(stored)
    (image.convert(mode) if mode else image).save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize("layout", ["chunky", "planar", "pages"])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize(("channels", "dtype"), [(4, "uint16"), (10, "uint8"), (2, "int16"), (5, "float32")])
def test_a_tiff_comes_back_as_it_was_written(layout, compression, channels, dtype):
    array = values(channels, dtype)
    predictor = compression is not None and dtype != "float32"
    data = tiff(array, layout, compression=compression, predictor=predictor)
    read = decode_bands(data, channels)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    "settings", [{"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}, {"rowsperstrip": 3}]
)
def test_other_tiff_layouts(settings):
    array = values(4)
    np.testing.assert_array_equal(decode_bands(tiff(array, **settings), 4), array)


@pytest.mark.parametrize("layout", ["chunky", "planar"])
def test_red_green_blue_and_one_more(layout):
    array = values(4)
    data = tiff(array, layout, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decode_bands(data, 4), array)


def test_only_the_first_of_several_series_counts():
    array, file = values(4), BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(array, photometric="minisblack", planarconfig="separate", subifds=1)
        writer.write(array[:, ::2, ::2], photometric="minisblack", planarconfig="separate", subfiletype=1)
        writer.write(array[0, :5], photometric="minisblack")
    np.testing.assert_array_equal(decode_bands(file.getvalue(), 4), array)


def test_one_band():
    array = values(1)
    file = BytesIO()
    tifffile.imwrite(file, array[0], photometric="minisblack")
    np.testing.assert_array_equal(decode_bands(file.getvalue(), 1), array)


def test_white_is_zero_is_turned_round():
    array = values(1, "uint8")
    file = BytesIO()
    tifffile.imwrite(file, array[0], photometric="miniswhite")
    np.testing.assert_array_equal(decode_bands(file.getvalue(), 1), 255 - array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_upright_as_pillow_makes_them(orientation):
    array = values(3, "uint8")
    data = tiff(array, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    with Image.open(BytesIO(data)) as image:
        expected = np.moveaxis(np.asarray(image), 2, 0)
    np.testing.assert_array_equal(decode_bands(data, 3), expected)


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (1, "uint16"), (3, "uint8"), (4, "uint8")])
def test_png(channels, dtype):
    array = values(channels, dtype)
    np.testing.assert_array_equal(decode_bands(picture(array), channels), array)


def test_gray_jpeg_is_upright():
    array = values(1, "uint8")
    exif = Image.Exif()
    exif[274] = 6
    data = picture(array, kind="jpeg", quality=95, exif=exif)
    with Image.open(BytesIO(data)) as image:
        expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode_bands(data, 1)[0], expected)


@pytest.mark.parametrize(
    ("data", "channels", "told"),
    [
        (tiff(values(3)), 4, "the file has 3 bands, 4 were asked for"),
        (tiff(values(4), "planar"), 1, "the file has 4 bands, 1 was asked for"),
        (picture(values(1, "uint8")), 4, "the file has 1 band, 4 were asked for"),
        (picture(values(3, "uint8"), "P"), 1, "its values are places in a palette"),
        (tiff(values(4))[:150], 4, "damaged TIFF: "),
        (tiff(values(4))[:-900], 4, "damaged TIFF: "),
        (tiff(values(4), "planar", rowsperstrip=4)[:-900], 4, "damaged TIFF: "),
        (tiff(values(4), "pages")[:-900], 4, "damaged TIFF: "),
        (tiff(values(4), tile=(16, 16), compression="lzw")[:-900], 4, "damaged TIFF: "),
        (tiff(values(4), compression="deflate")[:-900], 4, "damaged TIFF: "),
        (tiff(values(4).astype(np.complex64)), 4, "complex64"),
        (tiff(np.stack([values(4), values(4)])[:, :, None].swapaxes(0, 2)[0], "pages"), 4, "its axes "),
        (b"", 4, "empty: 0 bytes"),
        (b"no image", 4, "not a JPEG, PNG"),
    ],
)
def test_what_cannot_be_read_is_told(data, channels, told):
    with pytest.raises(BadImage) as caught:
        decode_bands(data, channels)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_upper_bytes_of_16_bit_color_are_not_taken_for_the_values():
    data = bytearray(picture(values(3, "uint8")))
    data[24] = 16  # the header's bits a sample
    with pytest.raises(BadImage, match="16-bit colors"):
        decode_bands(bytes(data), 3)


@pytest.mark.parametrize(
    ("dtype", "span", "low", "high"),
    [
        ("uint8", (), 0, 255),
        ("uint16", (), 0, 65535),
        ("int16", (), 0, 32767),
        ("float32", (), 0, 1),
        ("uint16", (1000.0, 9000.0), 1000, 9000),
        ("int16", (-500.0, 500.0), -500, 500),
        ("float32", (0.25, 0.5), 0.25, 0.5),
    ],
)
def test_stored_values_become_0_to_1(dtype, span, low, high):
    array = values(3, dtype)
    expected = np.clip((array.astype(np.float64) - low) / (high - low), 0, 1)
    result = to_unit(array, span)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-7)


def test_what_is_no_number_counts_as_the_least_and_infinity_as_the_most():
    array = np.array([[[np.nan, np.inf, -np.inf, 1e300]]])
    assert to_unit(array).tolist() == [[[0, 1, 0, 1]]]


def test_without_a_reader_a_tiff_is_a_bad_image(monkeypatch):
    def absent():
        raise ImportError("No module named 'tifffile'")

    monkeypatch.setattr(module, "_tifffile", absent)
    with pytest.raises(BadImage, match=r"pip install tinyseed\[bands\]"):
        decode_bands(tiff(values(4)), 4)
