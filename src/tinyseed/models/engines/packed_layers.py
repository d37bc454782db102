"""Layers of a frozen network with weights in oneDNN's layout."""

import torch
from torch import Tensor, nn


class PackedConvolution(nn.Module):
    """A frozen 2D convolution in oneDNN's layout, optionally with what follows it.

    Args:
        layer: the convolution; padding by numbers, filled with zeros.
        dtype: of its arithmetic: float32 or bfloat16.
        shape: of its inputs, by which oneDNN chooses the layout. Other inputs work too.
        relu: whether a ReLU follows.
    """

    def __init__(
        self, layer: nn.Conv2d, dtype: torch.dtype, shape: tuple[int, ...], *, relu: bool = False
    ) -> None:
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


class PackedLinear(nn.Module):
    """A frozen linear layer in oneDNN's layout, in bfloat16.

    Args:
        layer: the layer.
        rows: vectors in most of its calls, by which oneDNN chooses the layout. Other numbers work too.
    """

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        super().__init__()
        weight = layer.weight.detach().to(torch.bfloat16)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # not a buffer, as above
        self.bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)

    def forward(self, vectors: Tensor) -> Tensor:
        """The layer's outputs [..., f]."""
        return torch.ops.mkldnn._linear_pointwise(
            vectors.to(torch.bfloat16), self.weight, self.bias, "none", [], ""
        )
