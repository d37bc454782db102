"""The frozen teacher: a function from images to unit rows. Imports this room, errors and shapes.

A `Teacher` is no nn.Module on purpose: what holds one has none of its weights among its parameters, buffers
or state, and no call to train() reaches its batch norm.
"""

import copy
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tinyseed.assets import CLOTHING_TEACHER
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone, is_model_name, probe_width
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, freeze, load_encoder, model_file
from tinyseed.models.folding import fold_batch_norm
from tinyseed.models.pretrained import build_pretrained
from tinyseed.shapes import Embeddings, Features, Images

RANDOM = "random:"
BOXED = {"tinyseed/clothing-resnet18": CLOTHING_TEACHER}
"""Teachers that come with the package."""

_PATH = re.compile(r"^[./~]|^(?!timm/|torchvision/).*/|\.(safetensors|pth|pt|ckpt|tar|bin)$")
# Another stream than a student's of the same seed: a random teacher has to be another network.
_TEACHER_STREAM = 0x7EAC4E5


class Teacher:
    """A frozen copy of an encoder, with its batch norms folded into its convolutions.

    Attributes:
        spec: how it was named.
        digest: 16 hexadecimal digits that stand for the encoder's weights.
        input: the images that it sees: mean and std by channel, side, interpolation.
        mean, std: the same by channel, for images in [0, 1]; it expects (image − mean) ÷ std.
        dim: length of its unit rows.
        width: length of its trunk's features.
        parameters_count: parameters of its trunk.
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
        """Unit rows of normalised images, float32, constants to autograd."""
        return self._encoder(images)

    @torch.no_grad()
    def features(self, images: Images) -> Features:
        """Trunk outputs of normalised images, any scale, float32, constants to autograd."""
        return self._encoder.features(images)

    def to(self, device: torch.device | str) -> "Teacher":
        """Move to a device; the same teacher comes back."""
        self._encoder.to(device)
        return self

    def channels_last(self) -> "Teacher":
        """Lay the weights out for images in channels-last memory; the same teacher comes back."""
        self._encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return self


def _frozen(encoder: Encoder) -> Encoder:
    frozen = freeze(copy.deepcopy(encoder))
    frozen.backbone.network = fold_batch_norm(
        frozen.backbone.network, encoder.input.size, encoder.input.channels
    )
    return freeze(frozen)


def weights_digest(state: dict[str, Tensor]) -> str:
    """16 hexadecimal digits for a state dict; device and memory format do not change them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_teacher(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    small_stem: bool = False,
    image_size: int | None = None,
    seed: int | None = 0,
    field: str = "--teacher",
) -> Teacher:
    """A frozen teacher from a tinyseed run, an exported file, or a model's name.

    Args:
        spec: a run folder, an exported .safetensors file, or a name (timm's, torchvision/NAME, or
            tinyseed/clothing-resnet18, which comes with the package). A teacher by a library's name has no projector:
            its rows are the normalised trunk outputs.
        weights: for a name: a file with the library's state dict, "random", or None for the library's
            pre-trained weights (cached, or fetched).
        small_stem: for a name: whether its weights are for the small stem.
        image_size: side of the images in pixels that it will see, raised to the next that it can (a multiple of a
            ViT's patch; `Teacher.input.size` tells); by default what it was made for.
        seed: of random weights.
        field: the flag that named it, for errors.

    Raises:
        InputError: no such model, weights that do not fit or cannot be fetched, a size that it cannot take.
    """
    stream = None if seed is None else seed ^ _TEACHER_STREAM
    encoder = load_model(
        spec,
        weights=weights,
        small_stem=small_stem,
        image_size=image_size,
        round_size=True,
        seed=stream,
        field=field,
    )
    return Teacher(encoder, str(spec) if weights is None else f"{spec}, weights {weights}")


def load_model(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    small_stem: bool = False,
    image_size: int | None = None,
    round_size: bool = False,
    seed: int | None = 0,
    field: str = "--model",
) -> Encoder:
    """An encoder as `load_teacher` finds it, in evaluation mode; `random:NAME` is short for random weights.

    Raises:
        InputError: as `load_teacher`.
    """
    text = str(spec)
    if text.startswith(RANDOM):
        text, weights = text.removeprefix(RANDOM), "random"
    if text in BOXED:
        text = str(BOXED[text])
    if _is_path(text):
        return _load_saved(text, weights, image_size, round_size=round_size, field=field)
    if weights is None and small_stem:
        raise InputError("--small-stem", text, "pre-trained weights have no small stem; leave it out")
    if weights is None:
        backbone = build_pretrained(text, image_size=image_size, round_size=round_size, field=field)
    else:
        backbone = build_backbone(
            text,
            small_stem=small_stem,
            weights=weights,
            image_size=image_size,
            round_size=round_size,
            seed=seed,
            field=field,
        )
    return Encoder(backbone).eval()


def _load_saved(
    path: str, weights: str | Path | None, image_size: int | None, *, round_size: bool, field: str
) -> Encoder:
    if not Path(path).expanduser().exists():
        raise InputError(
            field, path, "no such file or folder (models are named as in timm, or torchvision/NAME)"
        )
    if weights is not None:
        raise InputError(f"{field}-weights", weights, f"{path} has weights of its own; leave these out")
    encoder = load_encoder(path, field=field)
    if image_size is not None:
        size = encoder.input.fitting(image_size) if round_size else image_size
        probe_width(encoder.backbone.network, size, encoder.backbone.name, field, encoder.input.channels)
        encoder.backbone.input = replace(encoder.input, size=size)
    return encoder


def _is_path(text: str) -> bool:
    """A path by its looks, or since it is there; a model's name wins over a folder without a model."""
    path = Path(text).expanduser()
    if _PATH.search(text) or (path.is_dir() and model_file(path) is not None):
        return True
    return path.exists() and not is_model_name(text)
