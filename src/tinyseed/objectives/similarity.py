"""Soft look-up: softmax attention over rows, exact, without an [n, k] matrix. Most losses are built from it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import logsigmoid

from tinyseed.objectives.kernels import kernel_applies, lookup_by_kernel
from tinyseed.objectives.lookup import Lookup
from tinyseed.objectives.streaming import lookup_by_stream, may_select
from tinyseed.shapes import Embeddings, Rows, Scalar


class OwnRowLookup(NamedTuple):
    """Result of a look-up over the rows and each image's own extra row, relative to the own row.

    Numbers that cancel are never formed, so small losses keep their digits.

    Attributes:
        offset: [n, d], weighted mean of all rows minus the own row.
        excess: [n], log-normalizer over all rows minus the own row's score, ≥ 0; the own row's probability is
            exp(−excess).
    """

    offset: Embeddings
    excess: Float[Tensor, " n"]


def soft_lookup(queries: Embeddings, rows: Rows) -> Lookup:
    """Softmax attention with keys = values = rows.

    No gradient flows through it: the losses need none, since ∂ log_normalizer / ∂ query is `values` itself.
    Extra memory is O(n · d); without a fused kernel, also a block of scores and the rows that carry weight (below).

    Args:
        queries: [n, d], already divided by the temperature.
        rows: [k, d], same device. k = 0 gives values 0 and log_normalizer −inf.

    Returns:
        float64 if an input is float64, else float32 (half precision is converted first), also under autocast.
        Matrix products follow `torch.set_float32_matmul_precision`, whose default is full float32.
        On the CPU, above 512 dimensions, rows with less than 2^-28 of the weight in all may be left out.

    Source: Milakov & Gimelshein 2018, online softmax (arXiv 1805.02867); Dao et al. 2022, FlashAttention
    (arXiv 2205.14135).
    """
    return soft_lookups((queries,), rows)[0]


@torch.no_grad()
def soft_lookups(
    groups: Sequence[Embeddings], rows: Rows, known: Sequence[Float[Tensor, " n"] | None] | None = None
) -> tuple[Lookup, ...]:
    """`soft_lookup` of several groups of queries, in one pass over the rows.

    Args:
        groups: [n, d] each, already divided by the temperature.
        rows: [k, d].
        known: for each group the scores [n] of rows that will be added to the look-up (own rows), or None. The 2^-28
            of the weight that may be left out are then a share of the total with them.
    """
    device = rows.device.type
    dtype = common_dtype(*groups, rows)
    known = known or (None,) * len(groups)
    with torch.autocast(device, enabled=False):
        # The fused kernels read rows with a stride as if they had none.
        groups, rows = [queries.to(dtype).contiguous() for queries in groups], rows.to(dtype).contiguous()
        together = groups[0] if len(groups) == 1 else torch.cat(groups)
        if not kernel_applies(together, rows):
            return lookup_by_stream(groups, rows, known)
        found, sizes = lookup_by_kernel(together, rows), [len(queries) for queries in groups]
    parts = zip(found.values.split(sizes), found.log_normalizer.split(sizes), strict=True)
    return tuple(Lookup(*part) for part in parts)


def may_leave_out(queries: Embeddings, rows: Rows) -> bool:
    """Whether `soft_lookups` may leave rows out."""
    return may_select(rows) and not kernel_applies(queries, rows)


def with_own_row(lookup: Lookup, queries: Embeddings, own: Embeddings) -> OwnRowLookup:
    """Add an extra row to each query's look-up.

    Args:
        lookup: of `queries` over the shared rows.
        queries: [n, d], already divided by the temperature.
        own: [n, d], the extra row of each query.
    """
    # The own score in float64 (if available) costs nothing and halves the rounding error of the difference.
    exact = queries.dtype if queries.device.type == "mps" else torch.float64
    score = (queries.to(exact) * own.to(exact)).sum(1)
    gap = (lookup.log_normalizer - score).to(queries.dtype)
    # −logsigmoid(−x) is softplus without the cut-off at x = 20 that torch's softplus has.
    return OwnRowLookup(torch.sigmoid(gap)[:, None] * (lookup.values - own), -logsigmoid(-gap))


def with_gradient(inputs: Embeddings, value: Scalar, gradient: Embeddings) -> Scalar:
    """`value`, whose gradient with respect to `inputs` is `gradient`: all that the backward pass keeps."""
    return _KnownGradient.apply(inputs, value, gradient)  # pyright: ignore[reportReturnType]


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision to compute in: float64 if any tensor has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_inputs(own: str, *, rows: Tensor, **vectors: Tensor) -> None:
    """Check the tensors of a loss.

    Args:
        own: name of the tensor whose shape the others must have.
        rows: [k, d], any k.
        vectors: [n, d] tensors by their names, all of one shape, n ≥ 1.

    Raises:
        ValueError: a tensor is not two-dimensional or not floating point, shapes do not fit, or there is no image.
    """
    for name, tensor in (*vectors.items(), ("rows", rows)):
        if tensor.ndim != 2:
            raise ValueError(f"{name}: shape {list(tensor.shape)}: give two axes, one vector per row")
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: {tensor.dtype}: give floating-point vectors")
    shape = vectors[own].shape
    for name, tensor in vectors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: shape {list(tensor.shape)}: give the shape of {own}, {list(shape)}")
    if rows.shape[1] != shape[1]:
        raise ValueError(f"rows: {rows.shape[1]} dimensions: give {shape[1]}, as {own} has")
    if shape[0] == 0:
        raise ValueError(f"{own}: 0 images: give at least one")


def check_temperature(name: str, value: float) -> None:
    """Raise a ValueError that names the temperature unless it is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: {value}: give a finite number above 0")


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        del inputs
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scale,) = grad_outputs
        (gradient,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        # autograd narrows the product to the inputs' precision, after a float16 loss scale has lifted it.
        return scale * gradient, None, None
