"""A frozen network with its weights packed for the CPU once, instead of in each of its calls.

torch's convolution on a CPU reorders its weights into oneDNN's blocked layout in every call, and under autocast also
converts them to bfloat16 in every call, since it keeps converted weights only of parameters that are trained. A frozen
network's weights can be converted and laid out once. A ReLU, and the addition of a residual before it, are then part
of the convolution: one pass less over every map.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_ADDITIONS = ("add", "iadd", "add_")
_RELU_FUNCTIONS = (torch.relu, functional.relu)


class PackedConvolution(nn.Module):
    """A frozen 2D convolution in oneDNN's layout, optionally with what follows it.

    Args:
        layer: the convolution; padding by numbers, filled with zeros.
        dtype: of its arithmetic: float32 or bfloat16.
        shape: of its inputs, by which oneDNN chooses the layout. Other inputs work too.
        relu: whether a ReLU follows.
    """

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, shape: tuple[int, ...], *, relu: bool) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.dtype = dtype
        self.relu = relu
        self.geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        weight = layer.weight.detach().to(dtype).to_mkldnn()
        # Not buffers: an opaque tensor can be neither copied to another layout nor saved.
        reorder = torch._C._nn.mkldnn_reorder_conv2d_weight  # pyright: ignore[reportAttributeAccessIssue]
        self.weight = reorder(weight, *self.geometry, list(shape))
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def forward(self, images: Tensor, residual: Tensor | None = None) -> Tensor:
        """The convolution [n, c, h, w], plus `residual` of the same shape, and the ReLU of that."""
        images, relu = images.to(self.dtype), "relu" if self.relu else None
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                images, self.weight, self.bias, *self.geometry, relu or "none", [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            images, residual, self.weight, self.bias, *self.geometry, "add", 1.0, relu, [], ""
        )


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

    Args:
        network: frozen, in evaluation mode.
        images: normalized; the network's own outputs for them are returned.
        dtype: of the convolutions' arithmetic; autocast has to be as it will be in the calls.
        usual: number of images in most calls, by which the layout is chosen; by default that of these.

    Raises:
        Exception: of any kind, from torch.fx: the network's control flow depends on its data.
    """
    graph = fx.GraphModule(network, fx.Tracer().trace(network))
    wanted = _Shapes(graph).run(images)
    _without_identities(graph)
    for node in list(graph.graph.nodes):
        if _is_packable(graph, node):
            _pack_node(graph, node, dtype, usual or len(images))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, wanted


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
    """Exact types only: a subclass may compute something else, such as standardized weights."""
    layer = _module(graph, node)
    return (
        type(layer) is nn.Conv2d
        and not isinstance(layer.padding, str)
        and layer.padding_mode == "zeros"
        and len(node.args) == 1
        and not node.kwargs
    )


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
