"""`tinyseed evaluate linear`: a linear probe on frozen features.

There are two protocols: "fast" solves logistic regression on features of the center crop, exactly; "moco" trains with
SGD on random crops as MoCo and SEED did.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from tinyseed.evaluation.base import EvaluationSpec, Measurement, Resume
from tinyseed.evaluation.parts import classifier, features, logistic, metrics, models, splits
from tinyseed.settings.base import BATCH_SIZES, LARGEST, MOST_EPOCHS, Range
from tinyseed.settings.evaluation import (
    BankPrecision,
    ClassifierSchedule,
    ModelEvaluationSettings,
    RecipeSettings,
    TrainingSettings,
)


@dataclass(frozen=True, kw_only=True)
class LinearSettings(TrainingSettings, RecipeSettings, ModelEvaluationSettings):
    """Settings of `tinyseed evaluate linear`."""

    RANGES: ClassVar = {
        "seeds": Range(1, 1000),
        "l2": Range(0, above=True),
        "epochs": MOST_EPOCHS,
        "batch_size": BATCH_SIZES,
        "lr": Range(0, LARGEST),
        "weight_decay": Range(0, LARGEST),
    }

    protocol: Literal["fast", "moco"] = "fast"
    """fast: logistic regression on features of the center crop, with L2 chosen on 10 % of the training images;
    moco: SGD on random crops, as in MoCo."""
    seeds: int = 1
    """Number of runs with consecutive seeds from `seed` on; for two or more, standard deviations are reported."""
    l2: tuple[float, ...] = ()
    """fast: L2 strengths to choose from, for standardized features (default: 1e-5 to 1)."""
    bank_precision: BankPrecision = "auto"
    """fast: bits per number of the features that are kept; auto: 32, but 16 where that would take more than 4 GiB."""
    epochs: int = 100
    """moco: passes over the training images."""
    batch_size: int = 256
    """moco: images per step."""
    lr: float = 30.0
    """moco: learning rate for a batch size of 256; it is scaled linearly with the batch size."""
    schedule: ClassifierSchedule = "step"
    """moco: learning rate schedule; step: division by 10 after 60 % and 80 % of the epochs; cosine: half a cosine down
    to 0, set at each step; cosine-epoch: the same, set at each epoch."""
    weight_decay: float = 0.0
    """moco: weight decay of the linear layer."""

    @property
    def all_seeds(self) -> range:
        """The seed of each run."""
        return range(self.seed, self.seed + self.seeds)


def measure(
    encoder: "models.Encoder", splits: "splits.Splits", settings: LinearSettings, resume: Resume
) -> Measurement:
    """Metrics of a linear probe in per cent, as one row."""
    notes: tuple[str, ...] = ()
    if settings.protocol == "fast":
        measured = measure_probe(
            encoder,
            splits,
            l2=settings.l2,
            seeds=settings.all_seeds,
            workers=settings.workers,
            precision=settings.bank_precision,
        )
        if settings.seeds > 1:
            notes = ("the fast protocol's solver is exact: the seeds change the validation images only",)
    else:
        measured = _measure_sgd(encoder, splits, settings, resume)
    row = {"protocol": settings.protocol, **measured.row}
    return Measurement((row,), (*splits.training_notes, *measured.notes, *notes), measured.unreadable)


def measure_probe(
    encoder: "models.Encoder",
    splits: "splits.Splits",
    *,
    l2: tuple[float, ...] = (),
    seeds: range = range(1),
    workers: int = 0,
    precision: BankPrecision = "auto",
) -> Measurement:
    """The fast protocol."""
    train, test = features.embed_splits(encoder, splits, workers=workers, precision=precision)
    runs = [
        logistic.probe(train, test, len(splits.classes), l2=l2 or logistic.L2_GRID, seed=seed)
        for seed in seeds
    ]
    chosen = [run["l2"] for run in runs]
    row = {
        **metrics.over_seeds(
            [{name: run[name] for name in ("top1", "top5", "mean_per_class")} for run in runs]
        ),
        "l2": chosen[0] if len(set(chosen)) == 1 else " ".join(f"{value:g}" for value in chosen),
        "seeds": len(runs),
        "converged": all(run["converged"] for run in runs),
    }
    return Measurement((row,), logistic.solver_notes(row), train.unreadable + test.unreadable)


def _measure_sgd(
    encoder: "models.Encoder", splits: "splits.Splits", settings: LinearSettings, resume: Resume
) -> Measurement:
    """MoCo's and SEED's protocol: a frozen backbone, SGD without weight decay, random crops and mirror images.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, section 4.1;
        the authors' main_lincls.py (lr 30 for a batch of 256, 100 epochs, a tenth at 60 and 80); Fang et al., SEED,
        ICLR 2021, section 4.2, and its main_lincls.py, which are the same (lr 3 for MobileNet and EfficientNet).
    Differs: the last epoch is measured, not the best one on the test images; an incomplete last batch is dropped. The
        learning rate scales with a batch that is not 256, as in SEED's code but not in MoCo's, and without the five
        epochs in which SEED's rises from the unscaled one.
    """
    batch = min(settings.batch_size, len(splits.train))
    recipe = classifier.Recipe(
        settings.epochs,
        batch,
        None,
        settings.lr,
        schedule=settings.schedule,
        decay=(0.6, 0.8),
        weight_decay=settings.weight_decay,
    )

    def run(seed: int) -> Measurement:
        return classifier.fit_and_measure(
            encoder,
            splits.train,
            splits.test,
            recipe,
            settings,
            classes=len(splits.classes),
            seed=seed,
            checkpoint=resume.path(f"{seed}.ckpt"),
            title=f"linear layer, seed {seed}",
        )

    runs = [resume.remember(str(seed), partial(run, seed)) for seed in settings.all_seeds]
    row = {
        **metrics.over_seeds([run.row for run in runs]),
        "epochs": settings.epochs,
        "batch_size": batch,
        "lr": settings.lr * batch / classifier.REFERENCE_BATCH,
        "seeds": len(runs),
    }
    return Measurement((row,), unreadable=max(run.unreadable for run in runs))


SPEC = EvaluationSpec(
    name="linear",
    settings=LinearSettings,
    measure=measure,
    about="Linear probe: how well does a linear layer on frozen features predict the class?",
    example="tinyseed evaluate linear --model runs/small --train-data train/ --test-data test/",
)
