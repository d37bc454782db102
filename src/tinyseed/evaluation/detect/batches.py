"""Scenes become resized images and targets. Imports scenes.py, masks.py and data.

Order, size and flip of each training image are addressed by (seed, epoch, image): a batch follows from its step's
number alone, so a resumed run sees the very same.
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
from tinyseed.errors import RunError
from tinyseed.evaluation.detect.masks import decompress
from tinyseed.evaluation.detect.scenes import Instance, Scene

Target = dict[str, Tensor]
"""What torchvision's detectors take: boxes float32 [n, 4], labels int64 [n] from 1 on, masks uint8 [n, h, w]."""

_LONG_SIDE = 1333 / 800
_MOST_UNREADABLE = 20


@dataclass(frozen=True)
class Sizes:
    """Short sides in pixels that images are resized to; the long side stays within 1333/800 of it.

    Attributes:
        short: one is drawn for each training image; test images get the last.

    Source: Lin et al., Feature Pyramid Networks, CVPR 2017: 800 px; Detectron2's schedules: long side up to 1,333.
    """

    short: tuple[int, ...]

    def fit(self, width: int, height: int, short: int) -> tuple[int, int]:
        """Width and height of an image once it is resized.

        >>> Sizes((800,)).fit(640, 480, 800), Sizes((800,)).fit(2000, 500, 800)
        ((1067, 800), (1333, 333))
        """
        scale = min(short / min(width, height), short * _LONG_SIDE / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1], each of its own size, and their targets; `places` are their positions among the scenes."""

    images: list[Float[Tensor, "3 _ _"]]
    targets: list[Target]
    places: list[int]


def trainable(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes with something to learn from: an object that is no crowd."""
    return [scene for scene in scenes if any(not instance.crowd for instance in scene.instances)]


def training_batch(
    scenes: Sequence[Scene], step: int, *, size: int, sizes: Sizes, seed: int, masks: bool
) -> Batch:
    """The images of one step; epochs follow each other without a gap, each in an order of its own.

    An unreadable image gives its place to the next of the data set.

    Raises:
        RunError: many images in a row cannot be read.
    """
    images, targets, places = [], [], []
    for position in range(step * size, (step + 1) * size):
        epoch, rank = divmod(position, len(scenes))
        place = int(_order(seed, epoch, len(scenes))[rank])
        image, target = _readable(scenes, place, epoch, sizes, seed, masks=masks)
        images.append(image)
        targets.append(target)
        places.append(place)
    return Batch(images, targets, places)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " n"]:
    return permutation(seed, epoch, count)


def _readable(
    scenes: Sequence[Scene], place: int, epoch: int, sizes: Sizes, seed: int, *, masks: bool
) -> tuple[Float[Tensor, "3 h w"], Target]:
    for step in range(_MOST_UNREADABLE):
        chosen = (place + step) % len(scenes)
        draws = uniforms(seed, epoch, np.array([chosen]), "detect", 2)[0]
        short = sizes.short[int(draws[0] * len(sizes.short))]
        try:
            return _view(scenes[chosen], sizes, short, flip=bool(draws[1] < 0.5), masks=masks)
        except BadImage:
            continue
    raise RunError(f"{_MOST_UNREADABLE} images in a row cannot be read, the first is {scenes[place].path}")


def _view(
    scene: Scene, sizes: Sizes, short: int, *, flip: bool, masks: bool
) -> tuple[Float[Tensor, "3 h w"], Target]:
    width, height = sizes.fit(scene.width, scene.height, short)
    image = load(scene, (width, height))
    instances = [instance for instance in scene.instances if not instance.crowd]
    scale = torch.tensor([width / scene.width, height / scene.height]).repeat(2)
    boxes = torch.tensor([instance.box for instance in instances]).reshape(-1, 4) * scale
    target = {"boxes": boxes, "labels": torch.tensor([instance.label + 1 for instance in instances])}
    if masks:
        target["masks"] = _masks(instances, (height, width))
    if flip:
        image = image.flip(2)
        target["boxes"] = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
        if masks:
            target["masks"] = target["masks"].flip(2)
    return image, target


def load(scene: Scene, size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """A scene's image at a width and height, in [0, 1].

    Raises:
        BadImage: it cannot be read, or stands upright by its EXIF only, which boxes do not know.
    """
    image = decode(scene.path.read_bytes())
    if image.size != (scene.width, scene.height):
        raise BadImage("is turned by its EXIF; its boxes are not")
    resized = np.array(image.resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1).float().div_(255)


def _masks(instances: Sequence[Instance], size: tuple[int, int]) -> UInt8[Tensor, "n h w"]:
    rasters = [decompress(instance.mask) for instance in instances if instance.mask is not None]
    assert len(rasters) == len(instances), "masks are read with the scenes, or not asked for"
    stacked = torch.from_numpy(np.stack(rasters))[:, None].float()
    return torch.nn.functional.interpolate(stacked, size=size, mode="nearest-exact")[:, 0].byte()


def prefetched(steps: range, scenes: Sequence[Scene], *, workers: int, **settings: object) -> Iterator[Batch]:
    """The batches of these steps, the next ones decoded by threads beside the network where there are workers."""

    def make(step: int) -> Batch:
        return training_batch(scenes, step, **settings)  # pyright: ignore[reportArgumentType]

    if workers == 0:
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(make, step) for step in steps[:workers]]
        for step in range(steps.start + workers, steps.stop + workers):
            batch = ahead.pop(0).result()
            if step < steps.stop:
                ahead.append(pool.submit(make, step))
            yield batch
