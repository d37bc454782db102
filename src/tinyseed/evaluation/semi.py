"""`evaluate semi`: the whole network fine-tuned on a few labels. Imports this room.

Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), NeurIPS
    2020, section 4.1; the authors' eval_semisup.py and README (batch 8 × 32, 20 epochs, a fifth at 12 and 16, momentum
    0.9, no weight decay; learning rates of trunk and head 0.02 and 5 for 1 %, 0.01 and 0.2 for 10 %).
Differs: the last epoch is measured, not the best one on the test images; an incomplete last batch is dropped; learning
    rates scale with a batch that is not 256; small subsets take smaller batches and more epochs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyseed.errors import InputError
from tinyseed.evaluation import reporting
from tinyseed.evaluation.classifier import (
    REFERENCE_BATCH,
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
from tinyseed.evaluation.reporting import Clock, Report
from tinyseed.evaluation.state import Figures, State
from tinyseed.evaluation.subset import balanced_subset, read_subset, save_subset
from tinyseed.models.encoder import Encoder

FEW = 0.03
"""Up to this share of the labels the learning rates for 1 % are taken, above it those for 10 %."""

FEWEST_BATCHES, FEWEST_STEPS, SMALLEST_BATCH = 4, 200, 8
"""What a small subset gets: so many batches an epoch, so many steps in all, and no batch below this."""


@dataclass(frozen=True, kw_only=True)
class Tuning(TrainedConfig):
    """How few labels are learned from; "auto" is SwAV's setting, made fit for small subsets."""

    fraction: tuple[float, ...] = (0.01, 0.1)
    """Shares of the labels that are used, each class alike."""
    epochs: int | Literal["auto"] = "auto"
    """Passes over the subset; auto: 20, or as many as make 200 steps."""
    batch_size: int | Literal["auto"] = "auto"
    """Images a step; auto: 256, or a quarter of the subset, at least 8."""
    lr: float | Literal["auto"] = "auto"
    """Trunk's learning rate for a batch of 256; auto: 0.02 up to 3 % of the labels, 0.01 above."""
    lr_head: float | Literal["auto"] = "auto"
    """Head's learning rate for a batch of 256; auto: 5 up to 3 % of the labels, 0.2 above."""


@dataclass(frozen=True, kw_only=True)
class SemiConfig(Tuning, EvaluateConfig):
    """`tinyseed evaluate semi`."""

    subset: tuple[str, ...] = ()
    """Text files of image names instead of --fraction, as ImageNet's published 1 % and 10 % lists."""


class Few(NamedTuple):
    """A subset: its name, and places among the training images."""

    name: str
    places: NDArray[np.int64]


def run(config: SemiConfig) -> Report:
    """Fine-tune on each subset, measure on the test images, write evaluate-semi.json and the subsets' names.

    Raises:
        InputError: a setting, path or model is wrong, or labels are missing.
    """
    clock = Clock()
    check(config)
    check_tuning(config)
    sides = open_sides(config)
    subsets = _subsets(config, sides)
    encoder = open_model(config.model, config.image_size, arch=config.model_arch)
    folder = reporting.folder_for(config, config.model)
    if folder is not None:
        for few in subsets:
            save_subset(sides.train, few.places, folder / f"semi-subset-{few.name}.txt")
    rows, notes = [], [*sides.model_may_see()]
    for few in subsets:
        row, told = measure_semi(encoder, sides, few, config, seed=config.seed, workers=config.workers)
        rows.append(row)
        notes += told
    unreadable = max(row.pop("unreadable") for row in rows)
    made = reporting.report(
        "semi",
        config,
        sides,
        rows,
        model=config.model,
        encoder=encoder,
        clock=clock,
        notes=notes,
        unreadable=unreadable,
    )
    for few in subsets:
        semi_state(encoder, sides, few, config, config.seed).clear()
    return made


def check_tuning(config: Tuning) -> None:
    """Refuse settings out of range.

    Raises:
        InputError: names the first.
    """
    for fraction in config.fraction:
        if not 0 < fraction <= 1:
            raise InputError("--fraction", fraction, "give a share of the labels above 0, at most 1")
    if not config.fraction:
        raise InputError("--fraction", "(nothing)", "give a share of the labels, such as 0.01")
    for field, value, least in (
        ("--epochs", config.epochs, 1),
        ("--batch-size", config.batch_size, 2),
        ("--lr", config.lr, 0),
        ("--lr-head", config.lr_head, 0),
    ):
        at_least(field, None if isinstance(value, str) else value, least)


def _subsets(config: SemiConfig, sides: Sides) -> list[Few]:
    if config.subset:
        files = [Path(name).expanduser() for name in config.subset]
        return [Few(file.stem.removeprefix("semi-subset-"), read_subset(sides.train, file)) for file in files]
    return [few_labels(sides.train, fraction, config.seed) for fraction in config.fraction]


def few_labels(side: Side, fraction: float, seed: int) -> Few:
    """The balanced subset of this share."""
    return Few(f"{fraction:g}", balanced_subset(side, fraction, seed))


def measure_semi(
    encoder: Encoder, sides: Sides, few: Few, tuning: Tuning, *, seed: int, workers: int
) -> tuple[Figures, list[str]]:
    """Fine-tune on a subset; figures on the test images in per cent, and what has to be said about it.

    Raises:
        InputError: the subset has a single image or class.
    """
    subset = sides.train.take(few.places)
    present = len(np.unique(subset.labels))
    if len(subset) < 2 or present < 2:
        field = "--subset" if getattr(tuning, "subset", ()) else "--fraction"
        raise InputError(field, few.name, "holds images of a single class; give more")
    recipe, notes = recipe_for(len(subset), len(subset) / len(sides.train), tuning)
    lacking = len(np.unique(sides.train.labels)) - present
    if lacking:
        notes.append(f"subset {few.name} has no image of {lacking} classes")
    state = semi_state(encoder, sides, few, tuning, seed)

    def measure() -> Figures:
        model = fit_classifier(
            encoder,
            subset,
            len(sides.classes),
            recipe,
            seed=seed,
            workers=workers,
            checkpoint=state.path("last.ckpt"),
            title=f"{few.name} of the labels",
            precision=tuning.precision,
        )
        figures, unreadable = measure_classifier(model, sides.test, workers=workers)
        return figures | {"unreadable": unreadable}

    told: Figures = {"subset": few.name, "images": len(subset)}
    settings = {"epochs": recipe.epochs, "batch_size": recipe.batch_size}
    return told | state.remember("figures", measure) | settings, notes


def recipe_for(images: int, share: float, tuning: Tuning) -> tuple[Recipe, list[str]]:
    """SwAV's recipe for a subset of so many images, which are this share of all; and what was changed of it."""
    notes = []
    if tuning.batch_size == "auto":
        batch = max(min(REFERENCE_BATCH, images // FEWEST_BATCHES), min(SMALLEST_BATCH, images))
    else:
        batch = min(tuning.batch_size, images)
    wanted = REFERENCE_BATCH if tuning.batch_size == "auto" else tuning.batch_size
    if batch < wanted:
        notes.append(f"batch {batch} instead of {wanted}, since the subset has {images} images")
    if tuning.epochs == "auto":
        epochs = max(20, -(-FEWEST_STEPS // (images // batch)))
        if epochs > 20:
            notes.append(f"{epochs} epochs instead of 20, so that there are {FEWEST_STEPS} steps")
    else:
        epochs = tuning.epochs
    trunk, head = (0.02, 5.0) if share <= FEW else (0.01, 0.2)
    recipe = Recipe(
        epochs,
        batch,
        trunk if tuning.lr == "auto" else tuning.lr,
        head if tuning.lr_head == "auto" else tuning.lr_head,
        decay=(0.6, 0.8),
        gamma=0.2,
    )
    return recipe, notes


def semi_state(encoder: Encoder, sides: Sides, few: Few, tuning: Tuning, seed: int) -> State:
    """What a stopped fine-tuning has left."""
    settings = (tuning.epochs, tuning.batch_size, tuning.lr, tuning.lr_head, tuning.precision, seed)
    data = (sides.train.take(few.places).fingerprint, sides.test.fingerprint, len(sides.train))
    return State("semi", settings, data, model_digest(encoder))
