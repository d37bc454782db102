"""Faster and Mask R-CNN on the feature maps of a backbone; pyramid and heads are torchvision's."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinyseed.detection.levels import Norm, feature_levels
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
) -> "FasterRCNN":
    """A detector whose backbone has the encoder's weights, and whose pyramid and heads are random.

    It takes images already resized (see batches.py), and returns boxes and raw masks at that size.

    Args:
        encoder: its backbone is copied; the mean and std of its input contract normalize the images.
        classes: number of kinds of objects, without the background.
        masks: Mask R-CNN instead of Faster R-CNN.
        norm: see `Levels`.
        seed: of the random weights; the same for each start point.
        width: channels of the pyramid.
        autocast: precision of backbone, pyramid and heads; boxes and losses are float32.

    Raises:
        InputError: the backbone has no feature maps at strides 4, 8, 16 and 32.

    Source: Ren et al., Faster R-CNN, NeurIPS 2015; He et al., Mask R-CNN, ICCV 2017; settings are torchvision's,
    which are those of the papers.
    Differs: MoCo's detection has batch norms in pyramid and heads as well; these have none.
    """
    ensure_detection()
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    levels = feature_levels(encoder.backbone, norm=norm)
    with seeded(seed):
        fpn = FeaturePyramidNetwork(levels.channels, width, LastLevelMaxPool())
        kind = MaskRCNN if masks else FasterRCNN
        detector = kind(_Pyramid(levels, fpn, width, autocast), num_classes=classes + 1)
    detector.transform = _normalization(encoder)
    heads: Any = detector.roi_heads
    heads.box_head = _InPrecision(heads.box_head, autocast)
    if masks:
        heads.mask_head = _InPrecision(heads.mask_head, autocast)
    return detector


class _Pyramid(nn.Module):
    """Levels and pyramid in the form of a torchvision detector's backbone: a dict of maps, finest first."""

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
    """A head that computes in a lower precision and returns float32."""

    def __init__(self, head: nn.Module, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.head = head
        self.autocast = autocast

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.head(maps).float()


def _normalization(encoder: Encoder) -> nn.Module:
    """Torchvision's transform without its resizing, which uses the global generator and does not antialias."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Normalization(GeneralizedRCNNTransform):
        def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:  # noqa: ANN401
            return image, target

        def postprocess(
            self, result: list[dict[str, Tensor]], image_shapes: object, original_image_sizes: object
        ) -> list[dict[str, Tensor]]:
            del image_shapes, original_image_sizes
            return result

    contract = encoder.input
    return Normalization(1, 1, list(contract.mean), list(contract.std))
