"""lightly's examples and benchmarks, and LightlyTrain's training checkpoints."""

from tinyseed.checkpoints.formats.base import Format
from tinyseed.checkpoints.formats.renaming import LISTED_RESNET, renamed
from tinyseed.checkpoints.weights import StateDict

_SOURCE = "github.com/lightly-ai/lightly, examples/pytorch_lightning/, benchmarks/ and lightly/models/modules/heads.py"
_UNUSED = (
    "prediction_head.",
    "backbone_momentum.",
    "projection_head_momentum.",
    *(f"{whose}_{part}." for whose in ("teacher", "student") for part in ("backbone", "projection_head")),
    "online_classifier.",
    "knn_classifier.",
    "prototypes.",
    "criterion.",
    "projection_head.last_layer.",
)

# A layer has a bias only where no batch norm follows.
_LAYERS = r"((linear|linear-plain bn) relu )*(linear|linear-plain bn(-plain)?)"
_GELU = _LAYERS.replace("relu", "gelu")


def _unlisted(state: StateDict) -> StateDict:
    return renamed(state, LISTED_RESNET, "backbone.")


def _teacher_unlisted(state: StateDict) -> StateDict:
    return renamed(state, LISTED_RESNET, "teacher_backbone.")


LIGHTLY_DINO = Format(
    name="lightly (DINO)",
    source=_SOURCE,
    sign=(r"backbone\.", r"projection_head\.layers\.", r"projection_head\.last_layer\."),
    convert=_unlisted,
    backbone="backbone.",
    head="projection_head.layers.",
    activation="gelu",
    layers=_GELU,
    unused=_UNUSED,
    prefer=("torchvision/", "vit_"),
)
LIGHTLY = Format(
    name="lightly",
    source=_SOURCE,
    sign=(r"backbone\.", r"projection_head\.layers\."),
    convert=_unlisted,
    backbone="backbone.",
    head="projection_head.layers.",
    layers=_LAYERS,
    unused=_UNUSED,
    prefer=("torchvision/", "vit_"),
)
LIGHTLY_DINO_EXAMPLE = Format(
    name="lightly (DINO)",
    source=_SOURCE,
    sign=(r"teacher_backbone\.", r"teacher_head\.layers\.", r"student_"),
    convert=_teacher_unlisted,
    backbone="teacher_backbone.",
    head="teacher_head.layers.",
    activation="gelu",
    layers=_GELU,
    unused=("student_backbone.", "student_head.", "teacher_head.last_layer.", "criterion."),
    prefer=("torchvision/", "vit_"),
)
LIGHTLY_TRAIN = Format(
    name="LightlyTrain",
    source="reports of users in github.com/lightly-ai/lightly-train (names of tensors alone)",
    sign=(r"(student|teacher)_embedding_model\.wrapped_model\.",),
    unsupported=(
        "is a training checkpoint of LightlyTrain; give the model that it exported, or choose one by its name: "
        "`prefix` student_embedding_model.wrapped_model._model, or the same with teacher_ where there is one"
    ),
)
