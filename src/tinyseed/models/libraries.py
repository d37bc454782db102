"""Networks built by their libraries (timm, torchvision, `tinyseed.networks`), each without its classifier."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tinyseed.errors import InputError, first_line
from tinyseed.models.contract import IMAGENET, InputContract
from tinyseed.models.names import Library, import_timm
from tinyseed.networks.catalog import NETWORKS
from tinyseed.networks.wide_resnet import WideResNet
from tinyseed.shapes import Interpolation
from tinyseed.torchvision_ops import import_torchvision

SWAV_STD = (0.228, 0.224, 0.225)
"""As in SwAV's code (src/multicropdataset.py); ImageNet's red is 0.229."""


@dataclass(frozen=True)
class Build:
    """All that is needed to build the same network again.

    Attributes:
        name: `resnet18` for timm's, `torchvision/resnet18` for torchvision's, `swav/resnet50w2` for SwAV's.
        library: where the network is from.
        small_stem: whether it has the small stem for images up to 64 px.
        built_size: image size that the library was given; None where it was not asked for one.
        channels: of its images.
    """

    name: str
    library: Library
    small_stem: bool = False
    built_size: int | None = None
    channels: int = 3


@dataclass(frozen=True)
class LibraryNetwork:
    """A network as its library builds it.

    Attributes:
        network: the library's own module, without its classifier.
        build: how it was built.
        contract: the input that the library names for it.
        classifiers: modules of the library's whole model that were left out.
    """

    network: nn.Module
    build: Build
    contract: InputContract
    classifiers: tuple[str, ...] = ()


def create(
    library: Library, name: str, size: int | None = None, channels: int = 3, *, small_stem: bool = False
) -> LibraryNetwork:
    """A network with random weights, initialized by its library for any number of channels as it is for three.

    Raises:
        InputError: the library cannot build it for this size, or it has no small stem.
    """
    try:
        made = _create(library, name, size, channels)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        at_size = "" if size is None else f" for {size} px"
        raise InputError(name, f"cannot be built{at_size} ({first_line(error)})") from error
    if channels != 3:
        contract = replace(made.contract, mean=(0.0,) * channels, std=(1.0,) * channels)
        made = replace(made, contract=contract, build=replace(made.build, channels=channels))
    if small_stem:
        _shrink_stem(made.network, made.build.name)
        made = replace(made, build=replace(made.build, small_stem=True))
    return made


def _create(library: Library, name: str, size: int | None, channels: int) -> LibraryNetwork:
    if library == "timm":
        return create_timm(name, size, **({} if channels == 3 else {"in_chans": channels}))
    with contextlib.nullcontext() if channels == 3 else _first_convolution_takes(channels):
        match library:
            case "torchvision":
                return create_torchvision(name, size)
            case "swav" | "seed" | "moco" | "dinov3":
                own = NETWORKS[library][name]
                contract = replace(IMAGENET, multiple=own.patch)
                if library == "swav":
                    contract = replace(contract, std=SWAV_STD)
                build = Build(f"{library}/{name}", library)
                return LibraryNetwork(own.build(), build, contract, (own.classifier,))
            case "transformers":
                raise AssertionError("its models have no names here")


def create_on_meta(
    library: Library, name: str, size: int | None = None, channels: int = 3, *, small_stem: bool = False
) -> LibraryNetwork:
    """A network whose weights take no memory and no time, and have no values.

    Raises:
        InputError: the library cannot build it.
    """
    try:
        with torch.device("meta"), _NoInitialization():
            return create(library, name, size, channels, small_stem=small_stem)
    except InputError:  # torchvision's RegNets compute their widths with tensors
        with _parameters_on_meta():
            return create(library, name, size, channels, small_stem=small_stem)


class _NoInitialization(TorchFunctionMode):
    """Leaves out drawing values for tensors that have none: on the meta device it would import torch's compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        named = dict(kwargs or {})
        drawn = args[0] if args else named.get("tensor")
        draws = func in _DRAWS or getattr(func, "__module__", None) == nn.init.__name__
        if draws and isinstance(drawn, torch.Tensor) and drawn.is_meta:
            return drawn
        return func(*args, **named)


_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Only the parameters of networks that are built here go to the meta device, each before it is initialized."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else nn.Parameter(param.detach().to("meta")))

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def create_timm(name: str, size: int | None, **settings: Any) -> LibraryNetwork:  # noqa: ANN401
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
    takes_any = getattr(network, "dynamic_img_size", False)
    contract = InputContract(
        _channels(config.mean),
        _channels(config.std),
        int(config.input_size[-1]),
        _interpolation(config.interpolation),
        _patch(network),
        fixed=built_size is None and config.fixed_input_size and not takes_any,
    )
    classifier = config.classifier or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return LibraryNetwork(network, Build(name, "timm", built_size=built_size), contract, classifiers)


def create_torchvision(name: str, size: int | None, **settings: Any) -> LibraryNetwork:  # noqa: ANN401
    """One of torchvision's networks without classifier; `settings` go to its get_model."""
    models = import_torchvision().models
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
    build = Build(f"torchvision/{name}", "torchvision", built_size=built_size)
    return LibraryNetwork(network, build, contract, (_remove_classifier(network),))


def _channels(values: Any) -> tuple[float, ...]:  # noqa: ANN401  (the libraries hold lists or tuples)
    return tuple(float(value) for value in values)


def _interpolation(name: str) -> Interpolation:
    return "bicubic" if name == "bicubic" else "bilinear"


def _patch(network: Any) -> int:  # noqa: ANN401  (one of timm's)
    """What the sides of the images have to be a multiple of, where timm's network cuts them into patches."""
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


@contextlib.contextmanager
def _first_convolution_takes(channels: int) -> Iterator[None]:
    """Torchvision has no setting for the channels: change its first convolution of three while it is built.

    So the library's own initialization is drawn for it, whose scale may depend on the channels.
    """
    initialize = nn.Conv2d.__init__
    signature = inspect.signature(initialize)
    changed = False

    def with_channels(*given: Any, **named: Any) -> None:  # noqa: ANN401
        nonlocal changed
        bound = signature.bind(*given, **named)
        if not changed and bound.arguments["in_channels"] == 3:
            bound.arguments["in_channels"] = channels
            changed = True
        initialize(*bound.args, **bound.kwargs)

    nn.Conv2d.__init__ = with_channels
    try:
        yield
    finally:
        nn.Conv2d.__init__ = initialize


def _shrink_stem(network: nn.Module, name: str) -> None:
    """Keep a ResNet's first maps at the image's size: 3×3 stem of stride 1, no pooling."""
    from timm.models.resnet import ResNet as TimmResNet
    from torchvision.models.resnet import ResNet

    if not isinstance(network, TimmResNet | ResNet | WideResNet):
        why = f"{name} has no small stem, only ResNets of timm and torchvision do; leave it out"
        raise InputError(True, why, argument="small_stem")
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
