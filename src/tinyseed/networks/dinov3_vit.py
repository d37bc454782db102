"""DINOv3's vision transformers as their authors use them: timm's networks, with the class token as features."""

from typing import Any

from torch import nn

from tinyseed.torchvision_ops import ensure_torchvision

PATCH = 16
NAMES = {
    "vit_small": "vit_small_patch16_dinov3",
    "vit_small_plus": "vit_small_plus_patch16_dinov3",
    "vit_base": "vit_base_patch16_dinov3",
    "vit_large": "vit_large_patch16_dinov3",
    "vit_huge_plus": "vit_huge_plus_patch16_dinov3",
    "vit_7b": "vit_7b_patch16_dinov3",
}
"""timm's names of the models of `dinov3/NAME`."""
_WITHOUT_BIAS = "vit_7b"


def dinov3_vit(name: str) -> nn.Module:
    """One of DINOv3's vision transformers, for images of any size.

    Source: DINOv3 (arXiv 2508.10104), its code's hub/backbones.py.
    Differs: timm's networks of these names give the mean of the patches by default, and have no biases of queries and
    values; the released files have biases in all sizes but the largest.
    """
    ensure_torchvision()
    import timm

    settings: dict[str, Any] = {"num_classes": 0, "global_pool": "token", "qkv_bias": name != _WITHOUT_BIAS}
    return timm.create_model(NAMES[name], **settings)
