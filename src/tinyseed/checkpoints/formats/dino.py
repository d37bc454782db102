"""DINO: released backbones, and full training checkpoints of student and teacher."""

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, Candidate, Format

_SOURCE = "github.com/facebookresearch/dino, main_dino.py and utils.py; images of eval_knn.py"
_BACKBONES = ("vit_small_patch16_224", "vit_small_patch8_224", "vit_base_patch16_224", "vit_base_patch8_224")
_RELEASED = frozenset({*_BACKBONES, "torchvision/resnet50"})


def _released_backbone(candidate: Candidate) -> bool:
    """A bare state dict without classifier, of a network that DINO was released for."""
    found = candidate.architectures if candidate.bare else []
    return any(each.name in _RELEASED and not each.classifiers for each in found)


DINO = Format(
    name="DINO",
    source=_SOURCE,
    sign=(r"teacher\.backbone\.", r"student\.backbone\.", r"teacher\.head\.last_layer\."),
    backbone="teacher.backbone.",
    head="teacher.head.mlp.",
    activation="gelu",
    unused=("student.", "teacher.head.last_layer."),
    prefer=("torchvision/", *_BACKBONES, "vit_"),
    tag="dino",
    input=IMAGENET_BICUBIC,
)
DINO_NETWORK = Format(
    name="DINO",
    source=_SOURCE,
    sign=(r"backbone\.", r"head\.(mlp|last_layer)\."),
    backbone="backbone.",
    head="head.mlp.",
    activation="gelu",
    unused=("head.last_layer.",),
    prefer=("torchvision/", *_BACKBONES, "vit_"),
    tag="dino",
    input=IMAGENET_BICUBIC,
)
DINO_BACKBONE = Format(
    name="DINO",
    source=_SOURCE,
    where=_released_backbone,
    prefer=("torchvision/resnet50", *_BACKBONES),
    tag="dino",
    input=IMAGENET_BICUBIC,
)
