"""SEED's own releases: the student, the frozen teacher that it learned from, and one or two queues."""

from tinyseed.checkpoints.formats.base import Format

SEED = Format(
    name="SEED",
    source="github.com/jacobswan1/SEED, seed/builder.py and seed/small_patch_builder.py",
    sign=(r"student\.", r"queue(_ptr)?$"),
    backbone="student.",
    head="student.fc.",
    unused=("teacher.", "queue_ptr", "queue", "small_queue"),
)
