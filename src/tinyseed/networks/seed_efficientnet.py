"""EfficientNet-B0 and -B1 as in the students that SEED's authors released.

Tensor names are those of their files. The padding of each convolution is fixed by the side that each network was
designed for (224 px, 240 px), as in their code; timm's `tf_efficientnet` pads by the image, so B1 differs at 224 px.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tinyseed.shapes import Features, Images


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    out: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM, _LAST = 32, 1280
_EPSILON, _MOMENTUM = 1e-3, 0.01
_DROP_PATH = 0.2
DESIGNS = {"efficientnet_b0": (1.0, 224), "efficientnet_b1": (1.1, 240)}
"""Models of `seed/NAME`: by what the number of blocks is multiplied, and the side that paddings are for."""


class SeedEfficientNet(nn.Module):
    """EfficientNet-B0 or -B1: features [n, 1280], which SEED's head `fc` takes.

    Source: EfficientNet (arXiv 1905.11946), table 1; SEED's code, seed/architectures/efficientnet.
    Differs: no last layer. Dropout of 0.2 in training has no counterpart in the files.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        deeper, side = DESIGNS[name]
        self._conv_stem = _Padded(3, _STEM, side, kernel=3, stride=2)
        self._bn0 = _norm(_STEM)
        side, channels = _halved(side, 2), _STEM
        rows = [
            (stage, stage.stride if number == 0 else 1)
            for stage in _STAGES
            for number in range(math.ceil(deeper * stage.repeats))
        ]
        blocks: list[nn.Module] = []
        for number, (stage, stride) in enumerate(rows):
            blocks.append(_Block(channels, stage, stride, side, _DROP_PATH * number / len(rows)))
            side, channels = _halved(side, stride), stage.out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Padded(channels, _LAST, side)
        self._bn1 = _norm(_LAST)

    def forward(self, images: Images) -> Features:
        """Features of normalized images."""
        maps = functional.silu(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            maps = block(maps)
        return functional.silu(self._bn1(self._conv_head(maps))).mean(dim=(2, 3))


class _Block(nn.Module):
    """Inverted residual block with squeeze and excitation; where nothing is expanded, without its first convolution."""

    def __init__(self, channels: int, stage: _Stage, stride: int, side: int, drop: float) -> None:
        super().__init__()
        hidden = channels * stage.expansion
        self._expand_conv = _Padded(channels, hidden, side) if stage.expansion > 1 else None
        self._bn0 = _norm(hidden) if stage.expansion > 1 else None
        self._depthwise_conv = _Padded(
            hidden, hidden, side, kernel=stage.kernel, stride=stride, groups=hidden
        )
        self._bn1 = _norm(hidden)
        squeezed = max(1, channels // 4)
        self._se_reduce = nn.Conv2d(hidden, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, hidden, 1)
        self._project_conv = _Padded(hidden, stage.out, _halved(side, stride))
        self._bn2 = _norm(stage.out)
        self.residual = stride == 1 and channels == stage.out
        self.drop = drop

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        wide = maps
        if self._expand_conv is not None and self._bn0 is not None:
            wide = functional.silu(self._bn0(self._expand_conv(wide)))
        wide = functional.silu(self._bn1(self._depthwise_conv(wide)))
        squeezed = functional.silu(self._se_reduce(wide.mean(dim=(2, 3), keepdim=True)))
        wide = wide * torch.sigmoid(self._se_expand(squeezed))
        out = self._bn2(self._project_conv(wide))
        return maps + self._dropped(out) if self.residual else out

    def _dropped(self, maps: Float[Tensor, "n d p q"]) -> Float[Tensor, "n d p q"]:
        """In training, the whole block is left out for some of the images (stochastic depth)."""
        if not self.training or self.drop == 0:
            return maps
        kept = torch.rand(len(maps), 1, 1, 1, device=maps.device, dtype=maps.dtype) >= self.drop
        return maps * kept / (1 - self.drop)


class _Padded(nn.Conv2d):
    """A convolution whose zeros around the image are as many as its side of design needs, more of them at the end."""

    def __init__(
        self, given: int, out: int, side: int, *, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(given, out, kernel, stride, groups=groups, bias=False)
        zeros = max(0, (_halved(side, stride) - 1) * stride + kernel - side)
        self.zeros = (zeros // 2, zeros - zeros // 2) * 2

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        return super().forward(functional.pad(input, self.zeros))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON, momentum=_MOMENTUM)


def _halved(side: int, stride: int) -> int:
    return -(-side // stride)
