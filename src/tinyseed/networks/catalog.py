"""All networks of `tinyseed.networks` by library and name."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from tinyseed.networks import dinov3_vit, moco_vit, seed_efficientnet, seed_mobilenet, wide_resnet


class OwnNetwork(NamedTuple):
    """A network that no library has.

    Attributes:
        build: makes it with random weights.
        classifier: the module that a whole model of this kind has after it, as files of it may.
        patch: sides of images have to be multiples of this.
    """

    build: Callable[[], nn.Module]
    classifier: str
    patch: int = 1


NETWORKS: dict[str, dict[str, OwnNetwork]] = {
    "swav": {
        name: OwnNetwork(lambda width=width: wide_resnet.WideResNet(width), "fc")
        for name, width in wide_resnet.WIDTHS.items()
    },
    "seed": {
        **{
            name: OwnNetwork(lambda name=name: seed_mobilenet.SeedMobileNet(name), "fc")
            for name in seed_mobilenet.DESIGNS
        },
        **{
            name: OwnNetwork(lambda name=name: seed_efficientnet.SeedEfficientNet(name), "fc")
            for name in seed_efficientnet.DESIGNS
        },
    },
    "moco": {
        name: OwnNetwork(lambda name=name: moco_vit.moco_vit(name), "head", patch=16)
        for name in moco_vit.SIZES
    },
    "dinov3": {
        name: OwnNetwork(lambda name=name: dinov3_vit.dinov3_vit(name), "head", patch=dinov3_vit.PATCH)
        for name in dinov3_vit.NAMES
    },
}
"""By library, then by name: `swav/resnet50w2`, `seed/efficientnet_b0`, `moco/vit_small`, `dinov3/vit_small`."""
