"""Settings that the evaluations share, and the checks that they are made of.

An evaluation extends one of the two classes with settings of its own and checks those in `check`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyseed.errors import InputError

BankPrecision = Literal["auto", "32", "16"]
"""Bits per number of features that are kept."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The data, its size, and where the report goes."""

    train_data: tuple[str, ...]
    """Labeled training images: folders with one sub-folder per class, Parquet files, or torchvision:NAME."""
    test_data: tuple[str, ...]
    """Labeled test images; their classes are matched to those of the training images by name."""
    image_size: int | Literal["auto"] = "auto"
    """Side of the images in pixels; auto: the size that the model was trained with."""
    limit: int | None = None
    """Largest number of images to use from each split, for a quick look; by default all."""
    out: Path | None = None
    """Folder for the report (JSON and Markdown); by default the model's run folder, if it has one."""
    workers: int = 0
    """Number of processes that decode images; 0 decodes in the main process."""
    seed: int = 0
    """Seed of all random choices."""

    def check(self) -> None:
        """Refuse settings that are out of range.

        Raises:
            InputError: names the first such setting.
        """
        at_least(1, limit=self.limit)
        at_least(0, workers=self.workers, seed=self.seed)
        at_least(8, image_size=self.image_size)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(EvaluationSettings):
    """The settings of an evaluation that trains a network."""

    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic of the network during training; auto: bf16 if the hardware supports it. Metrics are measured in
    float32."""


@dataclass(frozen=True, kw_only=True)
class ModelEvaluationSettings(EvaluationSettings):
    """The settings of an evaluation of one model."""

    model: str
    """Model to evaluate: a run folder, a checkpoint file or its URL, a backbone's name, or random:NAME."""
    model_arch: str | None = None
    """Architecture of a checkpoint file that does not say which it holds, as a backbone's name."""


def at_least(least: float, **settings: float | str | None) -> None:
    """Refuse the first of these settings that is below a bound; None and texts such as "auto" pass.

    >>> at_least(1, epochs=0)
    Traceback (most recent call last):
    tinyseed.errors.InputError: epochs=0: give a number of at least 1
    """
    for name, value in settings.items():
        if value is not None and not isinstance(value, str) and not value >= least:  # NaN is refused, too
            raise InputError(value, f"give a number of at least {least}", argument=name)


def positive(**settings: tuple[float, ...]) -> None:
    """Refuse the first number among these settings that is not above 0 and finite.

    >>> positive(lr=(0.1, 0.0))
    Traceback (most recent call last):
    tinyseed.errors.InputError: lr=0.0: give a number above 0
    """
    for name, values in settings.items():
        for value in values:
            if not 0 < value < math.inf:
                raise InputError(value, "give a number above 0", argument=name)
