"""SwAV: a ResNet of any width, its projection head, and the prototypes of its clusters."""

from dataclasses import replace

from tinyseed.checkpoints.formats.base import Candidate, Format
from tinyseed.models.contract import IMAGENET
from tinyseed.models.libraries import SWAV_STD


def _beside_a_resnet(candidate: Candidate) -> bool:
    return "conv1.weight" in candidate.state


SWAV = Format(
    name="SwAV",
    source="github.com/facebookresearch/swav, src/resnet50.py; std of src/multicropdataset.py",
    sign=(r"projection_head\.",),
    where=_beside_a_resnet,
    head="projection_head.",
    unused=("prototypes.",),
    prefer=("swav/",),
    input=replace(IMAGENET, std=SWAV_STD),
)
