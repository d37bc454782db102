"""What a run is: frozen, complete settings. The command line and the Python functions only fill these fields.

Imports the methods' settings. Field names are flag names (`batch_size` is `--batch-size`).
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinyseed.engine.channels import ChannelConfig, check_channels
from tinyseed.errors import InputError
from tinyseed.methods.moco import MoCoConfig
from tinyseed.methods.seed import SeedConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ChannelConfig):
    """What every training run has."""

    data: tuple[str, ...]
    """Images to learn from: folders, Parquet files, or text files of paths. Labels are never trained on."""
    out: Path
    """Folder that the run is written to."""
    val_data: tuple[str, ...] = ()
    """Images to watch the run on; without it 10 % of the data are held out."""
    epochs: int = 200
    """Passes over the data."""
    max_minutes: float | None = None
    """Train for so many minutes instead of `--epochs`; the schedule stretches over them."""
    batch_size: int = 256
    """Images a step, over all devices."""
    accumulate: int = 1
    """Forward passes that a step's images are divided over, where memory is short."""
    image_size: int = 224
    """Side of the views in pixels."""
    small_stem: bool = False
    """For inputs up to 64 px (ResNets): 3×3 stem of stride 1, no max-pool."""
    optimizer: Literal["sgd"] = "sgd"
    """Optimizer."""
    lr: float = 0.03
    """Learning rate for a batch of 256; scaled linearly with the batch size."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup_epochs: float | Literal["auto"] = "auto"
    """Epochs of linear warm-up; auto: 5, at most a tenth of the run."""
    seed: int = 0
    """Seed of every random choice."""
    devices: str = "auto"
    """How many GPUs, or CPU processes; auto: all GPUs of this machine, or one process on the CPU."""
    nodes: int = 1
    """Machines that train together (start each by torchrun)."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Arithmetic of the networks; auto: bf16 where the hardware has it."""
    workers: int | Literal["auto"] = "auto"
    """Processes that decode images, for each device."""
    resume: bool = False
    """Go on with the run that `--out` holds."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is written after each epoch and at least this often."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int = 1
    """Epochs between evaluations on the held-out images."""
    validation_images: int = 1024
    """At most so many held-out images are evaluated (k-NN: against four times as many)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(SeedConfig, TrainConfig):
    """`tinyseed distill`: a student learns from a frozen teacher."""

    teacher: str
    """Frozen network to learn from: a run folder, an exported file, or a model's name (timm's, or torchvision/NAME)."""
    student: str
    """Network to train: a model's name (timm's, or torchvision/NAME)."""
    teacher_weights: str | None = None
    """Weights of a teacher that is given by name: a file, or `random` for controls."""
    teacher_image_size: int | Literal["auto"] = "auto"
    """Side of the views in pixels that the teacher sees; auto: `--image-size`, or the next size that it can take."""
    teacher_bands: tuple[int, ...] = ()
    """Channels, from 1, that the teacher sees as red, green and blue; by default the first three, or the one thrice."""


@dataclass(frozen=True, kw_only=True)
class PretrainMoCoConfig(MoCoConfig, TrainConfig):
    """`tinyseed pretrain moco-v2`: a network learns by itself."""

    backbone: str
    """Network to train: a model's name (timm's, or torchvision/NAME)."""


RunConfig = DistillConfig | PretrainMoCoConfig

HARMLESS = frozenset(
    {"resume", "workers", "devices", "checkpoint_minutes", "log_every", "data", "val_data", "out", "teacher"}
    | {"teacher_weights", "validation_images", "evaluate_every"}
)
"""Settings in which a resumed run may differ from its beginning (moved folders are told apart by their contents)."""


def verb(config: RunConfig) -> str:
    """The command that makes such a run."""
    match config:
        case DistillConfig():
            return "distill"
        case PretrainMoCoConfig():
            return "pretrain moco-v2"


def title(config: RunConfig) -> str:
    """What a run does, in a few words."""
    match config:
        case DistillConfig():
            return f"{config.teacher} → {config.student}"
        case PretrainMoCoConfig():
            return f"MoCo-v2 {config.backbone}"


def as_json(config: RunConfig) -> dict[str, Any]:
    """The settings as plain JSON values, the command first."""
    fields = dataclasses.asdict(config)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return {"command": verb(config), **plain}


def flag(name: str) -> str:
    """The command-line flag of a field.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class _Range:
    low: float
    high: float = math.inf
    low_is_in: bool = True

    def holds(self, value: float) -> bool:
        above = value >= self.low if self.low_is_in else value > self.low
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        bound = f"at least {self.low:g}" if self.low_is_in else f"above {self.low:g}"
        return bound if math.isinf(self.high) else f"{bound} and at most {self.high:g}"


_RANGES = {
    "epochs": _Range(1),
    "max_minutes": _Range(0, low_is_in=False),
    "batch_size": _Range(1),
    "accumulate": _Range(1),
    "image_size": _Range(8, 4096),
    "teacher_image_size": _Range(8, 4096),
    "channels": _Range(1, 4096),
    "lr": _Range(0, low_is_in=False),
    "momentum": _Range(0, 1),
    "weight_decay": _Range(0),
    "warmup_epochs": _Range(0),
    "seed": _Range(0, 2**63 - 1),
    "nodes": _Range(1),
    "workers": _Range(0, 1024),
    "checkpoint_minutes": _Range(0, low_is_in=False),
    "log_every": _Range(1),
    "evaluate_every": _Range(1),
    "validation_images": _Range(2),
    "queue_size": _Range(0),
    "student_temperature": _Range(0, low_is_in=False),
    "teacher_temperature": _Range(0, low_is_in=False),
    "temperature": _Range(0, low_is_in=False),
    "encoder_momentum": _Range(0, 1),
    "dim": _Range(1),
    "projector_hidden": _Range(1),
}


def check(config: RunConfig) -> None:
    """Refuse settings that no run can have.

    Raises:
        InputError: names the first flag out of range, or two flags that do not go together.
    """
    for name, limits in _RANGES.items():
        value = getattr(config, name, None)
        if value in (None, "auto"):
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(flag(name), value, "give a number")
        if not limits.holds(value):
            raise InputError(flag(name), value, f"give a number {limits}")
    check_channels(config)
    if config.devices != "auto" and not (config.devices.isdigit() and int(config.devices) > 0):
        raise InputError("--devices", config.devices, "give auto or a number of at least 1")
    if config.batch_size % config.accumulate:
        raise InputError(
            "--batch-size", config.batch_size, f"has to be a multiple of --accumulate {config.accumulate}"
        )
    if (
        config.warmup_epochs != "auto"
        and config.max_minutes is None
        and config.warmup_epochs >= config.epochs
    ):
        raise InputError("--warmup-epochs", config.warmup_epochs, f"has to be below --epochs {config.epochs}")
