"""The study behind `seed-plus`: what each change to SEED adds."""

from tinyseed.studies.base import Row, Study
from tinyseed.studies.paper import BUDGET, PATCHES, SMALL, STUDENT

SEED_PLUS = Study(
    name="seed-plus",
    about="What each change to SEED adds",
    source="ours; there is no published table.",
    rows=(
        Row("seed", "SEED, as in the paper", "seed"),
        Row("wide-head", "projector 2,048 wide", "seed", {"projector_hidden": 2048}),
        Row("teacher-features", "teacher's backbone features", "seed", {"teacher_output": "backbone"}),
        Row("auto-temperature", "τ_T from the data", "seed", {"teacher_temperature": "auto"}),
        Row("queue-warmup", "queue filled first", "seed", {"queue_warmup": True}),
        Row("two-views", "two large views", "seed", {"large_crops": 2}),
        Row("small-patches", "small patches", "seed", PATCHES),
        Row("mixup", "mixup of views", "seed", {"mixup": 0.2}),
        Row("ema", "average of the weights", "seed", {"ema": 0.99}),
        Row("adamw", "AdamW", "seed", {"optimizer": "adamw", "lr": 0.002}),
        Row("clip", "gradient clipping", "seed", {"clip_gradients": 1.0}),
    ),
    common=SMALL,
    student=STUDENT,
    budget=BUDGET,
)
