"""The studies of the SEED paper, at a scale of minutes and at the paper's own.

Source: Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), tables 1, 3, 4, 5 and figure 5. Only figures whose source could
be opened are quoted: those of the abstract and of the published code's README, and one of table 1 at second hand. The
others are left out rather than quoted from memory.
"""

from dataclasses import fields, replace
from typing import Any

from tinyseed.recipes import settings_of
from tinyseed.settings.train import DistillSettings
from tinyseed.studies.base import Axis, Expected, Pretraining, Row, Study

SMALL: dict[str, Any] = {
    "image_size": 64,
    "batch_size": 128,
    "lr": 0.4,
    "evaluate_every": 10_000,
    "validation_images": 400,
}
"""Photos of 64 px on two cores, as in the demo; evaluated at the start and the end only."""

STUDENT, BUDGET = "mobilenetv3_small_050", "5min"

MOCO: dict[str, Any] = {"lr": 0.3, "queue_size": 1024, "encoder_momentum": 0.99}
SIMCLR: dict[str, Any] = {"lr": 1.0}
SWAV: dict[str, Any] = {"lr": 2.0, "prototypes": 64, "epsilon": 0.03, "large_crop_scale": (0.2, 1.0)}
SWAV |= {"small_crops": 4, "small_crop_size": 40, "small_crop_scale": (0.1, 0.4)}
"""What pre-training takes at that scale; docs/results.md has the runs that it comes from."""

_UNQUOTED = "Its figures are not quoted: the table could not be opened when this was written."

_SEED_RESNET18 = Expected(
    57.6,
    "SEED table 1, ResNet-18 from a MoCo-v2 ResNet-50, 200 epochs; at second hand, as the README of a public "
    "re-implementation quotes it",
)

PATCHES: dict[str, Any] = {"small_crops": 4, "small_crop_size": 40, "small_crop_scale": (0.1, 0.4)}

_TEMPERATURES = ("teacher_temperature", (0.01, 0.03, 0.1))

STRATEGIES = Study(
    name="paper-strategies",
    about="Ways to distill: no teacher, regression, clustering, contrast, SEED and what builds on it",
    source=f"SEED table 4, with random init, CompRess and small patches beside it. {_UNQUOTED}",
    rows=(
        Row("random", "random init", None),
        Row("moco-v2", "MoCo-v2, no teacher", "moco-v2", MOCO, own=("temperature", (0.2, 0.1, 0.07))),
        Row(
            "l2", "ℓ2 (regression)", "regress", {"loss": "l2"}, own=("projector", ("mlp", "mlp-bn", "linear"))
        ),
        Row("kmeans", "k-means pseudo-labels", "kmeans", own=("clusters", ("auto", 64, 256))),
        Row(
            "online-clustering",
            "online clustering",
            "online-clustering",
            own=("temperature", (0.1, 0.2, 0.05)),
        ),
        Row(
            "contrastive",
            "binary contrastive",
            "contrastive",
            {"loss": "nce"},
            own=("temperature", (0.2, 0.1, 0.07)),
        ),
        Row("compress", "CompRess", "compress", own=("teacher_temperature", (0.04, 0.02, 0.1))),
        Row("seed", "SEED", "seed", own=_TEMPERATURES),
        Row(
            "seed-moco",
            "SEED + MoCo-v2",
            "seed-moco",
            {"encoder_momentum": 0.99},
            own=("ssl_weight", (1.0, 0.3, 0.1)),
        ),
        Row("small-patches", "SEED + small patches", "seed", PATCHES, own=_TEMPERATURES),
    ),
    common=SMALL,
    student=STUDENT,
    budget=BUDGET,
)

TEMPERATURE = Study(
    name="paper-temperature",
    about="The teacher's temperature, from soft targets down to InfoNCE",
    source=f"SEED table 5. {_UNQUOTED}",
    rows=(
        *(
            Row(f"t-{value:g}", f"τ_T {value:g}", "seed", {"teacher_temperature": value}, x=value)
            for value in (0.3, 0.1, 0.05, 0.01, 1e-3, 1e-4)
        ),
        Row("infonce", "τ_T → 0 (InfoNCE)", "contrastive", {"loss": "info-nce"}, x=0.0),
    ),
    common=SMALL,
    student=STUDENT,
    budget=BUDGET,
    axis=Axis("teacher's temperature", log=True),
)


def _by_teacher(name: str, label: str, settings: dict[str, Any], **about: Any) -> Row:  # noqa: ANN401
    """A SEED student of a teacher that MoCo-v2 trains."""
    teacher = Pretraining(f"moco-v2-{name}", "moco-v2", label.lower(), settings)
    return Row(name, label, "seed", teacher=teacher, **about)


TEACHERS = Study(
    name="paper-teachers",
    about="Deeper and wider teachers, each pre-trained on the same images",
    source=f"SEED figure 5. {_UNQUOTED}",
    rows=tuple(_by_teacher(name, name, MOCO) for name in ("resnet10t", "resnet18", "resnet34", "resnet50")),
    common=SMALL,
    student=STUDENT,
    budget=BUDGET,
    axis=Axis("teacher's parameters", "parameters_teacher", log=True),
)


def _by_method(
    method: str, settings: dict[str, Any], backbone: str, lengths: tuple[float, ...]
) -> tuple[Row, ...]:
    """SEED students of teachers that a method trains for several lengths."""
    return tuple(
        Row(
            f"{method}-x{length:g}",
            f"{method} teacher, {length:g}×",
            "seed",
            teacher=Pretraining(f"{method}-{backbone}-x{length:g}", method, backbone, settings, length),
        )
        for length in lengths
    )


SSL = Study(
    name="paper-ssl",
    about="Teachers by three self-supervised methods, each pre-trained for two lengths",
    source=f"SEED table 3. {_UNQUOTED}",
    rows=(
        *_by_method("moco-v2", MOCO, "resnet18", (1, 2)),
        *_by_method("simclr", SIMCLR, "resnet18", (1, 2)),
        *_by_method("swav", SWAV, "resnet18", (1, 2)),
    ),
    common=SMALL,
    student=STUDENT,
    budget=BUDGET,
)

EPOCHS = Study(
    name="paper-epochs",
    about="How long the student is distilled",
    source=f"SEED table 3. {_UNQUOTED}",
    rows=tuple(
        Row(f"x{length:g}", f"{length:g} × the budget", "seed", length=length, x=length)
        for length in (0.5, 1.0, 2.0, 4.0)
    ),
    common=SMALL,
    student=STUDENT,
    budget=BUDGET,
    axis=Axis("length of the distillation, × budget", log=True),
)


def _without_length(recipe: str, command: str) -> dict[str, Any]:
    return {name: value for name, value in settings_of(recipe, command).items() if name != "epochs"}


def _at_paper_scale() -> tuple[Study, ...]:
    """ImageNet, ResNet-18, 200 epochs and the paper's settings; teachers as their own papers trained them."""
    shared = {each.name for each in fields(DistillSettings)} | {"queue_size"}  # SEED's own are its defaults
    recipe = _without_length("seed-imagenet", "distill")
    common = {name: value for name, value in recipe.items() if name in shared}
    moco, simclr, swav = (
        _without_length(f"{method}-imagenet", f"pretrain {method}")
        for method in ("moco-v2", "simclr", "swav")
    )
    scale: dict[str, Any] = {
        "suffix": "imagenet",
        "budget": "200epochs",
        "student": "resnet18",
        "common": common,
    }
    patches = {
        "small_crops": 6,
        "small_crop_size": 96,
        "small_crop_scale": (0.05, 0.14),
        "teacher_temperature": 1e-4,
    }
    published = {"seed": _SEED_RESNET18}
    strategies = tuple(
        replace(
            row, expected=published.get(row.name), settings=moco if row.method == "moco-v2" else row.settings
        )
        if row.name != "small-patches"
        else replace(row, settings=patches)
        for row in STRATEGIES.rows
    )
    teachers = tuple(
        _by_teacher(name, name, moco, expected=_SEED_RESNET18 if name == "resnet50" else None)
        for name in ("resnet50", "resnet101", "resnet152", "wide_resnet50_2")
    )
    methods = (
        *_by_method("moco-v2", moco, "resnet50", (1, 4)),
        *_by_method("simclr", simclr, "resnet50", (1,)),
        *_by_method("swav", swav, "resnet50", (4,)),
    )
    return (
        STRATEGIES.at_scale(rows=strategies, **scale),
        TEMPERATURE.at_scale(**scale),
        TEACHERS.at_scale(rows=teachers, **scale),
        SSL.at_scale(rows=methods, **scale),
        EPOCHS.at_scale(**scale),
    )


AT_PAPER_SCALE = _at_paper_scale()
