"""The look-up by PyTorch's fused attention kernels, which are private operators: each is checked before its first use.

On the CPU it is the flash kernel; on CUDA the memory-efficient one, since the flash kernel there has no float32. The
rows are divided into shards that are looked up side by side and merged: for the CPU's cores, or because a few queries
alone would not fill a GPU.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from tinyseed.objectives.lookup import Lookup, merge, merge_pair
from tinyseed.shapes import Embeddings, Rows

MAX_DIM = {"cpu": 512, "cuda": 128}
"""Above it the CPU kernel's fixed blocks outgrow a core's cache, and plain matmuls win; on CUDA, the largest dimension
whose values the kernel keeps in registers."""

MIN_ROWS = 256
"""Fewest rows that are worth a shard."""

PARTIAL_BYTES = 64 << 20
"""Upper limit of memory for the values of all shards before they are merged."""

CUDA_TILE = 64
"""Queries that one block of threads of the CUDA kernel works on."""


def kernel_applies(queries: Embeddings, rows: Rows) -> bool:
    """Whether there is a kernel for these tensors, and it works."""
    device, dim = queries.device.type, queries.shape[1]
    if queries.numel() == 0 or len(rows) == 0 or dim > MAX_DIM.get(device, 0):
        return False
    # CUDA: rows of 16 bytes, which the kernel's loads need to be fast.
    return (device == "cpu" or dim % 4 == 0) and kernel_works(device, queries.dtype)


def lookup_by_kernel(queries: Embeddings, rows: Rows) -> Lookup:
    """Shards of equal size in one call of the kernel, the few rows that remain in another."""
    n, d = queries.shape
    shards = count_shards(queries, rows)
    share = len(rows) // shards
    rest = rows[shards * share :]
    parts = rows[: shards * share].reshape(shards, 1, share, d)
    values, log_normalizer = kernel(queries.expand(shards, 1, n, d), parts)
    found = merge(values[:, 0], log_normalizer[:, 0])
    if len(rest) == 0:
        return found
    values, log_normalizer = kernel(queries[None, None], rest[None, None])
    return merge_pair(found, Lookup(values[0, 0], log_normalizer[0, 0]))


def count_shards(queries: Embeddings, rows: Rows) -> int:
    """How many shards keep all cores busy, whatever the number of queries."""
    affordable = PARTIAL_BYTES // (queries.numel() * queries.element_size())
    wanted = workers(queries.device) if queries.device.type == "cpu" else _cuda_shards(queries)
    return max(1, min(wanted, len(rows) // MIN_ROWS, affordable))


def _cuda_shards(queries: Embeddings) -> int:
    """Two blocks of threads per multiprocessor."""
    return -(-2 * workers(queries.device) // -(-len(queries) // CUDA_TILE))


def workers(device: torch.device) -> int:
    """Threads of the CPU, or multiprocessors of the GPU."""
    if device.type == "cpu":
        return torch.get_num_threads()
    return torch.cuda.get_device_properties(device).multi_processor_count


def kernel(queries: Float[Tensor, "c 1 n d"], rows: Float[Tensor, "c 1 m d"]) -> tuple[Tensor, Tensor]:
    """PyTorch's attention with keys = values = rows: values [c, 1, n, d] and log-normalizer [c, 1, n]."""
    return KERNELS[queries.device.type](queries, rows)


def _cpu_flash(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, rows, rows, 0.0, False, scale=1.0
    )


def _cuda_efficient(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    values, log_normalizer, *_ = operator(queries, rows, rows, None, True, 0.0, False, scale=1.0)
    return values, log_normalizer[..., : queries.shape[2]]  # it is padded to a multiple of 32


KERNELS = {"cpu": _cpu_flash, "cuda": _cuda_efficient}


@functools.cache
def kernel_works(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernel exists and returns what we expect; on CUDA also in float32's full precision."""
    if device not in KERNELS:
        return False
    rows = torch.linspace(-1, 1, 2 * 3 * 4, dtype=dtype, device=device).view(2, 1, 3, 4)
    queries = 50 * rows[:1].expand(2, 1, 3, 4)  # scores up to 100: TF32 would be off by a tenth
    try:
        found = kernel(queries, rows)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    scores = queries @ rows.mT if dtype == torch.float64 else (queries.double() @ rows.double().mT)
    expected = ((scores.softmax(-1) @ rows.to(scores.dtype)).to(dtype), scores.logsumexp(-1).to(dtype))
    return all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip(found, expected, strict=True)
    )
