"""A classifier trained on images: a new head on a trunk that is frozen, or trained along.

One loop for MoCo's linear protocol, for fine-tuning on few labels and for transfer. Its views, order and
initial head follow from the seed alone, so a stopped run goes on as if it had not stopped. Imports data, models and
this room.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.band_views import render_view
from tinyseed.data.loader import (
    Plan,
    TrainingBatch,
    TrainingViews,
    evaluation_batches,
    training_batches,
)
from tinyseed.data.views import normalise
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.bank import BATCH
from tinyseed.evaluation.common import Side, bands_seen, device
from tinyseed.evaluation.features import embed, evaluating
from tinyseed.evaluation.figures import class_figures
from tinyseed.evaluation.progress import track
from tinyseed.files import write_checkpoint
from tinyseed.models.backbones import Backbone, seeded
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.precision import EvaluationPrecision, autocast_dtype
from tinyseed.shapes import Features, Images

SAVE_SECONDS = 30.0
"""Between checkpoints, at the end of an epoch."""

REFERENCE_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """What evaluations that train a network are told."""

    precision: EvaluationPrecision = "auto"
    """Arithmetic of networks while they are trained; auto: bf16 where the hardware has it. Figures are float32's."""


class DivergedError(RunError):
    """The loss is no finite number any more: the learning rate was too high."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: SGD with momentum on random crops and mirror images.

    Attributes:
        lr_trunk: learning rate of the trunk for a batch of 256 (scaled with the batch); None: it is frozen.
        lr_head: of the new linear layer.
        schedule: "steps": times `gamma` at each of `decay`; "cosine": down to 0.
        decay: shares of the run, such as 0.6 and 0.8.
        crop_scale: least and greatest share of the image's area that a crop covers.
    """

    epochs: int
    batch_size: int
    lr_trunk: float | None
    lr_head: float
    schedule: Literal["steps", "cosine"] = "steps"
    decay: tuple[float, ...] = ()
    gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rates are multiplied by at this step.

        >>> Recipe(10, 256, None, 30.0, decay=(0.6, 0.8)).factor(6 * 5, 5)
        0.1
        """
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch)))
        epoch = step // steps_per_epoch
        return self.gamma ** sum(epoch >= round(share * self.epochs) for share in self.decay)


class Classifier(nn.Module):
    """A trunk and a linear layer: normalised images to a score for each class."""

    def __init__(self, backbone: Backbone, classes: int, *, trained_trunk: bool, seed: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(trained_trunk)
        self.trained_trunk = trained_trunk
        with seeded(seed):
            self.head = nn.Linear(backbone.width, classes)
            nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Images, autocast: torch.dtype | None = None) -> Features:
        """Scores, one for each class; autocast: what the trunk computes in, None for float32."""
        with (
            torch.set_grad_enabled(self.trained_trunk and torch.is_grad_enabled()),
            torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None),
        ):
            features = self.backbone(images)
        return self.head(features.float())

    def train(self, mode: bool = True) -> "Classifier":
        """A frozen trunk stays in evaluation mode: its batch norm's statistics are part of it."""
        super().train(mode)
        if not self.trained_trunk:
            self.backbone.eval()
        return self


def fit_classifier(
    encoder: Encoder,
    train: Side,
    classes: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    workers: int = 0,
    checkpoint: Path | None = None,
    title: str = "training",
    precision: EvaluationPrecision = "auto",
) -> Classifier:
    """Train a classifier; the encoder itself is left as it was.

    Args:
        encoder: its trunk is copied.
        train: labelled images.
        classes: how many there are.
        recipe: how.
        seed: of the head, the order and the views.
        workers: processes that decode.
        checkpoint: file that a stopped run goes on from, written at the end of an epoch, at most every 30 s.
        title: for the progress line.
        precision: of the networks; weights, head and loss are float32.

    Raises:
        DivergedError: the loss is no finite number.
        RunError: 50 images in a row cannot be read.
        InputError: there are fewer images than a batch.
    """
    if len(train) < recipe.batch_size:
        raise InputError("--batch-size", recipe.batch_size, f"there are {len(train)} images; give fewer")
    model = Classifier(
        copy.deepcopy(encoder.backbone), classes, trained_trunk=recipe.lr_trunk is not None, seed=seed
    ).to(device())
    plan = Plan(train.indices, recipe.batch_size, seed)
    optimizer = _optimizer(model, recipe)
    first = _resume(model, optimizer, checkpoint)
    batches = _batches(
        train,
        plan,
        encoder.input,
        recipe,
        first_step=first * plan.steps_per_epoch,
        workers=workers,
    )
    labels = np.zeros(len(train.source), np.int64)
    labels[train.indices] = train.labels
    saved = time.monotonic()
    model.train()
    for epoch in track(range(first, recipe.epochs), f"{title}: epochs", recipe.epochs, first):
        loss = _epoch(
            model,
            optimizer,
            recipe,
            plan,
            batches=batches,
            labels=torch.from_numpy(labels),
            epoch=epoch,
            autocast=autocast_dtype(precision, device()),
        )
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} in epoch {epoch + 1}: the learning rate is too high; give a lower --lr"
            )
        if checkpoint is not None and time.monotonic() - saved >= SAVE_SECONDS:
            _save(model, optimizer, epoch + 1, checkpoint)
            saved = time.monotonic()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return model.eval()


def _optimizer(model: Classifier, recipe: Recipe) -> torch.optim.SGD:
    scale = recipe.batch_size / REFERENCE_BATCH
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "base": recipe.lr_head * scale}]
    if recipe.lr_trunk is not None:
        groups.append({"params": list(model.backbone.parameters()), "base": recipe.lr_trunk * scale})
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _batches(
    train: Side, plan: Plan, contract: InputContract, recipe: Recipe, *, first_step: int, workers: int
) -> Iterator[TrainingBatch]:
    settings = ViewSettings(
        crop_scale=recipe.crop_scale, jitter_probability=0, gray_probability=0, blur_probability=0
    )
    views = TrainingViews(
        train.source, (View(settings, contract.size),), plan.seed, train.indices, bands_seen(contract)
    )
    return training_batches(
        views, plan, first_step=first_step, workers=workers, pin_memory=device().type == "cuda"
    )


def _epoch(
    model: Classifier,
    optimizer: torch.optim.SGD,
    recipe: Recipe,
    plan: Plan,
    *,
    batches: Iterator[TrainingBatch],
    labels: Tensor,
    epoch: int,
    autocast: torch.dtype | None,
) -> float:
    """One pass; returns the mean loss."""
    total = torch.zeros((), device=device())
    contract = model.backbone.input
    for number in range(plan.steps_per_epoch):
        step = epoch * plan.steps_per_epoch + number
        batch = next(batches)
        right = labels[batch.indices].to(device(), non_blocking=True)
        batch = batch.to(device())
        images = render_view(batch.pixels[0], batch.draws[0])
        images = normalise(images, contract.mean, contract.std, out=images)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * recipe.factor(step, plan.steps_per_epoch)
        with seeded((plan.seed << 32) + step):  # dropout, where a trunk has any
            loss = cross_entropy(model(images.contiguous(memory_format=torch.channels_last), autocast), right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return float(total) / plan.steps_per_epoch


def _save(model: Classifier, optimizer: torch.optim.SGD, epoch: int, path: Path) -> None:
    state = model.state_dict() if model.trained_trunk else model.head.state_dict()
    write_checkpoint(path, {"epoch": epoch, "model": state, "optimizer": optimizer.state_dict()})


def _resume(model: Classifier, optimizer: torch.optim.SGD, path: Path | None) -> int:
    """Epochs done before; 0 where there is no readable checkpoint."""
    if path is None or not path.is_file():
        return 0
    try:
        content = torch.load(path, map_location=device(), weights_only=True)
        (model if model.trained_trunk else model.head).load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        return int(content["epoch"])
    except Exception as error:  # a broken file can raise nearly anything
        raise RunError(f"{path}: the stopped evaluation's checkpoint is broken: remove it") from error


def measure_classifier(model: Classifier, test: Side, *, workers: int = 0) -> tuple[dict[str, float], int]:
    """Figures of a side's images in the evaluation view, and how many could not be read.

    Raises:
        RunError: not one image can be read.
    """
    contract = model.backbone.input
    batches = evaluation_batches(
        test.source,
        test.indices,
        size=contract.size,
        interpolation=contract.interpolation,
        bands=bands_seen(contract),
        batch_size=BATCH,
        workers=workers,
    )
    shown = track(batches, "test images", -(-len(test) // BATCH))
    with evaluating(model):
        bank = embed(model, shown, device=device(), mean=contract.mean, std=contract.std)
    labels = torch.from_numpy(test.labels[np.searchsorted(test.indices, bank.indices.numpy())])
    return class_figures(bank.features, labels), len(test) - len(bank.indices)
