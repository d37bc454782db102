"""Settings of training runs. A method adds its own in its own file (`methods/`)."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from tinyseed.errors import MISSING, InputError
from tinyseed.settings.base import (
    BATCH_SIZES,
    COUNTS,
    IMAGE_SIDES,
    LARGEST,
    MOST_EPOCHS,
    SEEDS,
    WIDTHS,
    WORKERS,
    Range,
    Settings,
    words,
)

Augmentation = Literal["moco-v2", "moco-v1", "simclr", "swav"]
"""Augmentations by the method that was published with them; `data/augmentation.py: published`."""

TeacherOutput = Literal["rows", "features", "patches"]
"""What a teacher gives for an image: its unit row, its backbone's features, or a vector for each patch."""

DEEPENED = ("mlp", "mlp-bn")
"""Heads that may have any number of layers."""

OptimizerName = Literal["sgd", "lars", "adamw"]
"""Optimizers; `engine/optim.py` builds them."""

LARGEST_ADAMW_LR = 0.01
"""AdamW moves each weight by about the learning rate, however small its gradient is."""

FREE_ON_RESUME = frozenset(
    {
        "resume",
        "workers",
        "threads",
        "devices",
        "checkpoint_minutes",
        "checkpoint_activations",
        "log_every",
        "data",
        "val_data",
        "out",
        "teacher",
    }
    | {"teacher_weights", "teacher_arch", "teacher_prefix", "validation_images", "evaluate_every", "recipe"}
    | {"cache", "cache_outputs", "cache_crops"}
)
"""Settings in which a resumed run may differ from its beginning. Data that was moved is recognized by its contents."""

DEVICES = Range(1, 1024)
"""Numbers of devices or processes on a machine."""

MEASURED = frozenset({"channel_mean", "channel_std"})
"""Settings that are measured on the images where they are not given."""


@dataclass(frozen=True, kw_only=True)
class ChannelSettings(Settings):
    """The channels of the images that a network is trained on."""

    channels: int = 3
    """Number of channels (bands) of the images; 3 means RGB."""
    pixel_range: tuple[float, ...] = ()
    """Stored values that are mapped to 0 and 1, e.g. 0 10000. By default the range of the files' type (floats: 0 1)."""
    channel_mean: tuple[float, ...] = ()
    """Mean of each channel, from 0 to 1. By default ImageNet's for RGB, otherwise measured on the images."""
    channel_std: tuple[float, ...] = ()
    """Standard deviation of each channel. By default as for the mean."""

    RANGES: ClassVar = {"channels": Range(1, 4096)}

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        span = self.pixel_range
        if span and not (len(span) == 2 and all(map(math.isfinite, span)) and span[0] < span[1]):
            remedy = "give two numbers, the lower first, as in 0 10000"
            raise InputError(words(span), remedy, argument="pixel_range")
        for name in ("channel_mean", "channel_std"):
            values = getattr(self, name)
            if values and (len(values) != self.channels or not all(map(math.isfinite, values))):
                remedy = f"give {self.channels} numbers, one for each channel"
                raise InputError(words(values), remedy, argument=name)
        if any(value <= 0 for value in self.channel_std):
            raise InputError(words(self.channel_std), "give numbers above 0", argument="channel_std")
        if bool(self.channel_mean) != bool(self.channel_std):
            name = "channel_std" if self.channel_mean else "channel_mean"
            raise InputError(MISSING, "give the mean and the standard deviation, or neither", argument=name)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(ChannelSettings):
    """Settings of every training run."""

    data: tuple[str, ...]
    """Images to train on: folders, Parquet files, text files of paths, or torchvision:NAME data sets. Labels are never
    used for training."""
    out: Path
    """Folder to write the run to."""
    val_data: tuple[str, ...] = ()
    """Held-out images to monitor the run on. By default 10 % of the data are held out."""
    epochs: int = 200
    """Number of passes over the data."""
    max_minutes: float | None = None
    """Train for this many minutes instead of a number of epochs; the schedule is stretched to fit."""
    batch_size: int = 256
    """Images per step, over all devices."""
    accumulate: int = 1
    """Gradient accumulation steps: split each batch into this many forward passes to save memory."""
    checkpoint_activations: bool = False
    """Save memory: keep only the inputs of each block of the network for the backward pass, and compute the rest again
    there. Results stay the same to the bit; a step takes longer (docs/performance.md)."""
    image_size: int = 224
    """Side length of the views in pixels."""
    small_stem: bool = False
    """Use a 3×3 stem with stride 1 and no max-pooling (ResNets, for images of up to 64 px)."""
    projector_hidden: int | Literal["auto"] = "auto"
    """Width of the hidden layers of an MLP head; auto: that of the backbone's features."""
    projector_layers: int | Literal["auto"] = "auto"
    """Linear layers of an MLP head (mlp, mlp-bn), the hidden ones all of the same width; auto: 2 (mlp-bn-3: 3)."""
    blur_probability: float = 0.5
    """Fraction of the views that are blurred; 0 suits images of 32 px."""
    optimizer: OptimizerName = "sgd"
    """Optimizer; LARS suits large batches. AdamW needs a learning rate of its own, such as 0.001, and decays no biases
    or norms; 0.05 is a usual weight decay for it."""
    lr: float = 0.03
    """Learning rate for a batch size of 256; it is scaled linearly with the batch size."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine schedule, also for a batch size of 256."""
    schedule: Literal["cosine", "step", "cosine-epoch"] = "cosine"
    """Learning rate schedule; cosine: half a cosine after the warm-up; step: division by ten at 60 % and 80 % of the
    run; cosine-epoch: as in MoCo's and SEED's code, set once per epoch, a cosine over the whole run whose first epochs
    the warm-up replaces."""
    momentum: float = 0.9
    """Momentum of SGD and LARS; of AdamW its first beta (the second is 0.999)."""
    weight_decay: float = 1e-4
    """Weight decay."""
    lars_scope: Literal["weights", "all"] = "weights"
    """Parameters that LARS adapts and decays: weights without biases and norms (SimCLR), or all (SwAV)."""
    clip_gradients: float | None = None
    """Scale the gradients of a step down to this length (the L2 norm of all together) where they are longer. By default
    they are left as they are."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.999, which is evaluated and saved in their
    place; 0: none. The first steps have smaller decays."""
    warmup_epochs: float | Literal["auto"] = "auto"
    """Epochs of linear warm-up; auto: 5 (10 for SimCLR and SwAV), but at most a tenth of the run."""
    warmup_lr: float | None = None
    """Learning rate at which the warm-up begins, for a batch size of 256. By default one step above 0; with
    cosine-epoch it is `lr` without scaling to the batch size."""
    seed: int = 0
    """Seed of all random choices."""
    devices: str = "auto"
    """Number of GPUs, or of processes on a CPU; auto: all GPUs of this machine, or one process on the CPU."""
    nodes: int = 1
    """Number of machines that train together (start each with torchrun)."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Mixed precision of the networks; auto: bf16 where the hardware supports it natively, otherwise float32."""
    workers: int | Literal["auto"] = "auto"
    """Processes per device that decode images."""
    threads: int | Literal["auto"] = "auto"
    """Threads per process that compute on a CPU; auto: as many as there are cores, less those that other programs keep
    busy when the run begins. A resumed run keeps its number: the last digits of the results depend on it."""
    resume: bool = False
    """Resume the run in the output folder."""
    checkpoint_minutes: float = 10.0
    """Longest time between checkpoints in minutes, the most that a kill costs; one is also written after an epoch where
    that is cheap (at most 2 % of the training time)."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    evaluate_every: int | Literal["auto"] = "auto"
    """Epochs between evaluations on the held-out images; auto: as many as 5 % of the training time has room for. In any
    case there is one before the first step and one after the last."""
    validation_images: int = 1024
    """Maximum number of held-out images to evaluate. The k-NN feature bank has four times as many as are evaluated, or
    1,024, but at most four times this number."""
    recipe: str | None = None
    """Named settings to start from (see `tinyseed recipes`); flags given beside it take precedence."""

    NETWORK: ClassVar[str]
    """The field that names the network to train."""

    OWN: ClassVar[frozenset[str]] = frozenset(
        {"small_stem", "projector_hidden", "projector_layers", "epochs", "optimizer", "lr", "final_lr"}
        | {
            "clip_gradients",
            "ema",
            "schedule",
            "momentum",
            "weight_decay",
            "lars_scope",
            "warmup_epochs",
            "warmup_lr",
        }
    )
    """Settings of this class in which networks that are trained together, on the same views, may differ."""

    RANGES: ClassVar = {
        "epochs": MOST_EPOCHS,
        "max_minutes": Range(0, 60 * 24 * 3660, above=True),
        "batch_size": BATCH_SIZES,
        "accumulate": BATCH_SIZES,
        "image_size": IMAGE_SIDES,
        "projector_hidden": WIDTHS,
        "projector_layers": Range(2, 16),
        "blur_probability": Range(0, 1),
        "lr": Range(0, LARGEST, above=True),
        "final_lr": Range(0, LARGEST),
        "momentum": Range(0, 1),
        "weight_decay": Range(0, LARGEST),
        "clip_gradients": Range(0, LARGEST, above=True),
        "ema": Range(0, 0.999999),
        "warmup_epochs": Range(0, 1e6),
        "warmup_lr": Range(0, LARGEST),
        "seed": SEEDS,
        "nodes": Range(1, 2**16),
        "workers": WORKERS,
        "threads": Range(1, 1024),
        "checkpoint_minutes": Range(0, 60 * 24 * 3660, above=True),
        "log_every": COUNTS,
        "evaluate_every": COUNTS,
        "validation_images": Range(2, COUNTS.high),
    }

    @property
    def network(self) -> str:
        """Name of the network to train."""
        return getattr(self, self.NETWORK)

    @property
    def initial_weights(self) -> str | None:
        """Weights that the network begins with; None: random ones."""
        return getattr(self, f"{self.NETWORK}_weights")

    @property
    def networks(self) -> str:
        """The networks that take part, for people."""
        return self.network

    @property
    def views_seed(self) -> int:
        """Seed of the random views."""
        return self.seed

    @property
    def view_epochs(self) -> int | None:
        """After how many epochs the views repeat; None: never."""
        return None

    @property
    def images_together(self) -> int:
        """How many adjacent images of a batch have to be in the same forward pass."""
        return 1

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        if self.devices != "auto" and not _is_count(self.devices):
            raise InputError(self.devices, "give auto or a number from 1 to 1024", argument="devices")
        if self.batch_size % self.accumulate:
            remedy = f"it has to be a multiple of `accumulate` {self.accumulate}"
            raise InputError(self.batch_size, remedy, argument="batch_size")
        if self.warmup_epochs != "auto" and self.max_minutes is None and self.warmup_epochs >= self.epochs:
            remedy = f"it has to be below `epochs` {self.epochs}"
            raise InputError(self.warmup_epochs, remedy, argument="warmup_epochs")
        if self.schedule == "cosine-epoch" and self.max_minutes is not None:
            remedy = "goes by epochs; leave out `max_minutes`, or give cosine"
            raise InputError(self.schedule, remedy, argument="schedule")
        self._check_adamw()
        prefix = f"{self.NETWORK}_prefix"
        if getattr(self, prefix) is not None and self.initial_weights is None:
            remedy = f"is a part of `{self.NETWORK}_weights`; give them, too"
            raise InputError(getattr(self, prefix), remedy, argument=prefix)
        head = getattr(self, "projector", None)  # a setting of each method's own
        if self.projector_layers != "auto" and head not in DEEPENED:
            remedy = f"is for MLP heads; give it with `projector` {' or '.join(DEEPENED)}"
            raise InputError(self.projector_layers, remedy, argument="projector_layers")
        for name in ("final_lr", "warmup_lr"):
            value = getattr(self, name)
            if value is not None and value > self.lr:
                raise InputError(value, f"give a number up to `lr` {self.lr:g}", argument=name)

    def _check_adamw(self) -> None:
        if self.optimizer != "adamw":
            return
        if self.lr > LARGEST_ADAMW_LR:
            remedy = f"is too large for `optimizer` adamw, give up to {LARGEST_ADAMW_LR:g}, such as 0.001"
            raise InputError(self.lr, remedy, argument="lr")
        if self.momentum == 1:
            raise InputError(
                self.momentum, "is the first beta of `optimizer` adamw, give less than 1", argument="momentum"
            )

    def settled(self, images: int) -> "TrainSettings":
        """The same settings with each "auto" that depends on the number of training images replaced."""
        del images
        return self

    def replaced(self, **changes: Any) -> "TrainSettings":  # noqa: ANN401
        """The same settings with some of them changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class DistillSettings(TrainSettings):
    """Settings of every run of `tinyseed distill`: a student learns from a frozen teacher."""

    teacher: str
    """Frozen network to learn from: a run folder, a checkpoint file or its URL, or a model name (docs/teachers.md)."""
    student: str
    """Network to train: a model name (timm's, or torchvision/NAME). Several share one pass of the teacher, and each has
    its own folder in the output folder."""
    student_weights: str | None = None
    """Weights that the student begins with: a run folder, a checkpoint file or its URL, of the same architecture. Only
    the backbone's are used, its head begins anew. By default they are random."""
    student_prefix: str | None = None
    """Part of that checkpoint, by what its tensors' names begin with, as in model_ema or encoder_q."""
    teacher_weights: str | None = None
    """Weights of a teacher given by name: a file or its URL, or `random` for controls."""
    teacher_arch: str | None = None
    """Architecture (a model name) of a teacher checkpoint that does not state it."""
    teacher_prefix: str | None = None
    """Part of a teacher checkpoint, by what its tensors' names begin with: one of several networks or a module, as in
    model_ema, encoder_k or teacher.backbone."""
    teacher_output: Literal["auto", "head", "backbone", "trunk"] = "auto"
    """What the student learns: the embedding after the teacher's head, or its backbone features (trunk is the former
    name); auto: the head, where there is one."""
    teacher_image_size: int | Literal["auto"] = "auto"
    """Side length in pixels of the views that the teacher sees; auto: the image size, or the next one it can take."""
    teacher_mean: tuple[float, ...] = ()
    """Mean by channel of the images that the teacher expects, from 0 to 1. By default what is known of it."""
    teacher_std: tuple[float, ...] = ()
    """Standard deviation by channel. By default what is known of the teacher."""
    teacher_interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """How images are resized for the teacher; auto: as it was trained."""
    teacher_bands: tuple[int, ...] = ()
    """Channels, counted from 1, that the teacher sees. By default the first three, or a single channel repeated."""
    teacher_engine: Literal["auto", "torch", "onnx", "int8", "compile"] = "auto"
    """How the teacher's backbone is computed; auto: torch. onnx and int8: ONNX Runtime on the CPU, in float32 or in 8
    bits (needs the extra named onnx); compile: torch.compile, which takes a minute to begin. Others than torch are
    compared with it on held-out images first, and refused where they agree too little."""
    augmentation: Augmentation = "moco-v2"
    """Random crops and colors of the views, as published with a method: moco-v2 (crops from 0.2 of the area on, color
    jitter 0.4 0.4 0.4 0.1), moco-v1 (0.2 and 0.4 0.4 0.4 0.4, all views), simclr (0.08 and 0.8 0.8 0.8 0.2), swav (0.14
    and 0.8 0.8 0.8 0.2). Blur is set by `blur_probability`."""
    crop_scale: tuple[float, ...] = ()
    """Smallest and largest fraction of the image's area that a view covers. By default that of the augmentation."""
    color_jitter: tuple[float, ...] = ()
    """Largest changes of brightness, contrast, saturation and hue. By default those of the augmentation."""
    mixup: float = 0.0
    """Mix each view with that of another image, the same for teacher and student: its share is drawn from Beta(a, a)
    for this number a, such as 0.2 or 1; 0: views are not mixed."""
    cache_views: int | None = None
    """Keep the teacher's vectors of this many random views of each image on disk: they are computed in the first epochs
    and read from then on, also by later runs with other students, loss settings or seeds; 8 is a good number (what
    fewer cost: docs/performance.md). By default views never repeat, and nothing is kept."""
    cache: Path | None = None
    """Folder to keep them in. By default one for these images, views and teacher in the cache folder (see `tinyseed
    cache`)."""
    cache_outputs: tuple[TeacherOutput, ...] = ("rows",)
    """What to keep of the teacher: the unit rows that the student learns, and on request the backbone's features and a
    vector for each patch."""
    cache_crops: bool = False
    """Keep the views' crops, too, so that no image has to be decoded (0.15 MB for each view at 224 px)."""
    view_seed: int | Literal["auto"] = "auto"
    """Seed of the random views; auto: `seed`, or 0 with `cache_views`, so that runs of other seeds share them."""

    NETWORK: ClassVar[str] = "student"
    OWN: ClassVar = frozenset({"student", "student_weights", "student_prefix"})
    RANGES: ClassVar = {
        "mixup": Range(0, LARGEST),
        "cache_views": Range(1, 10_000),
        "view_seed": SEEDS,
        "teacher_image_size": IMAGE_SIDES,
        "teacher_mean": Range(-1000, 1000),
        "teacher_std": Range(0, above=True),
    }

    @property
    def networks(self) -> str:
        """Teacher and student, for people."""
        return f"{self.teacher} → {self.student}"

    @property
    def views_seed(self) -> int:
        """Seed of the random views."""
        if self.view_seed != "auto":
            return self.view_seed
        return self.seed if self.cache_views is None else 0

    @property
    def view_epochs(self) -> int | None:
        """After how many epochs the views repeat; None: never."""
        return self.cache_views

    @property
    def images_together(self) -> int:
        """Pairs, where views are mixed."""
        return 2 if self.mixup else 1

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        for band in self.teacher_bands:
            if not 1 <= band <= self.channels:
                have = "1 channel" if self.channels == 1 else f"{self.channels} channels"
                remedy = f"the images have {have}; give numbers from 1 to {self.channels}"
                raise InputError(band, remedy, argument="teacher_bands")
        if self.crop_scale:
            check_scale("crop_scale", self.crop_scale)
        self._check_cache()
        jitter = self.color_jitter
        numbers = all(isinstance(value, int | float) and 0 <= value < math.inf for value in jitter)
        if jitter and not (numbers and len(jitter) == 4 and jitter[3] <= 0.5):
            remedy = "give four numbers of at least 0, the last (hue) up to 0.5, as in 0.4 0.4 0.4 0.1"
            raise InputError(" ".join(map(str, jitter)), remedy, argument="color_jitter")

    def _check_cache(self) -> None:
        for output in self.cache_outputs:
            if output not in get_args(TeacherOutput):
                remedy = f"give one or more of {', '.join(get_args(TeacherOutput))}"
                raise InputError(output, remedy, argument="cache_outputs")
        if "rows" not in self.cache_outputs:
            given = " ".join(self.cache_outputs) or MISSING
            raise InputError(given, "give rows, too: the student learns them", argument="cache_outputs")
        if self.mixup and self.cache_views is not None:
            remedy = (
                "mixes other pairs of images in each epoch, which cannot be kept; leave out `cache_views`"
            )
            raise InputError(self.mixup, remedy, argument="mixup")
        for name, given in (("cache", self.cache), ("cache_crops", self.cache_crops)):
            if given and self.cache_views is None:
                remedy = "give `cache_views` beside it: how many views of each image are kept"
                raise InputError(given, remedy, argument=name)
        if len(set(self.cache_outputs)) > 1 and self.cache_views is None:
            remedy = "give `cache_views` beside it: how many views of each image are kept"
            raise InputError(" ".join(self.cache_outputs), remedy, argument="cache_outputs")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings):
    """Settings of every run of `tinyseed pretrain`: a network is trained without labels and without a teacher."""

    backbone: str
    """Network to train: a model name (timm's, or torchvision/NAME)."""
    backbone_weights: str | None = None
    """Weights that it begins with: a run folder, a checkpoint file or its URL, of the same architecture. The head
    begins with random ones. By default all are random."""
    backbone_prefix: str | None = None
    """Part of that checkpoint, by what its tensors' names begin with, as in model_ema or encoder_q."""
    dim: int = 128
    """Dimension of the embedding."""

    NETWORK: ClassVar[str] = "backbone"
    RANGES: ClassVar = {"dim": WIDTHS}


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 8 and int(text) in DEVICES


def check_scale(name: str, value: Any) -> None:  # noqa: ANN401
    """A range of crops' shares of an image.

    Raises:
        InputError: these are not two fractions.
    """
    pair = isinstance(value, tuple) and all(isinstance(end, int | float) for end in value)
    if not (pair and len(value) == 2 and 0 < value[0] <= value[1] <= 1):
        given = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise InputError(given, "give two fractions, 0 < low ≤ high ≤ 1, such as 0.14 1", argument=name)


def check_batch_has_pairs(settings: TrainSettings) -> None:
    """Methods that compare the images of a batch with each other need two of them in each forward pass.

    Raises:
        InputError: the batch is too small.
    """
    if settings.batch_size < 2 * settings.accumulate:
        remedy = f"give at least {2 * settings.accumulate}: images are compared with others of the same forward pass"
        raise InputError(settings.batch_size, remedy, argument="batch_size")
