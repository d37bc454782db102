"""Color operations on batches of RGB images and blur of images of any channels, with parameters per image.

Images are in [0, 1]. Nothing here waits for a GPU. A function whose name ends in an underscore changes its argument.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tinyseed.shapes import Images

PerImage = Float[Tensor, " n"]

BLOCK = 32
"""Rows (or columns) of one matrix product in the blur of a larger image."""

DENSE_UP_TO = 3 * BLOCK
"""Up to this length the blur's whole matrix is faster than its band."""


def grayscale(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n h w"]:
    """Luma, 0.2989 r + 0.587 g + 0.114 b, as ITU-R BT.601 weighs the channels."""
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend_(
    images: Float[Tensor, "n 3 h w"], factor: PerImage, own_gray: PerImage, mean_gray: PerImage
) -> Images:
    """Move each image away from its anchor (factor > 1) or towards it (factor < 1), then clamp to [0, 1].

    The anchor decides the operation: black for brightness, the image's grayscale for saturation, the mean of that
    for contrast. So one batch can mix all three.

    Args:
        images: in [0, 1]; overwritten.
        factor: at least 0; 1 changes nothing.
        own_gray: 1 for saturation, else 0.
        mean_gray: 1 for contrast, else 0.
    """
    gray = grayscale(images)
    mean = gray.mean((1, 2)).mul_(mean_gray)
    anchor = gray.mul_(_column(own_gray)).add_(_column(mean))
    return torch.lerp(anchor.unsqueeze(1), images, factor.view(-1, 1, 1, 1), out=images).clamp_(0, 1)


def shift_hue(
    images: Float[Tensor, "n 3 h w"], turns: PerImage, *, wide: bool = True
) -> Float[Tensor, "n 3 h w"]:
    """Turn each image's hue, keeping saturation and value (HSV).

    Hue is the place on the edge of a hexagon whose corners are red, yellow, green, cyan, blue and magenta. With
    M, m and d the largest, smallest and middle channel of a pixel and s = 6 · turns · (M − m), a turn of at most a
    sixth takes channel c, between n and p in the cycle r g b, to clamp(2c − d − s · sign(n − p), m, M). That
    equals the conversion to HSV and back, without its division, branches and table. A third of a turn only
    rotates the channels.

    Args:
        images: in [0, 1].
        turns: in [−0.5, 0.5]; 0 changes nothing.
        wide: False promises that no turn exceeds 1/6, and saves the step that rotates channels.
    """
    if wide:
        thirds = (turns * 3).round()
        turns = turns - thirds / 3
        images = _rotated(images, thirds.long())
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    middle = (red + green).add_(blue).sub_(high).sub_(low)
    step = (high - low).mul_(_column(turns * 6))
    shifted, sign = torch.empty_like(images), torch.empty_like(high)
    cycle = ((red, green, blue), (green, blue, red), (blue, red, green))
    for result, (channel, following, preceding) in zip(shifted.unbind(1), cycle, strict=True):
        torch.sub(following, preceding, out=sign).sign_()
        torch.lerp(middle, channel, 2.0, out=result)  # 2c − d
        result.addcmul_(sign, step, value=-1)
        torch.clamp(result, low, high, out=result)
    return shifted


def _rotated(images: Images, thirds: Int64[Tensor, " n"]) -> Images:
    """Hue turned by thirds: one third makes red green, green blue and blue red."""
    n, channels = images.shape[:2]
    color = torch.arange(channels, device=images.device)
    image = channels * torch.arange(n, device=images.device).unsqueeze(1)
    source = (color - thirds.unsqueeze(1)) % channels + image
    return images.flatten(0, 1).index_select(0, source.flatten()).view_as(images)


def gaussian_blur(images: Images, sigma: PerImage, radius: int) -> Images:
    """Gaussian blur with edges mirrored about the outermost pixel.

    The kernel has 2 · radius + 1 taps, exp(−x²/2σ²) at the integers, scaled to the sum 1; if a side is not
    longer than the radius, the radius is the side − 1. Both passes are matrix products, with a matrix for each
    image that holds the mirrored edges; they follow `torch.set_float32_matmul_precision`, whose default is full
    float32.

    Args:
        images: any range, any number of channels.
        sigma: standard deviation in pixels, above 0.
        radius: in pixels; 4σ leaves out less than 1e-4 of the weight.
    """
    n, channels, height, width = images.shape
    images = images.contiguous()
    across, down = torch.empty_like(images), torch.empty_like(images)
    rows = (n, channels * height, width)
    matrices = _matrices(sigma, width, radius)
    _smooth(matrices, images.view(rows).mT, radius, across.view(rows).mT)
    if height != width:
        matrices = _matrices(sigma, height, radius)
    matrices = matrices.repeat_interleave(channels, 0)
    _smooth(matrices, across.flatten(0, 1), radius, down.flatten(0, 1))
    return down


def _smooth(matrices: Tensor, lines: Tensor, radius: int, result: Tensor) -> None:
    """Smooth along dimension 1 of [n, length, m], into `result`."""
    length = lines.shape[1]
    if matrices.shape[1] == length:
        torch.bmm(matrices, lines, out=result)
        return
    first = matrices[:, :BLOCK, : BLOCK + radius].contiguous()
    inner = matrices[:, BLOCK : 2 * BLOCK, BLOCK - radius : 2 * BLOCK + radius].contiguous()
    last = matrices[:, 2 * BLOCK :, 2 * BLOCK - radius :].contiguous()
    torch.bmm(first, lines[:, : BLOCK + radius], out=result[:, :BLOCK])
    for row in range(BLOCK, length - BLOCK, BLOCK):
        start = min(row, length - 2 * BLOCK)  # the last inner block may overlap the one before
        window = lines[:, start - radius : start + BLOCK + radius]
        torch.bmm(inner, window, out=result[:, start : start + BLOCK])
    torch.bmm(last, lines[:, -BLOCK - radius :], out=result[:, -BLOCK:])


def _matrices(sigma: PerImage, length: int, radius: int) -> Float[Tensor, "n m m"]:
    """The blur of a line as a matrix for each sigma; a long line, whose inner blocks are all equal, has 3 blocks."""
    if length > DENSE_UP_TO and radius <= BLOCK:
        length = 3 * BLOCK
    radius = min(radius, length - 1)
    distance = torch.arange(radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (distance / sigma[:, None]).square())
    # Subnormal numbers would make the products ten times slower.
    taps = torch.nn.functional.threshold(taps, 1e-12, 0)
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)  # the middle tap, exp(0) = 1, stands once
    offsets = _mirrored_offsets(length, radius, sigma.device)
    return (taps @ offsets.to(taps.dtype)).view(-1, length, length)


@lru_cache(maxsize=32)
def _mirrored_offsets(length: int, radius: int, device: torch.device) -> Float[Tensor, "taps cells"]:
    """How often each distance leads from an output to an input, the edges mirrored: [radius + 1, length²]."""
    counts = torch.zeros(radius + 1, length, length)
    outputs = torch.arange(length)
    for offset in range(-radius, radius + 1):
        inputs = (outputs + offset).abs()
        inputs = length - 1 - (length - 1 - inputs).abs()
        counts[abs(offset), outputs, inputs] += 1
    return counts.view(radius + 1, -1).to(device)


def _column(values: PerImage) -> Float[Tensor, "n 1 1"]:
    return values.view(-1, 1, 1)
