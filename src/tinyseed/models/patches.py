"""A network's patches: a transformer's tokens, or the cells of the last feature map before it is pooled."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinyseed.models.backbones import Backbone
from tinyseed.models.crops import grouped
from tinyseed.models.encoder import Encoder, at_least_float32
from tinyseed.shapes import Embeddings, Features, Images


def gives_patches(network: nn.Module) -> bool:
    """Whether it is known where a network's patches are: timm's networks say so, others have a pooling layer."""
    return _in_two_parts(network) or isinstance(getattr(network, "avgpool", None), nn.Module)


def features_and_patches(network: nn.Module, images: Images) -> tuple[Features, Float[Tensor, "n p g"]]:
    """A network's output for normalized images, and its patches [n, p, g], in one pass and in its own precision.

    Patches of a map are its cells row by row. The network has to be one that `gives_patches`.
    """
    if _in_two_parts(network):
        parts = cast(Any, network)
        maps = parts.forward_features(images)
        return parts.forward_head(maps), _as_patches(maps, network)
    seen: list[Tensor] = []
    hook = network.get_submodule("avgpool").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        features = network(images)
    finally:
        hook.remove()
    return features, _as_patches(seen[0], network)


class PatchEncoder(nn.Module):
    """An encoder that gives its backbone's patches beside the embedding, in one module so that DDP sees one pass."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *crops: Tensor) -> tuple[Embeddings, Float[Tensor, "m p f"]]:
        """Unit rows [v·n, d] of v normalized crops of n images, and the first crop's patches [n, p, f].

        Both are float32 at least. Crops pass the backbone as in `crops.embed_crops`.
        """
        first, *others = grouped(crops)
        features, patches = features_and_patches(self.encoder.backbone.network, first)
        everything = torch.cat([features, *(self.encoder.backbone(group) for group in others)])
        return self.encoder.head(everything), at_least_float32(patches[: len(crops[0])])


@torch.no_grad()
def count_patches(backbone: Backbone) -> int:
    """Patches of an image of the backbone's contract; 0 where it is not known where they are."""
    network, expected = backbone.network, backbone.input
    if not gives_patches(network):
        return 0
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        image = torch.zeros(1, expected.channels, expected.size, expected.size)
        return features_and_patches(network, image)[1].shape[1]
    finally:
        for part, training in modes:
            part.training = training


def _in_two_parts(network: nn.Module) -> bool:
    return all(hasattr(network, name) for name in ("forward_features", "forward_head"))


def _as_patches(maps: Tensor, network: nn.Module) -> Tensor:
    """Tokens without those that stand for no patch, or the places of a map row by row."""
    if maps.ndim == 3:
        return maps[:, cast(int, getattr(network, "num_prefix_tokens", 0)) :]
    if str(getattr(network, "output_fmt", "NCHW")) == "NHWC":
        return maps.flatten(1, 2)
    return maps.flatten(2).transpose(1, 2)
