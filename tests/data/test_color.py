"""Each batched color operation equals torchvision's on one image; the blur also equals SciPy's."""

import colorsys

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import ndimage
from torch import Tensor

from tinyseed.data import color
from tinyseed.data.color import blend_, gaussian_blur, grayscale, shift_hue

SIZES = [(64, 64), (33, 47), (1, 5)]


def some_images(n: int, height: int = 33, width: int = 47) -> Tensor:
    """Noise, with grays, pure colors and pixels of which two channels are equal among it."""
    images = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))
    flat = images.flatten(2)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T
    special = min(flat.shape[2], corners.shape[1])
    flat[:, :, :special] = corners[:, :special]
    return images


def spread(n: int, low: float, high: float) -> Tensor:
    return torch.linspace(low, high, n)


def assert_each(images: Tensor, expected: list[Tensor]) -> None:
    torch.testing.assert_close(images, torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grayscale(height: int, width: int) -> None:
    images = some_images(3, height, width)
    assert_each(grayscale(images).unsqueeze(1), [tv.rgb_to_grayscale(image) for image in images])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("own_gray", "mean_gray", "reference"),
    [(0.0, 0.0, tv.adjust_brightness), (1.0, 0.0, tv.adjust_saturation), (0.0, 1.0, tv.adjust_contrast)],
)
def test_blends(own_gray: float, mean_gray: float, reference, size: tuple[int, int]) -> None:
    images, factors = some_images(7, *size), spread(7, 0, 3)
    expected = [reference(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)]
    result = blend_(images, factors, torch.full((7,), own_gray), torch.full((7,), mean_gray))
    assert result is images
    assert_each(result, expected)


def test_one_batch_holds_all_blends() -> None:
    images = some_images(3)
    expected = [
        tv.adjust_brightness(images[0], 1.3),
        tv.adjust_contrast(images[1], 0.6),
        tv.adjust_saturation(images[2], 1.4),
    ]
    own_gray, mean_gray = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
    assert_each(blend_(images, torch.tensor([1.3, 0.6, 1.4]), own_gray, mean_gray), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("reach", "wide"), [(0.5, True), (0.1, True), (1 / 6, False)])
def test_hue(size: tuple[int, int], reach: float, wide: bool) -> None:
    images, turns = some_images(11, *size), spread(11, -reach, reach)
    kept = images.clone()
    expected = [tv.adjust_hue(image, turn) for image, turn in zip(images, turns.tolist(), strict=True)]
    assert_each(shift_hue(images, turns, wide=wide), expected)
    assert torch.equal(images, kept)


def test_hue_against_the_standard_library() -> None:
    """colorsys knows HSV, too, and in double precision."""
    pixels = torch.rand(200, 3, generator=torch.Generator().manual_seed(1))
    turns = spread(200, -0.5, 0.5)
    expected = []
    for pixel, turn in zip(pixels.tolist(), turns.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    shifted = shift_hue(pixels[:, :, None, None], turns)[:, :, 0, 0]
    assert np.abs(shifted.numpy() - np.array(expected)).max() < 1e-6


def test_nothing_happens_at_the_neutral_values() -> None:
    images = some_images(2)
    ones, zeros = torch.ones(2), torch.zeros(2)
    for own_gray, mean_gray in ((zeros, zeros), (ones, zeros), (zeros, ones)):
        torch.testing.assert_close(blend_(images.clone(), ones, own_gray, mean_gray), images, atol=0, rtol=0)
    torch.testing.assert_close(shift_hue(images, zeros), images, atol=3e-7, rtol=0)


# Lengths up to 96 take one matrix, longer ones blocks of 32, of which the last two may overlap.
@pytest.mark.parametrize("size", [(64, 64), (20, 96), (97, 128), (224, 160), (9, 130)])
def test_blur(size: tuple[int, int]) -> None:
    images, sigmas = some_images(5, *size), torch.tensor([0.1, 0.55, 1.0, 1.7, 2.0])
    expected = [
        tv.gaussian_blur(image, [17, 17], [sigma])
        for image, sigma in zip(images, sigmas.tolist(), strict=True)
    ]
    assert_each(gaussian_blur(images, sigmas, 8), expected)


@pytest.mark.parametrize("radius", [1, 31, 32, 40])
def test_blur_at_any_radius(radius: int) -> None:
    images, sigmas = some_images(2, 130, 101), torch.tensor([1.5, 9.0])
    expected = [tv.gaussian_blur(images[i], [2 * radius + 1] * 2, [sigmas[i].item()]) for i in range(2)]
    assert_each(gaussian_blur(images, sigmas, radius), expected)


def test_blur_in_double_precision_against_scipy() -> None:
    images = some_images(2, 100, 70).double()
    blurred = gaussian_blur(images, torch.tensor([0.7, 1.9], dtype=torch.float64), 8)
    for image, sigma, result in zip(images.numpy(), (0.7, 1.9), blurred.numpy(), strict=True):
        for channel in range(3):
            expected = ndimage.gaussian_filter(image[channel], sigma, mode="mirror", radius=8)
            assert np.abs(result[channel] - expected).max() < 1e-11


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8)])
def test_blur_of_images_smaller_than_the_kernel(size: tuple[int, int]) -> None:
    images, sigmas = some_images(2, *size), torch.tensor([0.5, 2.0])
    kernel = [2 * (size[1] - 1) + 1, 2 * (size[0] - 1) + 1]
    kernel = [min(side, 17) for side in kernel]
    expected = [tv.gaussian_blur(images[i], kernel, [sigmas[i].item()]) for i in range(2)]
    assert_each(gaussian_blur(images, sigmas, 8), expected)


def test_narrow_kernels_hold_no_subnormal_numbers() -> None:
    """They would make every product ten times slower."""
    matrices = color._matrices(torch.linspace(0.1, 2, 100), 64, 8)
    smallest = matrices[matrices > 0].min()
    assert smallest > 1e-13


def test_slices_of_a_batch_and_channels_last_are_welcome() -> None:
    images, sigmas = some_images(6, 40, 40), spread(6, 0.3, 2)
    expected = gaussian_blur(images, sigmas, 8)
    torch.testing.assert_close(gaussian_blur(images[2:5], sigmas[2:5], 8), expected[2:5], atol=1e-6, rtol=0)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gaussian_blur(channels_last, sigmas, 8), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        shift_hue(channels_last, sigmas / 4), shift_hue(images, sigmas / 4), atol=1e-6, rtol=0
    )
