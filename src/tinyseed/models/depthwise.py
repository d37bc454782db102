"""Depthwise convolutions of a trained network: in bfloat16 on a CPU, their gradients are computed in float32.

On the processor where this was measured (EPYC, AVX-512 BF16) oneDNN's bfloat16 gradients of depthwise convolutions are
several times as slow as its float32 ones, more exact too (`bench/networks.py students`). Outputs stay as they
are, to the bit.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d


def gradients_in_float32(network: nn.Module) -> int:
    """Let the depthwise convolutions of a network compute their gradients so; returns how many there are.

    It matters on a CPU under autocast only; state dict and outputs stay as they are.
    """
    found = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and _is_depthwise(layer)]
    for layer in found:
        layer.forward = partial(_forward, layer)  # pyright: ignore[reportAttributeAccessIssue]
    return len(found)


def _is_depthwise(layer: nn.Conv2d) -> bool:
    """Exact types only: a subclass may compute something else."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == layer.in_channels == layer.out_channels > 1
        and not isinstance(layer.padding, str)
        and layer.padding_mode == "zeros"
    )


def _forward(layer: nn.Conv2d, images: Tensor) -> Tensor:
    in_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if in_bf16 and images.device.type == "cpu" and torch.is_grad_enabled():
        geometry = (layer.stride, layer.padding, layer.dilation)
        return _Depthwise.apply(images.to(torch.bfloat16), layer.weight, layer.bias, geometry)  # pyright: ignore[reportReturnType]
    return nn.Conv2d.forward(layer, images)


class _Depthwise(torch.autograd.Function):
    """A convolution under autocast whose backward pass computes in float32."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(images, weight)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        return conv2d(images, weight, bias, *geometry, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        images, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        channels = len(weight)
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad_outputs[0].float(),
            images.float(),
            weight.float(),
            [channels],
            stride,
            padding,
            dilation,
            False,  # not transposed
            [0, 0],
            channels,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]],
        )
        return None if of_images is None else of_images.to(images.dtype), of_weight, of_bias, None
