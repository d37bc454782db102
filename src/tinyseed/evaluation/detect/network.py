"""Faster and Mask R-CNN on a trunk's levels. Imports levels.py, models and errors; heads are torchvision's."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinyseed.evaluation.detect.levels import Norm, feature_levels
from tinyseed.models.backbones import seeded
from tinyseed.models.encoder import Encoder
from tinyseed.torchvision_ops import ensure_detection

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

PYRAMID_WIDTH = 256
"""Channels of the pyramid's maps. Source: Lin et al., Feature Pyramid Networks, CVPR 2017."""


def build_detector(
    encoder: Encoder,
    classes: int,
    *,
    masks: bool,
    norm: Norm,
    seed: int,
    width: int = PYRAMID_WIDTH,
    autocast: torch.dtype | None = None,
    field: str = "--model",
) -> "FasterRCNN":
    """A detector whose trunk has the encoder's weights, and whose pyramid and heads are random.

    It takes images as they are resized (`batches.py` does that), and gives boxes and raw masks at that size.

    Args:
        encoder: its trunk is copied; its input contract's mean and std normalise the images.
        classes: kinds of objects, background apart.
        masks: Mask R-CNN instead of Faster R-CNN.
        norm: see `Levels`.
        seed: of the random weights; the same for each start point.
        width: channels of the pyramid.
        autocast: precision of trunk, pyramid and heads; boxes and losses are float32.
        field: the flag that named the model, for errors.

    Raises:
        InputError: the trunk has no feature maps at strides 4, 8, 16 and 32.

    Source: Ren et al., Faster R-CNN, NeurIPS 2015; He et al., Mask R-CNN, ICCV 2017; settings are torchvision's,
    which are those papers'.
    Differs: MoCo's detection puts batch norms into pyramid and heads, too; these have none.
    """
    ensure_detection()
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    levels = feature_levels(encoder.backbone, norm=norm, field=field)
    with seeded(seed):
        fpn = FeaturePyramidNetwork(levels.channels, width, LastLevelMaxPool())
        kind = MaskRCNN if masks else FasterRCNN
        detector = kind(_Pyramid(levels, fpn, width, autocast), num_classes=classes + 1)
    detector.transform = _as_given(encoder)
    heads: Any = detector.roi_heads
    heads.box_head = _InPrecision(heads.box_head, autocast)
    if masks:
        heads.mask_head = _InPrecision(heads.mask_head, autocast)
    return detector


class _Pyramid(nn.Module):
    """Levels and pyramid as torchvision's detectors want their backbone: a dict of maps, finest first."""

    def __init__(
        self, levels: nn.Module, fpn: nn.Module, out_channels: int, autocast: torch.dtype | None
    ) -> None:
        super().__init__()
        self.levels = levels
        self.fpn = fpn
        self.out_channels = out_channels
        self.autocast = autocast

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            maps = self.fpn({str(place): one for place, one in enumerate(self.levels(images))})
        return {name: one.float() for name, one in maps.items()}


class _InPrecision(nn.Module):
    """A head that computes in a lower precision and answers in float32."""

    def __init__(self, head: nn.Module, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.head = head
        self.autocast = autocast

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.head(maps).float()


def _as_given(encoder: Encoder) -> nn.Module:
    """The detectors' usual transform without its resizing, which draws from a global generator and smooths nothing."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class AsGiven(GeneralizedRCNNTransform):
        def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:  # noqa: ANN401
            return image, target

        def postprocess(
            self, result: list[dict[str, Tensor]], image_shapes: object, original_image_sizes: object
        ) -> list[dict[str, Tensor]]:
            del image_shapes, original_image_sizes
            return result

    contract = encoder.input
    return AsGiven(1, 1, list(contract.mean), list(contract.std))
