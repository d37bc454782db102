"""MoCo v3's vision transformers, which timm's networks of the same names are not.

Tensor names are timm's. MoCo v3's ViT-S has twelve attention heads of 32 numbers, timm's has six of 64, so weights of
the one fit the other and give something else.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

from tinyseed.torchvision_ops import ensure_torchvision

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

_PATCH = 16
_HEADS = 12
SIZES = {"vit_small": (384, 12), "vit_conv_small": (384, 11), "vit_conv_base": (768, 11)}
"""Models of `moco/NAME`: width and blocks. Its ViT-B is timm's `vit_base_patch16_224`."""


def moco_vit(name: str) -> "VisionTransformer":
    """One of MoCo v3's networks, for images of any size: class tokens [n, 384] or [n, 768].

    Source: MoCo v3 (arXiv 2104.02057), its code's vits.py; the convolutional stem is that of arXiv 2106.14881.
    Differs: no classifier. Position embeddings are drawn as timm's are; the files have fixed ones.
    """
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    width, blocks = SIZES[name]
    network = VisionTransformer(
        patch_size=_PATCH,
        embed_dim=width,
        depth=blocks,
        num_heads=_HEADS,
        num_classes=0,
        dynamic_img_size=True,
    )
    if "conv" in name:
        embed: Any = network.patch_embed
        embed.proj = _convolutional_stem(width)
    return network


def _convolutional_stem(width: int) -> nn.Sequential:
    """Four 3×3 convolutions of stride 2 and a pointwise one: a sixteenth of the image's side, as patches have."""
    layers: list[nn.Module] = []
    given, out = 3, width // 8
    for _ in range(4):
        layers += [nn.Conv2d(given, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        given, out = out, out * 2
    return nn.Sequential(*layers, nn.Conv2d(given, width, 1))
