"""SimCLR in PyTorch: the head is the ResNet's `fc`."""

from tinyseed.checkpoints.formats.base import UNIT, Candidate, Format


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
