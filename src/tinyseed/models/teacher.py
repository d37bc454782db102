"""The frozen teacher: a function from images to unit rows.

A `Teacher` is deliberately not an nn.Module: what holds one has none of its weights among its parameters, buffers
or state, and no call to train() reaches its batch norm.
"""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from tinyseed.errors import InputError
from tinyseed.files import digest
from tinyseed.models.backbones import Backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, at_least_float32, freeze
from tinyseed.models.engines.base import Engine
from tinyseed.models.engines.plain import TorchEngine
from tinyseed.models.folding import fold_batch_norm
from tinyseed.models.patches import features_and_patches, gives_patches
from tinyseed.settings.train import TeacherOutput
from tinyseed.shapes import Embeddings, Features, Images, Patches


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
        architecture: name of its backbone.
        gives: what it can be asked for.
        engine: how its backbone is computed: "torch", or what `use` was given.
        agreement: how far that engine agrees with torch, as plain values; empty for torch itself.
        sides: whether it takes images of other sides than its own, as far as that has been found out.
        remember: called when more of that is known; None: nobody keeps it.
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
        self.architecture = encoder.backbone.name
        has_patches = gives_patches(encoder.backbone.network)
        self.gives: tuple[TeacherOutput, ...] = (
            ("rows", "features", "patches") if has_patches else ("rows", "features")
        )
        self.digest = weights_digest(encoder.state_dict())
        self.engine = "torch"
        self.agreement: dict[str, Any] = {}
        self.sides: dict[str, bool] = {}
        self.remember: Callable[[], object] | None = None
        self._compute: Engine = TorchEngine(self._encoder.backbone)

    @torch.no_grad()  # not inference_mode: its tensors could not be saved for a student's backward pass
    def __call__(self, images: Images) -> Embeddings:
        """Unit rows of normalized images, float32, constants to autograd."""
        return self._network().head(self._compute(images))

    @torch.no_grad()
    def features(self, images: Images) -> Features:
        """The backbone's outputs for normalized images, any scale, float32, constants to autograd."""
        return at_least_float32(self._compute(images))

    def both(self, images: Images) -> tuple[Features, Embeddings]:
        """Features and unit rows of normalized images, in one pass."""
        given = self.outputs(images, ("features", "rows"))
        return given["features"], given["rows"]

    def patches(self, images: Images) -> Patches:
        """A vector for each patch [n, p, f]: a transformer's tokens, or the places of a network's last map.

        Raises:
            InputError: its network does not say what they are.
        """
        return self.outputs(images, ("patches",))["patches"]

    @torch.no_grad()
    def outputs(self, images: Images, wanted: Collection[TeacherOutput]) -> dict[TeacherOutput, Tensor]:
        """What is wanted of normalized images, float32, in one pass.

        Raises:
            InputError: patches of a network that does not say what they are.
        """
        self.require(wanted)
        encoder, given = self._network(), dict[TeacherOutput, Tensor]()
        if "patches" in wanted:
            features, patches = features_and_patches(encoder.backbone.network, images)
            given["patches"] = patches.float()
        else:
            features = self._compute(images)
        if "features" in wanted:
            given["features"] = features.float()
        if "rows" in wanted:
            given["rows"] = encoder.head(features)
        return given

    def require(self, wanted: Collection[TeacherOutput]) -> None:
        """Look whether it gives what is wanted.

        Raises:
            InputError: it does not.
        """
        for output in wanted:
            if output not in self.gives:
                why = f"{self.spec} ({self.architecture}) does not give them; networks of timm do"
                raise InputError(output, why, argument="cache_outputs")

    def takes(self, side: int) -> bool:
        """Whether it can see images of another side in pixels than its own, as convolutional networks can."""
        if side == self.input.size:
            return True
        if str(side) not in self.sides:
            self.sides[str(side)] = self._tries(side)
            if self.remember is not None:
                self.remember()
        return self.sides[str(side)]

    @torch.no_grad()
    def _tries(self, side: int) -> bool:
        network = self._network().backbone
        device = next(network.parameters()).device
        try:
            given = network(torch.zeros(1, self.input.channels, side, side, device=device))
        except (RuntimeError, AssertionError, ValueError):
            return False
        return given.shape == (1, self.width)

    @property
    def backbone(self) -> Backbone:
        """Its backbone with batch norms folded, for an engine to be built from."""
        return self._network().backbone

    @property
    def key(self) -> str:
        """Stands for what it computes, for caches: its weights, and the engine if it is another one than torch."""
        return f"{self.digest}-{self._compute.key}" if self._compute.key else self.digest

    def use(self, engine: Engine, name: str) -> "Teacher":
        """Compute the backbone by another engine; returns the same teacher."""
        self._compute, self.engine = engine, name
        return self

    def compute(self, images: Images) -> Features:
        """The backbone's outputs as the engine gives them, without a head, in its precision."""
        return self._compute(images)

    def _network(self) -> Encoder:
        return self._encoder

    def to(self, device: torch.device | str) -> "Teacher":
        """Move to a device; returns the same teacher."""
        self._network().to(device)
        return self

    def channels_last(self) -> "Teacher":
        """Lay the weights out for images in channels-last memory; returns the same teacher."""
        self._network().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
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
