"""The nearest images of a bank, exactly.

There are three ways with the same result. The exhaustive search multiplies tiles and takes the largest entries of each.
The scan, for large banks on the CPU, first estimates from a sixteenth of the bank above which similarity a query's
neighbors will lie, then collects only what is above it, so that nearly all the time is spent in the matrix product. If
the processor supports bfloat16, the scan multiplies in it at twice the speed: rounding errors are bounded, whatever
might be a neighbor within the bound is computed again in float32, and a query whose bound does not hold is searched
exhaustively. On other processors the flat index of faiss is faster than the scan (docs/performance.md), and is used if
it is installed.
"""

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize

from tinyseed.errors import RunError
from tinyseed.precision import native_bf16
from tinyseed.shapes import Indices

TILE = (256, 65_536)
"""Queries and images of an exhaustive tile: 64 MB of similarities."""

SCAN_TILE = (2048, 8192)
"""Queries and images of a tile of the scan."""

SCAN_FROM = 32_768
"""Smaller banks are searched exhaustively: a sixteenth of them is too small a sample."""

SCAN_UP_TO = 1024
"""More neighbors are searched exhaustively: collecting them takes memory."""

PART = 256
"""Rows of a bank that are prepared at once: 2 MB at 2,048 numbers per row."""

SAMPLED = 16
"""The sample holds one of this many images."""

GROUP = 8
"""Similarities per group; the scan looks at the greatest of a group first."""

FAISS_BYTES = 1 << 32
"""Larger banks are not passed to faiss, which copies them in float32."""

KEPT_BYTES = 1 << 30
"""A bank that is larger than this in unit rows is computed anew for each block of queries."""


class Neighbors(NamedTuple):
    """The nearest images of a bank, nearest first."""

    similarities: Float[Tensor, "n k"]
    """Cosine, -1 to 1."""
    positions: Int64[Tensor, "n k"]
    """Rows of the bank."""


@torch.no_grad()
def nearest(
    queries: Float[Tensor, "n f"], bank: Float[Tensor, "m f"], count: int, *, exclude_self: bool = False
) -> Neighbors:
    """The `count` images of a bank with the highest cosine similarity to each query, nearest first.

    Exact, on the device of the queries; memory stays bounded by tiles of similarities. Similarities are float32's and
    follow `torch.set_float32_matmul_precision`, whose default is full float32. Which of several equally similar
    images comes first is up to `torch.topk`, and the same in each run on a machine.

    Args:
        queries: features, any scale.
        bank: features to look among.
        count: neighbors per query.
        exclude_self: the queries are the bank, and an image does not count as its own neighbor.

    Raises:
        ValueError: the bank holds fewer images than are asked for.
        RunError: features that are not finite.
    """
    if not 1 <= count <= len(bank) - exclude_self:
        raise ValueError(f"{count} neighbors asked for among {len(bank) - exclude_self}")
    if not (_finite(queries) and _finite(bank)):
        raise RunError(
            "the features hold numbers that are NaN or infinite: the model that made them has diverged"
        )
    own = torch.arange(len(queries), device=queries.device) if exclude_self else None
    if queries.device.type != "cpu" or count > SCAN_UP_TO or len(bank) < max(SCAN_FROM, 64 * count):
        return _exhaustive(queries, bank, count, own)
    if not native_bf16(on_gpu=False) and 4 * bank.numel() <= FAISS_BYTES and has_faiss():
        return _by_faiss(queries, bank.cpu(), count, own)
    found, left = _scan(queries, bank.cpu(), count, own)
    if len(left):
        again = _exhaustive(queries[left], bank, count, None if own is None else own[left])
        found.similarities[left], found.positions[left] = again
    return found


def _finite(features: Float[Tensor, "n f"]) -> bool:
    """A sum of finite float64 numbers is finite; in blocks, because `sum` makes a float64 copy of what it adds."""
    blocks = features.split(TILE[0] * 16)
    return all(math.isfinite(float(block.sum(dtype=torch.float64))) for block in blocks)


def has_faiss() -> bool:
    """Whether faiss is installed (the extra `faiss`)."""
    return find_spec("faiss") is not None


def _by_faiss(
    queries: Float[Tensor, "n f"], bank: Float[Tensor, "m f"], count: int, own: Indices | None
) -> Neighbors:
    """By faiss' flat index of inner products, with as many threads as torch has."""
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(bank.shape[1])
    for part in bank.detach().split(SCAN_TILE[1]):
        index.add(normalize(part.float(), dim=1).numpy())
    found = []
    for row, part in enumerate(queries.detach().split(SCAN_TILE[0])):
        asked = count if own is None else count + 1
        values, positions = map(torch.from_numpy, index.search(normalize(part.float(), dim=1).numpy(), asked))
        if (
            own is not None
        ):  # the image itself goes to the end, or, among more copies than were asked for, the last one
            themselves = positions == own[row * SCAN_TILE[0] :][: len(part), None]
            order = themselves.long().argsort(dim=1, stable=True)[:, :count]
            values, positions = values.gather(1, order), positions.gather(1, order)
        found.append((values, positions))
    return Neighbors(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _without_self(similarities: Float[Tensor, "n m"], own: Indices | None, column: int) -> None:
    """An image's similarity to itself becomes -inf; `column` is the tile's first image."""
    if own is not None:
        (rows,) = torch.where((own >= column) & (own < column + similarities.shape[1]))
        similarities[rows, own[rows] - column] = -math.inf


# --- exhaustive ------------------------------------------------------------------------------------------------------


def _exhaustive(
    queries: Float[Tensor, "n f"], bank: Float[Tensor, "m f"], count: int, own: Indices | None
) -> Neighbors:
    """Tile by tile; `own` is the place of each query in the bank."""
    values = torch.full((len(queries), count), -math.inf, device=queries.device)
    best = Neighbors(values, torch.zeros_like(values, dtype=torch.int64))
    tile = torch.empty(min(TILE[0], len(queries)) * min(TILE[1], len(bank)), device=queries.device)
    for column in range(0, len(bank), TILE[1]):  # the longer loop is outside: its rows are normalized once
        unit_bank = normalize(bank[column : column + TILE[1]].to(queries.device).float(), dim=1)
        for row in range(0, len(queries), TILE[0]):
            block = slice(row, row + TILE[0])
            similarities = _product(normalize(queries[block].float(), dim=1), unit_bank, tile)
            _without_self(similarities, None if own is None else own[block], column)
            _keep_best(best, row, column, similarities)
    return best


def _product(
    queries: Float[Tensor, "n f"], bank: Float[Tensor, "m f"], tile: Float[Tensor, " t"]
) -> Float[Tensor, "n m"]:
    """Cosines of unit rows, in a buffer that is used again: fresh pages would cost a fifth of the time."""
    similarities = tile[: len(queries) * len(bank)].view(len(queries), len(bank))
    return torch.mm(queries, bank.T, out=similarities)


def _keep_best(best: Neighbors, row: int, column: int, similarities: Float[Tensor, "n m"]) -> None:
    """Merge a tile, whose first entry is query `row` and image `column`, into the best found so far."""
    rows, count = slice(row, row + len(similarities)), best.similarities.shape[1]
    values, positions = _largest(similarities, min(count, similarities.shape[1]))
    if column == 0 and values.shape[1] == count:  # nothing was found before
        best.similarities[rows], best.positions[rows] = values, positions
        return
    values = torch.cat((best.similarities[rows], values), 1)
    positions = torch.cat((best.positions[rows], positions + column), 1)
    best.similarities[rows], order = values.topk(count, 1)
    best.positions[rows] = positions.gather(1, order)


def _largest(values: Float[Tensor, "n m"], count: int) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """`topk`, exact and up to twice as fast: the largest are in the `count` groups with the largest maxima.

    With groups of √(columns / count) both searches are short, and maxima are taken at the speed of memory.
    """
    columns = values.shape[1]
    size = math.isqrt(columns // count)
    if size < 2:
        return values.topk(count, 1)
    groups = columns // size  # group g is the columns g, g + groups, g + 2·groups, …
    maxima = values[:, : groups * size].unflatten(1, (size, groups)).amax(1)
    chosen = maxima.topk(count, 1, sorted=False).indices
    offsets = torch.arange(size, device=values.device)[:, None] * groups
    candidates = (chosen[:, None, :] + offsets).flatten(1)
    rest = torch.arange(groups * size, columns, device=values.device).expand(len(values), -1)
    candidates = torch.cat((candidates, rest), 1)
    largest, order = values.gather(1, candidates).topk(count, 1)
    return largest, candidates.gather(1, order)


# --- scan ------------------------------------------------------------------------------------------------------------


class _Entries(NamedTuple):
    """Similarities of one block of queries that may belong to neighbors, row by row once they are sorted."""

    rows: Indices
    positions: Indices
    values: Float[Tensor, " e"]


@dataclass(frozen=True)
class _Bank:
    """A bank prepared for the scan: unit rows less their mean, in the precision of the product.

    Subtracting a vector from all rows changes a query's similarities by the same amount, so not their order; the
    differences are shorter, and so are their rounding errors.

    Attributes:
        scales: factors that make the rows of the bank unit rows.
        reach: length of the longest row, its rounding included.
        error: length of the longest row's rounding error.
    """

    bank: Float[Tensor, "m f"]
    dtype: torch.dtype
    scales: Float32[Tensor, " m"]
    mean: Float32[Tensor, " f"]
    reach: float = 0.0
    error: float = 0.0
    kept: tuple[Tensor, ...] = ()

    @property
    def starts(self) -> range:
        """Where each block begins."""
        return range(0, len(self.bank), SCAN_TILE[1])

    def exact(self, start: int, rows: int) -> Float32[Tensor, "b f"]:
        """This many rows before they are rounded."""
        part = slice(start, start + rows)
        return (self.bank[part].float() * self.scales[part, None]).sub_(self.mean)

    def rounded(self, start: int) -> Float[Tensor, "b f"]:
        """A block of rows as they are multiplied; made in parts that fit the cache."""
        block = self.bank[start : start + SCAN_TILE[1]]
        made = torch.empty_like(block, dtype=self.dtype)
        for row in range(0, len(block), PART):
            made[row : row + PART] = self.exact(start + row, min(PART, len(block) - row))
        return made

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "b f"]]]:
        """First position and rows of each block."""
        for at, start in enumerate(self.starts):
            yield start, self.kept[at] if self.kept else self.rounded(start)

    @classmethod
    def of(cls, bank: Float[Tensor, "m f"], dtype: torch.dtype) -> "_Bank":
        """Two passes over the bank: lengths and mean, then rows and their rounding errors."""
        parts = bank.split(PART)
        scales = torch.cat([1 / part.float().norm(dim=1).clamp_min(1e-12) for part in parts])
        mean = torch.zeros(bank.shape[1])
        if dtype != torch.float32:
            for part, scale in zip(parts, scales.split(PART), strict=True):
                mean += part.float().T @ scale
            mean /= len(bank)
        made = cls(bank, dtype, scales, mean)
        reach = error = 0.0
        for start in range(0, len(bank), PART):
            exact = made.exact(start, PART)
            rounded = exact.to(dtype).float()
            reach = max(reach, float(exact.norm(dim=1).max()), float(rounded.norm(dim=1).max()))
            error = max(error, float(exact.sub_(rounded).norm(dim=1).max()))
        small = bank.numel() * dtype.itemsize <= KEPT_BYTES
        kept = tuple(made.rounded(start) for start in made.starts) if small else ()
        return replace(made, reach=reach, error=error, kept=kept)


def _scan(
    queries: Float[Tensor, "n f"], bank: Float[Tensor, "m f"], count: int, own: Indices | None
) -> tuple[Neighbors, Int64[Tensor, " left"]]:
    """Neighbors, and the queries for which they are not certain."""
    ready = _Bank.of(bank, torch.bfloat16 if native_bf16(on_gpu=False) else torch.float32)
    sample = torch.cat([rows[::SAMPLED].clone() for _, rows in ready.blocks()])  # a view would hold its block
    found = Neighbors(torch.empty(len(queries), count), torch.zeros(len(queries), count, dtype=torch.int64))
    tile = torch.empty(SCAN_TILE[0] * max(SCAN_TILE[1], len(sample)), dtype=ready.dtype)
    left = []
    for row in range(0, len(queries), SCAN_TILE[0]):
        block = slice(row, row + SCAN_TILE[0])
        unit = normalize(queries[block].float(), dim=1)
        entries, floor = _collect(
            unit.to(ready.dtype), ready, sample, tile, count, own=None if own is None else own[block]
        )
        target = Neighbors(found.similarities[block], found.positions[block])
        uncertain = _settle(target, unit, entries, floor, ready)
        left.append(row + uncertain)
        if 4 * len(uncertain) > len(unit):  # features that are too similar to each other defeat the scan
            left.append(torch.arange(row + len(unit), len(queries)))
            break
    return found, torch.cat(left)


def _collect(
    queries: Float[Tensor, "q f"],
    ready: _Bank,
    sample: Float[Tensor, "s f"],
    tile: Float[Tensor, " t"],
    count: int,
    *,
    own: Indices | None,
) -> tuple[_Entries, Float[Tensor, " q"]]:
    """All similarities above a floor that about 2 · count + 200 images of the bank reach, and the floor.

    A row's floor is infinite where far more images have reached it: such a row is given up.
    """
    wanted = 2 * count + 200
    rank = -(-wanted // SAMPLED)
    floor = _product(queries, sample, tile).topk(rank, 1, sorted=False).values.amin(1)
    found = []
    for start, rows in ready.blocks():
        values = _product(queries, rows, tile)
        _without_self(values, own, start)
        found.append(_reaching(values, floor, start, most=2 * wanted))
    entries = _Entries(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    many = torch.bincount(entries.rows, minlength=len(queries)) > 4 * wanted
    floor[many] = math.inf
    given_up = floor[entries.rows] == math.inf
    if bool(given_up.any()):
        entries = _Entries(*(part[~given_up] for part in entries))
    order = torch.argsort(entries.rows, stable=True)
    return _Entries(*(part[order] for part in entries)), floor


def _reaching(values: Float[Tensor, "q b"], floor: Float[Tensor, " q"], start: int, *, most: int) -> _Entries:
    """The entries of a tile that reach their row's floor; the floor of a row with too many becomes infinite."""
    groups = values.shape[1] // GROUP  # group g is the columns g, g + groups, g + 2·groups, …
    maxima = values[:, : groups * GROUP].unflatten(1, (GROUP, groups)).amax(1)
    places = _flat_places(maxima >= floor[:, None])
    if len(places) > most * len(values):
        floor[torch.bincount(places // groups, minlength=len(values)) > most] = math.inf
        places = _flat_places(maxima >= floor[:, None])
    rows = places // groups
    first = places + rows * (values.shape[1] - groups)  # of each group, counted through the tile
    candidates = (first[:, None] + torch.arange(GROUP) * groups).flatten()
    flat = values.flatten()
    reached = _flat_places(flat.index_select(0, candidates) >= floor[rows].repeat_interleave(GROUP))
    rest_rows, rest_columns = torch.where(values[:, groups * GROUP :] >= floor[:, None])
    rest = rest_rows * values.shape[1] + rest_columns + groups * GROUP
    places = torch.cat((candidates[reached], rest))
    rows = places // values.shape[1]
    return _Entries(rows, places - rows * values.shape[1] + start, flat.index_select(0, places))


def _flat_places(mask: Tensor) -> Indices:
    return mask.flatten().nonzero()[:, 0]


def _settle(
    target: Neighbors,
    unit: Float32[Tensor, "q f"],
    entries: _Entries,
    floor: Float[Tensor, " q"],
    ready: _Bank,
) -> Int64[Tensor, " left"]:
    """Write down the neighbors of a block of queries; returns the rows that are not certain.

    With x' for x in the product's precision: |q·b − q'·b'| ≤ |q − q'| |b| + |q'| |b − b'|, and the product's sum of f
    terms has its own error. What was left out is below the floor by the rounded product, so by the exact one below the
    floor and that bound. It is not a neighbor if the count-th best is above both by the same bound.
    """
    count = target.similarities.shape[1]
    values, positions, counts = _padded(entries, len(unit), count)
    if ready.dtype == torch.float32:
        target.similarities[:], order = values.topk(count, 1)
        target.positions[:] = positions.gather(1, order)
        return torch.where(counts < count)[0]
    rounded = unit.to(ready.dtype).float()
    bound = (unit - rounded).norm(dim=1) * ready.reach + rounded.norm(dim=1) * ready.error
    bound += unit.shape[1] * 2.0**-23 * ready.reach + 1e-6
    ulp = 2.0**-8  # bfloat16's rounding of the result, as a share of it
    last = values.topk(count, 1, sorted=False).values.amin(1)
    least = last - ulp * last.abs() - 2 * bound
    certain = (counts >= count) & (floor.float() <= least)
    possible = (values + ulp * values.abs() >= least[:, None]).sum(1)
    width = int(possible[certain].max()) if bool(certain.any()) else 0
    values, order = values.topk(max(width, count), 1)
    positions = positions.gather(1, order)
    for at in torch.where(certain)[0].tolist():
        _compute_again(target, at, unit[at], positions[at, : int(possible[at])], ready)
    return torch.where(~certain)[0]


def _padded(
    entries: _Entries, rows: int, least: int
) -> tuple[Float32[Tensor, "q w"], Int64[Tensor, "q w"], Int64[Tensor, " q"]]:
    """Entries as a matrix, row by row, padded with -inf, and the number of entries in each row."""
    counts = torch.bincount(entries.rows, minlength=rows)
    slots = torch.arange(len(entries.rows)) - (counts.cumsum(0) - counts)[entries.rows]
    values = torch.full((rows, max(int(counts.max()), least)), -math.inf)
    positions = torch.zeros_like(values, dtype=torch.int64)
    values[entries.rows, slots] = entries.values.float()
    positions[entries.rows, slots] = entries.positions
    return values, positions, counts


def _compute_again(
    target: Neighbors, row: int, unit: Float32[Tensor, " f"], positions: Indices, ready: _Bank
) -> None:
    """Similarities in float32 of a query to its few candidates: one at a time, so that they fit the cache."""
    rows = ready.bank.index_select(0, positions).float()
    similarities = torch.mv(rows, unit) * ready.scales[positions]
    target.similarities[row], order = similarities.topk(target.similarities.shape[1])
    target.positions[row] = positions[order]
