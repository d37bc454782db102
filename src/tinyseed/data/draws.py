"""What is drawn for each view of each image after the crop, and the order in which a batch is rendered by it.

drawn     (seed, epoch, images, view) → what is done to each image
plan      the same, sorted so that images that take the same path are adjacent
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from tinyseed.data.addressed import uniforms
from tinyseed.data.augmentation import ViewSettings

COLOR_DRAWS = 13
"""Uniform numbers for the rest of a view: jitter?, 4 factors, 4 for their order, gray?, blur?, sigma, flip?"""


class Drawn(NamedTuple):
    """What was drawn for each image, in the order of the batch.

    Attributes:
        jitter: whether the colors change at all.
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
    """Adjacent rows of the sorted batch that take the same path.

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
    """What `render_view` does to each image of a batch, sorted so that images with the same path are adjacent.

    Attributes:
        rows: for each row of the sorted batch the image's position in the batch.
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

    def pin_memory(self) -> "ViewDraws":
        """Move to page-locked memory, from which transfers to a GPU need not be waited for."""
        return replace(self, rows=self.rows.pin_memory(), numbers=self.numbers.pin_memory())

    def to(self, device: torch.device | str) -> "ViewDraws":
        """Move the tensors to a device."""
        rows, numbers = (tensor.to(device, non_blocking=True) for tensor in (self.rows, self.numbers))
        return replace(self, rows=rows, numbers=numbers)


def drawn(
    settings: ViewSettings, seed: int, epoch: int, indices: Int64[np.ndarray, " n"], view: int
) -> Drawn:
    """Draw one view of each image: a pure function of (seed, epoch, index, view).

    Source: torchvision's ColorJitter, RandomGrayscale and RandomHorizontalFlip, which have the same distributions.
    """
    numbers = uniforms(seed, epoch, indices, f"colour-{view}", COLOR_DRAWS)
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
        seed: the run's seed, at least 0.
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
