"""The torch engine: the network as it is; on a CPU with packed weights, a few images at a time."""

import torch
from torch import Tensor, nn

from tinyseed.models.backbones import Backbone
from tinyseed.models.engines.base import in_pieces
from tinyseed.models.engines.packed import can_pack, pack
from tinyseed.shapes import Features, Images

PIECE = 32
"""Images that a CPU computes at a time."""

FEWEST = 16
"""With fewer images on one thread, torch computes 1×1 convolutions by another library: packing would change bits."""

_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference of a packed network's outputs, in parts of the largest, by the arithmetic."""


class TorchEngine:
    """A frozen backbone in torch.

    On a CPU its weights are packed at the first call, for the arithmetic that autocast asks for then and the side of
    the images. The packed network is used only if it gives the same outputs for the first images, to rounding.
    """

    key = ""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._packed: dict[tuple[torch.dtype, int], nn.Module] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return TorchEngine, (self._backbone,)  # packed weights can be neither copied nor pickled

    def __call__(self, images: Images) -> Features:
        """Features [n, f], in the dtype that autocast gives them."""
        dtype = arithmetic(images)
        if dtype not in _CLOSE or len(images) < FEWEST or not can_pack(images):
            return self._backbone(images)
        images = images.contiguous(memory_format=torch.channels_last)
        key = (dtype, images.shape[-1])
        if key not in self._packed:
            self._packed[key] = self._checked(images[:PIECE], dtype)
        return in_pieces(self._packed[key], images, PIECE)

    def _checked(self, images: Tensor, dtype: torch.dtype) -> nn.Module:
        """The packed network, or the network itself where it cannot be packed or then gives other outputs."""
        network = self._backbone.network
        try:
            packed, wanted = pack(network, images, dtype, PIECE)
            difference = (packed(images) - wanted).abs().max()
            return packed if bool(difference <= _CLOSE[dtype] * wanted.abs().max()) else network
        except Exception:  # noqa: BLE001  (control flow that depends on data can fail in any way)
            return network


def arithmetic(images: Tensor) -> torch.dtype:
    """The dtype that convolutions of these images are computed in here."""
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
