"""How a detector is trained: its plan, its steps and its checkpoint."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tinyseed.data.addressed import uniforms
from tinyseed.detection.annotations import AnnotatedImage
from tinyseed.detection.batches import Batch, Views, prefetched
from tinyseed.engine.schedule import detector_rate
from tinyseed.errors import InputError, RunError, first_line
from tinyseed.evaluation.base import Interrupted
from tinyseed.files import read_checkpoint, write_checkpoint
from tinyseed.progress import Progress, duration

REFERENCE_BATCH = 16
_STEPS_1X = {"coco": 90_000, "voc": 18_000}
_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-4
_READ_EVERY, _READ_SECONDS = 20, 5.0
_CHECKPOINT_SECONDS = 300.0


@dataclass(frozen=True)
class Plan:
    """How a detector is trained.

    Attributes:
        steps: of the optimizer.
        lr: learning rate after the warm-up, already scaled to the batch.
        views: the training batches; their seed also decides which anchors and proposals the heads sample.
    """

    steps: int
    lr: float
    views: Views


def schedule_steps(
    schedule: int | Literal["1x", "2x"], data_format: Literal["voc", "coco"], batch_size: int
) -> int:
    """Number of steps of a schedule; 1x and 2x show the same number of images for each batch size.

    1x is 90,000 steps of 16 images on COCO and 18,000 on VOC; an integer is the number of steps itself.

    Source: Detectron's 1x and 2x schedules (He et al., Rethinking ImageNet Pre-training, ICCV 2019, section 3), and
    its VOC configuration.

    >>> schedule_steps("2x", "voc", 8), schedule_steps(50, "voc", 8)
    (72000, 50)
    """
    if isinstance(schedule, int):
        return schedule
    return _STEPS_1X[data_format] * int(schedule[0]) * REFERENCE_BATCH // batch_size


@dataclass(frozen=True)
class _Trainee:
    """A detector and its optimizer."""

    detector: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device


@dataclass(frozen=True)
class Trained:
    """The course of a training.

    Attributes:
        losses: of each step.
        seconds: of training, without interruptions.
    """

    losses: tuple[float, ...]
    seconds: float


def train(
    detector: nn.Module,
    images: Sequence[AnnotatedImage],
    plan: Plan,
    *,
    checkpoint: Path,
    progress: Progress,
    workers: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a detector in place; resume from its checkpoint if there is one.

    Args:
        detector: from `build_detector`, on its device.
        images: each with an object that is not a crowd (`AnnotatedSplit.trainable`).
        plan: steps, learning rate and batches.
        checkpoint: file that is saved every five minutes, at the end, and when asked to stop. Its name has to stand
            for what is trained: a checkpoint that was written under another name is refused.
        progress: shows each step.
        workers: number of threads that decode images.
        stop: asked after each step.

    Raises:
        Interrupted: it was asked to stop, and has saved.
        InputError: the checkpoint is of another training, or cannot be read.
        RunError: the loss is not finite, or the checkpoint cannot be written.
    """
    trainee = _trainee(detector, plan)
    losses, seconds = _resume(checkpoint, trainee)
    first, read = len(losses), time.monotonic()
    saved = began = read
    pending: list[Tensor] = []
    detector.train()
    for batch in prefetched(range(len(losses), plan.steps), images, plan.views, workers):
        step = len(losses) + len(pending)
        pending.append(_step(trainee, batch, plan, step))
        stopping, last = stop(), step + 1 == plan.steps
        now = time.monotonic()
        if len(pending) == _READ_EVERY or now - read > _READ_SECONDS or stopping or last:
            losses += _finite(pending, step)
            pending, read = [], now
            left = (now - began) / (len(losses) - first) * (plan.steps - len(losses))
            text = f"loss {losses[-1]:.3f}  {duration(left)} left"
            progress.update(len(losses), plan.steps, text, final=last)
        if not pending and (stopping or last or now - saved > _CHECKPOINT_SECONDS):
            saved = now
            _save(checkpoint, trainee, losses, seconds + now - began)
        if stopping and not last:
            raise Interrupted
    return Trained(tuple(losses), seconds + time.monotonic() - began)


def _trainee(detector: nn.Module, plan: Plan) -> _Trainee:
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, plan.lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    return _Trainee(detector, optimizer, parameters[0].device)


def _step(trainee: _Trainee, batch: Batch, plan: Plan, step: int) -> Tensor:
    for group in trainee.optimizer.param_groups:
        group["lr"] = detector_rate(step, plan.steps, plan.lr)
    images = [image.to(trainee.device, non_blocking=True) for image in batch.images]
    targets = [{name: value.to(trainee.device) for name, value in target.items()} for target in batch.targets]
    devices = [trainee.device] if trainee.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(
            _step_seed(plan.views.seed, step)
        )  # for the anchors and proposals that the heads sample
        loss = torch.stack(list(trainee.detector(images, targets).values())).sum()
    trainee.optimizer.zero_grad()
    loss.backward()
    trainee.optimizer.step()
    return loss.detach()


def _step_seed(seed: int, step: int) -> int:
    return int(uniforms(seed, 0, np.array([step]), "detect-samples", 1)[0, 0] * 2**53)


def _finite(pending: list[Tensor], step: int) -> list[float]:
    """Losses as numbers, several steps at once, since each reading waits for the device."""
    values = torch.stack(pending).tolist()
    if not np.isfinite(values).all():
        raise RunError(f"the loss is not finite near step {step + 1}; give a lower `lr`, or another `norm`")
    return values


def _save(path: Path, trainee: _Trainee, losses: list[float], seconds: float) -> None:
    state = {"detector": trainee.detector.state_dict(), "optimizer": trainee.optimizer.state_dict()}
    write_checkpoint(path, {"name": path.stem, "losses": losses, "seconds": seconds, **state})


def _resume(path: Path, trainee: _Trainee) -> tuple[list[float], float]:
    """Losses and seconds so far; none where there is no checkpoint."""
    if not path.is_file():
        return [], 0.0
    remedy = "delete it to train from the beginning"
    try:
        content = read_checkpoint(path)
    except InputError as error:
        raise InputError(path, f"{error.remedy}; {remedy}") from error
    if content.get("name") != path.stem:
        raise InputError(path, f"the checkpoint of another training; {remedy}")
    try:
        trainee.detector.load_state_dict(content["detector"])
        trainee.optimizer.load_state_dict(content["optimizer"])
        return list(map(float, content["losses"])), float(content["seconds"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(path, f"a damaged checkpoint ({first_line(error)}); {remedy}") from error
