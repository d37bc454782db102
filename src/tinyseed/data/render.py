"""Cropped pixels of a whole batch become float images on the device: flipped, jittered, blurred, normalized.

Images of a batch that take the same path are worked through together. On CUDA nothing waits for the device.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tinyseed.data.color import blend_, gaussian_blur, grayscale, shift_hue
from tinyseed.data.draws import Group, Span, ViewDraws
from tinyseed.shapes import AnyPixels, Images, Interpolation

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)

CHUNK_BYTES = 1280 * 1024
"""Float images that one CPU core works through at once: large enough for few calls, small enough for its caches."""


def render_view(pixels: AnyPixels, draws: ViewDraws, out: Images | None = None) -> Images:
    """Flip, jitter, gray and blur each image of a batch as drawn for it.

    Only images whose draw says so are touched. How depends on how the pixels are stored:

    - uint8 is RGB. The jitter is brightness, contrast, saturation and hue, in the drawn order.
    - float32 is bands, which all change together. Brightness multiplies all values by the drawn factor; contrast moves
      them from the mean over all bands and pixels of the image by it; both then clamp to [0, 1], in the drawn order.

    Args:
        pixels: cropped images, [n, c, h, w].
        draws: of the same batch, on the same device.
        out: float32, overwritten; saves an allocation.

    Returns:
        float32 in [0, 1], [n, c, h, w].

    Raises:
        ValueError: the draws are for another number of images.

    Differs: for bands, hue, saturation and grayscale are left out, since they are defined for RGB only; contrast's
        anchor is the mean of the bands, where RGB images have the mean of their luma.
    """
    if len(draws.rows) != len(pixels):
        raise ValueError(f"draws for {len(draws.rows)} images, but a batch of {len(pixels)}")
    result = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device) if out is None else out
    finished = _finished_rgb if pixels.dtype == torch.uint8 else _finished_bands
    with torch.autocast(pixels.device.type, enabled=False):
        for group in draws.groups:
            for chunk in _chunks(group, _rows_at_once(pixels)):
                rows = draws.rows[chunk.start : chunk.stop]
                images = pixels.index_select(0, rows)
                for span in chunk.flips:
                    part = _rows_within(images, chunk, span)
                    part.copy_(part.flip(3))
                numbers = draws.numbers[:, chunk.start : chunk.stop].unbind()
                images = finished(images, chunk, numbers, draws)
                blur = _rows_within(images, chunk, chunk.blur)
                if len(blur):
                    sigma = _rows_within(numbers[10], chunk, chunk.blur)
                    blur.copy_(gaussian_blur(blur, sigma, draws.blur_radius))
                result.index_copy_(0, rows, images)
    return result


def _finished_rgb(
    pixels: AnyPixels, chunk: Group, numbers: tuple[Tensor, ...], draws: ViewDraws
) -> Float[Tensor, "n 3 h w"]:
    images = pixels.to(torch.float32).mul_(1 / 255)
    if chunk.hue_step is not None:
        blends = iter(range(3))
        for step in range(4):
            if step == chunk.hue_step:
                images = shift_hue(images, numbers[9], wide=draws.wide_hue)
            else:
                blend_(images, *numbers[next(blends) : 9 : 3])
    gray = _rows_within(images, chunk, chunk.gray)
    if len(gray):
        gray.copy_(grayscale(gray).unsqueeze(1))
    return images


def _finished_bands(
    images: AnyPixels, chunk: Group, numbers: tuple[Tensor, ...], _draws: ViewDraws
) -> Images:
    """Jitter in place; rows whose step is the saturation stay as they are."""
    for blend in range(3 if chunk.hue_step is not None else 0):
        factor, saturates, contrasts = numbers[blend:9:3]
        factor = torch.where(saturates > 0, 1.0, factor)
        lifted = images.mean((1, 2, 3)) * contrasts * (1 - factor)
        images.mul_(factor.view(-1, 1, 1, 1)).add_(lifted.view(-1, 1, 1, 1)).clamp_(0, 1)
    return images


def _rows_within(values: Tensor, chunk: Group, span: Span) -> Tensor:
    """The rows of a span that lie in a chunk; there may be none."""
    return values[span[0] - chunk.start : span[1] - chunk.start]


def _chunks(group: Group, rows: int) -> Iterator[Group]:
    """Cut a group into even parts of at most `rows` rows."""
    parts = -(-(group.stop - group.start) // rows)
    edges = [group.start + (group.stop - group.start) * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(edges):
        spans = (*group.flips, group.gray, group.blur)
        flip, second_flip, gray, blur = (
            (min(max(first, start), stop), min(max(last, start), stop)) for first, last in spans
        )
        yield Group(start, stop, group.hue_step, (flip, second_flip), gray, blur)


def _rows_at_once(pixels: AnyPixels) -> int:
    """How many images to render at once: all on a GPU, as many as fit the caches on a CPU."""
    if pixels.device.type != "cpu":
        return len(pixels)
    return max(1, CHUNK_BYTES * torch.get_num_threads() // (4 * pixels[0].numel()))


def resized(
    images: Images, size: int, interpolation: Interpolation = "bilinear"
) -> Float[Tensor, "n c {size} {size}"]:
    """The same view at another resolution, in [0, 1], antialiased; the images themselves if they have that size."""
    if images.shape[-1] == size:
        return images
    with torch.autocast(images.device.type, enabled=False):
        scaled = functional.interpolate(images, (size, size), mode=interpolation, antialias=True)
    return scaled.clamp_(0, 1)  # bicubic overshoots


def normalize(
    images: Images,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    out: Images | None = None,
) -> Images:
    """Subtract each channel's mean and divide by its standard deviation; `out` may be `images` itself."""
    shift, scale = _per_channel(mean, std, images.device)
    return torch.sub(images, shift, out=out).mul_(scale)


@lru_cache(maxsize=32)
def _per_channel(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    shift = torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None]
    return shift, 1 / torch.tensor(std, dtype=torch.float32, device=device)[:, None, None]
