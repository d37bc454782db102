"""Views of images with other channels than red, green and blue. Imports .bands, .views and what they stand on.

As views.py, in float32 from the crop on: such images often have 16 bits.

    crop     random_band_views, evaluation_band_view    encoded bytes → float32 [c, size, size] in [0, 1], in a worker
    render   render_view                                the one place that chooses between RGB and bands
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64
from PIL import Image
from torch import Tensor

from tinyseed.data.augmentation import View
from tinyseed.data.bands import Bands, Stored, decode_bands, to_unit
from tinyseed.data.colour import gaussian_blur
from tinyseed.data.crop import CROP_DRAWS, Box, centre_box, crop_box
from tinyseed.data.views import FILTERS, Group, ViewDraws, chunks, render, rows_at_once, rows_within
from tinyseed.shapes import AnyPixels, BandPixels, Images, Interpolation


def random_band_views(
    data: bytes, draws: Float64[np.ndarray, "views 40"], wanted: Sequence[View], bands: Bands
) -> list[Float32[np.ndarray, "c _ _"]]:
    """Cut several random views out of one image, at the places where RGB images are cut.

    Args:
        data: the encoded file.
        draws: uniform numbers, `CROP_DRAWS` for each view.
        wanted: the views.
        bands: how the image is read.

    Raises:
        BadImage: the image cannot be decoded, or has another number of bands.
    """
    assert draws.shape[1] == CROP_DRAWS
    stored = decode_bands(data, bands.channels)
    height, width = stored.shape[1:]
    views = []
    for numbers, view in zip(draws, wanted, strict=True):
        box = crop_box(width, height, numbers, view.settings.crop_scale, view.settings.crop_ratio)
        left, top, right, bottom = map(int, box)
        part = to_unit(stored[:, top:bottom, left:right], bands.pixel_range)
        views.append(_resized(part, view.size, None, "bilinear"))
    return views


def evaluation_band_view(
    data: bytes, size: int, bands: Bands, interpolation: Interpolation = "bilinear"
) -> Float32[np.ndarray, "c size size"]:
    """Bring the short side to 256/224 of the size and cut out the middle, as `evaluation_view` does.

    Raises:
        BadImage: the image cannot be decoded, or has another number of bands.
    """
    stored: Stored = decode_bands(data, bands.channels)
    height, width = stored.shape[1:]
    box = centre_box(width, height, int(size * 256 / 224), size)
    return _resized(to_unit(stored, bands.pixel_range), size, box, interpolation)


def _resized(
    values: Float32[np.ndarray, "c h w"], size: int, box: Box | None, interpolation: Interpolation
) -> Float32[np.ndarray, "c size size"]:
    """Each band by itself, antialiased."""
    planes = [
        Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), FILTERS[interpolation], box=box)
        for plane in values
    ]
    return np.clip(np.stack([np.asarray(plane) for plane in planes]), 0, 1)  # bicubic overshoots


def render_view(pixels: AnyPixels, draws: ViewDraws) -> Images:
    """Render a batch as its pixels are stored: 8-bit RGB, or bands as floats.

    Args:
        pixels: cropped images, [n, c, h, w].
        draws: of the same batch, on the same device.

    Returns:
        float32 in [0, 1], [n, c, h, w].

    Raises:
        ValueError: the draws are for another number of images.
    """
    return render(pixels, draws) if pixels.dtype == torch.uint8 else render_bands(pixels, draws)


def render_bands(pixels: BandPixels, draws: ViewDraws) -> Images:
    """Jitter, blur and mirror each image of a batch as drawn for it, all its bands alike.

    Brightness multiplies all values by the drawn factor; contrast moves them from the mean over all bands and pixels
    of the image by it; both then clamp to [0, 1], in the drawn order.

    Args:
        pixels: cropped images, [n, c, h, w].
        draws: of the same batch, on the same device.

    Raises:
        ValueError: the draws are for another number of images.

    Differs: hue, saturation and grayscale are left out, being defined for red, green and blue alone; contrast's
        anchor is the mean of the bands where RGB images have the mean of their luma.
    """
    if len(draws.rows) != len(pixels):
        raise ValueError(f"draws for {len(draws.rows)} images, but a batch of {len(pixels)}")
    result = torch.empty_like(pixels)
    with torch.autocast(pixels.device.type, enabled=False):
        for group in draws.groups:
            for chunk in chunks(group, rows_at_once(pixels)):
                rows = draws.rows[chunk.start : chunk.stop]
                images = pixels.index_select(0, rows)
                result.index_copy_(0, rows, _finished(images, chunk, draws))
    return result


def _finished(images: Images, chunk: Group, draws: ViewDraws) -> Images:
    """Flip, jitter and blur; the argument is used up."""
    for span in chunk.flips:
        part = rows_within(images, chunk, span)
        part.copy_(part.flip(3))
    numbers = draws.numbers[:, chunk.start : chunk.stop].unbind()
    if chunk.hue_step is not None:
        for blend in range(3):
            _blend_(images, *numbers[blend:9:3])
    blur = rows_within(images, chunk, chunk.blur)
    if len(blur):
        sigma = rows_within(numbers[10], chunk, chunk.blur)
        blur.copy_(gaussian_blur(blur, sigma, draws.blur_radius))
    return images


def _blend_(images: Images, factor: Tensor, saturates: Tensor, contrasts: Tensor) -> None:
    """One step of the jitter; rows whose step is the saturation stay as they are."""
    factor = torch.where(saturates > 0, 1.0, factor)
    lifted = images.mean((1, 2, 3)) * contrasts * (1 - factor)
    images.mul_(factor.view(-1, 1, 1, 1)).add_(lifted.view(-1, 1, 1, 1)).clamp_(0, 1)
