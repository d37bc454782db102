"""Barlow Twins, VICReg and VICRegL: a backbone and its projector, as the full training checkpoints have them.

Their released ResNets are torchvision's without classifier, as DINO's is: such a file does not say whose it is.
"""

import re

from tinyseed.checkpoints.formats.base import Candidate, Format

_UNSUPPORTED = (
    "is VICRegL's ConvNeXt, which normalizes its map before it pools: no network here does; use its ResNet-50"
)

_LAYERS = r"(linear bn relu )+linear-plain"


def _of_vicreg(candidate: Candidate) -> bool:
    """Two modules and nothing else; all layers of the projector have a bias, except the last."""
    names = candidate.state.keys()
    if {name.partition(".")[0] for name in names} != {"backbone", "projector"}:
        return False
    layers = sorted({int(found[1]) for name in names if (found := re.match(r"projector\.(\d+)\.", name))})
    return "projector.0.bias" in names and f"projector.{layers[-1]}.bias" not in names


def _without_scales(candidate: Candidate) -> bool:
    """A ConvNeXt of its first authors has scales of its layers, `gamma`; VICRegL's has none."""
    return not any(name.endswith(".gamma") for name in candidate.state)


BARLOW_TWINS = Format(
    name="Barlow Twins",
    source="github.com/facebookresearch/barlowtwins, main.py; images of evaluate.py",
    sign=(r"backbone\.", r"projector\.\d", r"bn\.running_(mean|var)$"),
    backbone="backbone.",
    head="projector.",
    layers=r"(linear-plain bn relu )+linear-plain",
    unused=("bn.",),
)
VICREG = Format(
    name="VICReg",
    source="github.com/facebookresearch/vicreg, main_vicreg.py; images of evaluate.py",
    where=_of_vicreg,
    backbone="backbone.",
    head="projector.",
    layers=_LAYERS,
)
VICREGL_CONVNEXT = Format(
    name="VICRegL",
    source="github.com/facebookresearch/VICRegL, convnext.py",
    sign=(r"(backbone\.)?downsample_layers\.", r"(backbone\.)?stages\.\d+\.\d+\.dwconv\."),
    where=_without_scales,
    unsupported=_UNSUPPORTED,
)
VICREGL = Format(
    name="VICRegL",
    source="github.com/facebookresearch/VICRegL, main_vicregl.py; images of evaluate.py",
    sign=(r"backbone\.", r"(maps_)?projector\.\d", r"classifier\.(weight|bias)$"),
    where=lambda candidate: candidate.entry == "model",
    backbone="backbone.",
    head="projector.",
    layers=_LAYERS,
    unused=("maps_projector.", "classifier."),
)
