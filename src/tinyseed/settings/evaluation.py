"""Settings that the evaluations share; each evaluation extends one of these classes with settings of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tinyseed.settings.base import COUNTS, IMAGE_SIDES, SEEDS, WORKERS, Range, Settings

BankPrecision = Literal["auto", "32", "16"]
"""Bits per number of features that are kept."""

ClassifierSchedule = Literal["step", "cosine", "cosine-epoch"]
"""The learning rate of a classifier in training: see `classifier.Recipe`."""

HeadInit = Literal["normal", "uniform"]
"""Initial weights of a new linear layer: "normal" with standard deviation 0.01 and a bias of 0, as in MoCo's and SwAV's
linear probes; "uniform" up to ± 1 / √width, the bias too, as torch initializes it and SwAV's eval_semisup.py leaves
it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """The data, its size, and where the report goes."""

    RANGES: ClassVar = {
        "image_size": IMAGE_SIDES,
        "limit": COUNTS,
        "workers": WORKERS,
        "seed": SEEDS,
    }

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


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(EvaluationSettings):
    """The settings of an evaluation that trains a network."""

    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic of the network during training; auto: bf16 if the hardware supports it. Metrics are measured in
    float32."""


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(EvaluationSettings):
    """The settings of an evaluation that has recipes."""

    recipe: str | None = None
    """Named settings to start from (see `tinyseed recipes`); flags given beside it take precedence."""


@dataclass(frozen=True, kw_only=True)
class ModelEvaluationSettings(EvaluationSettings):
    """The settings of an evaluation of one model."""

    model: str
    """Model to evaluate: a run folder, a checkpoint file or its URL, a backbone's name, or random:NAME."""
    model_arch: str | None = None
    """Architecture (a backbone's name) of a checkpoint file that does not specify it."""
    model_prefix: str | None = None
    """Part of a checkpoint file, by what its tensors' names begin with: one of several networks or a module."""
    model_output: Literal["backbone", "head", "trunk"] = "backbone"
    """What is evaluated: the backbone's features ("trunk" means the same), or the unit-length embedding after the
    head."""
    model_mean: tuple[float, ...] = ()
    """Mean by channel of the images that the model expects, from 0 to 1. By default what is known of it."""
    model_std: tuple[float, ...] = ()
    """Standard deviation by channel. By default what is known of the model."""
    model_interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """How images are resized for the model; auto: as it was trained."""

    RANGES: ClassVar = {"model_mean": Range(-1000, 1000), "model_std": Range(0, above=True)}
