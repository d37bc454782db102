"""Embed a data set once: images in, a bank of features out, kept between runs on request.

Imports data, errors, shapes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseed.data.cache import read_arrays, write_arrays
from tinyseed.data.render import normalize
from tinyseed.errors import RunError
from tinyseed.files import cache_folder, digest
from tinyseed.shapes import AnyPixels, Features, Images, Indices

Channels = tuple[float, ...]
"""A number for each channel."""

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Batch(Protocol):
    """Images and their positions in the source; those that could not be read are absent."""

    @property
    def pixels(self) -> AnyPixels:
        """uint8 [n, 3, h, w], or bands as float32 in [0, 1]."""
        ...

    @property
    def indices(self) -> Indices:
        """Positions in the source."""
        ...


@dataclass(frozen=True)
class FeatureBank:
    """Features of the readable images of a data set, on the CPU.

    Attributes:
        features: float32 or, for large data sets, float16; a row an image.
        indices: the images' positions in their source.
        labels: their classes, -1 where unknown; None where the source has none at all.
    """

    features: Float[Tensor, "n f"]
    indices: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"] | None = None


@contextmanager
def evaluating(module: Module) -> Iterator[Module]:
    """The module in evaluation mode; afterwards each of its parts is in the mode that it was in before."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in before:
            part.training = training


@torch.no_grad()
def embed(
    features: Callable[[Images], Features],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    mean: Channels,
    std: Channels,
    bands: Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    labels: NDArray[np.int64] | None = None,
) -> FeatureBank:
    """Features of all images, in the order of the batches.

    Args:
        features: a network in evaluation mode (see `evaluating`), from normalised images to one row each.
        batches: images and their positions.
        device: where the network is.
        mean: what the network's input is normalised by, for pixels in [0, 1].
        std: as mean.
        bands: which of the images' channels the network sees, from 0; None: all.
        autocast: precision of the network, None for float32. The bank is float32 in any case.
        labels: of the whole source (-1 where unknown), from which the bank takes those of its images.

    Raises:
        RunError: there was not a single readable image.
    """
    rows, indices = [], []
    for batch in batches:
        if len(batch.indices) == 0:
            continue
        images = _unit(batch.pixels, device, bands)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            rows.append(features(normalize(images, mean, std, out=images)).float().cpu())
        indices.append(batch.indices)
    if not rows:
        raise RunError("no image could be read, so there is nothing to evaluate")
    positions = torch.cat(indices)
    known = None if labels is None else torch.from_numpy(labels[positions.numpy()])
    return FeatureBank(torch.cat(rows), positions, known)


def _unit(pixels: AnyPixels, device: torch.device, bands: Sequence[int] | None) -> Float32[Tensor, "n _ h w"]:
    """A batch on the device in [0, 1]: memory of its own, that may be changed."""
    chosen = pixels if bands is None else pixels[:, list(bands)]
    images = chosen.to(device, torch.float32, copy=True, memory_format=torch.channels_last)
    return images.div_(255) if pixels.dtype == torch.uint8 else images


@dataclass(frozen=True)
class BankKey:
    """What decides the features of a data set.

    Attributes:
        model: digest of the frozen model's weights, input contract, and how it sees images of other bands.
        source: fingerprint of the images.
        size: side of the evaluation view in pixels.
        precision: of the network ("32", "bf16", …).
    """

    model: str
    source: str
    size: int
    precision: str = "32"

    @property
    def path(self) -> Path:
        """Where the bank is kept: $TINYSEED_CACHE, else the user's cache folder."""
        name = digest("features", self.model, self.source, self.size, self.precision)
        return cache_folder() / "features" / f"{name}.safetensors"


def cached(key: BankKey, compute: Callable[[], FeatureBank]) -> FeatureBank:
    """The bank kept under this key; otherwise compute it and keep it.

    For frozen models. A damaged file counts as none; where the cache cannot be written, the bank is only
    returned.
    """
    kept = find(key)
    if kept is not None:
        return kept
    bank = compute()
    keep(key, bank)
    return bank


def keep(key: BankKey, bank: FeatureBank) -> None:
    """Write a bank into the cache, if that can be."""
    arrays = {"features": bank.features.numpy().view(np.uint8), "indices": bank.indices.numpy()}
    if bank.labels is not None:
        arrays["labels"] = bank.labels.numpy()
    # A full or read-only cache costs the next run some time, and this one nothing.
    with suppress(OSError, RunError):
        write_arrays(key.path, arrays, {"dtype": str(bank.features.numpy().dtype)})


def find(key: BankKey) -> FeatureBank | None:
    """The bank that is kept under this key; None where there is none, or a damaged one."""
    stored = read_arrays(key.path)
    if stored is None or not {"features", "indices"} <= stored.arrays.keys():
        return None
    dtype = np.float16 if stored.texts.get("dtype") == "float16" else np.float32
    features = torch.from_numpy(stored.arrays["features"].view(dtype))
    labels = stored.arrays.get("labels")
    indices = torch.from_numpy(stored.arrays["indices"])
    return FeatureBank(features, indices, None if labels is None else torch.from_numpy(labels))
