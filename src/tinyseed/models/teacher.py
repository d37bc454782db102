"""The frozen teacher: a function from images to unit rows.

A `Teacher` is deliberately not an nn.Module: what holds one has none of its weights among its parameters, buffers
or state, and no call to train() reaches its batch norm.
"""

import copy

import torch
from torch import Tensor

from tinyseed.files import digest
from tinyseed.models.backbones import Backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, at_least_float32, freeze
from tinyseed.models.folding import fold_batch_norm
from tinyseed.shapes import Embeddings, Features, Images


class Teacher:
    """A frozen copy of an encoder, with its batch norms folded into its convolutions.

    Attributes:
        spec: the name it was given.
        digest: 16 hexadecimal digits that stand for the encoder's weights.
        input: the images that it expects: mean and std by channel, side, interpolation.
        mean, std: the same by channel, for images in [0, 1]; it expects (image − mean) ÷ std.
        dim: length of its unit rows.
        width: length of its backbone's features.
        parameters_count: parameters of its backbone.
    """

    def __init__(self, encoder: Encoder, spec: str) -> None:
        self._encoder = _frozen(encoder)
        self.spec = spec
        self.input: InputContract = encoder.input
        self.mean = encoder.input.mean
        self.std = encoder.input.std
        self.dim = encoder.dim
        self.width = encoder.width
        self.parameters_count = sum(parameter.numel() for parameter in encoder.backbone.parameters())
        self.digest = weights_digest(encoder.state_dict())

    @torch.no_grad()  # not inference_mode: its tensors could not be saved for a student's backward pass
    def __call__(self, images: Images) -> Embeddings:
        """Unit rows of normalized images, float32, constants to autograd."""
        return self._encoder(images)

    @torch.no_grad()
    def features(self, images: Images) -> Features:
        """The backbone's outputs for normalized images, any scale, float32, constants to autograd."""
        return self._encoder.features(images)

    @torch.no_grad()
    def both(self, images: Images) -> tuple[Features, Embeddings]:
        """`features` and unit rows of normalized images, from one pass over them; the same numbers as from two."""
        outputs = self._encoder.backbone(images)
        return at_least_float32(outputs), self._encoder.head(outputs)

    def to(self, device: torch.device | str) -> "Teacher":
        """Move to a device; returns the same teacher."""
        self._encoder.to(device)
        return self

    def channels_last(self) -> "Teacher":
        """Lay the weights out for images in channels-last memory; returns the same teacher."""
        self._encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return self


def _frozen(encoder: Encoder) -> Encoder:
    copied = freeze(copy.deepcopy(encoder))
    backbone = copied.backbone
    folded = fold_batch_norm(backbone.network, backbone.input.size, backbone.input.channels)
    return freeze(Encoder(Backbone(folded, backbone.build, backbone.input, backbone.width), copied.projector))


def weights_digest(state: dict[str, Tensor]) -> str:
    """16 hexadecimal digits for a state dict; device and memory format do not change them."""
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    return digest(
        *(
            (name, value.dtype, tuple(value.shape), value.flatten().view(torch.uint8).numpy())
            for name, value in tensors.items()
        ),
        digits=16,
    )
