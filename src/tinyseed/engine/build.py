"""From settings to what a run is made of: data, method, optimizer, schedule. Imports every room below."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.checkpoints.load import load_teacher
from tinyseed.data.bands import require_readers
from tinyseed.data.loader import Plan, TrainingViews
from tinyseed.data.sources import Source, open_source
from tinyseed.data.split import held_out_split, sample
from tinyseed.data.views import IMAGENET_MEAN, IMAGENET_STD
from tinyseed.engine.channels import MEASURED_ON, image_bands, measured, teacher_bands
from tinyseed.engine.config import (
    DistillConfig,
    PretrainMoCoConfig,
    PretrainSimCLRConfig,
    PretrainSwAVConfig,
    RunConfig,
    TrainConfig,
)
from tinyseed.engine.optim import peak_lr, scaled_lr
from tinyseed.engine.run_folder import RunFolder, settled
from tinyseed.engine.runtime import Runtime, share_statistics, worker_count
from tinyseed.engine.schedule import Schedule
from tinyseed.errors import InputError, argument
from tinyseed.methods.method import Method
from tinyseed.methods.moco import MoCo
from tinyseed.methods.seed import Seed
from tinyseed.methods.simclr import SimCLR
from tinyseed.methods.swav import SwAV, small_crop_size
from tinyseed.models.backbones import build_backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.models.spec import ModelSpec
from tinyseed.models.teacher import Teacher
from tinyseed.objectives.queue import Queue, auto_queue_size


@dataclass(frozen=True)
class RunData:
    """Which images a run learns from and which it is watched on.

    Attributes:
        training: positions in `source` that are trained on.
        held_out: positions in `held_out_source` that are evaluated.
        bank: positions in `source` that k-NN searches.
    """

    source: Source
    training: NDArray[np.int64]
    held_out_source: Source
    held_out: NDArray[np.int64]
    bank: NDArray[np.int64]


def open_data(config: TrainConfig) -> RunData:
    """Find the images of a run.

    Raises:
        InputError: a path is wrong, or there are fewer images than a batch takes.
    """
    source = open_source(config.data, field="--data")
    if config.val_data:
        held_out_source = open_source(config.val_data, field="--val-data")
        training, held_out = np.arange(len(source)), np.arange(len(held_out_source))
    else:
        held_out_source = source
        training, held_out = held_out_split(len(source), config.seed)
    if len(training) < config.batch_size:
        raise InputError(
            "--batch-size",
            config.batch_size,
            f"there are only {len(training)} training images; give a smaller batch or more images",
        )
    return RunData(
        source,
        training,
        held_out_source,
        sample(held_out, config.validation_images, config.seed, "validation"),
        sample(training, 4 * config.validation_images, config.seed, "bank"),
    )


def settle(config: RunConfig, folder: RunFolder, data: RunData, runtime: Runtime) -> RunConfig:
    """Replace each "auto" by what it comes to; a resumed run keeps what it began with."""
    channel_mean, channel_std = _channel_figures(config, folder, data, runtime)
    config = replace(
        config,
        channel_mean=channel_mean,
        channel_std=channel_std,
        precision=runtime.precision,
        workers=worker_count(config.workers, runtime.device.type == "cuda"),
    )
    match config:
        case DistillConfig() | PretrainMoCoConfig():
            before = settled(folder, "queue_size")
            auto = auto_queue_size(len(data.training)) if before is None else before
            return replace(config, queue_size=auto) if config.queue_size == "auto" else config
        case PretrainSwAVConfig():
            return replace(config, small_crop_size=small_crop_size(config, config.image_size))
        case PretrainSimCLRConfig():
            return config


def _channel_figures(
    config: RunConfig, folder: RunFolder, data: RunData, runtime: Runtime
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel: as given, as the run began with, or measured; none for RGB (ImageNet's)."""
    bands = image_bands(config)
    if bands is not None:
        require_readers(data.source, data.training, "--data")
    if bands is None or config.channel_mean:
        return config.channel_mean, config.channel_std
    before = settled(folder, "channel_mean"), settled(folder, "channel_std")
    if before[0]:
        return tuple(before[0]), tuple(before[1])
    workers = worker_count(config.workers, runtime.device.type == "cuda")
    images = sample(data.training, MEASURED_ON, config.seed, "channels")
    mean, std = measured(data.source, images, bands, config.image_size, workers)
    both = runtime.largest([*mean, *std])  # the same for all processes to the last bit
    return tuple(both[: bands.channels]), tuple(both[bands.channels :])


def build_plan(config: TrainConfig, data: RunData, runtime: Runtime) -> Plan:
    """Who is in which batch."""
    return Plan(
        images=data.training,
        batch_size=config.batch_size,
        seed=config.seed,
        micro_batches=config.accumulate,
        rank=runtime.group.rank,
        processes=runtime.group.size,
    )


def build_views(config: TrainConfig, data: RunData, method: Method) -> TrainingViews:
    """How an image becomes the views that a method takes."""
    views = method.views(config.image_size)
    return TrainingViews(data.source, views, config.seed, data.training, image_bands(config))


def build_schedule(config: TrainConfig, plan: Plan) -> Schedule:
    """Learning rate over the run."""
    warmup = None if config.warmup_epochs == "auto" else config.warmup_epochs
    return Schedule(
        peak=peak_lr(config),
        steps_per_epoch=plan.steps_per_epoch,
        epochs=config.epochs,
        warmup_epochs=warmup,
        max_minutes=config.max_minutes,
        final=scaled_lr(config, config.final_lr),
        shape=config.schedule,
        auto_warmup_epochs=10 if isinstance(config, PretrainSimCLRConfig | PretrainSwAVConfig) else 5,
    )


def build_teacher(config: RunConfig) -> Teacher | None:
    """The frozen teacher of a run that has one."""
    match config:
        case DistillConfig():
            size = config.teacher_image_size
            spec = ModelSpec(
                config.teacher,
                weights=config.teacher_weights,
                arch=config.teacher_arch,
                output=config.teacher_output,
                small_stem=config.small_stem and config.teacher_weights == "random",
                image_size=config.image_size if size == "auto" else size,
                seed=config.seed,
            )
            renamed = {"weights": "teacher_weights", "arch": "teacher_arch", "output": "teacher_output"}
            with argument("teacher", **renamed):
                teacher = load_teacher(spec)
            if size not in ("auto", teacher.input.size):
                raise InputError("--teacher-image-size", size, _other_size(teacher.input))
            teacher_bands(config, teacher.input)  # refuses wrong ones before anything is measured
            return teacher
        case PretrainMoCoConfig() | PretrainSimCLRConfig() | PretrainSwAVConfig():
            return None


def _other_size(contract: InputContract) -> str:
    if contract.fixed:
        return f"this teacher sees images of {contract.size} px alone; give that"
    return f"has to be a multiple of {contract.multiple}; give {contract.size}"


def build_method(config: RunConfig, teacher: Teacher | None, plan: Plan, runtime: Runtime) -> Method:
    """The closed choice of methods."""
    match config:
        case DistillConfig():
            assert teacher is not None
            assert config.queue_size != "auto", "settle() comes first"
            student = build_encoder(config, config.student, teacher.dim, field="--student")
            queue = Queue(config.queue_size, teacher.dim)
            bands = teacher_bands(config, teacher.input)
            return Seed(config, student, teacher, queue, runtime.group, teacher_bands=bands)
        case PretrainMoCoConfig():
            assert config.queue_size != "auto", "settle() comes first"
            encoder = build_encoder(config, config.backbone, config.dim, field="--backbone")
            return MoCo(config, encoder, Queue(config.queue_size, config.dim), config.seed, runtime.group)
        case PretrainSimCLRConfig():
            encoder = build_encoder(config, config.backbone, config.dim, field="--backbone")
            share_statistics(encoder, runtime)
            return SimCLR(config, encoder, runtime.group)
        case PretrainSwAVConfig():
            encoder = build_encoder(config, config.backbone, config.dim, field="--backbone")
            refuse_small_crops(config, encoder)
            share_statistics(encoder, runtime)
            return SwAV(config, encoder, plan.steps_per_epoch, config.seed, runtime.group)


def refuse_small_crops(config: PretrainSwAVConfig, encoder: Encoder) -> None:
    """Try the small crops once: some networks take images of one size only, others none so small.

    Raises:
        InputError: the network cannot take them.
    """
    size = small_crop_size(config, config.image_size)
    if config.small_crops == 0:
        return
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, config.channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        remedy = f"{config.backbone} cannot take crops of {size} px beside {config.image_size} px; give another size, "
        raise InputError(
            "--small-crop-size", config.small_crop_size, f"{remedy}--small-crops 0, or another --backbone"
        ) from error
    finally:
        encoder.train(training)


def build_encoder(config: RunConfig, name: str, dim: int, field: str) -> Encoder:
    """A trunk with fresh weights and a head onto `dim`; the same weights for the same seed."""
    with argument(field.removeprefix("--")):
        backbone = build_backbone(
            name,
            small_stem=config.small_stem,
            image_size=config.image_size,
            channels=config.channels,
            seed=config.seed,
        )
    contract = replace(
        backbone.input,
        mean=config.channel_mean or IMAGENET_MEAN,
        std=config.channel_std or IMAGENET_STD,
        size=config.image_size,
        interpolation="bilinear",
        pixel_range=config.pixel_range,
    )
    hidden = None if config.projector_hidden == "auto" else config.projector_hidden
    projector = build_projector(config.projector, backbone.width, dim, hidden, seed=config.seed)
    return Encoder(backbone, projector).with_input(contract)
