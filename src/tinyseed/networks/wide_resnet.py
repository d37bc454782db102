"""ResNet-50 with every width multiplied, as SwAV trained it.

Tensor names are torchvision's, so SwAV's released files fit as they are.
"""

import torch
from torch import nn

from tinyseed.shapes import Features, Images
from tinyseed.torchvision_ops import ensure_torchvision

WIDTHS = {"resnet50": 1, "resnet50w2": 2, "resnet50w4": 4, "resnet50w5": 5}
"""Models of `swav/NAME`, and what their widths are multiplied by."""

_BLOCKS = (3, 4, 6, 3)


class WideResNet(nn.Module):
    """ResNet-50 whose stem and stages are `width` times as wide: pooled features [n, 2048 · width].

    Source: SwAV (arXiv 2006.09882), section 5 (RN50-w2, -w4 and -w5); its code's `resnet50w2`.
    Differs: torchvision's `wide_resnet50_2` widens only the 3×3 convolutions; here everything is wider.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = 64 * width
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(channels, channels, _BLOCKS[0], stride=1)
        self.layer2 = _stage(4 * channels, 2 * channels, _BLOCKS[1], stride=2)
        self.layer3 = _stage(8 * channels, 4 * channels, _BLOCKS[2], stride=2)
        self.layer4 = _stage(16 * channels, 8 * channels, _BLOCKS[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Images) -> Features:
        """Pooled features of normalized images."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return torch.flatten(self.avgpool(maps), 1)


def _stage(given: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    """Bottleneck blocks from `given` to 4 · `inner` channels; the first has the stride, in its 3×3 convolution."""
    ensure_torchvision()
    from torchvision.models.resnet import Bottleneck

    wide = inner * Bottleneck.expansion
    shortcut = nn.Sequential(nn.Conv2d(given, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide))
    first = Bottleneck(given, inner, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(wide, inner) for _ in range(blocks - 1)))
