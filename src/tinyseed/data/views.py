"""Views: an image is cropped on the CPU, then its whole batch is coloured, blurred and flipped on the device.

Imports tinyseed.data.addressed, .augmentation, .colour, .crop and .decode, and tinyseed.shapes.

    crop     random_views, evaluation_view    encoded bytes → uint8 [3, size, size], in a worker process
    draw     draw_view                        (seed, epoch, images, view) → what is done to each image
    render   render, normalise                uint8 [n, 3, h, w] → float32, on the device
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tinyseed.data.addressed import uniforms
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.colour import blend_, gaussian_blur, grayscale, shift_hue
from tinyseed.data.crop import (
    CROP_DRAWS,
    centre_box,
    crop_box,
    jpeg_size,
    largest_reduction,
    reduced_box,
)
from tinyseed.data.decode import decode
from tinyseed.shapes import AnyPixels, Images, Interpolation, Pixels

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)

COLOUR_DRAWS = 13
"""Uniform numbers for the rest of a view: jitter?, 4 factors, 4 for their order, gray?, blur?, sigma, flip?"""

CHUNK_BYTES = 1280 * 1024
"""Float images that one CPU core works through at once: large enough for few calls, small enough for its caches."""


# --------------------------------------------------------------------------------------------------- crop


def random_view(
    data: bytes, draws: Float64[np.ndarray, " 40"], settings: ViewSettings, size: int
) -> UInt8[np.ndarray, "3 size size"]:
    """Decode an image and cut out one random view.

    Args:
        data: the encoded file.
        draws: uniform numbers, `CROP_DRAWS` of them.
        settings: of which the crop's scale and ratio count here.
        size: side of the view in pixels.

    Raises:
        BadImage: the image cannot be decoded.
    """
    return random_views(data, draws[None], [View(settings, size)])[0]


def random_views(
    data: bytes, draws: Float64[np.ndarray, "views 40"], wanted: Sequence[View]
) -> list[UInt8[np.ndarray, "3 _ _"]]:
    """Cut out several random views of one image, decoded once; each is what `random_view` gives.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 where even the crop then has twice the view's size.

    Raises:
        BadImage: the image cannot be decoded.
    """
    assert draws.shape[1] == CROP_DRAWS
    full = jpeg_size(data)
    decoded: dict[int, Image.Image] = {}
    views = []
    for numbers, view in zip(draws, wanted, strict=True):
        size, settings = view.size, view.settings
        choose = partial(crop_box, draws=numbers, scale=settings.crop_scale, ratio=settings.crop_ratio)
        reduction = 1 if full is None else largest_reduction(full, choose, size)
        if reduction not in decoded:
            draft_size = min(full) // reduction if full and reduction > 1 else None
            decoded[reduction] = decode(data, draft_size=draft_size)
        image = decoded[reduction]
        if full is None or reduction == 1:
            part = image.crop(choose(*image.size)).resize((size, size), Image.Resampling.BILINEAR)
        else:
            part = image.resize((size, size), Image.Resampling.BILINEAR, box=reduced_box(image, full, choose))
        views.append(_planes(part))
    return views


def evaluation_view(
    data: bytes, size: int, interpolation: Interpolation = "bilinear"
) -> UInt8[np.ndarray, "3 size size"]:
    """Decode an image, bring its short side to 256/224 of the size and cut out the middle.

    With antialiasing, as torchvision's Resize and CenterCrop on a Pillow image. A JPEG whose short side is
    more than four times that is decoded at 1/2, 1/4 or 1/8.

    Raises:
        BadImage: the image cannot be decoded.
    """
    short = int(size * 256 / 224)
    image = decode(data, draft_size=2 * short)
    box = centre_box(*image.size, short, size)
    return _planes(image.resize((size, size), FILTERS[interpolation], box=box))


FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _planes(image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


# --------------------------------------------------------------------------------------------------- draw


class Drawn(NamedTuple):
    """What was drawn for each image, in the order of the batch.

    Attributes:
        jitter: whether the colours change at all.
        factors: of brightness, contrast and saturation; the fourth is the hue's shift in turns.
        order: these four (0 to 3) in the order in which they are applied.
        gray, flip: whether.
        sigma: of the blur in pixels, 0 for none.
    """

    jitter: Bool[np.ndarray, " n"]
    factors: Float64[np.ndarray, "n 4"]
    order: Int64[np.ndarray, "n 4"]
    gray: Bool[np.ndarray, " n"]
    sigma: Float64[np.ndarray, " n"]
    flip: Bool[np.ndarray, " n"]


Span = tuple[int, int]
"""From the first row to before the second."""


class Group(NamedTuple):
    """Neighbouring rows of the sorted batch that take the same path.

    `hue_step` says which of the four steps of the jitter turns the hue; None: no jitter. `flips` (two), `gray` and
    `blur` are the spans of rows to which that happens.
    """

    start: int
    stop: int
    hue_step: int | None
    flips: tuple[Span, Span]
    gray: Span
    blur: Span


@dataclass(frozen=True)
class ViewDraws:
    """What `render` does to each image of a batch, sorted so that images with the same path are neighbours.

    Attributes:
        rows: for each row of the sorted batch the image's place in the batch.
        numbers: for each row 3 blend factors, 3 weights of its own gray, 3 of its mean gray, the hue's turns and
            the blur's sigma.
        groups: the rows that take the same path.
        blur_radius: in pixels.
        wide_hue: whether a hue may turn by more than 1/6.
    """

    rows: Int64[Tensor, " n"]
    numbers: Float32[Tensor, "11 n"]
    groups: tuple[Group, ...]
    blur_radius: int
    wide_hue: bool

    def to(self, device: torch.device | str) -> "ViewDraws":
        """Move the tensors to a device."""
        rows, numbers = (tensor.to(device, non_blocking=True) for tensor in (self.rows, self.numbers))
        return replace(self, rows=rows, numbers=numbers)


def drawn(
    settings: ViewSettings, seed: int, epoch: int, indices: Int64[np.ndarray, " n"], view: int
) -> Drawn:
    """Draw one view of each image: a pure function of (seed, epoch, index, view).

    Source: torchvision's ColorJitter, RandomGrayscale and RandomHorizontalFlip, whose distributions it has.
    """
    numbers = uniforms(seed, epoch, indices, f"colour-{view}", COLOUR_DRAWS)
    reach = np.array([settings.brightness, settings.contrast, settings.saturation])
    low = np.maximum(0, 1 - reach)
    factors = low + (1 + reach - low) * numbers[:, 1:4]
    turns = settings.hue * (2 * numbers[:, 4:5] - 1)
    least, greatest = settings.blur_sigma
    sigma = least + (greatest - least) * numbers[:, 11]
    return Drawn(
        jitter=numbers[:, 0] < settings.jitter_probability,
        factors=np.concatenate((factors, turns), 1),
        order=np.argsort(numbers[:, 5:9], 1),
        gray=numbers[:, 9] < settings.gray_probability,
        sigma=np.where(numbers[:, 10] < settings.blur_probability, sigma, 0),
        flip=numbers[:, 12] < settings.flip_probability,
    )


def draw_view(
    settings: ViewSettings, seed: int, epoch: int, indices: Int64[np.ndarray, " n"], view: int
) -> ViewDraws:
    """Draw one view of each image and plan its rendering, on the CPU.

    Args:
        settings: the augmentation.
        seed: the run's seed, from 0.
        epoch: from 0.
        indices: positions of the images in their source.
        view: 0 for the first or only view of an image, 1 for the second.

    Raises:
        ValueError: the seed or the epoch is negative.
    """
    return plan(drawn(settings, seed, epoch, indices, view), settings)


_FINISHES = np.array([[[0, 1], [7, 6]], [[3, 2], [4, 5]]])
"""Where in its group a row stands, by [gray, blur, flip]: gray is one span then, blur one, flip two."""


def plan(draws: Drawn, settings: ViewSettings) -> ViewDraws:
    """Sort a batch by what is done to its images."""
    hue_step = np.where(draws.jitter, (draws.order == 3).argmax(1), 4)
    finish = _FINISHES[draws.gray.astype(int), (draws.sigma > 0).astype(int), draws.flip.astype(int)]
    path = 8 * hue_step + finish
    images = np.argsort(path, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(path, minlength=40)))).tolist()
    groups = [_group(step, starts[8 * step : 8 * step + 9]) for step in range(5)]
    blends = draws.order[draws.order != 3].reshape(-1, 3)
    factors = np.take_along_axis(draws.factors, blends, 1)
    turns, sigma = draws.factors[:, 3:], draws.sigma[:, None]
    numbers = np.concatenate((factors, blends == 2, blends == 1, turns, sigma), 1)[images]
    return ViewDraws(
        rows=torch.from_numpy(images),
        numbers=torch.from_numpy(np.ascontiguousarray(numbers.T, np.float32)),
        groups=tuple(group for group in groups if group.start < group.stop),
        blur_radius=math.ceil(4 * settings.blur_sigma[1]),
        wide_hue=settings.hue > 1 / 6,
    )


def _group(step: int, starts: list[int]) -> Group:
    """The group whose eight finishes start at these rows; the ninth is where it ends."""
    flips = ((starts[1], starts[3]), (starts[5], starts[7]))
    gray, blur = (starts[2], starts[6]), (starts[4], starts[8])
    return Group(starts[0], starts[8], step if step < 4 else None, flips, gray, blur)


# ------------------------------------------------------------------------------------------------- render


def render(pixels: Pixels, draws: ViewDraws, out: Images | None = None) -> Images:
    """Jitter, gray, blur and mirror each image of a batch as drawn for it.

    Only images whose draw says so are touched. On CUDA nothing waits for the device.

    Args:
        pixels: cropped images, [n, 3, h, w].
        draws: of the same batch, on the same device.
        out: float32, overwritten; spares the memory's allocation.

    Returns:
        float32 in [0, 1], [n, 3, h, w].

    Raises:
        ValueError: the draws are for another number of images.
    """
    if len(draws.rows) != len(pixels):
        raise ValueError(f"draws for {len(draws.rows)} images, but a batch of {len(pixels)}")
    result = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device) if out is None else out
    with torch.autocast(pixels.device.type, enabled=False):
        for group in draws.groups:
            for chunk in chunks(group, rows_at_once(pixels)):
                rows = draws.rows[chunk.start : chunk.stop]
                images = pixels.index_select(0, rows)
                for span in chunk.flips:
                    part = rows_within(images, chunk, span)
                    part.copy_(part.flip(3))
                images = images.to(torch.float32).mul_(1 / 255)
                result.index_copy_(0, rows, _finished(images, chunk, draws))
    return result


def _finished(images: Images, chunk: Group, draws: ViewDraws) -> Images:
    """Jitter, gray and blur; the argument is used up."""
    numbers = draws.numbers[:, chunk.start : chunk.stop].unbind()
    if chunk.hue_step is not None:
        blends = iter(range(3))
        for step in range(4):
            if step == chunk.hue_step:
                images = shift_hue(images, numbers[9], wide=draws.wide_hue)
            else:
                blend_(images, *numbers[next(blends) : 9 : 3])
    gray, blur = rows_within(images, chunk, chunk.gray), rows_within(images, chunk, chunk.blur)
    if len(gray):
        gray.copy_(grayscale(gray).unsqueeze(1))
    if len(blur):
        sigma = rows_within(numbers[10], chunk, chunk.blur)
        blur.copy_(gaussian_blur(blur, sigma, draws.blur_radius))
    return images


def rows_within(values: Tensor, chunk: Group, span: Span) -> Tensor:
    """The rows of a span that lie in a chunk; there may be none."""
    return values[span[0] - chunk.start : span[1] - chunk.start]


def chunks(group: Group, rows: int) -> Iterator[Group]:
    """Cut a group into even parts of at most so many rows."""
    parts = -(-(group.stop - group.start) // rows)
    edges = [group.start + (group.stop - group.start) * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(edges):
        spans = (*group.flips, group.gray, group.blur)
        flip, second_flip, gray, blur = (
            (min(max(first, start), stop), min(max(last, start), stop)) for first, last in spans
        )
        yield Group(start, stop, group.hue_step, (flip, second_flip), gray, blur)


def rows_at_once(pixels: AnyPixels) -> int:
    """How many images to render at once: all on a GPU, as many as fit the caches on a CPU."""
    if pixels.device.type != "cpu":
        return len(pixels)
    return max(1, CHUNK_BYTES * torch.get_num_threads() // (4 * pixels[0].numel()))


def resized(
    images: Images, size: int, interpolation: Interpolation = "bilinear"
) -> Float[Tensor, "n c {size} {size}"]:
    """The same view at another resolution, in [0, 1], antialiased; itself where it has that size already."""
    if images.shape[-1] == size:
        return images
    with torch.autocast(images.device.type, enabled=False):
        scaled = functional.interpolate(images, (size, size), mode=interpolation, antialias=True)
    return scaled.clamp_(0, 1)  # bicubic overshoots


def normalise(
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
