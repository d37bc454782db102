"""A classifier trained on images: a new head on a backbone that is frozen or fine-tuned.

One loop for MoCo's linear protocol, for fine-tuning on few labels and for transfer. Its views, order and initial head
depend only on the seed, so a stopped training resumes bit-exactly.
"""

import copy
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.loader import Plan, TrainingBatch, TrainingViews, training_batches
from tinyseed.data.readers import reader_for
from tinyseed.data.render import normalize, render_view
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.base import Measurement
from tinyseed.evaluation.features import device, embed_images, evaluating
from tinyseed.evaluation.metrics import class_metrics
from tinyseed.evaluation.splits import Split
from tinyseed.files import read_checkpoint, write_checkpoint
from tinyseed.finite import first_non_finite
from tinyseed.models.backbones import Backbone, seeded
from tinyseed.models.depthwise import gradients_in_float32
from tinyseed.models.encoder import Encoder
from tinyseed.precision import EvaluationPrecision, autocast_dtype
from tinyseed.progress import say_once, track
from tinyseed.settings.evaluation import ClassifierSchedule, HeadInit, TrainingSettings
from tinyseed.shapes import Features, Images

SAVE_SECONDS = 30.0
"""Least time between two checkpoints, which are written at the end of an epoch."""

REFERENCE_BATCH = 256


class DivergedError(RunError):
    """The loss is not finite any more: the learning rate was too high."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: SGD with momentum on random crops and mirror images.

    Attributes:
        lr_backbone: learning rate of the backbone for a batch of 256 (scaled with the batch); None: it is frozen.
        lr_head: of the new linear layer.
        schedule: "step": times `gamma` at each of `decay`; "cosine": down to 0, step by step; "cosine-epoch": the same,
            epoch by epoch.
        decay: shares of the run, such as 0.6 and 0.8.
        crop_scale: least and greatest share of the image's area that a crop covers.
        head_init: see `HeadInit`.
    """

    epochs: int
    batch_size: int
    lr_backbone: float | None
    lr_head: float
    schedule: ClassifierSchedule = "step"
    decay: tuple[float, ...] = ()
    gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    head_init: HeadInit = "normal"

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rates are multiplied by at this step.

        >>> Recipe(10, 256, None, 30.0, decay=(0.6, 0.8)).factor(6 * 5, 5)
        0.1
        """
        epoch = step // steps_per_epoch
        match self.schedule:
            case "step":
                return self.gamma ** sum(epoch >= round(share * self.epochs) for share in self.decay)
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch)))
            case "cosine-epoch":
                return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


class Classifier(nn.Module):
    """A backbone and a linear layer: normalized images to one score per class."""

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        trained_backbone: bool,
        seed: int,
        head_init: HeadInit = "normal",
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(trained_backbone)
        self.trained_backbone = trained_backbone
        if trained_backbone:
            gradients_in_float32(backbone)
        with seeded(seed):
            self.head = nn.Linear(backbone.width, classes)
            if head_init == "normal":
                nn.init.normal_(self.head.weight, std=0.01)
                nn.init.zeros_(self.head.bias)

    def forward(self, images: Images, autocast: torch.dtype | None = None) -> Features:
        """Scores, one per class; `autocast` is what the backbone computes in, None for float32."""
        with (
            torch.set_grad_enabled(self.trained_backbone and torch.is_grad_enabled()),
            torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None),
        ):
            features = self.backbone(images)
        return self.head(features.float())

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode; a frozen backbone, batch norm's statistics included, stays in evaluation mode."""
        super().train(mode)
        if not self.trained_backbone:
            self.backbone.eval()
        return self


def fit_and_measure(
    encoder: Encoder,
    train: Split,
    test: Split,
    recipe: Recipe,
    settings: TrainingSettings,
    *,
    classes: int,
    seed: int,
    checkpoint: Path,
    title: str,
) -> Measurement:
    """Train a classifier on one split and measure it on the other; see `fit_classifier` and `measure_classifier`."""
    model = fit_classifier(
        encoder,
        train,
        classes,
        recipe,
        seed=seed,
        workers=settings.workers,
        checkpoint=checkpoint,
        title=title,
        precision=settings.precision,
    )
    return measure_classifier(model, test, workers=settings.workers)


def fit_classifier(
    encoder: Encoder,
    train: Split,
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
        encoder: its backbone is copied.
        train: labeled images.
        classes: number of classes.
        recipe: how to train.
        seed: of the head, the order and the views.
        workers: number of processes that decode.
        checkpoint: file that a stopped training resumes from, written at the end of an epoch, at most every 30 s.
        title: for the progress line.
        precision: of the networks; weights, head and loss are float32.

    Raises:
        DivergedError: the loss is not finite.
        RunError: 50 images in a row cannot be read, or the checkpoint is broken.
        InputError: there are fewer images than a batch.
    """
    if len(train) < recipe.batch_size:
        remedy = f"there are {len(train)} images; give fewer"
        raise InputError(recipe.batch_size, remedy, argument="batch_size")
    autocast = autocast_dtype(precision, device())
    training = _Training.of(encoder, train, recipe, classes=classes, seed=seed, autocast=autocast)
    first = 0 if checkpoint is None else training.resume(checkpoint)
    saved = time.monotonic()
    with closing(training.batches(train, first, workers)) as batches:
        for epoch in track(range(first, recipe.epochs), f"{title}: epochs", recipe.epochs, first):
            loss = _epoch(training, batches, epoch=epoch)
            if not math.isfinite(loss) or first_non_finite(training.state) is not None:
                raise DivergedError(
                    f"the loss is {loss} in epoch {epoch + 1}: the learning rate is too high; give a lower `lr`"
                )
            if checkpoint is not None and time.monotonic() - saved >= SAVE_SECONDS:
                saved = time.monotonic()
                try:
                    training.save(checkpoint, epoch + 1)
                except RunError as error:  # a full or read-only cache
                    say_once(f"{error}; the evaluation goes on, but cannot be resumed")
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return training.model.eval()


@dataclass(frozen=True)
class _Training:
    """A classifier in training, with all that a step needs but its images.

    Attributes:
        labels: the class of each image of the source; 0 for those that are not trained on.
        autocast: what the backbone computes in, None for float32.
    """

    model: Classifier
    optimizer: torch.optim.SGD
    recipe: Recipe
    plan: Plan
    labels: Tensor
    autocast: torch.dtype | None

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        train: Split,
        recipe: Recipe,
        *,
        classes: int,
        seed: int,
        autocast: torch.dtype | None,
    ) -> "_Training":
        """At the first epoch, with a copy of the encoder's backbone."""
        backbone, trained = copy.deepcopy(encoder.backbone), recipe.lr_backbone is not None
        model = Classifier(
            backbone, classes, trained_backbone=trained, seed=seed, head_init=recipe.head_init
        ).to(device())
        labels = np.zeros(len(train.source), np.int64)
        labels[train.indices] = train.labels
        plan = Plan(train.indices, recipe.batch_size, seed)
        return cls(model.train(), _optimizer(model, recipe), recipe, plan, torch.from_numpy(labels), autocast)

    @property
    def _trained(self) -> nn.Module:
        """What changes: the model, or the head if the backbone is frozen."""
        return self.model if self.model.trained_backbone else self.model.head

    @property
    def state(self) -> dict[str, Any]:
        """All that changes."""
        return {"model": self._trained.state_dict(), "optimizer": self.optimizer.state_dict()}

    def batches(self, train: Split, first_epoch: int, workers: int) -> Generator[TrainingBatch, None, None]:
        """Random crops and mirror images, from an epoch on."""
        settings = ViewSettings(
            crop_scale=self.recipe.crop_scale, jitter_probability=0, gray_probability=0, blur_probability=0
        )
        contract = self.model.backbone.input
        reader = reader_for(contract.channels, contract.pixel_range)
        views = TrainingViews(
            train.source, (View(settings, contract.size),), self.plan.seed, train.indices, reader
        )
        return training_batches(
            views,
            self.plan,
            first_step=first_epoch * self.plan.steps_per_epoch,
            workers=workers,
            pin_memory=device().type == "cuda",
        )

    def save(self, path: Path, epochs: int) -> None:
        """Write a checkpoint after this many epochs."""
        write_checkpoint(path, {"epoch": epochs, **self.state})

    def resume(self, path: Path) -> int:
        """Load a checkpoint; returns the number of epochs that it has, 0 if there is none."""
        if not path.is_file():
            return 0
        try:
            content = read_checkpoint(path)
            self._trained.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            return int(content["epoch"])
        except Exception as error:  # a broken file can raise nearly anything
            raise RunError(f"{path}: the stopped evaluation's checkpoint is broken: remove it") from error


def _optimizer(model: Classifier, recipe: Recipe) -> torch.optim.SGD:
    scale = recipe.batch_size / REFERENCE_BATCH
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "base": recipe.lr_head * scale}]
    if recipe.lr_backbone is not None:
        groups.append({"params": list(model.backbone.parameters()), "base": recipe.lr_backbone * scale})
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _epoch(training: _Training, batches: Iterator[TrainingBatch], *, epoch: int) -> float:
    """One pass over the images; returns the mean loss."""
    total = torch.zeros((), device=device())
    steps = training.plan.steps_per_epoch
    for step in range(epoch * steps, (epoch + 1) * steps):
        total += _step(training, next(batches), step)
    return float(total) / steps


def _step(training: _Training, batch: TrainingBatch, step: int) -> Tensor:
    """One update; returns the loss."""
    model, optimizer, plan = training.model, training.optimizer, training.plan
    contract = model.backbone.input
    labels = training.labels[batch.indices].to(device(), non_blocking=True)
    batch = batch.to(device())
    images = render_view(batch.pixels[0], batch.draws[0])
    images = normalize(images, contract.mean, contract.std, out=images)
    images = images.contiguous(memory_format=torch.channels_last)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * training.recipe.factor(step, plan.steps_per_epoch)
    with seeded((plan.seed << 32) + step):  # dropout, where a backbone has any
        loss = cross_entropy(model(images, training.autocast), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def measure_classifier(model: Classifier, test: Split, *, workers: int = 0) -> Measurement:
    """Metrics of a split's images in the evaluation view, as one row.

    Raises:
        RunError: not one image can be read.
    """
    with evaluating(model):
        bank = embed_images(
            model, test.source, test.indices, model.backbone.input, title="test images", workers=workers
        )
    labels = test.labels_of(bank.indices)
    return Measurement((class_metrics(bank.features, labels),), unreadable=bank.unreadable)
