"""MoCo v1 and v2: a query encoder, its momentum encoder, and the queue."""

from tinyseed.checkpoints.formats.base import Format

_SOURCE = "github.com/facebookresearch/moco, moco/builder.py and main_moco.py"
_UNUSED = ("encoder_k.", "queue_ptr", "queue")

MOCO_V1 = Format(
    name="MoCo v1",
    source=_SOURCE,
    sign=(r"encoder_q\.", r"encoder_q\.fc\.(weight|bias)$"),
    backbone="encoder_q.",
    head="encoder_q.fc.",
    unused=_UNUSED,
)
MOCO_V2 = Format(
    name="MoCo v2",
    source=_SOURCE,
    sign=(r"encoder_q\.",),
    backbone="encoder_q.",
    head="encoder_q.fc.",
    unused=_UNUSED,
)
