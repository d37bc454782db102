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
from tinyseed.methods.simclr import SimCLRConfig
from tinyseed.methods.swav import SwAVConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ChannelConfig):
    """What every training run has."""

    data: tuple[str, ...]
    """Images to learn from: folders, Parquet files, text files of paths, or torchvision:NAME sets. Labels are never
    trained on."""
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
    optimizer: Literal["sgd", "lars"] = "sgd"
    """Optimizer; LARS suits large batches."""
    lr: float = 0.03
    """Learning rate for a batch of 256; scaled linearly with the batch size."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine, for a batch of 256 too."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate after the warm-up: half a cosine, or tenfold down at 60 % and at 80 % of the run."""
    momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """Weight decay."""
    lars_scope: Literal["weights", "all"] = "weights"
    """What LARS adapts and decays: weights but no biases and norms (SimCLR), or every parameter (SwAV)."""
    warmup_epochs: float | Literal["auto"] = "auto"
    """Epochs of linear warm-up; auto: 5 (SimCLR and SwAV: 10), at most a tenth of the run."""
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
    recipe: str | None = None
    """Named settings to start from (`tinyseed recipes` lists them); flags beside it win."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(SeedConfig, TrainConfig):
    """`tinyseed distill`: a student learns from a frozen teacher."""

    teacher: str
    """Frozen network to learn from: a run folder, a checkpoint file its URL, or a model's name (docs/teachers.md)."""
    student: str
    """Network to train: a model's name (timm's, or torchvision/NAME)."""
    teacher_weights: str | None = None
    """Weights of a teacher that is given by name: a file or its URL, or `random` for controls."""
    teacher_arch: str | None = None
    """Network of a teacher's checkpoint file that does not say what it is: a model's name."""
    teacher_output: Literal["auto", "head", "trunk"] = "auto"
    """What the student learns: the embedding after the teacher's head, or trunk features; auto: the head, if any."""
    teacher_image_size: int | Literal["auto"] = "auto"
    """Side of the views in pixels that the teacher sees; auto: `--image-size`, or the next size that it can take."""
    teacher_bands: tuple[int, ...] = ()
    """Channels, from 1, that the teacher sees as red, green and blue; by default the first three, or the one thrice."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """What every run of `tinyseed pretrain` has: a network learns by itself."""

    backbone: str
    """Network to train: a model's name (timm's, or torchvision/NAME)."""


@dataclass(frozen=True, kw_only=True)
class PretrainMoCoConfig(MoCoConfig, PretrainConfig):
    """`tinyseed pretrain moco-v2`."""


@dataclass(frozen=True, kw_only=True)
class PretrainMoCoV1Config(PretrainMoCoConfig):
    """`tinyseed pretrain moco-v1`: the same method with the first paper's settings (1911.05722, section 3.3 and 4)."""

    temperature: float = 0.07
    projector: Literal["mlp", "linear"] = "linear"
    augmentation: Literal["v2", "v1"] = "v1"
    blur_probability: float = 0.0
    schedule: Literal["cosine", "step"] = "step"


@dataclass(frozen=True, kw_only=True)
class PretrainSimCLRConfig(SimCLRConfig, PretrainConfig):
    """`tinyseed pretrain simclr`; optimizer and learning rate of 2002.05709, section 2.1."""

    optimizer: Literal["sgd", "lars"] = "lars"
    lr: float = 0.3
    weight_decay: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class PretrainSwAVConfig(SwAVConfig, PretrainConfig):
    """`tinyseed pretrain swav`; optimizer and learning rate of 2006.09882, appendix A (4.8 to 0.0048 at 4,096)."""

    optimizer: Literal["sgd", "lars"] = "lars"
    lr: float = 0.3
    final_lr: float = 0.0003
    weight_decay: float = 1e-6
    lars_scope: Literal["weights", "all"] = "all"


RunConfig = DistillConfig | PretrainMoCoConfig | PretrainSimCLRConfig | PretrainSwAVConfig

HARMLESS = frozenset(
    {"resume", "workers", "devices", "checkpoint_minutes", "log_every", "data", "val_data", "out", "teacher"}
    | {"teacher_weights", "teacher_arch", "validation_images", "evaluate_every", "recipe"}
)
"""Settings in which a resumed run may differ from its beginning (moved folders are told apart by their contents)."""


def verb(config: RunConfig) -> str:
    """The command that makes such a run."""
    match config:
        case DistillConfig():
            return "distill"
        case PretrainMoCoV1Config():
            return "pretrain moco-v1"
        case PretrainMoCoConfig():
            return "pretrain moco-v2"
        case PretrainSimCLRConfig():
            return "pretrain simclr"
        case PretrainSwAVConfig():
            return "pretrain swav"


def title(config: RunConfig) -> str:
    """What a run does, in a few words."""
    match config:
        case DistillConfig():
            return f"{config.teacher} → {config.student}"
        case PretrainMoCoV1Config():
            return f"MoCo-v1 {config.backbone}"
        case PretrainMoCoConfig():
            return f"MoCo-v2 {config.backbone}"
        case PretrainSimCLRConfig():
            return f"SimCLR {config.backbone}"
        case PretrainSwAVConfig():
            return f"SwAV {config.backbone}"


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
    "final_lr": _Range(0),
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
    "color_strength": _Range(0, 2.5),
    "blur_probability": _Range(0, 1),
    "large_crops": _Range(2, 64),
    "small_crops": _Range(0, 64),
    "small_crop_size": _Range(8, 4096),
    "epsilon": _Range(0, low_is_in=False),
    "sinkhorn_iterations": _Range(1, 1000),
    "prototypes": _Range(2),
    "freeze_prototypes_epochs": _Range(0),
    "queue_start_epoch": _Range(0),
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
    _check_together(config)
    match config:
        case PretrainSimCLRConfig():
            _check_batch(config)
        case PretrainSwAVConfig():
            _check_batch(config)
            _check_crops(config)
        case DistillConfig() | PretrainMoCoConfig():
            pass


def _check_together(config: TrainConfig) -> None:
    """Settings that depend on one another."""
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
    if config.final_lr > config.lr:
        raise InputError("--final-lr", config.final_lr, f"give a number up to --lr {config.lr:g}")


def _check_batch(config: TrainConfig) -> None:
    """Methods that compare the images of a batch need two at a time."""
    if config.batch_size < 2 * config.accumulate:
        remedy = (
            f"give at least {2 * config.accumulate}: an image is compared with others of its forward pass"
        )
        raise InputError("--batch-size", config.batch_size, remedy)


def _check_crops(config: PretrainSwAVConfig) -> None:
    for name in ("large_crop_scale", "small_crop_scale"):
        value = getattr(config, name)
        pair = (
            isinstance(value, tuple)
            and len(value) == 2
            and all(isinstance(end, int | float) for end in value)
        )
        if not (pair and 0 < value[0] <= value[1] <= 1):
            given = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(flag(name), given, "give two shares, 0 < low ≤ high ≤ 1, such as 0.14 1")
