"""Settings of images with other channels than red, green and blue, and what follows from them. Imports data and models.

Below config.py, which takes its settings from here.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.data.base import Source
from tinyseed.data.loader import BadRecord, evaluation_batches
from tinyseed.data.readers import RGB, BandReader, Reader, reader_for
from tinyseed.errors import InputError
from tinyseed.models.contract import InputContract

MEASURED = frozenset({"channel_mean", "channel_std"})
"""Settings that the first part of a run measures where they are not given."""

MEASURED_ON = 1024
"""Training images, at most, whose mean and standard deviation are measured."""

_CONSTANT = 1e-6


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """The channels of the images that a network is trained on."""

    channels: int = 3
    """Channels (bands) of the images; 3 is RGB."""
    pixel_range: tuple[float, ...] = ()
    """Stored values that become 0 and 1, as in 0 10000; by default what the files' type holds (floats: 0 1)."""
    channel_mean: tuple[float, ...] = ()
    """Mean of each channel, from 0 to 1; by default measured, for RGB ImageNet's."""
    channel_std: tuple[float, ...] = ()
    """Standard deviation of each channel; by default as the mean."""


def image_reader(config: ChannelConfig) -> Reader:
    """How the images are read."""
    return reader_for(config.channels, config.pixel_range)


def check_channels(config: ChannelConfig) -> None:
    """Refuse settings that no images can have.

    Raises:
        InputError: names the first wrong flag.
    """
    span = config.pixel_range
    if span and not (len(span) == 2 and all(map(math.isfinite, span)) and span[0] < span[1]):
        raise InputError("--pixel-range", _words(span), "give two numbers, the lower first, as in 0 10000")
    for flag, values in (("--channel-mean", config.channel_mean), ("--channel-std", config.channel_std)):
        if values and (len(values) != config.channels or not all(map(math.isfinite, values))):
            raise InputError(flag, _words(values), f"give {config.channels} numbers, one for each channel")
    if any(value <= 0 for value in config.channel_std):
        raise InputError("--channel-std", _words(config.channel_std), "give numbers above 0")
    if bool(config.channel_mean) != bool(config.channel_std):
        missing = "--channel-std" if config.channel_mean else "--channel-mean"
        raise InputError(missing, "missing", "give mean and standard deviation, or neither")
    for band in getattr(config, "teacher_bands", ()):
        _check_band(band, config.channels)


def _check_band(band: int, channels: int) -> None:
    if not 1 <= band <= channels:
        have = "1 channel" if channels == 1 else f"{channels} channels"
        raise InputError(
            "--teacher-bands", band, f"the images have {have}; give numbers from 1 to {channels}"
        )


def teacher_bands(config: ChannelConfig, teacher: InputContract) -> tuple[int, ...] | None:
    """The channels that the teacher sees, from 0; None: all as they are.

    Raises:
        InputError: they are too few or too many, they have to be said, or the teacher knows another pixel range.
    """
    given: tuple[int, ...] = getattr(config, "teacher_bands", ())
    wanted = teacher.channels
    if reader_for(wanted, teacher.pixel_range) != RGB and teacher.pixel_range != config.pixel_range:
        remedy = f"the teacher was trained with {_words(teacher.pixel_range) or 'the default'}; give the same"
        raise InputError("--pixel-range", _words(config.pixel_range) or "default", remedy)
    if given:
        if len(given) != wanted:
            raise InputError(
                "--teacher-bands", _words(given), f"the teacher sees {wanted} channels; give so many"
            )
        return tuple(band - 1 for band in given)
    if config.channels == wanted:
        return None
    if config.channels == 1:
        return (0,) * wanted
    if wanted == 3 and config.channels > 3:
        return (0, 1, 2)
    example = _words(tuple(min(place, config.channels) for place in range(1, wanted + 1)))
    remedy = (
        f"the teacher sees {wanted} channels, the images have {config.channels}; say which, as in {example}"
    )
    raise InputError("--teacher-bands", "missing", remedy)


def measured(
    source: Source, images: NDArray[np.int64], reader: BandReader, size: int, workers: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the evaluation views of these images, to six digits.

    A channel that is the same everywhere has the standard deviation 1, so that it stays so.

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
        remedy = (
            f"none of the {len(images)} images looked at can be read, the last {last.name}: {last.reason}"
        )
        raise InputError("--channels", reader.channels, remedy)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if (std < _CONSTANT).all():
        remedy = (
            f"every pixel looked at becomes {mean[0]:.3g}; give the least and greatest value of the images"
        )
        raise InputError("--pixel-range", _words(reader.pixel_range) or "default", remedy)
    std[std < _CONSTANT] = 1
    return _six_digits(mean), _six_digits(std)


def _six_digits(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
