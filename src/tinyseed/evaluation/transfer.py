"""`evaluate transfer`: what the trunk is worth on another data set, frozen or fine-tuned. Imports this room."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from tinyseed.data.split import held_out_split
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation import reporting
from tinyseed.evaluation.bank import Precision
from tinyseed.evaluation.classifier import (
    DivergedError,
    Recipe,
    TrainedConfig,
    fit_classifier,
    measure_classifier,
)
from tinyseed.evaluation.common import (
    EvaluateConfig,
    Side,
    Sides,
    at_least,
    check,
    model_digest,
    open_model,
    open_sides,
)
from tinyseed.evaluation.linear import embed_sides
from tinyseed.evaluation.probe import L2_GRID, probe, solver_notes
from tinyseed.evaluation.reporting import Clock, Report
from tinyseed.evaluation.state import Figures, State
from tinyseed.models.encoder import Encoder

LR_GRID = (0.003, 0.01, 0.03, 0.1, 0.3)

FEWEST_HELD_OUT = 2

Metric = Literal["top1", "mean_per_class"]

_PER_CLASS = re.compile(r"caltech.?101|\bpets?\b|iiit.?pet|aircraft|flowers", re.IGNORECASE)
"""Sets whose figure is the mean per class. Source: Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR
2019, table 1 (Caltech-101, Oxford-IIIT Pets, FGVC Aircraft, Oxford 102 Flowers)."""


@dataclass(frozen=True, kw_only=True)
class TransferConfig(TrainedConfig, EvaluateConfig):
    """`tinyseed evaluate transfer`."""

    mode: Literal["linear", "finetune"] = "linear"
    """A linear layer on the frozen trunk (L2 chosen on validation), or the whole network (learning rate chosen)."""
    metric: Literal["auto", "top1", "mean-per-class"] = "auto"
    """Figure to choose by; auto: mean-per-class where the data's name says Caltech-101, pets, aircraft or flowers."""
    lr: tuple[float, ...] = ()
    """finetune: learning rates to choose from, for a batch of 256 (default 0.003 to 0.3); a single one is taken."""
    epochs: int = 30
    """finetune: passes over the training images, with a cosine schedule."""
    batch_size: int = 64
    """finetune: images a step."""
    weight_decay: float = 1e-4
    """finetune: weight decay."""
    l2: tuple[float, ...] = ()
    """linear: strengths of L2 to choose from (default 1e-5 to 1)."""
    bank_precision: Precision = "auto"
    """linear: bits of the features kept; auto: 16 where 32 would take more than 4 GiB."""


def run(config: TransferConfig) -> Report:
    """Measure the trunk on another data set, write evaluate-transfer.json.

    Raises:
        InputError: a setting, path or model is wrong, or labels are missing.
    """
    clock = Clock()
    _check(config)
    sides = open_sides(config)
    encoder = open_model(config.model, config.image_size, arch=config.model_arch)
    metric = metric_for(config)
    learned = (config.epochs, config.batch_size, config.weight_decay, config.precision)
    settings = (config.mode, metric, *learned, config.seed)
    state = State(
        "transfer",
        settings,
        config.lr,
        model_digest(encoder),
        sides.train.fingerprint,
        sides.test.fingerprint,
    )
    if config.mode == "linear":
        train, test = embed_sides(encoder, sides, workers=config.workers, precision=config.bank_precision)
        row = probe(train, test, len(sides.classes), l2=config.l2 or L2_GRID, seed=config.seed, metric=metric)
        unreadable = train.unreadable + test.unreadable
    else:
        row, unreadable = _finetune(config, _Tuner(config, encoder, len(sides.classes), state), sides, metric)
    made = reporting.report(
        "transfer",
        config,
        sides,
        [{"mode": config.mode, "metric": metric, **row}],
        model=config.model,
        encoder=encoder,
        clock=clock,
        notes=(*sides.model_may_see(), *solver_notes(row)),
        unreadable=unreadable,
    )
    state.clear()
    return made


def metric_for(config: TransferConfig) -> Metric:
    """The figure that the data set asks for, unless the settings say."""
    if config.metric != "auto":
        return "top1" if config.metric == "top1" else "mean_per_class"
    return "mean_per_class" if _PER_CLASS.search(" ".join(config.train_data)) else "top1"


@dataclass(frozen=True)
class _Tuner:
    """Fine-tunes one network with different learning rates."""

    config: TransferConfig
    encoder: Encoder
    classes: int
    state: State

    def validate(self, rate: float, learned: Side, held_out: Side) -> Figures:
        """Figures on the validation part; below 0 where training diverged."""
        try:
            figures = self.measure(rate, learned, held_out)
        except DivergedError:
            return {"top1": -1.0, "mean_per_class": -1.0}
        return figures

    def measure(self, rate: float, train: Side, test: Side) -> Figures:
        """Train on one side, measure on the other; goes on where it was stopped."""
        recipe = Recipe(
            self.config.epochs,
            min(self.config.batch_size, len(train)),
            rate,
            rate,
            schedule="cosine",
            weight_decay=self.config.weight_decay,
        )
        model = fit_classifier(
            self.encoder,
            train,
            self.classes,
            recipe,
            seed=self.config.seed,
            workers=self.config.workers,
            checkpoint=self.state.path(f"{rate:g}-{len(train)}.ckpt"),
            title=f"learning rate {rate:g}",
            precision=self.config.precision,
        )
        figures, unreadable = measure_classifier(model, test, workers=self.config.workers)
        return {**figures, "unreadable": unreadable}


def _finetune(config: TransferConfig, tuner: _Tuner, sides: Sides, metric: Metric) -> tuple[Figures, int]:
    """Choose a learning rate on 10 % of the training images, train on all of them with it, measure."""
    rates = config.lr or LR_GRID
    rate, found = rates[0], Figures()
    if len(rates) > 1:
        learned, held_out = (sides.train.take(part) for part in held_out_split(len(sides.train), config.seed))
        if len(held_out) < FEWEST_HELD_OUT:
            raise InputError("--lr", "several", f"{len(held_out)} validation images cannot choose; give one")
        tried = {
            value: tuner.state.remember(
                f"validation-{value:g}", partial(tuner.validate, value, learned, held_out)
            )[metric]
            for value in rates
        }
        rate = max(rates, key=lambda value: tried[value])
        if tried[rate] < 0:
            told = " ".join(map(str, rates))
            raise RunError(f"training diverged with every learning rate of {told}: give lower ones")
        found = {"validation": tried[rate]}
    row = tuner.state.remember("figures", partial(tuner.measure, rate, sides.train, sides.test))
    unreadable = int(row.pop("unreadable"))
    return row | {"lr": rate} | found | {"epochs": config.epochs}, unreadable


def _check(config: TransferConfig) -> None:
    check(config)
    at_least("--epochs", config.epochs, 1)
    at_least("--batch-size", config.batch_size, 2)
    at_least("--weight-decay", config.weight_decay, 0)
    for field, values in (("--lr", config.lr), ("--l2", config.l2)):
        for value in values:
            if not 0 < value < np.inf:
                raise InputError(field, value, "give a number above 0")
