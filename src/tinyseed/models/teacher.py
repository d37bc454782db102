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
from tinyseed.models.backbones import build_backbone, probe_width
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, freeze, load_encoder, model_file
from tinyseed.models.folding import fold_batch_norm
from tinyseed.models.formats import Output, TeacherFile, describe, is_export, load_file, with_output
from tinyseed.models.huggingface import PREFIX, load_transformers
from tinyseed.models.names import is_model_name
from tinyseed.models.pretrained import build_pretrained
from tinyseed.models.remote import is_url, local_file
from tinyseed.models.signatures import arch_flag
from tinyseed.shapes import Embeddings, Features, Images

RANDOM = "random:"
BOXED = {"tinyseed/clothing-resnet18": CLOTHING_TEACHER}
"""Teachers that come with the package."""

_PATH = re.compile(
    r"^[./~]|^(?!timm/|torchvision/|swav/|seed/|transformers:).*/|\.(safetensors|pth|pt|ckpt|tar|bin)$"
)
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
    arch: str | None = None,
    output: Output = "auto",
    small_stem: bool = False,
    image_size: int | None = None,
    seed: int | None = 0,
    field: str = "--teacher",
) -> Teacher:
    """A frozen teacher from a tinyseed run, a public checkpoint, or a model's name.

    Args:
        spec: a run folder, an exported file, a checkpoint of a known format (docs/teachers.md), any of these files
            by URL, transformers:FOLDER_OR_ID, or a name (timm's, torchvision/NAME, swav/NAME, seed/NAME, or
            tinyseed/clothing-resnet18, which comes with the package). A teacher by a library's name has no projector:
            its rows are the normalised trunk outputs.
        weights: for a name: a file with the library's state dict, "random", or None for the library's
            pre-trained weights (cached, or fetched).
        arch: for a checkpoint whose tensors do not tell it: the name of its network.
        output: "head" for the embedding, "trunk" for the features; "auto" is the head where there is one.
        small_stem: for a name: whether its weights are for the small stem.
        image_size: side of the images in pixels that it will see, raised to the next that it can (a multiple of a
            ViT's patch; `Teacher.input.size` tells); by default what it was made for.
        seed: of random weights.
        field: the flag that named it, for errors.

    Raises:
        InputError: no such model, weights that do not fit or cannot be fetched, a size that it cannot take.
    """
    encoder = load_model(
        spec,
        weights=weights,
        arch=arch,
        output=output,
        small_stem=small_stem,
        image_size=image_size,
        round_size=True,
        seed=None if seed is None else seed ^ _TEACHER_STREAM,
        field=field,
    )
    return Teacher(encoder, str(spec) if weights is None else f"{spec}, weights {weights}")


def load_model(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    arch: str | None = None,
    output: Output = "auto",
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
    path = _as_path(text, field)
    if path is not None:
        if weights is not None and path.exists():
            raise InputError(f"{field}-weights", weights, f"{text} has weights of its own; leave these out")
        encoder, _ = _open(path, arch, output, image_size, round_size=round_size, field=field)
        return encoder
    if arch is not None:
        raise InputError(arch_flag(field), arch, f"is for files that do not say what they are; {text} does")
    if text.startswith(PREFIX):
        encoder = load_transformers(text, image_size=image_size, round_size=round_size, field=field)
    elif weights is None and small_stem:
        raise InputError("--small-stem", text, "pre-trained weights have no small stem; leave it out")
    elif weights is None:
        encoder = Encoder(build_pretrained(text, image_size=image_size, round_size=round_size, field=field))
    else:
        backbone = build_backbone(
            text,
            small_stem=small_stem,
            weights=local_file(str(weights), f"{field}-weights") if is_url(str(weights)) else weights,
            image_size=image_size,
            round_size=round_size,
            seed=seed,
            field=field,
        )
        encoder = Encoder(backbone)
    return with_output(encoder.eval(), output, text, field)


def random_init(encoder: Encoder, seed: int) -> Encoder:
    """The same network with fresh weights and the same input contract."""
    build = encoder.backbone.build
    fresh = load_model(
        build.name, weights="random", small_stem=build.small_stem, image_size=build.built_size, seed=seed
    )
    fresh.backbone.input = encoder.input
    return fresh


def describe_teacher(spec: str | Path, *, arch: str | None = None, field: str = "FILE") -> TeacherFile:
    """What a teacher's file, folder or name is; files are loaded, so what does not fit is told.

    Raises:
        InputError: as `load_teacher`.
    """
    text = str(spec)
    path = _as_path(text, field)
    if path is not None:
        _, described = _open(path, arch, "auto", None, round_size=False, field=field)
        return replace(described, spec=text)
    if text.startswith(PREFIX):
        return describe(load_transformers(text, field=field), text, "transformers", None)
    return describe(Encoder(build_backbone(text, seed=0, field=field)), text, "a name", None)


def _open(
    path: Path, arch: str | None, output: Output, image_size: int | None, *, round_size: bool, field: str
) -> tuple[Encoder, TeacherFile]:
    """The encoder in a folder or file, and what that is."""
    if not path.exists():
        raise InputError(
            field, path, "no such file or folder (models are named as in timm, or torchvision/NAME)"
        )
    if not (path.is_dir() or is_export(path)):
        return load_file(
            path, arch=arch, output=output, image_size=image_size, round_size=round_size, flag=field
        )
    if arch is not None:
        raise InputError(arch_flag(field), arch, f"{path} says itself what it is; leave it out")
    encoder = load_encoder(path, field=field)
    if image_size is not None:
        size = encoder.input.fitting(image_size) if round_size else image_size
        probe_width(encoder.backbone.network, size, encoder.backbone.name, field, encoder.input.channels)
        encoder.backbone.input = replace(encoder.input, size=size)
    file = model_file(path) if path.is_dir() else path
    described = describe(encoder, str(path), "tinyseed", encoder.projector)
    return with_output(encoder, output, path, field), replace(
        described, size=None if file is None else file.stat().st_size
    )


def _as_path(text: str, field: str) -> Path | None:
    """The file or folder that a text means, fetched where it is a URL; None where it is a model's name."""
    if text in BOXED:
        return BOXED[text]
    if is_url(text):
        return local_file(text, field)
    return Path(text).expanduser() if _is_path(text) else None


def _is_path(text: str) -> bool:
    """A path by its looks, or since it is there; a model's name wins over a folder without a model."""
    path = Path(text).expanduser()
    if text.startswith(PREFIX):
        return False
    if _PATH.search(text) or (path.is_dir() and model_file(path) is not None):
        return True
    return path.exists() and not is_model_name(text)
