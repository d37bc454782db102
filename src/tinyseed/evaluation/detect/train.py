"""The detector's training: schedule, step, checkpoint. Imports batches.py, data, models/weights.py and errors."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tinyseed.data.addressed import uniforms
from tinyseed.errors import InputError, RunError, first_line
from tinyseed.evaluation.detect.batches import Batch, Sizes, prefetched
from tinyseed.evaluation.detect.progress import Progress
from tinyseed.evaluation.detect.scenes import Scene
from tinyseed.files import write_checkpoint

REFERENCE_BATCH = 16
_STEPS_1X = {"coco": 90_000, "voc": 18_000}
_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-4
_LONGEST_WARMUP = 1_000
_LOOK_EVERY, _LOOK_SECONDS = 20, 5.0
_CHECKPOINT_SECONDS = 300.0


@dataclass(frozen=True)
class Plan:
    """How a detector is trained.

    Attributes:
        steps: of the optimizer.
        peak: learning rate after the warm-up, already scaled to the batch.
        batch_size: images a step.
        sizes: of the images.
        seed: of order, sizes, flips, and which boxes are sampled.
        masks: whether masks are trained.
        workers: threads that decode.
    """

    steps: int
    peak: float
    batch_size: int
    sizes: Sizes
    seed: int
    masks: bool
    workers: int = 0

    def lr(self, step: int) -> float:
        """Linear warm-up over 1,000 steps or a tenth of the run, then drops to a tenth at 2/3 and 8/9.

        >>> plan = Plan(900, 0.02, 16, Sizes((800,)), 0, masks=False)
        >>> [round(plan.lr(step), 5) for step in (0, 89, 599, 600, 800)]
        [0.00022, 0.02, 0.02, 0.002, 0.0002]
        """
        warmup = max(1, min(_LONGEST_WARMUP, self.steps // 10))
        drops = (step >= self.steps * 2 / 3) + (step >= self.steps * 8 / 9)
        return self.peak * min(1.0, (step + 1) / warmup) * 0.1**drops


def schedule_steps(
    schedule: int | Literal["1x", "2x"], data_format: Literal["voc", "coco"], batch_size: int
) -> int:
    """Steps of a schedule; 1x and 2x show as many images whatever the batch, a number is taken as it is.

    1x is 90,000 steps of 16 images on COCO and 18,000 on VOC.

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
    """A detector and what trains it."""

    detector: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device


@dataclass(frozen=True)
class Trained:
    """What training says of itself.

    Attributes:
        losses: of each step.
        seconds: of training, interruptions apart.
    """

    losses: tuple[float, ...]
    seconds: float


def train(
    detector: nn.Module,
    scenes: Sequence[Scene],
    plan: Plan,
    *,
    checkpoint: Path,
    key: str,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> Trained | None:
    """Train a detector in place, from its checkpoint where there is one.

    Args:
        detector: from `build_detector`, on its device.
        scenes: with something to learn from (`trainable`).
        plan: how.
        checkpoint: file to save to, every five minutes, at the end, and when asked to stop.
        key: says what is trained; a checkpoint of another key is refused.
        progress: is told each step.
        stop: asked after each step.

    Returns:
        None where it was stopped, after saving.

    Raises:
        InputError: the checkpoint is of something else, or broken.
        RunError: the loss is no finite number, or the checkpoint cannot be written.
    """
    trainee = _trainee(detector, plan)
    losses, seconds = _resume(checkpoint, key, trainee)
    looked = saved = began = time.monotonic()
    pending: list[Tensor] = []
    detector.train()
    settings = {"size": plan.batch_size, "sizes": plan.sizes, "seed": plan.seed, "masks": plan.masks}
    for batch in prefetched(range(len(losses), plan.steps), scenes, workers=plan.workers, **settings):
        step = len(losses) + len(pending)
        pending.append(_step(trainee, batch, plan, step))
        stopping, last = stop(), step + 1 == plan.steps
        now = time.monotonic()
        if len(pending) == _LOOK_EVERY or now - looked > _LOOK_SECONDS or stopping or last:
            losses += _finite(pending, step)
            pending, looked = [], now
            progress.update(len(losses), plan.steps, losses[-1])
        if not pending and (stopping or last or now - saved > _CHECKPOINT_SECONDS):
            saved = now
            _save(checkpoint, key, trainee, losses, seconds + now - began)
        if stopping and not last:
            return None
    return Trained(tuple(losses), seconds + time.monotonic() - began)


def _trainee(detector: nn.Module, plan: Plan) -> _Trainee:
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, plan.peak, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    return _Trainee(detector, optimizer, parameters[0].device)


def _step(trainee: _Trainee, batch: Batch, plan: Plan, step: int) -> Tensor:
    for group in trainee.optimizer.param_groups:
        group["lr"] = plan.lr(step)
    images = [image.to(trainee.device, non_blocking=True) for image in batch.images]
    targets = [{name: value.to(trainee.device) for name, value in target.items()} for target in batch.targets]
    devices = [trainee.device] if trainee.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_step_seed(plan.seed, step))  # which anchors and proposals the heads sample
        loss = torch.stack(list(trainee.detector(images, targets).values())).sum()
    trainee.optimizer.zero_grad()
    loss.backward()
    trainee.optimizer.step()
    return loss.detach()


def _step_seed(seed: int, step: int) -> int:
    return int(uniforms(seed, 0, np.array([step]), "detect-samples", 1)[0, 0] * 2**53)


def _finite(pending: list[Tensor], step: int) -> list[float]:
    """Losses as numbers, some steps at once: each look waits for the device."""
    values = torch.stack(pending).tolist()
    if not np.isfinite(values).all():
        raise RunError(
            f"the loss is no finite number near step {step + 1}; give a lower --lr, or another --norm"
        )
    return values


def run_key(*parts: object) -> str:
    """12 hexadecimal digits for what a training depends on."""
    digest = hashlib.sha256()
    for part in parts:
        for item in (
            part if isinstance(part, tuple) else (part,)
        ):  # scene by scene: COCO's would be 100 MB of text
            digest.update(f"{item!r}\n".encode())
    return digest.hexdigest()[:12]


def _save(path: Path, key: str, trainee: _Trainee, losses: list[float], seconds: float) -> None:
    content = {
        "key": key,
        "losses": losses,
        "seconds": seconds,
        "detector": trainee.detector.state_dict(),
        "optimizer": trainee.optimizer.state_dict(),
    }
    write_checkpoint(path, content)


def _resume(path: Path, key: str, trainee: _Trainee) -> tuple[list[float], float]:
    """Losses and seconds so far; nothing where there is no checkpoint."""
    if not path.is_file():
        return [], 0.0
    remedy = "delete it to begin again"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        given = content["key"]
    except Exception as error:  # a broken file can raise nearly anything
        raise InputError(
            "--out", path, f"is no readable checkpoint ({first_line(error)}); {remedy}"
        ) from error
    if given != key:
        raise InputError("--out", path, f"is the checkpoint of another training; {remedy}")
    trainee.detector.load_state_dict(content["detector"])
    trainee.optimizer.load_state_dict(content["optimizer"])
    return list(content["losses"]), float(content["seconds"])
