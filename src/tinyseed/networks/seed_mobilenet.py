"""MobileNetV3-Large and -Small as in the students that SEED's authors released.

Tensor names are those of their files. The networks differ from torchvision's and timm's of these names: squeeze and
excitation comes before the activation, some hidden widths differ, and batch norm's epsilon is 1e-5.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tinyseed.shapes import Features, Images


class _Row(NamedTuple):
    kernel: int
    expansion: float
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int


_LARGE = (
    _Row(3, 1, 16, False, False, 1),
    _Row(3, 4, 24, False, False, 2),
    _Row(3, 3, 24, False, False, 1),
    _Row(5, 3, 40, True, False, 2),
    _Row(5, 3, 40, True, False, 1),
    _Row(5, 3, 40, True, False, 1),
    _Row(3, 6, 80, False, True, 2),
    _Row(3, 2.5, 80, False, True, 1),
    _Row(3, 2.3, 80, False, True, 1),
    _Row(3, 2.3, 80, False, True, 1),
    _Row(3, 6, 112, True, True, 1),
    _Row(3, 6, 112, True, True, 1),
    _Row(5, 6, 160, True, True, 2),
    _Row(5, 6, 160, True, True, 1),
    _Row(5, 6, 160, True, True, 1),
)
_SMALL = (
    _Row(3, 1, 16, True, False, 2),
    _Row(3, 4.5, 24, False, False, 2),
    _Row(3, 3.67, 24, False, False, 1),
    _Row(5, 4, 40, True, True, 2),
    _Row(5, 6, 40, True, True, 1),
    _Row(5, 6, 40, True, True, 1),
    _Row(5, 3, 48, True, True, 1),
    _Row(5, 3, 48, True, True, 1),
    _Row(5, 6, 96, True, True, 2),
    _Row(5, 6, 96, True, True, 1),
    _Row(5, 6, 96, True, True, 1),
)
DESIGNS = {"mobilenetv3_large": (_LARGE, 1280), "mobilenetv3_small": (_SMALL, 1024)}
"""Models of `seed/NAME`: their blocks, and the width of their features."""


class SeedMobileNet(nn.Module):
    """MobileNetV3-Large or -Small: features [n, 1280] or [n, 1024], which SEED's head `fc` takes.

    Source: the networks of SEED (arXiv 2101.04731), which follow d-li14/mobilenetv3.pytorch; arXiv 1905.02244, tables 1
    and 2.
    Differs: no last layer. Dropout of 0.2 in training has no counterpart in the files.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        rows, width = DESIGNS[name]
        blocks: list[nn.Module] = [_convolution(3, 16, 3, 2)]
        channels = hidden = 16
        for row in rows:
            blocks.append(_Block(channels, row))
            channels, hidden = row.out, _divisible(channels * row.expansion)
        self.features = nn.Sequential(*blocks)
        self.conv = _convolution(channels, hidden, 1, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(hidden, width), nn.Hardswish(), nn.Dropout(0.2))
        for module in self.modules():
            _initialize(module)

    def forward(self, images: Images) -> Features:
        """Features of normalized images."""
        maps = self.conv(self.features(images))
        return self.classifier(torch.flatten(self.avgpool(maps), 1))


class _Block(nn.Module):
    """Inverted residual block; where nothing is expanded, it has no first pointwise convolution."""

    def __init__(self, channels: int, row: _Row) -> None:
        super().__init__()
        hidden = _divisible(channels * row.expansion)
        squeeze = _Squeeze(hidden) if row.squeeze else nn.Identity()
        depthwise = [
            nn.Conv2d(hidden, hidden, row.kernel, row.stride, row.kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
        ]
        project = [nn.Conv2d(hidden, row.out, 1, bias=False), nn.BatchNorm2d(row.out)]
        if channels == hidden:
            layers = [*depthwise, _activation(row), squeeze, *project]
        else:
            expand = [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), _activation(row)]
            layers = [*expand, *depthwise, squeeze, _activation(row), *project]
        self.conv = nn.Sequential(*layers)
        self.residual = row.stride == 1 and channels == row.out

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        return maps + self.conv(maps) if self.residual else self.conv(maps)


class _Squeeze(nn.Module):
    """Squeeze and excitation: channels are weighted by functions of the map's means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = _divisible(channels // 4)
        self.fc = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels))

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        weights = functional.hardsigmoid(self.fc(maps.mean(dim=(2, 3))))
        return maps * weights[:, :, None, None]


def _activation(row: _Row) -> nn.Module:
    return nn.Hardswish() if row.hard_swish else nn.ReLU()


def _convolution(given: int, out: int, kernel: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(given, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.Hardswish())


def _divisible(channels: float) -> int:
    """The multiple of 8 nearest to a width, and not more than a tenth below it.

    >>> [_divisible(width) for width in (18, 200, 184.0)]
    [24, 200, 184]
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
