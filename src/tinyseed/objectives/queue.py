"""The queue: a ring buffer of the latest rows."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tinyseed.shapes import Rows

PAPER_QUEUE_SIZE = 65_536
"""SEED's and MoCo's queue on ImageNet."""


def auto_queue_size(images: int) -> int:
    """The largest power of two up to half the data set, at most 65,536; 0 for fewer than two images.

    So an image's own earlier rows stay a minor part of what it is compared with.

    >>> auto_queue_size(4061), auto_queue_size(1_281_167)
    (1024, 65536)
    """
    half = images // 2
    return min(PAPER_QUEUE_SIZE, 1 << half.bit_length() - 1) if half > 0 else 0


class Queue:
    """The last `size` rows that were pushed; it starts empty, not with random filler.

    A plain class and not a module: DDP does not broadcast it, and it is not part of a model's state dict. `push`
    copies any number of new rows over the oldest; nothing else moves.

    Args:
        size: number of rows that it can hold, 0 or more.
        dim: d, the rows' dimension.
        dtype: of the stored rows.
        device: where they are stored.

    Raises:
        ValueError: the size is negative or the dimension below 1.

    >>> queue = Queue(size=4, dim=2)
    >>> queue.push(torch.ones(3, 2))
    >>> len(queue), queue.rows().shape
    (3, torch.Size([3, 2]))
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if size < 0:
            raise ValueError(f"size: {size}: give 0 or more rows")
        if dim < 1:
            raise ValueError(f"dim: {dim}: give at least 1")
        self.size = size
        self.dim = dim
        self._buffer = torch.zeros(size, dim, dtype=dtype, device=device)
        self._filled = 0
        self._next = 0

    def __len__(self) -> int:
        return self._filled

    def __repr__(self) -> str:
        return f"Queue({self._filled} of {self.size} rows, dim {self.dim}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the rows are stored."""
        return self._buffer.device

    @property
    def dtype(self) -> torch.dtype:
        """How the rows are stored."""
        return self._buffer.dtype

    def rows(self) -> Rows:
        """The filled part, [k, d], as a view: a later `push` changes it in place.

        Until the queue is full the oldest row comes first; then the rows are in the order of the ring, not of age.
        """
        return self._buffer[: self._filled]

    @torch.no_grad()
    def push(self, rows: Rows) -> None:
        """Add rows and remove the oldest; of more than `size` rows the last `size` are kept. Rows are copied and cast.

        Raises:
            ValueError: the rows have another dimension.
        """
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"rows: shape {list(rows.shape)}: give [m, {self.dim}], the queue's dimension")
        rows = rows[-self.size :] if self.size else rows[:0]
        before_end = min(len(rows), self.size - self._next)
        self._buffer[self._next : self._next + before_end].copy_(rows[:before_end])
        self._buffer[: len(rows) - before_end].copy_(rows[before_end:])
        self._filled = min(self.size, self._filled + len(rows))
        self._next = (self._next + len(rows)) % self.size if self.size else 0

    def to(self, device: torch.device | str) -> "Queue":
        """Move the rows in place and return the queue itself."""
        self._buffer = self._buffer.to(device)
        return self

    def share(self, other: "Queue") -> bool:
        """Keep the rows in the memory of another queue that has the same ones; returns whether it has.

        From then on both are pushed the same rows, each before the other one is read: the second push writes what is
        there already. Each queue keeps its own position, so one of them may be given up.
        """
        mine, its = (
            (queue._filled, queue._next, queue.size, queue.dim, queue.dtype, queue.device)
            for queue in (self, other)
        )
        if mine != its:
            return False
        if self._buffer is not other._buffer and not torch.equal(self.rows(), other.rows()):
            return False
        self._buffer = other._buffer
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """What restores the queue: the rows (the live buffer, not a copy) and two positions."""
        return {
            "buffer": self._buffer,
            "filled": torch.tensor(self._filled),
            "next": torch.tensor(self._next),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, on this queue's device and with its dtype.

        Raises:
            ValueError: missing or unknown entries, another size or dimension, or positions out of range.
        """
        wanted = ["buffer", "filled", "next"]
        if sorted(state) != wanted:
            raise ValueError(f"queue state: has {sorted(state)}: give {wanted}")
        buffer, filled, position = state["buffer"], int(state["filled"]), int(state["next"])
        if buffer.shape != self._buffer.shape:
            given, own = tuple(buffer.shape), (self.size, self.dim)
            raise ValueError(f"queue state: size and dim {given}: give those of this queue, {own}")
        # Until the ring is full, the next place is the one after the last row.
        if not 0 <= filled <= self.size or position != (
            filled if filled < self.size else position % max(1, self.size)
        ):
            raise ValueError(f"queue state: filled {filled}, next {position}: not a ring of {self.size} rows")
        self._buffer.copy_(buffer)
        self._filled, self._next = filled, position
