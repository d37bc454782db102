"""Views of bands against torchvision on float tensors and plain formulas."""

from io import BytesIO

import numpy as np
import pytest
import scipy.ndimage
import tifffile
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from tinyseed.data.addressed import uniforms
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.band_views import evaluation_band_view, random_band_views, render_view
from tinyseed.data.bands import Bands
from tinyseed.data.crop import CROP_DRAWS, crop_box
from tinyseed.data.loader import Plan, TrainingViews, evaluation_batches, training_batches
from tinyseed.data.sources import open_source
from tinyseed.data.views import draw_view, drawn, plan, render
from tinyseed.errors import RunError

SETTINGS = ViewSettings()
EVERYTHING = ViewSettings(jitter_probability=1.0, blur_probability=1.0)


def values(channels: int, height: int = 20, width: int = 27) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 65536, (channels, height, width), np.uint16)


def tiff(array: np.ndarray) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack")  # a page a band
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 4, 10])
@pytest.mark.parametrize(("height", "width"), [(50, 71), (90, 40), (20, 27)])
def test_a_crop_is_torchvisions_on_a_float_tensor(channels, height, width):
    array = values(channels, height=height, width=width)
    draws = uniforms(0, 0, np.arange(3), "crop-0", CROP_DRAWS)
    views = random_band_views(
        tiff(array), draws, [View(SETTINGS, size) for size in (32, 17, 64)], Bands(channels)
    )
    image = torch.from_numpy(array.astype(np.float64) / 65535).float()
    for view, numbers in zip(views, draws, strict=True):
        left, top, right, bottom = map(int, crop_box(width, height, numbers, (0.2, 1.0), (3 / 4, 4 / 3)))
        expected = reference.resized_crop(
            image, top, left, bottom - top, right - left, list(view.shape[1:]), antialias=True
        )
        assert view.dtype == np.float32
        np.testing.assert_allclose(view, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (150, 150)])
def test_the_evaluation_view_is_torchvisions_on_a_float_tensor(interpolation, height, width):
    array = values(4, height=height, width=width)
    size = 56  # its short side of 64 is cut by 4 at each edge
    image = torch.from_numpy(array.astype(np.float64) / 65535).float()
    whole = reference.resize(image, [64], InterpolationMode(interpolation), antialias=True)
    expected = reference.center_crop(whole, [size, size]).clamp(0, 1)
    view = evaluation_band_view(tiff(array), size, Bands(4), interpolation)
    np.testing.assert_allclose(view, expected.numpy(), atol=1e-5)


def test_values_outside_the_range_are_clipped_before_they_are_mixed():
    array = np.zeros((1, 8, 8), np.uint16)
    array[:, :4] = 60000
    view = evaluation_band_view(tiff(np.repeat(array, 2, 0)), 7, Bands(2, (0.0, 100.0)))
    whole = reference.resize(torch.from_numpy((array > 0).astype(np.float32)), [8], antialias=True)
    np.testing.assert_allclose(view[:1], whole[:, 0:7, 0:7].numpy(), atol=1e-6)


def by_formula(image: np.ndarray, number: int, draws) -> np.ndarray:
    """One image in float64: flip, the drawn steps of the jitter that bands have, blur."""
    image = image.astype(np.float64)
    if draws.flip[number]:
        image = image[:, :, ::-1]
    if draws.jitter[number]:
        for step in draws.order[number]:
            factor = draws.factors[number, step]
            if step == 0:
                image = np.clip(image * factor, 0, 1)
            elif step == 1:
                image = np.clip(image.mean() + factor * (image - image.mean()), 0, 1)
    if draws.sigma[number] > 0:
        for axis in (1, 2):
            image = scipy.ndimage.gaussian_filter1d(image, draws.sigma[number], axis, mode="mirror", radius=8)
    return image


@pytest.mark.parametrize("channels", [1, 2, 4, 10])
def test_rendering_equals_plain_formulas(channels):
    pixels = torch.rand(40, channels, 24, 24, generator=torch.Generator().manual_seed(1))
    draws = drawn(SETTINGS, 3, 1, np.arange(40), 0)
    before = pixels.clone()
    result = render_view(pixels, plan(draws, SETTINGS))
    for number in range(40):
        expected = by_formula(before[number].numpy(), number, draws)
        np.testing.assert_allclose(result[number].numpy(), expected, atol=2e-5, err_msg=str(number))
    assert torch.equal(pixels, before)
    assert result.min() >= 0
    assert result.max() <= 1


def test_colour_changes_are_left_out_and_all_bands_change_alike():
    """Only saturation, hue and gray drawn: the image stays; equal bands stay equal under everything."""
    pixels = torch.rand(20, 4, 16, 16)
    colour = ViewSettings(
        brightness=0, contrast=0, saturation=0.9, hue=0.4, jitter_probability=1, gray_probability=1,
        blur_probability=0, flip_probability=0,
    )  # fmt: skip
    result = render_view(pixels, draw_view(colour, 0, 0, np.arange(20), 0))
    torch.testing.assert_close(result, pixels, atol=1e-6, rtol=0)
    equal = pixels[:, :1].expand(-1, 4, -1, -1).contiguous()
    result = render_view(equal, draw_view(EVERYTHING, 0, 0, np.arange(20), 0))
    torch.testing.assert_close(result, result[:, :1].expand(-1, 4, -1, -1), atol=1e-6, rtol=0)
    assert not torch.equal(result, equal)


def test_an_image_is_rendered_alike_in_any_batch_and_any_piece(monkeypatch):
    pixels, indices = torch.rand(30, 4, 16, 16), np.arange(30)
    whole = render_view(pixels, draw_view(EVERYTHING, 0, 2, indices, 0))
    monkeypatch.setattr("tinyseed.data.views.CHUNK_BYTES", 2 * 4 * 4 * 16 * 16)
    torch.testing.assert_close(
        render_view(pixels, draw_view(EVERYTHING, 0, 2, indices, 0)), whole, atol=1e-6, rtol=0
    )
    some = np.array([7, 21, 3])
    part = render_view(pixels[some], draw_view(EVERYTHING, 0, 2, some, 0))
    torch.testing.assert_close(part, whole[some], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="draws for 3 images, but a batch of 30"):
        render_view(pixels, draw_view(EVERYTHING, 0, 2, some, 0))


def test_8_bit_rgb_goes_the_way_it_always_went():
    pixels = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    draws = draw_view(SETTINGS, 0, 0, np.arange(9), 0)
    assert torch.equal(render_view(pixels, draws), render(pixels, draws))


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
    views = TrainingViews(source, (View(SETTINGS, 16),), 0, np.arange(12), Bands(4))
    batches = training_batches(views, Plan(np.arange(12), 12, 0), first_step=0, workers=0, pin_memory=False)
    batch = next(batches)
    assert batch.pixels[0].shape == (12, 4, 16, 16)
    assert batch.pixels[0].dtype == torch.float32
    (bad,) = batch.bad
    assert bad.name.endswith("03.tif")
    assert bad.reason == "the file has 3 bands, 4 were asked for"
    assert 3 not in batch.indices.tolist()
    (evaluated,) = evaluation_batches(source, np.arange(12), size=16, bands=Bands(4))
    assert evaluated.indices.tolist() == [0, 1, 2, *range(4, 12)]
    assert evaluated.pixels.shape == (11, 4, 16, 16)
    (none,) = evaluation_batches(source, np.array([3]), size=16, bands=Bands(4))
    assert none.pixels.shape == (0, 4, 16, 16)


def test_all_files_of_other_bands_end_the_run(tiles):
    views = TrainingViews(open_source([str(tiles)]), (View(SETTINGS, 16),), 0, np.arange(12), Bands(5))
    batches = training_batches(views, Plan(np.arange(12), 4, 0), first_step=0, workers=0, pin_memory=False)
    with pytest.raises(RunError, match="the file has 4 bands, 5 were asked for"):
        next(batches)
