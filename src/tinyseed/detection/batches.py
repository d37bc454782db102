"""Annotated images become batches of resized images and targets.

The order of the training images, their sizes and flips are addressed by (seed, epoch, image): a batch follows from the
number of its step, so training resumes with the same batches.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from tinyseed.data.addressed import permutation, uniforms
from tinyseed.data.decode import BadImage, decode
from tinyseed.data.reading import read_file
from tinyseed.detection.annotations import AnnotatedImage, Instance, Rle
from tinyseed.detection.masks import decompress
from tinyseed.errors import RunError, first_line

Target = dict[str, Tensor]
"""What torchvision's detectors take: boxes float32 [n, 4], labels int64 [n] from 1 on, masks uint8 [n, h, w]."""

_LONG_SIDE = 1333 / 800
_MOST_UNREADABLE = 20


@dataclass(frozen=True)
class Views:
    """How batches are made.

    Attributes:
        batch_size: images per step.
        sizes: short sides in pixels; one is drawn for each training image, test images get the last.
        seed: of the order, sizes and flips of the training images.
        masks: whether targets and detections include masks.
    """

    batch_size: int
    sizes: tuple[int, ...]
    seed: int = 0
    masks: bool = False


def resized(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height of an image whose short side becomes `short` pixels, or less to keep the long side in bounds.

    Source: Lin et al., Feature Pyramid Networks, CVPR 2017: 800 px; Detectron2's schedules: long side up to 1,333.

    >>> resized(640, 480, 800), resized(2000, 500, 800)
    ((1067, 800), (1333, 333))
    """
    scale = min(short / min(width, height), short * _LONG_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1], each of its own size, their targets, and their positions in the data set."""

    images: list[Float[Tensor, "3 _ _"]]
    targets: list[Target]
    positions: list[int]


def training_batch(images: Sequence[AnnotatedImage], step: int, views: Views) -> Batch:
    """The batch of one step; epochs follow each other without a gap, each in its own order.

    An unreadable image is replaced by the next of the data set.

    Raises:
        RunError: many images in a row cannot be read.
    """
    made, targets, positions = [], [], []
    for place in range(step * views.batch_size, (step + 1) * views.batch_size):
        epoch, rank = divmod(place, len(images))
        position = int(_order(views.seed, epoch, len(images))[rank])
        image, target = _readable(images, position, epoch, views)
        made.append(image)
        targets.append(target)
        positions.append(position)
    return Batch(made, targets, positions)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " n"]:
    return permutation(seed, epoch, count)


def _readable(
    images: Sequence[AnnotatedImage], position: int, epoch: int, views: Views
) -> tuple[Float[Tensor, "3 h w"], Target]:
    for offset in range(_MOST_UNREADABLE):
        chosen = (position + offset) % len(images)
        draws = uniforms(views.seed, epoch, np.array([chosen]), "detect", 2)[0]
        short = views.sizes[int(draws[0] * len(views.sizes))]
        try:
            return _view(images[chosen], views, short, flip=bool(draws[1] < 0.5))
        except BadImage:
            continue
    raise RunError(f"{_MOST_UNREADABLE} images in a row cannot be read, the first is {images[position].path}")


def _view(
    annotated: AnnotatedImage, views: Views, short: int, *, flip: bool
) -> tuple[Float[Tensor, "3 h w"], Target]:
    image = load(annotated, short)
    height, width = image.shape[1:]
    instances = [instance for instance in annotated.instances if not instance.crowd]
    scale = torch.tensor([width / annotated.width, height / annotated.height]).repeat(2)
    boxes = torch.tensor([instance.box for instance in instances]).reshape(-1, 4) * scale
    target = {"boxes": boxes, "labels": torch.tensor([instance.label + 1 for instance in instances])}
    if views.masks:
        target["masks"] = _masks(instances, (height, width))
    return _flipped(image, target) if flip else (image, target)


def _flipped(image: Float[Tensor, "3 h w"], target: Target) -> tuple[Float[Tensor, "3 h w"], Target]:
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    width = image.shape[2]
    flipped = target | {"boxes": torch.stack((width - x2, y1, width - x1, y2), 1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(2)
    return image.flip(2), flipped


def load(annotated: AnnotatedImage, short: int) -> Float[Tensor, "3 h w"]:
    """An image resized to a short side in pixels, in [0, 1].

    Raises:
        BadImage: it cannot be read, or has another size than its annotations were read for.
        RunError: the process or the system lacks resources to read it.
    """
    try:
        image = decode(read_file(annotated.path))
    except OSError as error:
        raise BadImage(first_line(error)) from error
    if image.size != (annotated.width, annotated.height):
        raise BadImage("its size is another than when the annotations were read")
    pixels = np.array(image.resize(resized(*image.size, short), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)


def _masks(instances: Sequence[Instance], size: tuple[int, int]) -> UInt8[Tensor, "n h w"]:
    masks = [instance.mask for instance in instances if instance.mask is not None]
    assert len(masks) == len(instances), "masks are read with the annotations, or not asked for"
    return torch.stack(
        [_mask(mask, size) for mask in masks]
    )  # one by one: photos can be large, and masks many


def _mask(mask: Rle, size: tuple[int, int]) -> UInt8[Tensor, "h w"]:
    raster = torch.from_numpy(decompress(mask))[None, None].float()
    return torch.nn.functional.interpolate(raster, size=size, mode="nearest-exact")[0, 0].byte()


def prefetched(steps: range, images: Sequence[AnnotatedImage], views: Views, workers: int) -> Iterator[Batch]:
    """The batches of these steps; with `workers`, threads decode the next ones while the network computes."""
    if workers == 0:
        yield from (training_batch(images, step, views) for step in steps)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(training_batch, images, step, views) for step in steps[:workers]]
        for step in range(steps.start + workers, steps.stop + workers):
            batch = ahead.pop(0).result()
            if step < steps.stop:
                ahead.append(pool.submit(training_batch, images, step, views))
            yield batch
