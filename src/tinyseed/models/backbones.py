"""Backbones by name: networks of a library that give one feature vector per image."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from tinyseed.errors import InputError, first_line
from tinyseed.models.contract import InputContract
from tinyseed.models.libraries import Build, LibraryNetwork, create
from tinyseed.models.names import Library, find_model
from tinyseed.shapes import Features, Images


class Backbone(nn.Module):
    """Images to one feature vector each.

    Attributes:
        network: the library's own module without its classifier; its state dict loads there unchanged.
        build: how it was built.
        input: the images that it expects; for others see `with_input`.
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

    def with_input(self, contract: InputContract) -> "Backbone":
        """A backbone over the same network that expects other images."""
        other = Backbone(self.network, self.build, contract, self.width)
        other.training = self.training
        return other

    def forward(self, images: Images) -> Features:
        """Pooled features of normalized images, any scale."""
        return self.network(images)


def build_backbone(
    name: str,
    *,
    small_stem: bool = False,
    image_size: int | None = None,
    channels: int = 3,
    seed: int | None = None,
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: timm's name of a model, torchvision/NAME, swav/NAME or seed/NAME.
        small_stem: for ResNets on images up to 64 px: 3×3 stem of stride 1, no max-pool.
        image_size: side of the images in pixels; by default the library's. Networks of a fixed size are built for it.
        channels: of the images. With others than three, the input contract has mean 0 and std 1.
        seed: the same seed gives the same weights and leaves the global generator as it was.

    Raises:
        InputError: an unknown name, or a size or stem that the network cannot have.
    """
    library, plain = find_model(name)
    with seeded(seed):
        made = create(library, plain, image_size, channels, small_stem=small_stem)
    return as_backbone(made, image_size)


def as_backbone(made: LibraryNetwork, size: int | None = None) -> Backbone:
    """A backbone over a library's network, for images of `size` pixels; by default the library's size.

    Raises:
        InputError: the network cannot take images of this size, or gives no feature vectors.
    """
    contract = replace(made.contract, size=size or made.contract.size)
    width = probe_width(made.network, contract, made.build.name)
    return Backbone(made.network, made.build, contract, width)


@torch.no_grad()
def probe_width(network: nn.Module, contract: InputContract, name: str) -> int:
    """Length of the feature vector that a network really gives for an image of its contract.

    timm's `num_features` is something else: for mobilenetv3_large_100 it is 960, and the output has 1,280.

    Raises:
        InputError: the network cannot take images of this size, or gives no feature vectors.
    """
    size, channels, was_training = contract.size, contract.channels, network.training
    network.eval()
    try:
        output = network(torch.zeros(1, channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        images = f"{size} px" if channels == 3 else f"{channels} channels and {size} px"
        raise InputError(name, f"cannot take images of {images} ({first_line(error)})") from error
    finally:
        network.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise InputError(name, "gives no feature vector for an image; choose a model for classification")
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
