"""DINO: released backbones, and full training checkpoints of student and teacher."""

import re

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, MLP_GELU, Candidate, Format
from tinyseed.checkpoints.formats.renaming import renamed
from tinyseed.checkpoints.weights import StateDict

_SOURCE = "github.com/facebookresearch/dino, main_dino.py and utils.py; images of eval_knn.py"
_VITS = ("vit_small_patch16_224", "vit_small_patch8_224", "vit_base_patch16_224", "vit_base_patch8_224")
_XCITS = tuple(f"xcit_{size}_p{patch}_224" for size in ("small_12", "medium_24") for patch in (16, 8))
_RESNET = "torchvision/resnet50"


def _xcit(state: StateDict, prefix: str = "") -> StateDict:
    """Names of timm's XCiT; queries, keys and values of its class attention on their own."""
    found = StateDict()
    for name, value in renamed(state, [(r"^pos_embeder\.", "pos_embed.")], prefix).items():
        if re.match(re.escape(prefix) + r"cls_attn_blocks\.\d+\.attn\.qkv\.", name) and len(value) % 3 == 0:
            for part, each in zip("qkv", value.chunk(3), strict=True):
                found[name.replace(".qkv.", f".{part}.")] = each
        else:
            found[name] = value
    return found


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
    convert=lambda state: _xcit(state, "teacher.backbone."),
    backbone="teacher.backbone.",
    head="teacher.head.mlp.",
    activation="gelu",
    layers=MLP_GELU,
    unused=("student.", "teacher.head.last_layer."),
    prefer=("torchvision/", *_VITS, "vit_", *_XCITS),
    tag="dino",
    input=IMAGENET_BICUBIC,
)
DINO_NETWORK = Format(
    name="DINO",
    source=_SOURCE,
    sign=(r"backbone\.", r"head\.(mlp|last_layer)\."),
    convert=lambda state: _xcit(state, "backbone."),
    backbone="backbone.",
    head="head.mlp.",
    activation="gelu",
    layers=MLP_GELU,
    unused=("head.last_layer.",),
    prefer=("torchvision/", *_VITS, "vit_", *_XCITS),
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
DINO_XCIT = Format(
    name="DINO",
    source="github.com/facebookresearch/dino, hubconf.py; tensors of github.com/facebookresearch/xcit, xcit.py",
    sign=(r"pos_embeder\.", r"cls_attn_blocks\."),
    where=lambda candidate: candidate.bare and not candidate.has(r"head\."),
    convert=_xcit,
    prefer=_XCITS,
    input=IMAGENET_BICUBIC,
)
