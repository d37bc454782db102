"""iBOT: DINO's student and teacher, with prototypes of patches and, in the student, an embedding of masked ones."""

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, MLP_GELU, Format

IBOT = Format(
    name="iBOT",
    source="github.com/bytedance/ibot, main_ibot.py and models/head.py; images of evaluation/eval_knn.py",
    sign=(r"teacher\.backbone\.", r"student\.", r"teacher\.head\.last_layer2\."),
    backbone="teacher.backbone.",
    head="teacher.head.mlp.",
    activation="gelu",
    layers=MLP_GELU,
    unused=("student.", "teacher.head.last_layer"),
    prefer=("torchvision/", "vit_"),
    input=IMAGENET_BICUBIC,
)
