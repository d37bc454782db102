"""The images of a run: which it trains on, which it is monitored on, and what is measured on them before it starts."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.data.base import Source, notes_of
from tinyseed.data.loader import BadRecord, evaluation_batches
from tinyseed.data.readers import BandReader, Reader, reader_for
from tinyseed.data.sources import open_source
from tinyseed.data.split import held_out_split, sample
from tinyseed.errors import InputError, argument
from tinyseed.settings.base import words
from tinyseed.settings.train import TrainSettings

MEASURED_ON = 1024
"""Maximum number of training images on which the channels are measured."""

FEWEST_IN_BANK = 1024
"""Training images up to which all are searched, however few are held out."""

_CONSTANT = 1e-6


@dataclass(frozen=True)
class RunData:
    """The images of a run.

    Attributes:
        training: positions in `source` that are trained on.
        held_out: positions in `held_out_source` that are evaluated.
        bank: positions in `source` that k-NN searches.
        reader: how images are decoded.
    """

    source: Source
    training: NDArray[np.int64]
    held_out_source: Source
    held_out: NDArray[np.int64]
    bank: NDArray[np.int64]
    reader: Reader

    @property
    def notes(self) -> tuple[str, ...]:
        """What the sources have to say, for the user."""
        return tuple(dict.fromkeys((*notes_of(self.source), *notes_of(self.held_out_source))))


def open_data(settings: TrainSettings) -> RunData:
    """Find the images of a run.

    Raises:
        InputError: a path is wrong, a reader is missing, or there are fewer images than a batch takes.
    """
    with argument("data"):
        source = open_source(settings.data)
    if settings.val_data:
        with argument("val_data"):
            held_out_source = open_source(settings.val_data)
        training, held_out = np.arange(len(source)), np.arange(len(held_out_source))
    else:
        held_out_source = source
        training, held_out = held_out_split(len(source), settings.seed)
    if len(training) < settings.batch_size:
        remedy = (
            f"exceeds the number of training images ({len(training)}); give a smaller batch or more images"
        )
        raise InputError(settings.batch_size, remedy, argument="batch_size")
    reader = reader_for(settings.channels, settings.pixel_range)
    evaluated = sample(held_out, settings.validation_images, settings.seed, "validation")
    bank = bank_size(len(evaluated), settings.validation_images)
    with argument("data"):
        reader.require(source, training)
    return RunData(
        source,
        training,
        held_out_source,
        evaluated,
        sample(training, bank, settings.seed, "bank"),
        reader,
    )


def bank_size(held_out: int, limit: int) -> int:
    """How many training images k-NN searches: four for each held-out image, at least 1,024, at most 4 × `limit`.

    The top-1 of m held-out images has a standard error of √(p (1 − p) / m): up to 2.5 points of 400, 1.6 of 1,024. That
    the bank is a sample adds to it: one of B images that are searched is among the k neighbors of k m / B held-out ones
    and decides the class of about one in k, so exchanging it changes m / B classes on average, and about (m / B) +
    (m / B)² in the square. By the Efron-Stein inequality the variance that the bank adds is then at most
    (1 / m + 1 / B) / 2: however many more than 4 m were searched, it would not fall by more than a fifth.
    """
    return min(4 * limit, max(4 * held_out, FEWEST_IN_BANK))


def measured(
    source: Source, images: NDArray[np.int64], reader: BandReader, size: int, workers: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the evaluation views of these images, to six digits.

    A channel that is the same everywhere gets the standard deviation 1, so that it stays so.

    Raises:
        InputError: no image can be read, or all channels are the same everywhere.
    """
    total, squares, count = np.zeros(reader.channels), np.zeros(reader.channels), 0
    bad: list[BadRecord] = []
    for batch in evaluation_batches(source, images, size=size, reader=reader, workers=workers):
        bad += batch.bad
        values = batch.pixels.to(torch.float64)
        total += values.sum((0, 2, 3)).numpy()
        squares += values.square().sum((0, 2, 3)).numpy()
        count += len(values) * size * size
    if not count:
        last = bad[-1]
        remedy = f"none of {len(images)} images can be read, the last is {last.name}: {last.reason}"
        raise InputError(reader.channels, remedy, argument="channels")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if (std < _CONSTANT).all():
        remedy = f"every pixel becomes {mean[0]:.3g}; give the smallest and the largest value of the images"
        raise InputError(words(reader.pixel_range) or "default", remedy, argument="pixel_range")
    std[std < _CONSTANT] = 1
    return _six_digits(mean), _six_digits(std)


def _six_digits(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
