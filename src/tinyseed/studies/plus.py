"""The study behind `seed-plus`: what each change to SEED adds, one at a time and together."""

from tinyseed.studies.base import Row, Study
from tinyseed.studies.paper import BUDGET, SMALL, STUDENT

SEED_PLUS = Study(
    name="seed-plus",
    about="What each change to SEED adds, and all that helped together",
    source="ours; there is no published table.",
    rows=(
        Row("seed", "SEED, as in the paper", "seed"),
        Row("wide-head", "projector 2,048 wide", "seed", {"projector_hidden": 2048}),
        Row("teacher-features", "teacher's backbone features", "seed", {"teacher_output": "backbone"}),
        Row("auto-temperature", "τ_T from the data", "seed", {"teacher_temperature": "auto"}),
        Row("adamw", "AdamW", "seed", {"optimizer": "adamw", "lr": 0.002}),
        Row("seed-plus", "seed-plus", "seed-plus"),
    ),
    common=SMALL,
    student=STUDENT,
    budget=BUDGET,
)
