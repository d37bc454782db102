"""Soft look-up: softmax attention over rows, exact, without an [n, k] matrix. Most losses are built from it."""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import logsigmoid

from tinyseed.shapes import Embeddings, Rows, Scalar

KERNEL_MAX_DIM = 512
"""Above it the flash kernel's fixed blocks outgrow a core's cache, and plain matmuls win."""

KERNEL_MIN_ROWS = 256
"""Fewest rows that are worth their own batch entry in the flash kernel."""

LEAST_EXPONENT = -60.0
"""Weights below exp(−60) are raised to it: a million of them are 1e-20 of the total, beyond float64's digits.

At small temperatures exp would give subnormal numbers, on which a processor's matmul is over a hundred times slower.
"""

PARTIAL_BYTES = 64 << 20
"""Upper limit of memory for the values of all batch entries before they are merged."""


class Lookup(NamedTuple):
    """Result of a soft look-up.

    Attributes:
        values: [n, d], the rows' mean, weighted by softmax(queries · rows).
        log_normalizer: [n], log Σ_j exp(query · row_j).
    """

    values: Embeddings
    log_normalizer: Float[Tensor, " n"]


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


@torch.no_grad()
def soft_lookup(queries: Embeddings, rows: Rows) -> Lookup:
    """Softmax attention with keys = values = rows.

    No gradient flows through it: the losses need none, since ∂ log_normalizer / ∂ query is `values` itself.
    Extra memory is O(n · d), plus a block of scores if there is no flash kernel.

    Args:
        queries: [n, d], already divided by the temperature.
        rows: [k, d], same device. k = 0 gives values 0 and log_normalizer −inf.

    Returns:
        float64 if an input is float64, else float32 (half precision is converted first), also under autocast.
        Matrix products follow `torch.set_float32_matmul_precision`, whose default is full float32.
        On CUDA the rows are streamed through plain matmuls: no fused kernel has been tested there.

    Source: Milakov & Gimelshein 2018, online softmax (arXiv 1805.02867); Dao et al. 2022, FlashAttention
    (arXiv 2205.14135).
    """
    device = queries.device.type
    dtype = common_dtype(queries, rows)
    with torch.autocast(device, enabled=False):
        # The flash kernel reads rows with a stride as if they had none.
        queries, rows = queries.to(dtype).contiguous(), rows.to(dtype).contiguous()
        small = queries.shape[1] <= KERNEL_MAX_DIM and queries.numel() > 0
        if small and len(rows) > 0 and _kernel_works(device, dtype):
            return _lookup_by_kernel(queries, rows)
        return _lookup_by_stream(queries, rows)


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


def _kernel(queries: Float[Tensor, "c 1 n d"], rows: Float[Tensor, "c 1 m d"]) -> tuple[Tensor, Tensor]:
    """PyTorch's flash attention for CPUs: values [c, 1, n, d] and log-normalizer [c, 1, n]."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, rows, rows, 0.0, False, scale=1.0
    )


@functools.cache
def _kernel_works(device: str, dtype: torch.dtype) -> bool:
    """Whether the flash kernel, a private operator that may change, exists and returns what we expect."""
    if device != "cpu":
        return False
    rows = torch.linspace(-1, 1, 12, dtype=dtype).view(1, 1, 3, 4)
    try:
        values, log_normalizer = _kernel(rows, rows)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    scores = rows @ rows.mT
    expected = (scores.softmax(-1) @ rows, scores.logsumexp(-1))
    given = (values, log_normalizer)
    return all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b)
        for a, b in zip(given, expected, strict=True)
    )


def _lookup_by_kernel(queries: Embeddings, rows: Rows) -> Lookup:
    """Each core looks up its share of the rows, so that all are equally busy whatever the number of queries."""
    n, d = queries.shape
    affordable = PARTIAL_BYTES // (queries.numel() * queries.element_size())
    chunks = max(1, min(torch.get_num_threads(), len(rows) // KERNEL_MIN_ROWS, affordable))
    share = len(rows) // chunks
    rest = rows[chunks * share :]
    shares = rows[: chunks * share].reshape(chunks, 1, share, d)
    values, log_normalizer = _kernel(queries.expand(chunks, 1, n, d), shares)
    found = _merge(values[:, 0], log_normalizer[:, 0])
    if len(rest) == 0:
        return found
    values, log_normalizer = _kernel(queries[None, None], rest[None, None])
    pair = (found, Lookup(values[0, 0], log_normalizer[0, 0]))
    return _merge(
        torch.stack([part.values for part in pair]), torch.stack([part.log_normalizer for part in pair])
    )


def _merge(values: Float[Tensor, "c n d"], log_normalizer: Float[Tensor, "c n"]) -> Lookup:
    """One look-up from those over c disjoint sets of rows."""
    if len(values) == 1:
        return Lookup(values[0], log_normalizer[0])
    # softmax, not exp(part − whole): the weights sum to 1 even where large log-normalizers round.
    weights = log_normalizer.softmax(0)
    return Lookup(torch.einsum("cn,cnd->nd", weights, values), log_normalizer.logsumexp(0))


def _lookup_by_stream(queries: Embeddings, rows: Rows) -> Lookup:
    """The same in plain operators: a block of rows at a time, with a running maximum and sum."""
    n, d = queries.shape
    on_cpu = queries.device.type == "cpu"
    block = max(64, (4 << 20 if on_cpu else 256 << 20) // (max(n, 1) * queries.element_size()))
    buffer = queries.new_empty(n * min(block, len(rows)))
    maximum = queries.new_full((n, 1), -math.inf)
    total = queries.new_zeros(n, 1)
    weighted = queries.new_zeros(n, d)
    for part in rows.split(block) if len(rows) else ():
        scores = torch.mm(queries, part.T, out=buffer[: n * len(part)].view(n, len(part)))
        higher = torch.maximum(maximum, scores.amax(1, keepdim=True))
        kept = (maximum - higher).exp_()
        weights = scores.sub_(higher).clamp_(min=LEAST_EXPONENT).exp_()
        total.mul_(kept).add_(weights.sum(1, keepdim=True))
        weighted.mul_(kept).addmm_(weights, part)
        maximum = higher
    values = weighted.div_(total) if len(rows) else weighted
    return Lookup(values, (maximum + total.log())[:, 0])
