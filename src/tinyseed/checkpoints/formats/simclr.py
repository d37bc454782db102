"""SimCLR in PyTorch: the head is the ResNet's `fc`."""

import re

from tinyseed.checkpoints.formats.base import UNIT, UNIT_BICUBIC, Candidate, Format
from tinyseed.checkpoints.formats.renaming import renamed
from tinyseed.checkpoints.weights import StateDict

_OFFICIAL = "weights and images ([0, 1], bicubic) of github.com/google-research/simclr, data_util.py"
_SECOND_VERSION = (
    (r"^resnet\.fc\.", "fc."),
    (r"^resnet\.net\.0\.0\.", "conv1."),
    (r"^resnet\.net\.0\.1\.0\.", "bn1."),
    (r"^resnet\.net\.(\d)\.blocks\.(\d+)\.", r"layer\1.\2."),
    (r"\.projection\.shortcut\.", ".downsample.0."),
    (r"\.projection\.bn\.0\.", ".downsample.1."),
    *((rf"\.net\.{2 * number}\.", f".conv{number + 1}.") for number in range(3)),
    *((rf"\.net\.{2 * number + 1}\.0\.", f".bn{number + 1}.") for number in range(3)),
)


def _shortcut_first(candidate: Candidate) -> bool:
    """The converter's ResNet lists a block's shortcut before its first convolution, torchvision's after its last."""
    names = list(candidate.state)
    pair = ("layer1.0.downsample.0.weight", "layer1.0.conv1.weight")
    return all(name in candidate.state for name in pair) and names.index(pair[0]) < names.index(pair[1])


def _second_version(state: StateDict) -> StateDict:
    return renamed(state, _SECOND_VERSION)


def _without_biases(candidate: Candidate) -> bool:
    """The projector is `Linear, ReLU, Linear`, without biases."""
    found = {name for name in candidate.state if re.match(r"(model\.)?projector\.", name)}
    return {name.removeprefix("model.") for name in found} <= {"projector.0.weight", "projector.2.weight"}


def _wrapped_thrice(candidate: Candidate) -> bool:
    return candidate.parallel >= 3


def _square_head(candidate: Candidate) -> bool:
    """The hidden layer of SimCLR's head is as wide as the features; a classifier's need not be."""
    weight = candidate.state.get("backbone.fc.0.weight")
    one_network = all(name.startswith("backbone.") for name in candidate.state)
    return one_network and weight is not None and weight.ndim == 2 and weight.shape[0] == weight.shape[1]


SIMCLR_OF_SEED = Format(
    name="SimCLR",
    source="the SimCLR teacher of github.com/jacobswan1/SEED, seed/architectures/simclr/simclr_resnet.py",
    sign=(r"fc\.[13]\.",),
    where=_wrapped_thrice,
    head="fc.",
)
SIMCLR_STHALLES = Format(
    name="SimCLR (sthalles)",
    source="github.com/sthalles/SimCLR, models/resnet_simclr.py; images of data_aug/contrastive_learning_dataset.py",
    sign=(r"backbone\.fc\.0\.", r"backbone\.fc\.2\."),
    where=_square_head,
    backbone="backbone.",
    head="backbone.fc.",
    input=UNIT,
)
SIMCLR_TONYLINS = Format(
    name="SimCLR (converted by tonylins)",
    source=f"github.com/tonylins/simclr-converter, convert.py and resnet_wider.py; {_OFFICIAL}",
    sign=(r"layer1\.0\.downsample\.0\.", r"fc\."),
    where=_shortcut_first,
    prefer=("torchvision/", "swav/"),
    input=UNIT_BICUBIC,
)
SIMCLR_SELECTIVE = Format(
    name="SimCLR v2 (converted by Separius)",
    source="github.com/Separius/SimCLRv2-Pytorch, resnet.py",
    sign=(r"(resnet\.)?net\.\d\.blocks\.\d+\.net\.\d\.main_conv\.",),
    unsupported="is a SimCLR v2 network with selective kernels, which none here has; use one of its sk0 networks",
)
SIMCLR_SEPARIUS = Format(
    name="SimCLR v2 (converted by Separius)",
    source=f"github.com/Separius/SimCLRv2-Pytorch, convert.py and resnet.py; {_OFFICIAL}",
    sign=(r"resnet\.net\.0\.0\.", r"head\.layers\.\d"),
    convert=_second_version,
    head="head.layers.",
    layers=r"(linear-plain bn relu )+linear-plain bn",
    prefer=("torchvision/", "swav/"),
    input=UNIT_BICUBIC,
)
SIMCLR_SPIJKERVET = Format(
    name="SimCLR (Spijkervet)",
    source="github.com/Spijkervet/SimCLR, simclr/simclr.py; no normalization: simclr/modules/transformations/simclr.py",
    sign=(r"encoder\.", r"projector\.0\.weight$", r"projector\.2\."),
    where=_without_biases,
    backbone="encoder.",
    head="projector.",
    layers="linear-plain relu linear-plain",
    input=UNIT,
)
SIMCLR_SPIJKERVET_LIGHTNING = Format(
    name="SimCLR (Spijkervet)",
    source="github.com/Spijkervet/SimCLR, main_pl.py",
    sign=(r"model\.encoder\.", r"model\.projector\.0\.weight$", r"encoder\."),
    where=_without_biases,
    backbone="model.encoder.",
    head="model.projector.",
    layers="linear-plain relu linear-plain",
    unused=("encoder.",),
    input=UNIT,
)
