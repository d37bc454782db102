"""Features of a data set: images in, one row per image out, computed once by a frozen model and kept in the cache."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseed.data.base import Source
from tinyseed.data.cache import read_arrays, write_arrays
from tinyseed.data.loader import BadRecord, EvaluationBatch, evaluation_batches
from tinyseed.data.readers import Reader, reader_for
from tinyseed.data.render import normalize
from tinyseed.errors import RunError
from tinyseed.evaluation.splits import Split, Splits
from tinyseed.files import cache_folder, digest
from tinyseed.models.backbones import Backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.models.folding import fold_batch_norm
from tinyseed.models.teacher import weights_digest
from tinyseed.progress import track
from tinyseed.settings.evaluation import BankPrecision
from tinyseed.shapes import AnyPixels, Features, Images, Indices

BATCH = 128
PIECE = 16 * BATCH
"""Images whose features are kept together: what an interruption costs at most."""

HALF_ABOVE = 1 << 30
"""Numbers in a bank above which "auto" keeps them in half precision: 4 GiB in float32."""

FOLDED_FROM = 4096
"""Images from which on batch norms are folded before they are seen."""

Module = TypeVar("Module", bound=nn.Module)


class NothingReadError(RunError):
    """Not one of the images could be read."""


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
        features: float32 or, for large data sets, float16; one row per image.
        indices: the images' positions in their source.
        labels: their classes, -1 where unknown.
        unreadable: images that could not be read, and have no row.
    """

    features: Float[Tensor, "n f"]
    indices: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    unreadable: int = 0


def device() -> torch.device:
    """The GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_digest(encoder: Encoder) -> str:
    """A text that stands for what decides a backbone's features: its weights and the images that it expects."""
    return f"{weights_digest(encoder.backbone.state_dict())}-{encoder.input}"


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


def folded(encoder: Encoder, images: int) -> Callable[[Images], Features]:
    """An encoder's features for this many images: of many with its batch norms folded, which changes rounding only.

    Args:
        encoder: in evaluation mode.
        images: how many will be seen; tracing and checking the network costs more than it saves on few.
    """
    if images < FOLDED_FROM:
        return encoder.features
    backbone = encoder.backbone
    network = fold_batch_norm(backbone.network, backbone.input.size, backbone.input.channels)
    return Encoder(Backbone(network, backbone.build, backbone.input, backbone.width)).features


@torch.no_grad()
def embed(
    features: Callable[[Images], Features],
    batches: Iterable[Batch],
    contract: InputContract,
    *,
    on: torch.device | None = None,
    bands: Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    labels: NDArray[np.int64] | None = None,
) -> FeatureBank:
    """Features of all images, in the order of the batches.

    Args:
        features: a network in evaluation mode (see `evaluating`), from normalized images to one row each.
        batches: images and their positions.
        contract: says how the network's images are normalized.
        on: device of the network; by default `device()`.
        bands: the channels of the images that the network sees, from 0; None: all.
        autocast: precision of the network, None for float32. The bank is float32 in any case.
        labels: of the whole source, -1 where unknown; None: all are unknown.

    Raises:
        NothingReadError: there was not a single readable image.
    """
    where = on or device()
    rows, indices = [], []
    for batch in batches:
        if len(batch.indices) == 0:
            continue
        images = _unit(batch.pixels, where, bands)
        images = normalize(images, contract.mean, contract.std, out=images)
        with torch.autocast(where.type, dtype=autocast, enabled=autocast is not None):
            rows.append(features(images).float().cpu())
        indices.append(batch.indices)
    if not rows:
        raise NothingReadError("no image could be read, so there is nothing to evaluate")
    positions = torch.cat(indices)
    known = torch.full_like(positions, -1) if labels is None else torch.from_numpy(labels[positions.numpy()])
    return FeatureBank(torch.cat(rows), positions, known)


def _unit(pixels: AnyPixels, where: torch.device, bands: Sequence[int] | None) -> Float32[Tensor, "n _ h w"]:
    """A batch on the device in [0, 1], in memory of its own that may be changed."""
    chosen = pixels if bands is None else pixels[:, list(bands)]
    images = chosen.to(where, torch.float32, copy=True, memory_format=torch.channels_last)
    return images.div_(255) if pixels.dtype == torch.uint8 else images


def view_batches(
    source: Source,
    images: NDArray[np.int64],
    contract: InputContract,
    *,
    workers: int = 0,
    reader: Reader | None = None,
    on_bad: Callable[[Sequence[BadRecord]], object] = len,
) -> Iterator[EvaluationBatch]:
    """The evaluation views of these images, in order, as a network with this input contract expects them.

    Args:
        source: holds the images.
        images: their positions.
        contract: decides size and interpolation.
        workers: number of processes that decode.
        reader: how the images are read; by default as the contract says.
        on_bad: called with the unreadable images of each batch.
    """
    reader = reader or reader_for(contract.channels, contract.pixel_range)
    reader.require(source, images)
    for batch in evaluation_batches(
        source,
        images,
        size=contract.size,
        interpolation=contract.interpolation,
        reader=reader,
        batch_size=BATCH,
        workers=workers,
    ):
        on_bad(batch.bad)
        yield batch


def embed_images(
    features: Callable[[Images], Features],
    source: Source,
    images: NDArray[np.int64],
    contract: InputContract,
    *,
    on: torch.device | None = None,
    title: str | None = None,
    workers: int = 0,
    reader: Reader | None = None,
    bands: Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    on_bad: Callable[[Sequence[BadRecord]], object] = len,
) -> FeatureBank:
    """Features of these images of a source in the evaluation view, with the source's labels.

    `title` names a progress line; the other arguments are those of `view_batches` and `embed`.

    Raises:
        RunError: not one image can be read.
    """
    batches = view_batches(source, images, contract, workers=workers, reader=reader, on_bad=on_bad)
    if title is not None:
        batches = track(batches, title, -(-len(images) // BATCH))
    bank = embed(features, batches, contract, on=on, bands=bands, autocast=autocast, labels=source.labels)
    return replace(bank, unreadable=len(images) - len(bank.indices))


def embed_source(
    encoder: Encoder, source: Source, *, size: int | None = None, workers: int = 0
) -> FeatureBank:
    """Backbone features of a whole source in the evaluation view, labeled or not; nothing is kept in the cache.

    `size` is the side of the view in pixels; by default what the encoder expects.
    """
    contract = replace(encoder.input, size=size or encoder.input.size)
    with evaluating(encoder.to(device())):
        return embed_images(encoder.features, source, np.arange(len(source)), contract, workers=workers)


def embed_splits(
    encoder: Encoder, splits: Splits, *, workers: int = 0, precision: BankPrecision = "auto"
) -> tuple[FeatureBank, FeatureBank]:
    """Backbone features of both splits, the same bank twice if they are the same images; see `embed_split`."""
    train = embed_split(encoder, splits.train, workers=workers, precision=precision, title="training images")
    if splits.same:
        return train, train
    test = embed_split(encoder, splits.test, workers=workers, precision=precision, title="test images")
    return train, test


def embed_split(
    encoder: Encoder,
    split: Split,
    *,
    workers: int = 0,
    precision: BankPrecision = "auto",
    title: str = "features",
) -> FeatureBank:
    """Backbone features of a split's images in the evaluation view, from the cache as far as they are there.

    Peak memory is the bank itself and a piece or two: 5.2 GB for 1.28 M × 2,048 in half precision.

    Args:
        encoder: its input contract says how it sees the images.
        split: the images.
        workers: number of processes that decode.
        precision: bits of the numbers that are kept; "auto": 16 above 2^30 numbers, otherwise 32.
        title: for the progress line.

    Raises:
        RunError: no image can be read, or features are beyond half precision's range.
    """
    half = precision == "16" or (precision == "auto" and len(split) * encoder.width > HALF_ABOVE)
    dtype = torch.float16 if half else torch.float32
    rows = torch.empty(len(split), encoder.width, dtype=dtype)
    positions = torch.empty(len(split), dtype=torch.int64)
    filled, bad = 0, list[BadRecord]()
    for bank in _pieces(encoder, split, dtype, workers=workers, title=title, bad=bad):
        end = filled + len(bank.indices)
        rows[filled:end], positions[filled:end] = bank.features, bank.indices
        filled = end
    if not filled:
        why = f" (the last, {bad[-1].name}: {bad[-1].reason})" if bad else ""
        raise RunError(f"no image could be read, so there is nothing to evaluate{why}")
    rows, positions = rows[:filled], positions[:filled]
    return FeatureBank(rows, positions, split.labels_of(positions), len(split) - filled)


def _pieces(
    encoder: Encoder, split: Split, dtype: torch.dtype, *, workers: int, title: str, bad: list[BadRecord]
) -> Iterator[FeatureBank]:
    """The bank of each piece in order; one loader runs over all that the cache lacks, so that workers start once.

    `bad` gets the images that could not be read; a piece without a readable one is not kept.
    """
    pieces = [split.indices[start : start + PIECE] for start in range(0, len(split), PIECE)]
    keys = _keys(encoder, split, pieces, dtype)
    missing = [not key.path.is_file() for key in keys]
    images = np.concatenate(
        [np.empty(0, np.int64), *(p for p, gone in zip(pieces, missing, strict=True) if gone)]
    )

    def batches(of: NDArray[np.int64], workers: int) -> Iterator[EvaluationBatch]:
        return view_batches(split.source, of, encoder.input, workers=workers, on_bad=bad.extend)

    tracked = track(batches(images, workers) if len(images) else (), title, -(-len(images) // BATCH))
    with closing(tracked) as stream, evaluating(encoder.to(device())):
        features = folded(encoder, len(split)) if any(missing) else encoder.features
        for piece, key, gone in zip(pieces, keys, missing, strict=True):
            bank = None if gone else find(key)
            if bank is None:  # a damaged piece is read outside the stream
                own = stream if gone else batches(piece, 0)
                bank = _embed_piece(encoder, features, islice(own, -(-len(piece) // BATCH)), dtype)
                if len(bank.indices):
                    keep(key, bank)
            yield bank


def _keys(
    encoder: Encoder, split: Split, pieces: list[NDArray[np.int64]], dtype: torch.dtype
) -> list["BankKey"]:
    model = model_digest(encoder)
    precision = f"{16 if dtype == torch.float16 else 32}-{device().type}"
    if len(split) >= FOLDED_FROM:
        precision += "-folded"
    return [
        BankKey(model, f"{split.source.fingerprint}-{digest(piece)}", encoder.input.size, precision)
        for piece in pieces
    ]


def _embed_piece(
    encoder: Encoder,
    features: Callable[[Images], Features],
    batches: Iterator[EvaluationBatch],
    dtype: torch.dtype,
) -> FeatureBank:
    try:
        bank = embed(features, batches, encoder.input)
    except NothingReadError:  # not one readable image in this piece; whether in all is seen at the end
        nothing = torch.empty(0, dtype=torch.int64)
        return FeatureBank(torch.empty(0, encoder.width, dtype=dtype), nothing, nothing)
    rows = bank.features.to(dtype)
    if dtype == torch.float16 and bool(rows.isinf().any()) and bool(bank.features.isfinite().all()):
        raise RunError("the features are beyond half precision's range: set `bank_precision` to 32")
    return FeatureBank(rows, bank.indices, bank.labels)


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
        """Where the bank is kept: $TINYSEED_CACHE, otherwise the user's cache folder."""
        name = digest("features", self.model, self.source, self.size, self.precision)
        return cache_folder() / "features" / f"{name}.safetensors"


def cached(key: BankKey, compute: Callable[[], FeatureBank]) -> FeatureBank:
    """The bank of a frozen model that is kept under this key; otherwise it is computed and kept.

    A damaged file counts as absent; if the cache cannot be written, the bank is only returned.
    """
    kept = find(key)
    if kept is not None:
        return kept
    bank = compute()
    keep(key, bank)
    return bank


def keep(key: BankKey, bank: FeatureBank) -> None:
    """Write a bank into the cache, if possible."""
    arrays = {"features": bank.features.numpy().view(np.uint8), "indices": bank.indices.numpy()}
    arrays["labels"] = bank.labels.numpy()
    # A full or read-only cache costs the next run some time, and this one nothing.
    with suppress(OSError, RunError):
        write_arrays(key.path, arrays, {"dtype": str(bank.features.numpy().dtype)})


def find(key: BankKey) -> FeatureBank | None:
    """The bank that is kept under this key; None if there is none or a damaged one."""
    stored = read_arrays(key.path)
    if stored is None or not {"features", "indices"} <= stored.arrays.keys():
        return None
    dtype = np.float16 if stored.texts.get("dtype") == "float16" else np.float32
    indices = stored.arrays["indices"]
    labels = stored.arrays.get("labels", np.full_like(indices, -1))
    features = stored.arrays["features"].view(dtype)
    return FeatureBank(torch.from_numpy(features), torch.from_numpy(indices), torch.from_numpy(labels))
