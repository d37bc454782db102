"""The feature maps of a backbone at strides 4, 8, 16 and 32, for a feature pyramid."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinyseed.errors import InputError, first_line
from tinyseed.models.backbones import Backbone

STRIDES = (4, 8, 16, 32)

Norm = Literal["frozen", "trained"]

_PROBE_SIDE = 128
_REMEDY = "give a ResNet, MobileNetV3, EfficientNet or another network with stages"


class Levels(nn.Module):
    """A copy of a backbone's network that returns its feature maps, finest first.

    It holds all tensors of the network; layers after the last map are not computed.

    Attributes:
        network: the library's network; its state dict is that of the backbone.
        channels: of each map.
        norm: "frozen": batch norms keep their statistics, scales and shifts; "trained": they are trained.
    """

    def __init__(self, network: nn.Module, taps: "tuple[int, ...] | tuple[str, ...]", norm: Norm) -> None:
        super().__init__()
        self.network = network
        self.taps = taps
        self.norm = norm
        self.channels = [tap.shape[1] for tap in _probe(network, taps)]
        if norm == "frozen":
            for part in self.norms():
                part.requires_grad_(False)
        self.train(self.training)

    def norms(self) -> list[_BatchNorm]:
        """The network's batch norms."""
        return [part for part in self.network.modules() if isinstance(part, _BatchNorm)]

    def train(self, mode: bool = True) -> "Levels":
        """As in torch, but frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen":
            for part in self.norms():
                part.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps [n, c, h/4, w/4] to [n, c, h/32, w/32] of normalized images."""
        return _maps(self.network, images, self.taps)


def feature_levels(backbone: Backbone, *, norm: Norm) -> Levels:
    """The last feature map of each stride, taken where the stages of a backbone end.

    Raises:
        InputError: the backbone has no feature maps, or none at one of the strides (those of a plain ViT all have the
            same stride).
    """
    network = copy.deepcopy(backbone.network).eval()
    name = backbone.name
    try:
        taps = _candidates(network)
        probed = zip(taps, _probe(network, taps), strict=True)
        found = {round(_PROBE_SIDE / tap.shape[2]): place for place, tap in probed}
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, AttributeError) as error:
        why = f"has no feature maps to build a pyramid on ({first_line(error)})"
        raise InputError(name, f"{why}; {_REMEDY}") from error
    missing = [str(stride) for stride in STRIDES if stride not in found]
    if missing:
        available = ", ".join(map(str, sorted(found))) or "none"
        why = f"has no feature maps at stride {', '.join(missing)} (only at {available})"
        raise InputError(name, f"{why}; {_REMEDY}")
    chosen: Any = tuple(found[stride] for stride in STRIDES)
    return Levels(network, chosen, norm)


def _candidates(network: nn.Module) -> tuple[Any, ...]:
    """Where maps can be taken: indices of timm's stages, or names of torchvision's modules."""
    if hasattr(network, "forward_intermediates"):
        info: Any = network.feature_info
        return tuple(range(len(info)))
    if hasattr(network, "layer4"):
        return ("layer1", "layer2", "layer3", "layer4")
    features = getattr(network, "features", None)
    if isinstance(features, nn.Sequential):
        return tuple(f"features.{child}" for child, _ in features.named_children())
    raise ValueError("it has no stages")


@torch.no_grad()
def _probe(network: nn.Module, taps: tuple[Any, ...]) -> list[Tensor]:
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    device = next(network.parameters()).device
    try:
        maps = _maps(network, torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE, device=device), taps)
    finally:
        for part, training in modes:
            part.training = training
    if any(one.ndim != 4 or one.shape[2] != one.shape[3] for one in maps):
        raise ValueError("its stages give no square maps")
    return maps


def _maps(network: Any, images: Tensor, taps: tuple[Any, ...]) -> list[Tensor]:  # noqa: ANN401  (either library's)
    if isinstance(taps[0], int):
        return network.forward_intermediates(images, list(taps), intermediates_only=True, stop_early=True)
    return _torchvision_maps(network, images, taps)


def _torchvision_maps(network: Any, images: Tensor, taps: tuple[str, ...]) -> list[Tensor]:  # noqa: ANN401
    """Torchvision has no function for feature maps: its networks' first modules are run up to the last map."""
    inside = taps[0].startswith("features.")
    steps = network.features.named_children() if inside else network.named_children()
    maps, value = [], images
    for child, step in steps:
        value = step(value)
        if (f"features.{child}" if inside else child) in taps:
            maps.append(value)
        if len(maps) == len(taps):
            break
    return maps
