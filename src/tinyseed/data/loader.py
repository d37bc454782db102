"""Batches of views: which images are in which batch, decoded in worker processes.

A batch is a pure function of (seed, step): the order of an epoch, each crop and each substitute for an unreadable
image come from addressed randomness. So the position of the loader is just the step number, and any number of
workers or processes sees the same images.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseed.data.addressed import order, uniforms
from tinyseed.data.augmentation import View
from tinyseed.data.base import Source
from tinyseed.data.crop import CROP_DRAWS
from tinyseed.data.decode import BadImage
from tinyseed.data.draws import ViewDraws, draw_view
from tinyseed.data.kept import KeptCrops
from tinyseed.data.mixup import mix_shares
from tinyseed.data.readers import RGB, Planes, Reader
from tinyseed.data.workers import in_processes, in_worker
from tinyseed.errors import RunError, first_line, remedy_of
from tinyseed.shapes import AnyPixels, CropPixels, Indices, Interpolation
from tinyseed.threads import usable_cores

Result = TypeVar("Result")

SUBSTITUTES_TRIED = 50


@dataclass(frozen=True)
class BadRecord:
    """An image that could not be read: its position, its name and why."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class TrainingBatch:
    """What one process sees of one (micro-)batch: for each view the cropped pixels and what was drawn for them.

    Attributes:
        indices: positions of the images in their source.
        epoch: epoch at which the views' randomness is addressed.
        shares: [v, n], the share of each image in its mixed views; None where they are not mixed.
        given_up: whether too many images in a row could not be read; the batch is then empty.
        note: what people should know, once.
    """

    pixels: tuple[CropPixels, ...]
    draws: tuple[ViewDraws, ...]
    indices: Indices
    epoch: int
    bad: tuple[BadRecord, ...] = ()
    given_up: bool = False
    note: str = ""
    shares: Tensor | None = None

    def pin_memory(self) -> "TrainingBatch":
        """Move to page-locked memory, so that transfers to a GPU overlap with computation."""
        pixels = tuple(pixels.pin_memory() for pixels in self.pixels)
        shares = None if self.shares is None else self.shares.pin_memory()
        draws = tuple(draws.pin_memory() for draws in self.draws)
        return replace(self, pixels=pixels, draws=draws, shares=shares)

    def to(self, device: torch.device) -> "TrainingBatch":
        """Move the pixels, draws and shares to a device."""
        pixels = tuple(view.to(device, non_blocking=True) for view in self.pixels)
        shares = None if self.shares is None else self.shares.to(device, non_blocking=True)
        return replace(
            self, pixels=pixels, draws=tuple(draws.to(device) for draws in self.draws), shares=shares
        )


@dataclass(frozen=True)
class EvaluationBatch:
    """Images in the evaluation view, in order; unreadable ones are absent and listed in `bad`."""

    pixels: AnyPixels
    indices: Indices
    bad: tuple[BadRecord, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Which images make which batch.

    Attributes:
        images: positions of the training images in the source.
        batch_size: images per step, over all processes and micro-batches.
        micro_batches: gradient accumulation steps, forward passes per step in each process.
        rank, processes: this process and how many there are.
    """

    images: NDArray[np.int64]
    batch_size: int
    seed: int
    micro_batches: int = 1
    rank: int = 0
    processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the remainder differs each epoch, so that no image is left out for good."""
        return len(self.images) // self.batch_size

    def requests(self, first_step: int) -> Iterator["Request"]:
        """This process' micro-batches from a step on, without end."""
        epoch, batch = divmod(first_step, self.steps_per_epoch)
        share = self.batch_size // (self.processes * self.micro_batches)
        while True:
            places = order(self.seed, epoch, len(self.images))
            for start in range(
                batch * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size
            ):
                for micro in range(self.micro_batches):
                    first = start + (micro * self.processes + self.rank) * share
                    yield Request(epoch, self.images[places(first, first + share)])
            epoch, batch = epoch + 1, 0


@dataclass(frozen=True)
class Request:
    """One micro-batch: the epoch, and the images' positions in the source."""

    epoch: int
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingViews:
    """Makes a requested batch; runs in the worker processes.

    Attributes:
        views: the views per image (one for SEED, two for MoCo).
        seed: of the views.
        candidates: positions from which substitutes for unreadable images are drawn.
        reader: how images are decoded and cropped.
        epochs: after how many epochs the views repeat; None: never.
        kept: crops of earlier epochs or runs, where they are kept.
        mixup: α of the shares of mixed images; 0: they are not mixed.
    """

    source: Source
    views: tuple[View, ...]
    seed: int
    candidates: NDArray[np.int64]
    reader: Reader = RGB
    epochs: int | None = None
    kept: KeptCrops | None = None
    mixup: float = 0.0

    def batch(self, request: Request) -> TrainingBatch:
        """The batch; empty where too many images in a row cannot be read.

        Raises:
            RunError: memory, open files or the file system fail.
        """
        if self.epochs is not None:
            request = replace(request, epoch=request.epoch % self.epochs)
        draws = self._crop_draws(request.epoch, request.indices)
        images = in_threads(
            lambda place: self._readable(request, place, draws[:, place]), range(len(request.indices))
        )
        indices = np.array([image.index for image in images])
        bad = tuple(record for image in images for record in image.bad)
        if any(not image.views for image in images):
            return TrainingBatch((), (), torch.from_numpy(indices), request.epoch, bad, given_up=True)
        pixels = tuple(
            torch.from_numpy(np.stack([image.views[number] for image in images]))
            for number in range(len(self.views))
        )
        draws_of_views = tuple(
            draw_view(view.settings, self.seed, request.epoch, indices, number)
            for number, view in enumerate(self.views)
        )
        note = "" if self.kept is None else self.kept.note
        found = torch.from_numpy(indices)
        shares = self._shares(request.epoch, found)
        return TrainingBatch(pixels, draws_of_views, found, request.epoch, bad, note=note, shares=shares)

    def _readable(self, request: "Request", place: int, draws: NDArray[np.float64]) -> "_Cropped":
        """Crops of the image at this place of the batch, or of the first readable substitute."""
        index, bad = int(request.indices[place]), []
        for attempt in range(SUBSTITUTES_TRIED):
            try:
                return _Cropped(index, self._cropped(request.epoch, index, draws), tuple(bad))
            except (BadImage, OSError, MemoryError) as error:
                bad.append(_bad(self.source, index, error))
            index = self._substitute(request, place, attempt)
            draws = self._crop_draws(request.epoch, np.array([index]))[:, 0]
        return _Cropped(index, (), tuple(bad))

    def _cropped(self, epoch: int, index: int, draws: NDArray[np.float64]) -> tuple[Planes, ...]:
        """The crops of one image: those that are kept, or cut out of the image."""
        found = None if self.kept is None else self.kept.find(epoch, index)
        if found is not None:
            return found
        views = tuple(self.reader.random_views(self.source.read(index), draws, self.views))
        if self.kept is not None:
            self.kept.keep(epoch, index, views)
        return views

    def _shares(self, epoch: int, indices: Indices) -> Tensor | None:
        """The share of each image in its mixed views."""
        if not self.mixup:
            return None
        views = range(len(self.views))
        return torch.stack([mix_shares(self.mixup, self.seed, epoch, indices, view) for view in views])

    def _crop_draws(self, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        names = [f"crop-{view}" for view in range(len(self.views))]
        return np.stack([uniforms(self.seed, epoch, indices, name, CROP_DRAWS) for name in names])

    def _substitute(self, request: Request, place: int, attempt: int) -> int:
        """Another image for an unreadable one, so that each batch keeps its size."""
        draw = uniforms(
            self.seed, request.epoch, request.indices[place : place + 1], f"substitute-{attempt}", 1
        )
        return int(self.candidates[int(draw[0, 0] * len(self.candidates))])


@dataclass(frozen=True)
class _Cropped:
    """One image's views, none where every substitute failed; and what could not be read on the way."""

    index: int
    views: tuple[Planes, ...]
    bad: tuple[BadRecord, ...]


@dataclass(frozen=True)
class _EvaluationViews:
    source: Source
    size: int
    interpolation: Interpolation
    reader: Reader

    def batch(self, indices: NDArray[np.int64]) -> EvaluationBatch:
        read = in_threads(self._view, indices.tolist())
        pixels = [view for view in read if not isinstance(view, BadRecord)]
        kept = [
            index
            for index, view in zip(indices.tolist(), read, strict=True)
            if not isinstance(view, BadRecord)
        ]
        bad = tuple(view for view in read if isinstance(view, BadRecord))
        stacked = np.stack(pixels) if pixels else self.reader.empty(self.size)
        return EvaluationBatch(torch.from_numpy(stacked), torch.tensor(kept, dtype=torch.int64), bad)

    def _view(self, index: int) -> Planes | BadRecord:
        try:
            return self.reader.evaluation_view(self.source.read(index), self.size, self.interpolation)
        except (BadImage, OSError, MemoryError) as error:
            return _bad(self.source, index, error)


def _bad(source: Source, index: int, error: Exception) -> BadRecord:
    """The record of an image that cannot be read.

    Raises:
        RunError: it could be, if there were memory, files to open or a file system.
    """
    remedy = remedy_of(error)
    if remedy is not None:
        raise RunError(f"{source.name(index)} could not be read ({first_line(error)}): {remedy}") from error
    return BadRecord(index, source.name(index), str(error))


def in_threads(work: Callable[[int], Result], items: Sequence[int]) -> list[Result]:
    """Do the work for each item, in order: over the cores in the main process, one by one in a worker process.

    Pillow decodes and resizes without Python's lock, so threads share the work if there are no workers.
    """
    if in_worker() or len(items) < 2:
        return [work(item) for item in items]
    threads = min(usable_cores(), len(items))
    parts = [items[first::threads] for first in range(threads)]
    done: list[Result | None] = [None] * len(items)
    for first, results in enumerate(_pool(threads).map(lambda part: [work(item) for item in part], parts)):
        done[first::threads] = results
    return cast(list[Result], done)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def training_batches(
    views: TrainingViews, plan: Plan, *, first_step: int, workers: int, pin_memory: bool
) -> Generator[TrainingBatch, None, None]:
    """This process' batches from a step on, without end; there is no pause between epochs.

    Raises:
        RunError: 50 images in a row could not be read, a worker died, or memory, open files or the file system failed.
    """
    requests = plan.requests(first_step)
    received = _pinned() if pin_memory else _unchanged
    with closing(in_processes(views.batch, requests, workers, received)) as batches:
        for batch in batches:
            if batch.given_up:
                last = batch.bad[-1]
                raise RunError(
                    f"{SUBSTITUTES_TRIED} images in a row could not be read, the last {last.name}: {last.reason}"
                )
            yield batch


def evaluation_batches(
    source: Source,
    indices: NDArray[np.int64],
    *,
    size: int,
    interpolation: Interpolation = "bilinear",
    reader: Reader = RGB,
    batch_size: int = 128,
    workers: int = 0,
) -> Generator[EvaluationBatch, None, None]:
    """The evaluation views of these images, in order.

    Raises:
        RunError: a worker died, or memory, open files or the file system failed.
    """
    requests = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    views = _EvaluationViews(source, size, interpolation, reader)
    return in_processes(views.batch, requests, min(workers, len(requests)))


def _unchanged(batch: TrainingBatch) -> TrainingBatch:
    return batch


def _pinned() -> Callable[[TrainingBatch], TrainingBatch]:
    """Moves batches to page-locked memory of this thread's GPU; a thread begins with the first one."""
    gpu = torch.cuda.current_device()

    def pin(batch: TrainingBatch) -> TrainingBatch:
        torch.cuda.set_device(gpu)
        return batch.pin_memory()

    return pin


def keep_freed_memory() -> None:
    """Let glibc keep freed image buffers instead of returning each to the kernel and faulting it in again.

    Bare decoding ran about twice as fast with it (docs/performance.md); without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    trim_threshold, mmap_threshold, most_mmaps = -1, -3, -4  # M_… of <malloc.h>
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 2**25)
    libc.mallopt(most_mmaps, 0)
