"""A frozen network with its weights packed for the CPU once, instead of in each of its calls.

torch's convolution on a CPU reorders its weights into oneDNN's blocked layout in every call, and under autocast also
converts them to bfloat16 in every call, since it keeps converted weights only of parameters that are trained. A frozen
network's weights can be converted and laid out once. A ReLU, and the addition of a residual before it, are then part
of the convolution: one pass less over every map. Linear layers are packed in bfloat16 only: in float32 torch computes
them by another library, with other bits.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from tinyseed.models.engines.packed_layers import PackedConvolution, PackedLinear

_ADDITIONS = ("add", "iadd", "add_")
_RELU_FUNCTIONS = (torch.relu, functional.relu)


def can_pack(images: Tensor) -> bool:
    """Whether this build of torch packs weights, and the images are on the CPU."""
    has_operators = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return images.device.type == "cpu" and torch.backends.mkldnn.is_available() and has_operators


def pack(
    network: nn.Module, images: Tensor, dtype: torch.dtype, usual: int | None = None
) -> tuple[nn.Module, Tensor]:
    """A network with packed convolutions, and the outputs of the one that was given.

    Where additions become part of convolutions in bfloat16, a residual is added before rounding, not after it: these
    outputs are a little more exact. All others have the same bits.

    A network whose control flow depends on its data, as that of timm's transformers does, cannot be traced: in it only
    the layers are replaced, each by itself.

    Args:
        network: frozen, in evaluation mode.
        images: normalized; the network's own outputs for them are returned.
        dtype: of the arithmetic; autocast has to be as it will be in the calls.
        usual: number of images in most calls, by which the layout is chosen; by default that of these.

    Raises:
        Exception: of any kind: a network may look at layers in ways that packed ones do not offer.
    """
    try:
        graph = fx.GraphModule(network, fx.Tracer().trace(network))
    except Exception:  # noqa: BLE001  (control flow that depends on data can fail in any way)
        return _with_packed_layers(network, images, dtype, usual or len(images))
    wanted = _Shapes(graph).run(images)
    _without_identities(graph)
    for node in list(graph.graph.nodes):
        if _is_packable(graph, node):
            _pack_node(graph, node, dtype, usual or len(images))
        elif dtype == torch.bfloat16 and type(_module(graph, node)) is nn.Linear:
            _pack_linear_node(graph, node, usual or len(images))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, wanted


def _with_packed_layers(
    network: nn.Module, images: Tensor, dtype: torch.dtype, count: int
) -> tuple[nn.Module, Tensor]:
    """A copy with packed layers in the place of its own, and the network's outputs. Other weights are shared."""
    shapes = dict[nn.Module, tuple[int, ...]]()
    hooks = [
        part.register_forward_pre_hook(lambda module, given: shapes.update({module: tuple(given[0].shape)}))
        for part in network.modules()
        if _is_convolution(part) or type(part) is nn.Linear
    ]
    try:
        wanted = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    packed = copy.deepcopy(network, {id(each): each for each in (*network.parameters(), *network.buffers())})
    for name, layer in list(network.named_modules()):
        if (shape := shapes.get(layer)) is None:
            continue
        if isinstance(layer, nn.Conv2d):
            packed.set_submodule(name, PackedConvolution(layer, dtype, (count, *shape[1:])))
        elif isinstance(layer, nn.Linear) and dtype == torch.bfloat16:
            packed.set_submodule(name, PackedLinear(layer, _rows(shape, count)))
    return packed, wanted


def _rows(shape: tuple[int, ...], count: int) -> int:
    """Rows that a linear layer multiplies where there are `count` images, by the shape of its inputs."""
    return count * math.prod(shape[1:-1])


class _Shapes(fx.Interpreter):
    """Computes a graph and notes the shape of each result; torch's own `ShapeProp` would import SymPy."""

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else ()
        return result


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _without_identities(graph: fx.GraphModule) -> None:
    """Folded batch norms leave layers that do nothing between a convolution and its ReLU."""
    for node in list(graph.graph.nodes):
        if isinstance(_module(graph, node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _is_packable(graph: fx.GraphModule, node: fx.Node) -> bool:
    return _is_convolution(_module(graph, node)) and len(node.args) == 1 and not node.kwargs


def _is_convolution(layer: nn.Module | None) -> bool:
    """Exact types only: a subclass may compute something else, such as standardized weights."""
    return type(layer) is nn.Conv2d and not isinstance(layer.padding, str) and layer.padding_mode == "zeros"


def _pack_linear_node(graph: fx.GraphModule, node: fx.Node, count: int) -> None:
    """Put a packed linear layer in the place of this one."""
    layer, (given,) = _module(graph, node), node.args
    assert isinstance(layer, nn.Linear)
    assert isinstance(given, fx.Node)
    name = f"packed_{node.name}"
    graph.add_submodule(name, PackedLinear(layer, _rows(_shape(given), count)))
    node.target = name


def _pack_node(graph: fx.GraphModule, node: fx.Node, dtype: torch.dtype, count: int) -> None:
    """Put a packed convolution in the place of this one and of the addition and ReLU after it."""
    layer = _module(graph, node)
    assert isinstance(layer, nn.Conv2d)
    (images,) = node.args
    assert isinstance(images, fx.Node)
    last, residual = node, _residual(node)
    if residual is not None:
        (last,) = node.users
    relu = _only_user(last, lambda user: _is_relu(graph, user))
    last = relu or last
    name = f"packed_{node.name}"
    shape = (count, *_shape(images)[1:])
    graph.add_submodule(name, PackedConvolution(layer, dtype, shape, relu=relu is not None))
    with graph.graph.inserting_before(last):
        packed = graph.graph.call_module(name, (images,) if residual is None else (images, residual))
    packed.meta = dict(last.meta)
    last.replace_all_uses_with(packed)
    for done in dict.fromkeys((last, *((relu.args[0],) if relu is not None else ()), node)):
        if isinstance(done, fx.Node) and not done.users:
            graph.graph.erase_node(done)


def _residual(node: fx.Node) -> fx.Node | None:
    """What is added to a convolution's output, where that is its only use and the shapes are the same."""
    addition = _only_user(node, lambda user: user.op == "call_function" and _name(user) in _ADDITIONS)
    if addition is None or addition.kwargs or len(addition.args) != 2:
        return None
    others = [each for each in addition.args if isinstance(each, fx.Node) and each is not node]
    if len(others) != 1:
        return None
    (other,) = others
    return other if _shape(other) == _shape(node) and other < node else None


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "")


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    return type(_module(graph, node)) is nn.ReLU


def _only_user(node: fx.Node, wanted: Callable[[fx.Node], bool]) -> fx.Node | None:
    (user, *more) = node.users or (None,)
    return user if user is not None and not more and wanted(user) else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return node.meta.get("shape", ())
