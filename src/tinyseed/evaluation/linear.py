"""`evaluate linear`: how well a linear layer on frozen features tells the class. Imports this room.

Two protocols: "fast" solves logistic regression on features of the centre crop, exactly; "moco" trains as MoCo did.
"""

from dataclasses import dataclass
from typing import Literal

from tinyseed.errors import InputError
from tinyseed.evaluation import reporting
from tinyseed.evaluation.bank import Photos, Precision, embed_side
from tinyseed.evaluation.classifier import Recipe, TrainedConfig, fit_classifier, measure_classifier
from tinyseed.evaluation.common import (
    EvaluateConfig,
    Sides,
    at_least,
    check,
    model_digest,
    open_model,
    open_sides,
)
from tinyseed.evaluation.figures import over_seeds
from tinyseed.evaluation.probe import L2_GRID, probe, solver_notes
from tinyseed.evaluation.reporting import Clock, Report
from tinyseed.evaluation.state import Figures, State
from tinyseed.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class LinearConfig(TrainedConfig, EvaluateConfig):
    """`tinyseed evaluate linear`."""

    protocol: Literal["fast", "moco"] = "fast"
    """fast: logistic regression on features of the centre crop, L2 chosen on 10 % of the training images;
    moco: SGD on random crops, as MoCo has it."""
    seeds: int = 1
    """Runs, with seeds from --seed on; from two on the standard deviation is told."""
    l2: tuple[float, ...] = ()
    """fast: strengths of L2 to choose from, for standardised features (default 1e-5 to 1)."""
    bank_precision: Precision = "auto"
    """fast: bits of the features kept; auto: 16 where 32 would take more than 4 GiB."""
    epochs: int = 100
    """moco: passes over the training images; the learning rate falls to a tenth at 60 % and at 80 % of them."""
    batch_size: int = 256
    """moco: images a step."""
    lr: float = 30.0
    """moco: learning rate for a batch of 256; scaled linearly with the batch size."""


def run(config: LinearConfig) -> Report:
    """Measure a linear probe, write evaluate-linear.json.

    Raises:
        InputError: a setting, path or model is wrong, or labels are missing.
    """
    clock = Clock()
    _check(config)
    sides = open_sides(config)
    encoder = open_model(config.model, config.image_size, arch=config.model_arch)
    state = State(
        "linear", _decisive(config), model_digest(encoder), sides.train.fingerprint, sides.test.fingerprint
    )
    if config.protocol == "fast":
        row, unreadable = measure_linear(
            encoder,
            sides,
            l2=config.l2 or L2_GRID,
            seeds=range(config.seed, config.seed + config.seeds),
            workers=config.workers,
            precision=config.bank_precision,
        )
    else:
        row, unreadable = _moco(config, encoder, sides, state)
    notes = [*sides.model_may_see(), *solver_notes(row)]
    if config.protocol == "fast" and config.seeds > 1:
        notes.append("the fast protocol's solver is exact: the seeds change the validation part alone")
    made = reporting.report(
        "linear",
        config,
        sides,
        [{"protocol": config.protocol, **row}],
        model=config.model,
        encoder=encoder,
        clock=clock,
        notes=notes,
        unreadable=unreadable,
    )
    state.clear()
    return made


def measure_linear(
    encoder: Encoder,
    sides: Sides,
    *,
    l2: tuple[float, ...] = L2_GRID,
    seeds: range = range(1),
    workers: int = 0,
    precision: Precision = "auto",
) -> tuple[Figures, int]:
    """The fast protocol's figures, and how many images could not be read."""
    train, test = embed_sides(encoder, sides, workers=workers, precision=precision)
    runs = [probe(train, test, len(sides.classes), l2=l2, seed=seed) for seed in seeds]
    shares = over_seeds([{name: one[name] for name in ("top1", "top5", "mean_per_class")} for one in runs])
    chosen = [one["l2"] for one in runs]
    return (
        {
            **shares,
            "l2": chosen[0] if len(set(chosen)) == 1 else " ".join(f"{value:g}" for value in chosen),
            "seeds": len(runs),
            "converged": all(one["converged"] for one in runs),
        },
        train.unreadable + test.unreadable,
    )


def embed_sides(
    encoder: Encoder, sides: Sides, *, workers: int, precision: Precision = "auto"
) -> tuple[Photos, Photos]:
    """Features of both sides."""
    train = embed_side(encoder, sides.train, workers=workers, precision=precision, title="training images")
    if sides.same:
        return train, train
    return train, embed_side(encoder, sides.test, workers=workers, precision=precision, title="test images")


def _moco(config: LinearConfig, encoder: Encoder, sides: Sides, state: State) -> tuple[Figures, int]:
    """MoCo's protocol: a frozen trunk, SGD without weight decay, random crops and mirror images.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, section 4.1;
        the authors' main_lincls.py (lr 30 for a batch of 256, 100 epochs, a tenth at 60 and 80).
    Differs: the last epoch is measured, not the best one on the test images; an incomplete last batch is dropped.
    """
    batch = min(config.batch_size, len(sides.train))
    recipe = Recipe(config.epochs, batch, None, config.lr, decay=(0.6, 0.8))
    unreadable = 0

    def one(seed: int) -> Figures:
        model = fit_classifier(
            encoder,
            sides.train,
            len(sides.classes),
            recipe,
            seed=seed,
            workers=config.workers,
            checkpoint=state.path(f"{seed}.ckpt"),
            title=f"linear layer, seed {seed}",
            precision=config.precision,
        )
        figures, missing = measure_classifier(model, sides.test, workers=config.workers)
        return figures | {"unreadable": missing}

    runs = [
        state.remember(str(seed), lambda seed=seed: one(seed))
        for seed in range(config.seed, config.seed + config.seeds)
    ]
    unreadable = max(run.pop("unreadable") for run in runs)
    told = {"epochs": config.epochs, "batch_size": batch, "lr": config.lr * batch / 256, "seeds": len(runs)}
    return over_seeds(runs) | told, unreadable


def _decisive(config: LinearConfig) -> str:
    """The settings that change what MoCo's protocol does."""
    return f"{config.protocol} {config.epochs} {config.batch_size} {config.lr} {config.precision}"


def _check(config: LinearConfig) -> None:
    check(config)
    at_least("--seeds", config.seeds, 1)
    at_least("--epochs", config.epochs, 1)
    at_least("--batch-size", config.batch_size, 1)
    at_least("--lr", config.lr, 0)
    for strength in config.l2:
        if not strength > 0:
            raise InputError("--l2", strength, "give a number above 0")
