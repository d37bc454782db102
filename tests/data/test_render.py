"""Rendering equals torchvision's functions on each RGB image and plain formulas on bands; and a whole view, crop and
all, has the distribution of torchvision's transforms."""

import io
import math
import pickle

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.transforms.v2 as transforms
import torchvision.transforms.v2.functional as tv
from PIL import Image
from scipy import stats
from torch import Tensor

from tinyseed.data import render
from tinyseed.data.addressed import uniforms
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.crop import CROP_DRAWS
from tinyseed.data.decode import decode
from tinyseed.data.draws import Drawn, draw_view, drawn, plan
from tinyseed.data.readers import RGB
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD, normalize, render_view

SETTINGS = ViewSettings()
EVERYTHING = ViewSettings(jitter_probability=1.0, blur_probability=1.0)
OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


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


def pixels_of(n: int, height: int = 40, width: int = 48) -> Tensor:
    """Photos cut into n images, uint8 [n, 3, height, width]."""
    images = [np.asarray(photo(width, height, seed)).transpose(2, 0, 1) for seed in range(n)]
    return torch.from_numpy(np.stack(images))


def render_slowly(pixels: Tensor, draws: Drawn) -> Tensor:
    """Each image by itself through torchvision's functions."""
    images = list(tv.to_dtype(pixels, torch.float32, scale=True))
    for i in range(len(images)):
        for operation in draws.order[i] if draws.jitter[i] else ():
            images[i] = OPERATIONS[operation](images[i], draws.factors[i, operation])
        if draws.gray[i]:
            images[i] = tv.rgb_to_grayscale(images[i], 3)
        if draws.sigma[i] > 0:
            images[i] = tv.gaussian_blur(images[i], [17, 17], [float(draws.sigma[i])])
        if draws.flip[i]:
            images[i] = tv.horizontal_flip(images[i])
    return torch.stack(images)


@pytest.mark.parametrize("n", [1, 2, 150])
@pytest.mark.parametrize(("height", "width"), [(40, 48), (100, 100)])
def test_rendering_equals_torchvision_image_by_image(n: int, height: int, width: int) -> None:
    pixels, indices = pixels_of(n, height, width), np.arange(n) * 7
    expected = render_slowly(pixels, drawn(SETTINGS, 4, 2, indices, 1))
    kept = pixels.clone()
    result = render_view(pixels, draw_view(SETTINGS, 4, 2, indices, 1))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)
    assert torch.equal(pixels, kept)


def test_wide_hues_and_strong_factors() -> None:
    settings = ViewSettings(
        brightness=2, contrast=2, saturation=2, hue=0.5, jitter_probability=1, blur_probability=0
    )
    pixels, indices = pixels_of(60), np.arange(60)
    result = render_view(pixels, draw_view(settings, 0, 0, indices, 0))
    # Factors up to 3 also enlarge the rounding errors, step by step.
    torch.testing.assert_close(
        result, render_slowly(pixels, drawn(settings, 0, 0, indices, 0)), atol=1e-4, rtol=0
    )


def test_every_path_and_every_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 24 orders and all 8 combinations of gray, blur and flip, in chunks of 1 image, of a few, and whole."""
    n = 24 * 8
    draws = drawn(SETTINGS, 0, 0, np.arange(n), 0)
    orders = np.unique(drawn(SETTINGS, 0, 0, np.arange(2000), 0).order, axis=0)
    bits = np.arange(n) % 8
    draws = draws._replace(
        order=orders[np.arange(n) // 8],
        gray=bits & 1 > 0,
        sigma=np.where(bits & 2, 1.3, 0),
        flip=bits & 4 > 0,
    )
    pixels = pixels_of(n, 16, 16)
    expected = render_slowly(pixels, draws)
    results = []
    for size in (1, 7 * 16 * 16 * 12, 2**30):
        monkeypatch.setattr(render, "CHUNK_BYTES", size)
        results.append(render_view(pixels, plan(draws, SETTINGS)))
        torch.testing.assert_close(results[-1], expected, atol=2e-5, rtol=0)


def test_nothing_drawn_changes_nothing() -> None:
    settings = ViewSettings(jitter_probability=0, gray_probability=0, blur_probability=0, flip_probability=0)
    pixels = pixels_of(5)
    result = render_view(pixels, draw_view(settings, 0, 0, np.arange(5), 0))
    assert torch.equal(result, pixels.float().mul(1 / 255))


def test_an_image_is_rendered_alike_in_any_batch() -> None:
    pixels, indices = pixels_of(40), np.arange(40)
    whole = render_view(pixels, draw_view(SETTINGS, 0, 0, indices, 0))
    some = np.array([31, 2, 17])
    part = render_view(pixels[some], draw_view(SETTINGS, 0, 0, some, 0))
    torch.testing.assert_close(part, whole[some], atol=1e-6, rtol=0)


def test_rendering_into_given_memory_under_autocast() -> None:
    pixels, draws = pixels_of(12), draw_view(SETTINGS, 0, 0, np.arange(12), 0)
    expected = render_view(pixels, draws)
    out = torch.full(pixels.shape, math.nan)
    with torch.autocast("cpu", torch.bfloat16):
        result = render_view(pixels, draws, out=out)
    assert result is out
    assert torch.equal(out, expected)


def test_draws_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="draws for 3 images, but a batch of 2"):
        render_view(pixels_of(2), draw_view(SETTINGS, 0, 0, np.arange(3), 0))


def test_draws_travel_between_processes() -> None:
    draws = draw_view(SETTINGS, 0, 0, np.arange(9), 0)
    received = pickle.loads(pickle.dumps(draws)).to("cpu")
    assert torch.equal(render_view(pixels_of(9), received), render_view(pixels_of(9), draws))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_waits_and_the_result_is_the_same() -> None:
    pixels, draws = pixels_of(40, 100, 100), draw_view(SETTINGS, 0, 0, np.arange(40), 0)
    expected = normalize(render_view(pixels, draws))
    there, draws = pixels.cuda(), draws.to("cuda")
    normalize(render_view(there, draws))  # constants are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = normalize(render_view(there, draws))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=0)


def test_normalize_equals_torchvision() -> None:
    images = torch.rand(3, 3, 9, 8)
    expected = tv.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(normalize(images), expected, atol=1e-6, rtol=0)
    other = normalize(images, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    torch.testing.assert_close(
        other, tv.normalize(images, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]), atol=1e-6, rtol=0
    )
    assert normalize(images, out=images) is images
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------ bands


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
def test_rendering_bands_equals_plain_formulas(channels):
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


def test_color_changes_are_left_out_and_all_bands_change_alike():
    """Only saturation, hue and gray drawn: the image stays; equal bands stay equal under everything."""
    pixels = torch.rand(20, 4, 16, 16)
    color = ViewSettings(
        brightness=0, contrast=0, saturation=0.9, hue=0.4, jitter_probability=1, gray_probability=1,
        blur_probability=0, flip_probability=0,
    )  # fmt: skip
    result = render_view(pixels, draw_view(color, 0, 0, np.arange(20), 0))
    torch.testing.assert_close(result, pixels, atol=1e-6, rtol=0)
    equal = pixels[:, :1].expand(-1, 4, -1, -1).contiguous()
    result = render_view(equal, draw_view(EVERYTHING, 0, 0, np.arange(20), 0))
    torch.testing.assert_close(result, result[:, :1].expand(-1, 4, -1, -1), atol=1e-6, rtol=0)
    assert not torch.equal(result, equal)


def test_bands_are_rendered_alike_in_any_batch_and_any_piece(monkeypatch):
    pixels, indices = torch.rand(30, 4, 16, 16), np.arange(30)
    whole = render_view(pixels, draw_view(EVERYTHING, 0, 2, indices, 0))
    monkeypatch.setattr(render, "CHUNK_BYTES", 2 * 4 * 4 * 16 * 16)
    torch.testing.assert_close(
        render_view(pixels, draw_view(EVERYTHING, 0, 2, indices, 0)), whole, atol=1e-6, rtol=0
    )
    some = np.array([7, 21, 3])
    part = render_view(pixels[some], draw_view(EVERYTHING, 0, 2, some, 0))
    torch.testing.assert_close(part, whole[some], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="draws for 3 images, but a batch of 30"):
        render_view(pixels, draw_view(EVERYTHING, 0, 2, some, 0))


# -------------------------------------------------------------------------------------------- the whole


def properties(images: Tensor) -> dict[str, np.ndarray]:
    """What a person would see change: colors, contrast, sharpness, and where the light is; one value a view."""
    gray = tv.rgb_to_grayscale(images)[:, 0]
    half = images.shape[3] // 2
    values = {f"mean {c}": images[:, c].mean((1, 2)) for c in range(3)}
    values |= {f"std {c}": images[:, c].std((1, 2)) for c in range(3)}
    values |= {
        "colorfulness": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "sharpness": gray.diff(dim=1).square().mean((1, 2)) + gray.diff(dim=2).square().mean((1, 2)),
        "left minus right": (gray[:, :, :half] - gray[:, :, half:]).mean((1, 2)),
    }
    return {name: value.numpy() for name, value in values.items()}


def assert_same_distribution(image: Image.Image, size: int = 32, n: int = 500) -> None:
    data, indices = encoded(image), np.arange(n)
    crops = [RGB.random_views(data, row[None], [View(SETTINGS, size)])[0] for row in crop_draws(n)]
    ours = properties(render_view(torch.from_numpy(np.stack(crops)), draw_view(SETTINGS, 0, 0, indices, 0)))
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToImage(),
            transforms.RandomApply([transforms.GaussianBlur(17, (0.1, 2.0))], 0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToDtype(torch.float32, scale=True),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = properties(torch.stack([pipeline(image) for _ in range(n)]))
    for name, values in ours.items():
        assert stats.ks_2samp(values, theirs[name]).pvalue > 1e-3, name


def test_distribution_is_torchvisions() -> None:
    assert_same_distribution(photo(120, 90))


def test_distribution_on_real_photos(shared_data) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.ParquetFile(shared_data / "clothing160-cc0" / "test.parquet").read_row_group(0, ["image"])
    for row in (0, 3):
        assert_same_distribution(decode(table.column("image")[row].as_py()["bytes"]))
