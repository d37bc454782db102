"""Batch norms of a frozen network folded into the convolutions before them.

In evaluation mode batch norm is a fixed scale and shift of each channel, so it can be multiplied into the
weights: the same function with one pass less over every map.
"""

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_TOLERANCE = 1e-4


@torch.no_grad()
def fold_batch_norm(network: nn.Module, size: int, channels: int = 3) -> nn.Module:
    """A copy of a network in evaluation mode with its batch norms folded, or the network itself.

    The copy is kept only if it gives the same outputs on noise, to 1e-4 of their largest. Networks that torch.fx
    cannot trace, or that have nothing to fold, are returned as they are.

    Args:
        network: in evaluation mode.
        size: side in pixels of the images to compare outputs on.
        channels: of these images.
    """
    assert not network.training
    folded = copy.deepcopy(network)
    pairs = _pairs(folded)
    for convolution, norm in pairs:
        _fold(folded, convolution, norm)
    if not pairs:
        return network
    noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(next(network.parameters()))
    wanted, given = network(noise), folded(noise)
    return folded if (given - wanted).abs().max() <= _TOLERANCE * wanted.abs().max() else network


class _Tracer(fx.Tracer):
    """Traces each normalization layer as a whole, including timm's with activation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Convolutions whose only use is a batch norm, and that batch norm, by name."""
    try:
        graph = _Tracer().trace(network)
    except Exception:  # noqa: BLE001  (control flow that depends on data can fail in any way)
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    uses = Counter(node.target for node in calls)
    found = []
    for norm in calls:
        before = norm.args[0] if norm.args else None
        if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
            continue
        names = str(before.target), str(norm.target)
        if uses[before.target] == uses[norm.target] == 1 and _foldable(network, *names):
            found.append(names)
    return found


def _foldable(network: nn.Module, convolution: str, norm: str) -> bool:
    """Exact types only: a subclass may compute something else, such as standardized weights."""
    layer = network.get_submodule(norm)
    return (
        type(network.get_submodule(convolution)) is nn.Conv2d
        and isinstance(layer, nn.BatchNorm2d)
        and (type(layer) is nn.BatchNorm2d or type(layer).__name__ == "BatchNormAct2d")
        and layer.track_running_stats
    )


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    layer, batch_norm = network.get_submodule(convolution), network.get_submodule(norm)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(batch_norm, nn.BatchNorm2d)
    assert batch_norm.running_mean is not None
    assert batch_norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        layer.weight.double(),
        None if layer.bias is None else layer.bias.double(),
        batch_norm.running_mean.double(),
        batch_norm.running_var.double(),
        batch_norm.eps,
        batch_norm.weight,
        batch_norm.bias,
    )
    layer.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)
    # timm's layers may contain dropout and an activation, which stay.
    after = [child for name, child in batch_norm.named_children() if name in ("drop", "act")]
    network.set_submodule(norm, nn.Sequential(*after) if after else nn.Identity())
