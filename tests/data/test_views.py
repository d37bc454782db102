"""Crops equal torchvision's on Pillow images, rendering equals its functions on each image, and the whole has the
distribution of its transforms."""

import io
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
import torchvision.transforms.v2.functional as tv
from PIL import Image
from scipy import stats
from torch import Tensor

from tinyseed.data import views
from tinyseed.data.addressed import uniforms
from tinyseed.data.augmentation import View
from tinyseed.data.crop import CROP_DRAWS, crop_box
from tinyseed.data.decode import BadImage, decode
from tinyseed.data.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Drawn,
    ViewSettings,
    draw_view,
    drawn,
    evaluation_view,
    normalise,
    plan,
    random_view,
    random_views,
    render,
)

SETTINGS = ViewSettings()
OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, an edge and some noise: what a resize or a crop at the wrong place would show."""
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


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.1)},
        {"crop_scale": (0.6, 0.5)},
        {"crop_ratio": (0.0, 1.0)},
        {"crop_ratio": (2.0, 1.0)},
        {"brightness": -0.1},
        {"contrast": math.inf},
        {"saturation": math.nan},
        {"hue": 0.6},
        {"jitter_probability": 1.1},
        {"gray_probability": -0.1},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (3.0, 2.0)},
        {"blur_probability": 2.0},
        {"flip_probability": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        ViewSettings(**wrong)


# ----------------------------------------------------------------------------------------------------- crop


@pytest.mark.parametrize(("width", "height", "size"), [(160, 213, 64), (500, 375, 224), (30, 20, 64)])
def test_random_view_equals_torchvisions_crop_and_resize(width: int, height: int, size: int) -> None:
    image = photo(width, height)
    data = encoded(image)
    for row in crop_draws(5):
        left, top, right, bottom = crop_box(width, height, row, SETTINGS.crop_scale, SETTINGS.crop_ratio)
        expected = tv.resized_crop(image, top, left, bottom - top, right - left, [size, size])
        view = random_view(data, row, SETTINGS, size)
        assert view.flags.c_contiguous
        assert np.array_equal(view, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(160, 213), (500, 375), (300, 300), (20, 333)])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_evaluation_view_equals_torchvisions(width: int, height: int, size: int) -> None:
    image = photo(width, height)
    expected = tv.center_crop(tv.resize(image, [int(size * 256 / 224)]), [size, size])
    difference = evaluation_view(encoded(image), size).astype(int) - np.asarray(expected).transpose(2, 0, 1)
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
        views,
        "decode",
        lambda data, draft_size: asked.append(draft_size) or decode(data, draft_size=draft_size),
    )
    for row in crop_draws(8):
        difference = random_view(data, row, SETTINGS, 64).astype(int) - reference_view(data, row, 64)
        assert np.abs(difference).mean() < 3
        assert abs(difference.mean()) < 0.5
    assert set(asked) <= {None, 500, 250, 125}
    assert {500, 250} & set(asked)


def test_an_evaluation_view_of_a_large_jpeg_shows_the_same() -> None:
    data = encoded(photo(1500, 1000), "JPEG", quality=95)
    expected = tv.center_crop(tv.resize(decode(data), [73]), [64, 64])
    difference = evaluation_view(data, 64).astype(int) - np.asarray(expected).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 2
    assert abs(difference.mean()) < 0.5


@pytest.mark.parametrize(
    "data", [encoded(photo(300, 400)), encoded(photo(1200, 900), "JPEG")], ids=["png", "jpeg"]
)
def test_views_together_are_views_alone(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = crop_draws(4)
    alone = [random_view(data, row, SETTINGS, 64) for row in rows]
    calls = []
    monkeypatch.setattr(
        views, "decode", lambda data, draft_size: calls.append(1) or decode(data, draft_size=draft_size)
    )
    together = random_views(data, rows, [View(SETTINGS, 64)] * len(rows))
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))
    assert len(calls) < len(rows)


@pytest.mark.parametrize("data", [b"", b"text", encoded(photo(90, 80), "JPEG")[:500], b"\xff\xd8\xff"])
def test_bad_images_are_told(data: bytes) -> None:
    with pytest.raises(BadImage):
        random_view(data, crop_draws(1)[0], SETTINGS, 32)
    with pytest.raises(BadImage):
        evaluation_view(data, 32)


# ----------------------------------------------------------------------------------------------------- draw


def test_draws_have_the_named_distributions() -> None:
    n = 6000
    draws = drawn(SETTINGS, 0, 0, np.arange(n), 0)
    for chosen, probability in (
        (draws.jitter, 0.8),
        (draws.gray, 0.2),
        (draws.sigma > 0, 0.5),
        (draws.flip, 0.5),
    ):
        assert stats.binomtest(int(chosen.sum()), n, probability).pvalue > 1e-4
    for column, reach, middle in ((0, 0.4, 1), (1, 0.4, 1), (2, 0.4, 1), (3, 0.1, 0)):
        uniform = stats.uniform(middle - reach, 2 * reach)
        assert stats.kstest(draws.factors[:, column], uniform.cdf).pvalue > 1e-4
    assert stats.kstest(draws.sigma[draws.sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4
    orders = np.unique(draws.order, axis=0, return_counts=True)[1]
    assert len(orders) == 24
    assert stats.chisquare(orders).pvalue > 1e-4


def test_factors_have_torchvisions_distribution() -> None:
    settings = replace(SETTINGS, brightness=1.7, hue=0.5)
    ours = drawn(settings, 0, 0, np.arange(2000), 0).factors
    jitter = transforms.ColorJitter(1.7, 0.4, 0.4, 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [jitter.make_params([]) for _ in range(2000)]
    for column, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        values = [float(parameters[f"{name}_factor"]) for parameters in theirs]
        assert stats.ks_2samp(ours[:, column], values).pvalue > 1e-3


def test_views_of_an_image_differ_and_batches_do_not_matter() -> None:
    indices = np.arange(500)
    first, second = drawn(SETTINGS, 0, 0, indices, 0), drawn(SETTINGS, 0, 0, indices, 1)
    assert abs(np.corrcoef(first.factors[:, 0], second.factors[:, 0])[0, 1]) < 0.2
    part = drawn(SETTINGS, 0, 0, np.array([17, 3]), 0)
    for whole, piece in zip(first, part, strict=True):
        assert np.array_equal(whole[[17, 3]], piece)


# --------------------------------------------------------------------------------------------------- render


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
    result = render(pixels, draw_view(SETTINGS, 4, 2, indices, 1))
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)
    assert torch.equal(pixels, kept)


def test_wide_hues_and_strong_factors() -> None:
    settings = ViewSettings(
        brightness=2, contrast=2, saturation=2, hue=0.5, jitter_probability=1, blur_probability=0
    )
    pixels, indices = pixels_of(60), np.arange(60)
    result = render(pixels, draw_view(settings, 0, 0, indices, 0))
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
        monkeypatch.setattr(views, "CHUNK_BYTES", size)
        results.append(render(pixels, plan(draws, SETTINGS)))
        torch.testing.assert_close(results[-1], expected, atol=2e-5, rtol=0)


def test_nothing_drawn_changes_nothing() -> None:
    settings = ViewSettings(jitter_probability=0, gray_probability=0, blur_probability=0, flip_probability=0)
    pixels = pixels_of(5)
    result = render(pixels, draw_view(settings, 0, 0, np.arange(5), 0))
    assert torch.equal(result, pixels.float().mul(1 / 255))


def test_an_image_is_rendered_alike_in_any_batch() -> None:
    pixels, indices = pixels_of(40), np.arange(40)
    whole = render(pixels, draw_view(SETTINGS, 0, 0, indices, 0))
    some = np.array([31, 2, 17])
    part = render(pixels[some], draw_view(SETTINGS, 0, 0, some, 0))
    torch.testing.assert_close(part, whole[some], atol=1e-6, rtol=0)


def test_rendering_into_given_memory_under_autocast() -> None:
    pixels, draws = pixels_of(12), draw_view(SETTINGS, 0, 0, np.arange(12), 0)
    expected = render(pixels, draws)
    out = torch.full(pixels.shape, math.nan)
    with torch.autocast("cpu", torch.bfloat16):
        result = render(pixels, draws, out=out)
    assert result is out
    assert torch.equal(out, expected)


def test_draws_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="draws for 3 images, but a batch of 2"):
        render(pixels_of(2), draw_view(SETTINGS, 0, 0, np.arange(3), 0))


def test_draws_travel_between_processes() -> None:
    draws = draw_view(SETTINGS, 0, 0, np.arange(9), 0)
    received = pickle.loads(pickle.dumps(draws)).to("cpu")
    assert torch.equal(render(pixels_of(9), received), render(pixels_of(9), draws))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_waits_and_the_result_is_the_same() -> None:
    pixels, draws = pixels_of(40, 100, 100), draw_view(SETTINGS, 0, 0, np.arange(40), 0)
    expected = normalise(render(pixels, draws))
    there, draws = pixels.cuda(), draws.to("cuda")
    normalise(render(there, draws))  # constants are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = normalise(render(there, draws))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=0)


def test_the_views_stay_what_they_are() -> None:
    """A resumed run, or a teacher's cache, has to see the same views after an upgrade."""
    draws = drawn(SETTINGS, 0, 0, np.array([5]), 0)
    assert draws.factors[0].tolist() == pytest.approx([0.648259515, 0.994396328, 1.290255661, 0.050169289])


def test_normalise_equals_torchvision() -> None:
    images = torch.rand(3, 3, 9, 8)
    expected = tv.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(normalise(images), expected, atol=1e-6, rtol=0)
    other = normalise(images, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    torch.testing.assert_close(
        other, tv.normalize(images, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]), atol=1e-6, rtol=0
    )
    assert normalise(images, out=images) is images
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------ the whole


def properties(images: Tensor) -> dict[str, np.ndarray]:
    """What a person would see change: colours, contrast, sharpness, and where the light is; one value a view."""
    gray = tv.rgb_to_grayscale(images)[:, 0]
    half = images.shape[3] // 2
    values = {f"mean {c}": images[:, c].mean((1, 2)) for c in range(3)}
    values |= {f"std {c}": images[:, c].std((1, 2)) for c in range(3)}
    values |= {
        "colourfulness": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "sharpness": gray.diff(dim=1).square().mean((1, 2)) + gray.diff(dim=2).square().mean((1, 2)),
        "left minus right": (gray[:, :, :half] - gray[:, :, half:]).mean((1, 2)),
    }
    return {name: value.numpy() for name, value in values.items()}


def assert_same_distribution(image: Image.Image, size: int = 32, n: int = 500) -> None:
    data, indices = encoded(image), np.arange(n)
    crops = [random_view(data, row, SETTINGS, size) for row in crop_draws(n)]
    ours = properties(render(torch.from_numpy(np.stack(crops)), draw_view(SETTINGS, 0, 0, indices, 0)))
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
