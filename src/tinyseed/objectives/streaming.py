"""The look-up in plain operators, a block of rows at a time.

On the CPU, queries whose weight lies on few rows (a teacher's, at a low temperature) are looked up in two passes. The
first computes scores with a bound on their error, in bfloat16 if the processor multiplies it, and selects the rows
that may carry weight; the second computes with these alone. What is left out is less than `DROPPED` of the total, by
the bound. Where too many rows carry weight, all are used.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tinyseed.objectives.lookup import Lookup, merge_pair
from tinyseed.precision import native_bf16
from tinyseed.shapes import Embeddings, Rows

LEAST_EXPONENT = -60.0
"""Weights below exp(−60) are raised to it: a million of them are 1e-20 of the total, beyond float64's digits.

At small temperatures exp would give subnormal numbers, on which a processor's matmul is over a hundred times slower.
"""

DROPPED = 2.0**-28
"""The weight of all rows that are left out, as a share of the total, is at most this: 1/16 of float32's rounding."""

SELECT_FROM = 4096
"""Fewer rows are all used."""

MOST_SELECTED = 1 / 48
"""If more of a block's rows are selected, a matrix product with all rows is faster."""

PART_BYTES = 16 << 20
"""Size of a block of rows, on the CPU: it is read several times, from the cache. Smaller ones were no faster alone, and
every block is several waits of threads for each other, which cost most beside other processes."""

SCORE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Size of a block of scores."""


def lookup_by_stream(
    groups: Sequence[Embeddings], rows: Rows, known: Sequence[Float[Tensor, " n"] | None]
) -> tuple[Lookup, ...]:
    """Look-ups of several groups of queries in one pass over the rows.

    Args:
        groups: [n, d] each, one at least.
        rows: [k, d].
        known: for each group, log-weights [n] that will be added to the total later (an own row's), or None. They count
            when it is decided what may be left out.
    """
    parts = list(row_blocks(rows, sum(map(len, groups))))
    chosen = [
        _Selection(queries, rows, also) if may_select(rows) else None
        for queries, also in zip(groups, known, strict=True)
    ]
    chosen = [selection if selection and selection.add(*parts[0]) else None for selection in chosen]
    others = [queries for queries, selection in zip(groups, chosen, strict=True) if selection is None]
    dense = _Dense(torch.cat([groups[0][:0], *others]))
    for number, (start, part) in enumerate(parts):
        dense.add(part)
        for selection in chosen:
            if selection is not None and number > 0:
                selection.add(start, part)
    left = _split(dense.result(), list(map(len, others)))
    return tuple(next(left) if selection is None else selection.result() for selection in chosen)


def may_select(rows: Rows) -> bool:
    """Whether rows that carry no weight may be left out: on the CPU, in float32.

    On a GPU it would wait for the device, since how many rows are selected depends on the data.
    """
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and len(rows) >= SELECT_FROM


def row_blocks(rows: Rows, queries: int) -> Iterator[tuple[int, Rows]]:
    """Blocks of rows, and where each begins; the scores of a block with all queries take `SCORE_BYTES`."""
    size = rows.element_size()
    block = SCORE_BYTES.get(rows.device.type, SCORE_BYTES["cuda"]) // (max(queries, 1) * size)
    if rows.device.type == "cpu":
        block = min(block, PART_BYTES // (max(rows.shape[1], 1) * size))
    block = max(64, block)
    for start in range(0, len(rows), block):
        yield start, rows[start : start + block]


def _split(found: Lookup, sizes: Sequence[int]) -> Iterator[Lookup]:
    for part in zip(found.values.split(sizes), found.log_normalizer.split(sizes), strict=True):
        yield Lookup(*part)


class _Dense:
    """All rows, with a running maximum and sum."""

    def __init__(self, queries: Embeddings) -> None:
        n, d = queries.shape
        self.queries = queries
        self.maximum = queries.new_full((n, 1), -math.inf)
        self.total = queries.new_zeros(n, 1)
        self.weighted = queries.new_zeros(n, d)
        self.buffer = queries.new_empty(0)

    def add(self, part: Rows) -> None:
        n = len(self.queries)
        if n == 0:
            return
        if self.buffer.numel() < n * len(part):
            self.buffer = self.queries.new_empty(n * len(part))
        scores = torch.mm(self.queries, part.T, out=self.buffer[: n * len(part)].view(n, len(part)))
        higher = torch.maximum(self.maximum, scores.amax(1, keepdim=True))
        kept = (self.maximum - higher).exp_()
        weights = scores.sub_(higher).clamp_(min=LEAST_EXPONENT).exp_()
        self.total.mul_(kept).add_(weights.sum(1, keepdim=True))
        self.weighted.mul_(kept).addmm_(weights, part)
        self.maximum = higher

    def result(self) -> Lookup:
        """Values 0 and log-normalizer −inf if there were no rows."""
        some = self.total.where(self.total != 0, 1)
        return Lookup(self.weighted / some, (self.maximum + self.total.log())[:, 0])


class _Entries(NamedTuple):
    """Rows that may carry weight: which query's, which row, and a score that the exact one does not exceed."""

    query: Int64[Tensor, " s"]
    row: Int64[Tensor, " s"]
    score: Float[Tensor, " s"]


class _Selection:
    """The rows that carry weight, and from the first block with too many of them on, all rows."""

    def __init__(self, queries: Embeddings, rows: Rows, known: Float[Tensor, " n"] | None) -> None:
        self.queries, self.rows = queries, rows
        self.narrow = queries.bfloat16() if native_bf16(on_gpu=False) else queries
        self.length = torch.linalg.vector_norm(queries, dim=1, keepdim=True)
        self.longest = float(self.length.amax()) if len(queries) else math.nan
        self.floor = queries.new_full((len(queries), 1), -math.inf) if known is None else known[:, None]
        self.found: list[_Entries] = []
        self.rest: _Dense | None = None

    def add(self, start: int, part: Rows) -> bool:
        """Take a block of rows; whether only rows with weight have been taken so far."""
        if self.rest is None:
            found = self._select(start, part)
            if found is not None:
                self.found.append(found)
                return True
            self.rest = _Dense(self.queries)
        self.rest.add(part)
        return False

    def _select(self, start: int, part: Rows) -> _Entries | None:
        """The entries of a block; None if there are too many, or some number is not finite.

        Every row's true score is within `margin` of its rounded one. So a row below the floor, a lower bound of the
        log-total, by log(k / DROPPED) and the margin has less than DROPPED / k of the total.
        """
        reach = float(torch.linalg.vector_norm(part, dim=1).amax())
        if not math.isfinite(reach * self.longest):
            return None
        margin = self.length * (reach * self._error())
        scores = torch.mm(self.narrow, part.to(self.narrow.dtype).T)
        self.floor = torch.maximum(self.floor, scores.amax(1, keepdim=True).float() - margin)
        reached = scores >= self._least() - margin
        if int(reached.count_nonzero()) > MOST_SELECTED * scores.numel():
            return None
        query, row = reached.nonzero(as_tuple=True)
        return _Entries(query, row + start, scores[query, row].float() + margin[query, 0])

    def _error(self) -> float:
        """A bound on the error of a score, as a share of |query| |row|.

        Rounding both vectors to bfloat16 changes the score by at most 2^-9 (2 + 2^-9), rounding the score by 2^-9
        again; a sum of d float32 terms is off by less than d 2^-23.
        """
        rounded = self.narrow.dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest"
        return (3.1 * 2.0**-9 if rounded else 0.0) + self.queries.shape[1] * 2.0**-23

    def _least(self) -> Float[Tensor, "n 1"]:
        """Rows with scores below this one can be left out."""
        return self.floor + math.log(DROPPED / len(self.rows))

    def result(self) -> Lookup:
        found = self._selected()
        return found if self.rest is None else merge_pair(found, self.rest.result())

    def _selected(self) -> Lookup:
        """The look-up over each query's own rows."""
        n, d = self.queries.shape
        values, log_normalizer = self.queries.new_zeros(n, d), self.queries.new_full((n,), -math.inf)
        if not self.found:
            return Lookup(values, log_normalizer)
        query, row, score = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        kept = score >= self._least()[query, 0]
        query, row = query[kept], row[kept]
        row = row[query.argsort(stable=True)]
        counts = query.bincount(minlength=n).tolist()
        buffer = self.queries.new_empty(max(counts, default=0), d)
        for number, mine in enumerate(row.split(counts)):
            if len(mine):
                rows = torch.index_select(self.rows, 0, mine, out=buffer[: len(mine)])
                scores = rows @ self.queries[number]
                values[number] = scores.softmax(0) @ rows
                log_normalizer[number] = scores.logsumexp(0)
        return Lookup(values, log_normalizer)
