"""Features of labelled images, computed once: kept in the cache in pieces, so that a stopped evaluation goes on.

Imports data, models, and this room's features.py, common.py and progress.py.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseed.data.loader import BadRecord, EvaluationBatch, evaluation_batches
from tinyseed.errors import RunError, argument
from tinyseed.evaluation.common import Side, bands_seen, device, model_digest
from tinyseed.evaluation.features import BankKey, FeatureBank, embed, evaluating, find, keep
from tinyseed.evaluation.progress import track
from tinyseed.files import digest
from tinyseed.models.encoder import Encoder
from tinyseed.shapes import Features, Indices

BATCH = 128
PIECE = 16 * BATCH
"""Images whose features are kept together: what an interruption costs at most."""

HALF_ABOVE = 1 << 30
"""Numbers in a bank from which on "auto" keeps them in half precision: 4 GiB in float32."""

Precision = Literal["auto", "32", "16"]


@dataclass(frozen=True)
class Photos:
    """Embedded images: features, labels (-1 where there is none) and positions in their source."""

    features: Features
    labels: Tensor
    indices: Indices
    unreadable: int = 0


def embed_side(
    encoder: Encoder, side: Side, *, workers: int = 0, precision: Precision = "auto", title: str = "features"
) -> Photos:
    """Trunk features of a side's images in the evaluation view, from the cache as far as they are there.

    Peak memory is the bank itself and a piece or two: 5.2 GB for 1.28 M × 2,048 in half precision.

    Args:
        encoder: its input contract says how it sees the images.
        side: the images.
        workers: processes that decode.
        precision: of the numbers kept; "auto" takes half precision from 2^30 numbers on.
        title: for the progress line.

    Raises:
        RunError: no image can be read, or features beyond half precision's range.
    """
    half = precision == "16" or (precision == "auto" and len(side) * encoder.width > HALF_ABOVE)
    dtype = torch.float16 if half else torch.float32
    pieces = [side.indices[start : start + PIECE] for start in range(0, len(side), PIECE)]
    keys = _keys(encoder, side, pieces, half=half)
    rows = torch.empty(len(side), encoder.width, dtype=dtype)
    positions = torch.empty(len(side), dtype=torch.int64)
    filled, bad = 0, list[BadRecord]()
    for bank in _pieces(encoder, side, pieces, keys, workers=workers, dtype=dtype, title=title, bad=bad):
        rows[filled : filled + len(bank.indices)] = bank.features
        positions[filled : filled + len(bank.indices)] = bank.indices
        filled += len(bank.indices)
    if not filled:
        why = f" (the last, {bad[-1].name}: {bad[-1].reason})" if bad else ""
        raise RunError(f"no image could be read, so there is nothing to evaluate{why}")
    rows, positions = rows[:filled], positions[:filled]
    labels = side.labels[np.searchsorted(side.indices, positions.numpy())]
    return Photos(rows, torch.from_numpy(labels), positions, len(side) - filled)


def _keys(encoder: Encoder, side: Side, pieces: list[NDArray[np.int64]], *, half: bool) -> list[BankKey]:
    model = model_digest(encoder)
    precision = f"{16 if half else 32}-{device().type}"
    return [
        BankKey(model, f"{side.source.fingerprint}-{digest(piece)}", encoder.input.size, precision)
        for piece in pieces
    ]


def _pieces(
    encoder: Encoder,
    side: Side,
    pieces: list[NDArray[np.int64]],
    keys: list[BankKey],
    *,
    workers: int,
    dtype: torch.dtype,
    title: str,
    bad: list[BadRecord],
) -> Iterator[FeatureBank]:
    """The bank of each piece in order; one loader runs over all that the cache lacks, so that workers start once.

    `bad` gets the images that could not be read; a piece without a readable one is not kept.
    """
    lacking = [piece for piece, key in zip(pieces, keys, strict=True) if not key.path.is_file()]
    images = np.concatenate(lacking) if lacking else np.empty(0, np.int64)
    batches = _batches(encoder, side, images, workers) if len(images) else iter(())
    tracked = track(batches, title, -(-len(images) // BATCH))
    with closing(tracked) as stream, evaluating(encoder.to(device())):
        for piece, key in zip(pieces, keys, strict=True):
            waiting = any(piece is other for other in lacking)
            bank = None if waiting else find(key)
            if bank is None:  # a damaged piece is read outside the stream
                own = stream if waiting else _batches(encoder, side, piece, 0)
                bank = _embed(encoder, _noting(islice(own, -(-len(piece) // BATCH)), bad), dtype)
                if len(bank.indices):
                    keep(key, bank)
            yield bank


def _batches(
    encoder: Encoder, side: Side, images: NDArray[np.int64], workers: int
) -> Iterator[EvaluationBatch]:
    contract = encoder.input
    reader = bands_seen(contract)
    with argument("model"):
        reader.require(side.source, images)
    return iter(
        evaluation_batches(
            side.source,
            images,
            size=contract.size,
            interpolation=contract.interpolation,
            reader=reader,
            batch_size=BATCH,
            workers=workers,
        )
    )


def _noting(batches: Iterator[EvaluationBatch], bad: list[BadRecord]) -> Iterator[EvaluationBatch]:
    for batch in batches:
        bad += batch.bad
        yield batch


def _embed(encoder: Encoder, batches: Iterator[EvaluationBatch], dtype: torch.dtype) -> FeatureBank:
    contract = encoder.input
    try:
        bank = embed(encoder.features, batches, device=device(), mean=contract.mean, std=contract.std)
    except RunError:  # not one readable image in this piece; whether in all is told at the end
        return FeatureBank(torch.empty(0, encoder.width, dtype=dtype), torch.empty(0, dtype=torch.int64))
    rows = bank.features.to(dtype)
    if dtype == torch.float16 and bool(rows.isinf().any()) and bool(bank.features.isfinite().all()):
        raise RunError("features beyond half precision's range: give --bank-precision 32")
    return FeatureBank(rows, bank.indices)
