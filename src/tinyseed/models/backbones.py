"""Trunks by name, from timm, torchvision and this room. Imports files of this room, errors and shapes.

A name is timm's (`resnet18`, `resnet18.a1_in1k`, `timm/resnet18`), torchvision's (`torchvision/resnet18`), or that
of a network that public checkpoints have and no library (`swav/resnet50w2`, `seed/mobilenetv3_large`).
The network in a `Backbone` is the library's own without its classifier; its state dict loads there unchanged.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinyseed.errors import InputError
from tinyseed.models.authors import fit_published
from tinyseed.models.channels import first_convolution_takes
from tinyseed.models.contract import InputContract
from tinyseed.models.names import Library, find_model, import_timm
from tinyseed.models.seed_mobilenet import SeedMobileNet
from tinyseed.models.weights import StateDict, first_line, fit_weights, read_weights
from tinyseed.models.wide_resnet import WIDTHS, WideResNet
from tinyseed.shapes import Features, Images, Interpolation
from tinyseed.torchvision_ops import ensure_torchvision

_SWAV_STD = (0.228, 0.224, 0.225)  # as its code has it; ImageNet's red is 0.229


@dataclass(frozen=True)
class Build:
    """All that is needed to build the same network again.

    Attributes:
        name: `resnet18` for timm's, `torchvision/resnet18` for torchvision's, `swav/resnet50w2` for SwAV's.
        built_size: image size that the library was given; None where it was not asked for one.
        channels: of its images.
    """

    name: str
    library: Library
    small_stem: bool = False
    built_size: int | None = None
    channels: int = 3


class Backbone(nn.Module):
    """A trunk: images to one feature vector each. `network` is the library's own module.

    Attributes:
        input: the images that it expects.
        width: length of a feature vector, as the network's output shows it.
    """

    def __init__(self, network: nn.Module, build: Build, contract: InputContract, width: int) -> None:
        super().__init__()
        self.network = network
        self.build = build
        self.input = contract
        self.width = width

    @property
    def name(self) -> str:
        """The name that builds it: `resnet18`, `torchvision/resnet18`."""
        return self.build.name

    @property
    def library(self) -> Library:
        """Where the network is from."""
        return self.build.library

    def forward(self, images: Images) -> Features:
        """Pooled features of normalised images, any scale."""
        return self.network(images)


def build_backbone(
    name: str,
    *,
    small_stem: bool = False,
    weights: str | Path | None = None,
    image_size: int | None = None,
    round_size: bool = False,
    channels: int = 3,
    seed: int | None = None,
    field: str = "--student",
) -> Backbone:
    """Build a trunk with random weights, or with those of a file.

    Args:
        name: timm's name of a model, or torchvision/NAME.
        small_stem: for ResNets on images up to 64 px: 3×3 stem of stride 1, no max-pool.
        weights: None or "random"; else a file with the library's own state dict, with or without classifier.
        image_size: side of the images in pixels; by default the library's. Networks of a fixed size are built
            for it.
        round_size: take the next size that the network can have, where it cannot have this one.
        channels: of the images. With others than three, `input` has mean 0 and std 1 until they are told.
        seed: the same seed gives the same weights, and leaves the global generator as it was.
        field: the flag that named the model, for errors.

    Raises:
        InputError: an unknown name, a size or stem that the network cannot have, weights that do not fit.
    """
    if weights not in (None, "random"):
        file = Path(str(weights)).expanduser()
        state = read_weights(file, f"{field}-weights")
        return fit_backbone(
            name,
            state,
            source=file,
            small_stem=small_stem,
            image_size=image_size,
            round_size=round_size,
            channels=channels,
            field=field,
            weights_field=f"{field}-weights",
        )
    library, plain = find_model(name, field)
    if round_size and image_size is not None:
        image_size = library_contract(library, plain, field).fitting(image_size)
    with seeded(seed):
        trunk = create(library, plain, image_size, field, channels)
        if small_stem:
            _shrink_stem(trunk.network, name)
    return as_backbone(trunk, library, plain, small_stem=small_stem, image_size=image_size, field=field)


def fit_backbone(
    name: str,
    state: StateDict,
    *,
    source: object,
    small_stem: bool = False,
    image_size: int | None = None,
    round_size: bool = False,
    channels: int = 3,
    field: str,
    weights_field: str,
) -> Backbone:
    """Build a trunk with the weights of a state dict, which may have the whole network's classifier.

    `state` holds tensors named as in the model's library or, for timm's, as its authors published them; `source` says
    where they came from, and `weights_field` which flag gave them, for errors. The rest is as in `build_backbone`.

    Raises:
        InputError: as `build_backbone`.
    """
    library, plain = find_model(name, field)
    # Position embeddings are of the library's own size; networks with dynamic ones then take others.
    with seeded(0):
        trunk = create(library, plain, None, field, channels)
        if small_stem:
            _shrink_stem(trunk.network, name)
    if round_size and image_size is not None:
        image_size = trunk.contract.fitting(image_size)
    fit = fit_published if library == "timm" else fit_weights
    fit(trunk.network, state, name=name, source=source, field=weights_field, left_out=trunk.classifiers)
    return as_backbone(trunk, library, plain, small_stem=small_stem, image_size=image_size, field=field)


@dataclass(frozen=True)
class Trunk:
    """A network fresh from its library.

    Attributes:
        classifiers: modules of the library's whole model that it does without.
        contract: the input that the library names for it.
        built_size: see `Build`.
    """

    network: nn.Module
    classifiers: tuple[str, ...]
    contract: InputContract
    built_size: int | None


def library_contract(library: Library, name: str, field: str) -> InputContract:
    """What images the library's own network of this name takes; no weights are drawn."""
    try:
        with torch.device("meta"):
            return create(library, name, None, field).contract
    except (
        InputError,
        NotImplementedError,
    ):  # torchvision's RegNets compute with their weights while they are built
        return create(library, name, None, field).contract


def create(library: Library, name: str, size: int | None, field: str, channels: int = 3) -> Trunk:
    """A trunk with random weights, for images of so many channels, initialised by its library as it is for three."""
    try:
        if channels == 3:
            return _create(library, name, size)
        if library == "timm":
            trunk = create_timm(name, size, in_chans=channels)
        else:
            with first_convolution_takes(channels):
                trunk = _create(library, name, size)
        plain = replace(trunk.contract, mean=(0.0,) * channels, std=(1.0,) * channels)
        return replace(trunk, contract=plain)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        size_told = "" if size is None else f" for {size} px"
        raise InputError(field, name, f"cannot be built{size_told} ({first_line(error)})") from error


def _create(library: Library, name: str, size: int | None) -> Trunk:
    match library:
        case "timm":
            return create_timm(name, size)
        case "torchvision":
            return create_torchvision(name, size)
        case "swav":
            return Trunk(WideResNet(WIDTHS[name]), (), InputContract(std=_SWAV_STD), None)
        case "seed":
            return Trunk(SeedMobileNet(), (), InputContract(), None)
        case "transformers":
            raise AssertionError("has no names of models")


def create_timm(name: str, size: int | None, **settings: Any) -> Trunk:  # noqa: ANN401
    """One of timm's networks without classifier; `settings` go to its create_model."""
    timm = import_timm()
    config = timm.get_pretrained_cfg(name)
    built_size = size if config.fixed_input_size else None
    sizes = {} if built_size is None else {"img_size": built_size}
    dynamic = {"dynamic_img_size": True} if config.fixed_input_size else {}
    try:
        network = timm.create_model(name, num_classes=0, **sizes, **dynamic, **settings)
    except TypeError:
        if not dynamic:
            raise
        network = timm.create_model(name, num_classes=0, **sizes, **settings)
    classifier = config.classifier or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    contract = InputContract(
        _channels(config.mean),
        _channels(config.std),
        int(config.input_size[-1]),
        _interpolation(config.interpolation),
        _patch(network),
        fixed=built_size is None
        and config.fixed_input_size
        and not getattr(network, "dynamic_img_size", False),
    )
    return Trunk(network, classifiers, contract, built_size)


def create_torchvision(name: str, size: int | None, **settings: Any) -> Trunk:  # noqa: ANN401
    """One of torchvision's networks without classifier; `settings` go to its get_model."""
    ensure_torchvision()
    from torchvision import models

    is_vit = name.startswith("vit_")
    built_size = size if is_vit else None
    sizes = {} if built_size is None else {"image_size": built_size}
    network = models.get_model(name, **sizes, **settings)
    transforms: Any = models.get_model_weights(name)["DEFAULT"].transforms()
    contract = InputContract(
        _channels(transforms.mean),
        _channels(transforms.std),
        int(transforms.crop_size[0]),
        _interpolation(transforms.interpolation.value),
        int(getattr(network, "patch_size", 1)) if is_vit else 1,
        fixed=built_size is None and is_vit,
    )
    return Trunk(network, (_remove_classifier(network),), contract, built_size)


def _channels(values: Any) -> tuple[float, ...]:  # noqa: ANN401  (the libraries hold lists or tuples)
    return tuple(float(value) for value in values)


def _interpolation(name: str) -> Interpolation:
    return "bicubic" if name == "bicubic" else "bilinear"


def _patch(network: Any) -> int:  # noqa: ANN401  (one of timm's)
    """What the sides of its images have to be a multiple of, where timm's network cuts them into patches."""
    if not getattr(network, "dynamic_img_size", False):
        return 1
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    return max(patch) if isinstance(patch, tuple | list) else int(patch)


def _remove_classifier(network: nn.Module) -> str:
    """Put identities in place of the last layer, whose name is returned, and of the dropout before it."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    name = layers[-1]
    network.set_submodule(name, nn.Identity())
    parent = network.get_submodule(name.rpartition(".")[0])
    children = [child for child, _ in parent.named_children()]
    before = children.index(name.rpartition(".")[2]) - 1
    if isinstance(parent, nn.Sequential) and before >= 0 and isinstance(parent[before], nn.Dropout):
        parent[before] = nn.Identity()
    return name


def _shrink_stem(network: nn.Module, name: str) -> None:
    """Keep a ResNet's first maps at the image's size: 3×3 stem of stride 1, no pooling."""
    from timm.models.resnet import ResNet as TimmResNet
    from torchvision.models.resnet import ResNet

    if not isinstance(network, TimmResNet | ResNet | WideResNet):
        raise InputError("--small-stem", name, "only ResNets of timm and torchvision have one; leave it out")
    stem, pool = network.conv1, network.maxpool
    if isinstance(stem, nn.Conv2d):
        network.set_submodule("conv1", _small_convolution(stem))
    else:  # a deep stem is 3×3 already
        _unstride(stem)
    if any(True for _ in pool.parameters()):  # pooling by a convolution, as in ResNet-RS
        _unstride(pool)
    else:
        network.set_submodule("maxpool", nn.Identity())


def _small_convolution(stem: nn.Conv2d) -> nn.Conv2d:
    small = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")  # as both libraries do
    return small


def _unstride(layers: nn.Module) -> None:
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)


def as_backbone(
    trunk: Trunk,
    library: Library,
    plain: str,
    *,
    small_stem: bool,
    image_size: int | None,
    field: str,
) -> Backbone:
    """A backbone of a trunk that has its weights; its width is probed at the size that it will see."""
    name = plain if library == "timm" else f"{library}/{plain}"
    size = image_size or trunk.contract.size
    contract = replace(trunk.contract, size=size)
    width = probe_width(trunk.network, size, name, field, contract.channels)
    build = Build(name, library, small_stem, trunk.built_size, contract.channels)
    return Backbone(trunk.network, build, contract, width)


@torch.no_grad()
def probe_width(network: nn.Module, size: int, name: str, field: str, channels: int = 3) -> int:
    """Length of the feature vector that a network really gives for an image of `size` pixels.

    timm's `num_features` is not it: for mobilenetv3_large_100 it says 960, and the output has 1,280.

    Raises:
        InputError: the network cannot take images of this size, or gives no feature vectors.
    """
    was_training = network.training
    network.eval()
    try:
        output = network(torch.zeros(1, channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        told = f"{size} px" if channels == 3 else f"{channels} channels and {size} px"
        raise InputError(field, name, f"cannot take images of {told} ({first_line(error)})") from error
    finally:
        network.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise InputError(
            field, name, "gives no feature vector for an image; choose a model for classification"
        )
    return output.shape[1]


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from a generator of this seed, and leave the global one as it was; None: draw from the global one.

    Networks are built on the CPU, so other devices' generators are not touched.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
