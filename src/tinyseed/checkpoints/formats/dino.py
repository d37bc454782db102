"""DINO: released backbones, and full training checkpoints of student and teacher."""

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, Candidate, Format

_SOURCE = "github.com/facebookresearch/dino, main_dino.py and utils.py; images of eval_knn.py"
_VITS = ("vit_small_patch16_224", "vit_small_patch8_224", "vit_base_patch16_224", "vit_base_patch8_224")
_RESNET = "torchvision/resnet50"


def _bare_backbone(candidate: Candidate, *names: str) -> bool:
    """A bare state dict without classifier, of a network that DINO was released for."""
    found = candidate.architectures if candidate.bare else []
    return any(each.name in names and not each.classifiers for each in found)


def _bare_vit(candidate: Candidate) -> bool:
    return _bare_backbone(candidate, *_VITS)


def _bare_resnet(candidate: Candidate) -> bool:
    return _bare_backbone(candidate, _RESNET)


DINO = Format(
    name="DINO",
    source=_SOURCE,
    sign=(r"teacher\.backbone\.", r"student\.backbone\.", r"teacher\.head\.last_layer\."),
    backbone="teacher.backbone.",
    head="teacher.head.mlp.",
    activation="gelu",
    unused=("student.", "teacher.head.last_layer."),
    prefer=("torchvision/", *_VITS, "vit_"),
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
    prefer=("torchvision/", *_VITS, "vit_"),
    tag="dino",
    input=IMAGENET_BICUBIC,
)
DINO_VIT = Format(
    name="DINO",
    source=_SOURCE,
    where=_bare_vit,
    prefer=_VITS,
    tag="dino",
    input=IMAGENET_BICUBIC,
)
DINO_RESNET = Format(
    name="DINO",
    source=_SOURCE,
    where=_bare_resnet,
    prefer=(_RESNET,),
    input=IMAGENET_BICUBIC,
    note="Barlow Twins and VICReg publish the same tensors; theirs were trained with bilinear resizing",
)
