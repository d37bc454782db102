"""Crops of RGB equal torchvision's on Pillow images, crops of bands those on float tensors; which reader is chosen."""

import io
import pickle

import numpy as np
import pytest
import tifffile
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torchvision.transforms import InterpolationMode

from tinyseed.data import bands, readers
from tinyseed.data.addressed import uniforms
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.crop import CROP_DRAWS, crop_box
from tinyseed.data.decode import BadImage, decode
from tinyseed.data.loader import Plan, TrainingViews, evaluation_batches, training_batches
from tinyseed.data.readers import RGB, BandReader, Reader, reader_for
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError, RunError

SETTINGS = ViewSettings()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colors, an edge and some noise: what a resize or a crop at the wrong place would show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels[:, width // 3] = 255 - pixels[:, width // 3]
    return Image.fromarray((pixels + rng.integers(-20, 21, pixels.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def crop_draws(n: int, seed: int = 0) -> np.ndarray:
    return uniforms(seed, 0, np.arange(n), "crop-0", CROP_DRAWS)


def random_view(data: bytes, row: np.ndarray, size: int) -> np.ndarray:
    return RGB.random_views(data, row[None], [View(SETTINGS, size)])[0]


def values(channels: int, height: int = 20, width: int = 27) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 65536, (channels, height, width), np.uint16)


def tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack")  # a page a band
    return file.getvalue()


def test_plain_rgb_has_its_own_reader():
    assert reader_for(3) == RGB
    assert reader_for(3, (0.0, 10000.0)) == BandReader(3, (0.0, 10000.0))
    assert reader_for(1) == BandReader(1)


@pytest.mark.parametrize(
    ("reader", "text"),
    [(RGB, "RgbReader()"), (BandReader(2, (0.0, 9.5)), "BandReader(channels=2, pixel_range=(0.0, 9.5))")],
)
def test_readers_are_values(reader, text):
    assert isinstance(reader, Reader)
    assert pickle.loads(pickle.dumps(reader)) == reader
    assert str(reader) == text  # part of cache keys
    assert reader.empty(5).shape == (0, reader.channels, 5, 5)


# -------------------------------------------------------------------------------------------------- RGB


@pytest.mark.parametrize(("width", "height", "size"), [(160, 213, 64), (500, 375, 224), (30, 20, 64)])
def test_random_view_equals_torchvisions_crop_and_resize(width: int, height: int, size: int) -> None:
    image = photo(width, height)
    data = encoded(image)
    for row in crop_draws(5):
        left, top, right, bottom = crop_box(width, height, row, SETTINGS.crop_scale, SETTINGS.crop_ratio)
        expected = tv.resized_crop(image, top, left, bottom - top, right - left, [size, size])
        view = random_view(data, row, size)
        assert view.flags.c_contiguous
        assert np.array_equal(view, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(160, 213), (500, 375), (300, 300), (20, 333)])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_evaluation_view_equals_torchvisions(width: int, height: int, size: int) -> None:
    image = photo(width, height)
    expected = tv.center_crop(tv.resize(image, [int(size * 256 / 224)]), [size, size])
    difference = RGB.evaluation_view(encoded(image), size).astype(int) - np.asarray(expected).transpose(
        2, 0, 1
    )
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.01


def reference_view(data: bytes, row: np.ndarray, size: int) -> np.ndarray:
    image = decode(data)
    box = crop_box(*image.size, row, SETTINGS.crop_scale, SETTINGS.crop_ratio)
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_jpeg_is_reduced_and_shows_the_same(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(1500, 1000), "JPEG", quality=95, exif=exif)
    asked = []
    monkeypatch.setattr(
        readers,
        "decode",
        lambda data, draft_size: asked.append(draft_size) or decode(data, draft_size=draft_size),
    )
    for row in crop_draws(8):
        difference = random_view(data, row, 64).astype(int) - reference_view(data, row, 64)
        assert np.abs(difference).mean() < 3
        assert abs(difference.mean()) < 0.5
    assert set(asked) <= {None, 500, 250, 125}
    assert {500, 250} & set(asked)


def test_an_evaluation_view_of_a_large_jpeg_shows_the_same() -> None:
    data = encoded(photo(1500, 1000), "JPEG", quality=95)
    expected = tv.center_crop(tv.resize(decode(data), [73]), [64, 64])
    difference = RGB.evaluation_view(data, 64).astype(int) - np.asarray(expected).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 2
    assert abs(difference.mean()) < 0.5


@pytest.mark.parametrize(
    "data", [encoded(photo(300, 400)), encoded(photo(1200, 900), "JPEG")], ids=["png", "jpeg"]
)
def test_views_together_are_views_alone(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = crop_draws(4)
    alone = [random_view(data, row, 64) for row in rows]
    calls = []
    monkeypatch.setattr(
        readers, "decode", lambda data, draft_size: calls.append(1) or decode(data, draft_size=draft_size)
    )
    together = RGB.random_views(data, rows, [View(SETTINGS, 64)] * len(rows))
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))
    assert len(calls) < len(rows)


@pytest.mark.parametrize("data", [b"", b"text", encoded(photo(90, 80), "JPEG")[:500], b"\xff\xd8\xff"])
def test_bad_images_are_told(data: bytes) -> None:
    with pytest.raises(BadImage):
        random_view(data, crop_draws(1)[0], 32)
    with pytest.raises(BadImage):
        RGB.evaluation_view(data, 32)


# ------------------------------------------------------------------------------------------------ bands


@pytest.mark.parametrize("channels", [1, 4, 10])
@pytest.mark.parametrize(("height", "width"), [(50, 71), (90, 40), (20, 27)])
def test_a_crop_of_bands_is_torchvisions_on_a_float_tensor(channels, height, width):
    array = values(channels, height=height, width=width)
    draws = uniforms(0, 0, np.arange(3), "crop-0", CROP_DRAWS)
    wanted = [View(SETTINGS, size) for size in (32, 17, 64)]
    views = BandReader(channels).random_views(tiff(array), draws, wanted)
    image = torch.from_numpy(array.astype(np.float64) / 65535).float()
    for view, numbers in zip(views, draws, strict=True):
        left, top, right, bottom = map(int, crop_box(width, height, numbers, (0.2, 1.0), (3 / 4, 4 / 3)))
        expected = tv.resized_crop(
            image, top, left, bottom - top, right - left, list(view.shape[1:]), antialias=True
        )
        assert view.dtype == np.float32
        np.testing.assert_allclose(view, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (150, 150)])
def test_the_evaluation_view_of_bands_is_torchvisions_on_a_float_tensor(interpolation, height, width):
    array = values(4, height=height, width=width)
    size = 56  # its short side of 64 is cut by 4 at each edge
    image = torch.from_numpy(array.astype(np.float64) / 65535).float()
    whole = tv.resize(image, [64], InterpolationMode(interpolation), antialias=True)
    expected = tv.center_crop(whole, [size, size]).clamp(0, 1)
    view = BandReader(4).evaluation_view(tiff(array), size, interpolation)
    np.testing.assert_allclose(view, expected.numpy(), atol=1e-5)


def test_values_outside_the_range_are_clipped_before_they_are_mixed():
    array = np.zeros((1, 8, 8), np.uint16)
    array[:, :4] = 60000
    view = BandReader(2, (0.0, 100.0)).evaluation_view(tiff(np.repeat(array, 2, 0)), 7)
    whole = tv.resize(torch.from_numpy((array > 0).astype(np.float32)), [8], antialias=True)
    np.testing.assert_allclose(view[:1], whole[:, 0:7, 0:7].numpy(), atol=1e-6)


@pytest.fixture
def tiles(tmp_path):
    folder = tmp_path / "tiles"
    folder.mkdir()
    for number in range(12):
        array = values(4)
        (folder / f"{number:02d}.tif").write_bytes(tiff(array + np.uint16(number)))
    return folder


def test_a_file_of_other_bands_is_a_bad_image_and_replaced(tiles):
    (tiles / "03.tif").write_bytes(tiff(values(3)))
    source = open_source([str(tiles)])
    views = TrainingViews(source, (View(SETTINGS, 16),), 0, np.arange(12), BandReader(4))
    batches = training_batches(views, Plan(np.arange(12), 12, 0), first_step=0, workers=0, pin_memory=False)
    batch = next(batches)
    assert batch.pixels[0].shape == (12, 4, 16, 16)
    assert batch.pixels[0].dtype == torch.float32
    (bad,) = batch.bad
    assert bad.name.endswith("03.tif")
    assert bad.reason == "the file has 3 bands, 4 were asked for"
    assert 3 not in batch.indices.tolist()
    (evaluated,) = evaluation_batches(source, np.arange(12), size=16, reader=BandReader(4))
    assert evaluated.indices.tolist() == [0, 1, 2, *range(4, 12)]
    assert evaluated.pixels.shape == (11, 4, 16, 16)
    (none,) = evaluation_batches(source, np.array([3]), size=16, reader=BandReader(4))
    assert none.pixels.shape == (0, 4, 16, 16)


def test_all_files_of_other_bands_end_the_run(tiles):
    views = TrainingViews(open_source([str(tiles)]), (View(SETTINGS, 16),), 0, np.arange(12), BandReader(5))
    batches = training_batches(views, Plan(np.arange(12), 4, 0), first_step=0, workers=0, pin_memory=False)
    with pytest.raises(RunError, match="the file has 4 bands, 5 were asked for"):
        next(batches)


def test_a_missing_package_is_named_at_once_with_the_extra(tiles, photos, monkeypatch):
    monkeypatch.setattr(bands, "find_spec", lambda name: None if name == "tifffile" else True)
    source = open_source([str(tiles)])
    with pytest.raises(InputError) as caught:
        BandReader(4).require(source, np.arange(12))
    assert str(caught.value).endswith(
        "00.tif: reading TIFFs band by band needs tifffile: pip install tinyseed[bands]"
    )
    BandReader(4).require(open_source([str(photos)]), np.arange(60))  # JPEGs need none
    RGB.require(source, np.arange(12))
