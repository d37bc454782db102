"""`tinyseed evaluate transfer`: the backbone on another data set, frozen or fine-tuned."""

import re
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from tinyseed.errors import InputError, RunError
from tinyseed.evaluation.base import EvaluationSpec, Measurement, Resume
from tinyseed.evaluation.parts import classifier, features, logistic, models, split, splits
from tinyseed.settings.base import BATCH_SIZES, LARGEST, MOST_EPOCHS, Range
from tinyseed.settings.evaluation import BankPrecision, ModelEvaluationSettings, TrainingSettings

LR_GRID = (0.003, 0.01, 0.03, 0.1, 0.3)

FEWEST_HELD_OUT = 2

Metric = Literal["top1", "mean_per_class"]

_PER_CLASS = re.compile(r"caltech.?101|\bpets?\b|iiit.?pet|aircraft|flowers", re.IGNORECASE)
"""Data sets whose metric is the mean per class. Source: Kornblith et al., "Do Better ImageNet Models Transfer
Better?", CVPR 2019, table 1 (Caltech-101, Oxford-IIIT Pets, FGVC Aircraft, Oxford 102 Flowers)."""


@dataclass(frozen=True, kw_only=True)
class TransferSettings(TrainingSettings, ModelEvaluationSettings):
    """Settings of `tinyseed evaluate transfer`."""

    RANGES: ClassVar = {
        "lr": Range(0, LARGEST, above=True),
        "epochs": MOST_EPOCHS,
        "batch_size": Range(2, BATCH_SIZES.high),
        "weight_decay": Range(0, LARGEST),
        "l2": Range(0, above=True),
    }

    mode: Literal["linear", "finetune"] = "linear"
    """linear: train a linear layer on the frozen backbone, with L2 chosen on 10 % of the training images;
    finetune: train the whole network, with the learning rate chosen in the same way."""
    metric: Literal["auto", "top1", "mean-per-class"] = "auto"
    """Metric to choose by; auto: mean-per-class if the data's name contains Caltech-101, pets, aircraft or flowers,
    else top1."""
    lr: tuple[float, ...] = ()
    """finetune: learning rates to choose from, for a batch size of 256 (default: 0.003 to 0.3)."""
    epochs: int = 30
    """finetune: passes over the training images, with a cosine schedule."""
    batch_size: int = 64
    """finetune: images per step."""
    weight_decay: float = 1e-4
    """finetune: weight decay."""
    l2: tuple[float, ...] = ()
    """linear: L2 strengths to choose from, for standardized features (default: 1e-5 to 1)."""
    bank_precision: BankPrecision = "auto"
    """linear: bits per number of the features that are kept; auto: 32, but 16 where that would take more than
    4 GiB."""


def measure(
    encoder: "models.Encoder", splits: "splits.Splits", settings: TransferSettings, resume: Resume
) -> Measurement:
    """Metrics of the linear layer or of the fine-tuned network in per cent, as one row."""
    metric = metric_for(settings)
    if settings.mode == "linear":
        measured = _measure_linear(encoder, splits, settings, metric)
    else:
        measured = _measure_finetuned(encoder, splits, settings, metric, resume)
    row = {"mode": settings.mode, "metric": metric, **measured.row}
    return Measurement((row,), (*splits.training_notes, *measured.notes), measured.unreadable)


def metric_for(settings: TransferSettings) -> Metric:
    """The metric that the settings name, or that is usual for the data set."""
    if settings.metric != "auto":
        return "top1" if settings.metric == "top1" else "mean_per_class"
    return "mean_per_class" if _PER_CLASS.search(" ".join(settings.train_data)) else "top1"


def _measure_linear(
    encoder: "models.Encoder", splits: "splits.Splits", settings: TransferSettings, metric: Metric
) -> Measurement:
    train, test = features.embed_splits(
        encoder, splits, workers=settings.workers, precision=settings.bank_precision
    )
    grid = settings.l2 or logistic.L2_GRID
    row = logistic.probe(train, test, len(splits.classes), l2=grid, seed=settings.seed, metric=metric)
    return Measurement((row,), logistic.solver_notes(row), train.unreadable + test.unreadable)


def _measure_finetuned(
    encoder: "models.Encoder",
    splits: "splits.Splits",
    settings: TransferSettings,
    metric: Metric,
    resume: Resume,
) -> Measurement:
    """Choose a learning rate on 10 % of the training images, train on all of them with it, measure."""
    rates = settings.lr or LR_GRID
    chosen, found = rates[0], {}
    if len(rates) > 1:
        tried = _validate(encoder, splits, settings, metric, resume)
        chosen = max(rates, key=lambda lr: tried[lr])
        if tried[chosen] < 0:
            grid = " ".join(map(str, rates))
            raise RunError(f"training diverged with every learning rate of {grid}: give a lower `lr`")
        found = {"validation": tried[chosen]}
    fit = partial(_finetune, encoder, classes=len(splits.classes), settings=settings, resume=resume)
    measured = resume.remember("test", lambda: fit(splits.train, splits.test, lr=chosen))
    row = {**measured.row, "lr": chosen, **found, "epochs": settings.epochs}
    return Measurement((row,), unreadable=measured.unreadable)


def _validate(
    encoder: "models.Encoder",
    splits: "splits.Splits",
    settings: TransferSettings,
    metric: Metric,
    resume: Resume,
) -> dict[float, float]:
    """The metric of each learning rate on the validation images; below 0 where training diverged."""
    train, held_out = (
        splits.train.take(part) for part in split.held_out_split(len(splits.train), settings.seed)
    )
    if len(held_out) < FEWEST_HELD_OUT:
        remedy = f"{len(held_out)} validation images cannot choose; give one"
        raise InputError("several", remedy, argument="lr")
    fit = partial(_finetune, encoder, classes=len(splits.classes), settings=settings, resume=resume)

    def validate(lr: float) -> Measurement:
        try:
            return fit(train, held_out, lr=lr)
        except classifier.DivergedError:
            return Measurement(({"top1": -1.0, "mean_per_class": -1.0},))

    return {
        lr: resume.remember(f"validation-{lr:g}", partial(validate, lr)).row[metric]
        for lr in settings.lr or LR_GRID
    }


def _finetune(
    encoder: "models.Encoder",
    train: "splits.Split",
    test: "splits.Split",
    *,
    classes: int,
    settings: TransferSettings,
    resume: Resume,
    lr: float,
) -> Measurement:
    batch = min(settings.batch_size, len(train))
    decay = settings.weight_decay
    return classifier.fit_and_measure(
        encoder,
        train,
        test,
        classifier.Recipe(settings.epochs, batch, lr, lr, schedule="cosine", weight_decay=decay),
        settings,
        classes=classes,
        seed=settings.seed,
        checkpoint=resume.path(f"{lr:g}-{len(train)}.ckpt"),
        title=f"learning rate {lr:g}",
    )


SPEC = EvaluationSpec(
    name="transfer",
    settings=TransferSettings,
    measure=measure,
    about="Transfer: how good is the backbone on another data set, frozen or fine-tuned?",
    example="tinyseed evaluate transfer --model runs/small --train-data train/ --test-data test/ --mode finetune",
)
