"""`tinyseed evaluate semi`: the whole network fine-tuned on few labels.

Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), NeurIPS
    2020, section 4.1; the authors' eval_semisup.py and README (batch 8 × 32, 20 epochs, a fifth at 12 and 16, momentum
    0.9, no weight decay; learning rates of backbone and head 0.02 and 5 for 1 %, 0.01 and 0.2 for 10 %).
Differs: the last epoch is measured, not the best one on the test images; an incomplete last batch is dropped; learning
    rates scale with a batch that is not 256; small subsets take smaller batches and more epochs; the head begins as in
    linear probes, unless `head_init` is "uniform".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tinyseed.errors import InputError, argument
from tinyseed.evaluation.base import EvaluationSpec, Measurement, Resume
from tinyseed.evaluation.parts import classifier, label_subset, models, splits
from tinyseed.settings.base import BATCH_SIZES, LARGEST, MOST_EPOCHS, Range
from tinyseed.settings.evaluation import (
    HeadInit,
    ModelEvaluationSettings,
    RecipeSettings,
    TrainingSettings,
)

FEW = 0.03
"""Up to this share of the labels SwAV's learning rates for 1 % are used, above it those for 10 %."""

FEWEST_BATCHES, FEWEST_STEPS, SMALLEST_BATCH = 4, 200, 8
"""What a small subset gets: at least this many batches per epoch, steps in all, and images per batch."""


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings(TrainingSettings):
    """Settings of fine-tuning on label subsets; "auto" is SwAV's setting, adapted to small subsets."""

    RANGES: ClassVar = {
        "fraction": Range(0, 1, above=True),
        "epochs": MOST_EPOCHS,
        "batch_size": Range(2, BATCH_SIZES.high),
        "lr": Range(0, LARGEST),
        "lr_head": Range(0, LARGEST),
    }

    fraction: tuple[float, ...] = (0.01, 0.1)
    """Shares of the labels to use, balanced over the classes."""
    epochs: int | Literal["auto"] = "auto"
    """Passes over the subset; auto: 20, or as many as make 200 steps."""
    batch_size: int | Literal["auto"] = "auto"
    """Images per step; auto: 256, or a quarter of a smaller subset, but at least 8."""
    lr: float | Literal["auto"] = "auto"
    """Learning rate of the backbone for a batch size of 256; auto: 0.02 for up to 3 % of the labels, else 0.01."""
    lr_head: float | Literal["auto"] = "auto"
    """Learning rate of the head for a batch size of 256; auto: 5 for up to 3 % of the labels, else 0.2."""

    head_init: HeadInit = "normal"
    """Initial weights of the head: normal with standard deviation 0.01 and no bias; uniform: torch's own, as in SwAV's
    code."""

    def check(self) -> None:
        """Refuse settings that are out of range."""
        super().check()
        if not self.fraction:
            raise InputError("(nothing)", "give a share of the labels, such as 0.01", argument="fraction")


@dataclass(frozen=True, kw_only=True)
class SemiSettings(FineTuneSettings, RecipeSettings, ModelEvaluationSettings):
    """Settings of `tinyseed evaluate semi`."""

    subset: tuple[str, ...] = ()
    """Text files of image names to use instead of `fraction`, such as ImageNet's published 1 % and 10 % lists."""


def measure(
    encoder: "models.Encoder", splits: "splits.Splits", settings: SemiSettings, resume: Resume
) -> Measurement:
    """Metrics in per cent, a row for each label subset."""
    if settings.subset:
        with argument("subset"):
            files = [Path(name).expanduser() for name in settings.subset]
            subsets = [label_subset.read_subset(splits.train, file) for file in files]
    else:
        subsets = chosen_subsets(splits, settings)
    parts = [measure_subset(encoder, splits, subset, settings, resume) for subset in subsets]
    return Measurement(
        tuple(part.row for part in parts),
        (*splits.training_notes, *(note for part in parts for note in part.notes)),
        max(part.unreadable for part in parts),
        subset_files(splits, subsets),
    )


def chosen_subsets(
    splits: "splits.Splits", settings: FineTuneSettings
) -> "Sequence[label_subset.LabelSubset]":
    """The balanced subset of each share."""
    return [label_subset.balanced_subset(splits.train, share, settings.seed) for share in settings.fraction]


def subset_files(splits: "splits.Splits", subsets: "Sequence[label_subset.LabelSubset]") -> dict[str, str]:
    """The lists of names that the subsets are read back from, by file name."""
    return {f"{label_subset.PREFIX}{subset.name}.txt": subset.text(splits.train) for subset in subsets}


def measure_subset(
    encoder: "models.Encoder",
    splits: "splits.Splits",
    subset: "label_subset.LabelSubset",
    settings: FineTuneSettings,
    resume: Resume,
) -> Measurement:
    """Fine-tune on a subset and measure on the test images.

    Raises:
        InputError: the subset has a single image or class.
    """
    train = splits.train.take(subset.places)
    present, all_classes = len(set(train.labels.tolist())), len(set(splits.train.labels.tolist()))
    if present < 2:
        name = "subset" if getattr(settings, "subset", ()) else "fraction"
        raise InputError(subset.name, "holds images of a single class; give more", argument=name)
    recipe, notes = recipe_for(len(train), len(train) / len(splits.train), settings)
    if present < all_classes:
        notes.append(f"subset {subset.name} has no image of {all_classes - present} classes")
    part = f"semi-{train.fingerprint}"

    def fine_tune() -> Measurement:
        return classifier.fit_and_measure(
            encoder,
            train,
            splits.test,
            recipe,
            settings,
            classes=len(splits.classes),
            seed=settings.seed,
            checkpoint=resume.path(f"{part}.ckpt"),
            title=f"{subset.name} of the labels",
        )

    measured = resume.remember(part, fine_tune)
    row = {"subset": subset.name, "images": len(train), **measured.row}
    row |= {"epochs": recipe.epochs, "batch_size": recipe.batch_size}
    return Measurement((row,), tuple(notes), measured.unreadable)


def recipe_for(
    images: int, share: float, settings: FineTuneSettings
) -> "tuple[classifier.Recipe, list[str]]":
    """SwAV's recipe for a subset of this many images, which are this share of all; and how it was adapted."""
    notes = []
    if settings.batch_size == "auto":
        wanted = classifier.REFERENCE_BATCH
        batch = max(min(wanted, images // FEWEST_BATCHES), min(SMALLEST_BATCH, images))
    else:
        wanted = settings.batch_size
        batch = min(wanted, images)
    if batch < wanted:
        notes.append(f"batch {batch} instead of {wanted}, since the subset has {images} images")
    epochs = settings.epochs
    if epochs == "auto":
        epochs = max(20, -(-FEWEST_STEPS // (images // batch)))
        if epochs > 20:
            notes.append(f"{epochs} epochs instead of 20, so that there are {FEWEST_STEPS} steps")
    backbone, head = (0.02, 5.0) if share <= FEW else (0.01, 0.2)
    recipe = classifier.Recipe(
        epochs,
        batch,
        backbone if settings.lr == "auto" else settings.lr,
        head if settings.lr_head == "auto" else settings.lr_head,
        decay=(0.6, 0.8),
        gamma=0.2,
        head_init=settings.head_init,
    )
    return recipe, notes


SPEC = EvaluationSpec(
    name="semi",
    settings=SemiSettings,
    measure=measure,
    about="Fine-tuning on few labels (1 % and 10 %): how far does a model get with them?",
    example="tinyseed evaluate semi --model runs/small --train-data train/ --test-data test/ --fraction 0.01 0.1",
)
