"""Targets that are kept on disk: the teacher is asked once for each view of each image."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tinyseed.data.shards import ShardedArray, Store
from tinyseed.errors import RunError, first_line
from tinyseed.methods.views import FreshTargets, Views
from tinyseed.models.teacher import Teacher
from tinyseed.settings.train import TeacherOutput

_HALF = np.dtype(np.float16)
_LARGEST = float(np.finfo(np.float16).max)


@dataclass
class Speed:
    """How fast the teacher computes.

    Attributes:
        images: that it has seen.
        seconds: that it took, the first batch left out.
        timed: images that `seconds` are of.
    """

    images: int = 0
    seconds: float = 0.0
    timed: int = 0

    def add(self, images: int, seconds: float) -> None:
        """Note a batch."""
        if self.images:
            self.seconds += seconds
            self.timed += images
        self.images += images

    @property
    def images_per_s(self) -> float | None:
        """None if it is not known yet."""
        return self.timed / self.seconds if self.timed else None


class CachedTargets(FreshTargets):
    """Targets in float16 on disk; what is missing there is computed, and kept.

    Rounding to float16 is a part of the function: a batch whose targets are computed trains on the same bits as one
    whose targets are read, on a full disk too. Unit rows are normalized again after it, in float32.

    Args:
        frozen: the teacher; it is not called where everything is there.
        bands: channels of a view that it sees, counted from 0; None: all of them.
        store: where the targets are.
        outputs: what is kept of the teacher. Another output is computed each time.
    """

    def __init__(
        self,
        frozen: Teacher,
        bands: tuple[int, ...] | None,
        store: Store,
        outputs: tuple[TeacherOutput, ...] = ("rows",),
    ) -> None:
        super().__init__(frozen, bands)
        self.store = store
        self.outputs = outputs
        self.speed = Speed()
        self._failed = ""
        self._arrays: dict[str, ShardedArray] = {}

    @property
    def note(self) -> str:
        """Why nothing more is kept, for people; "" where all is well."""
        why = self._failed or next((array.stopped for array in self._arrays.values() if array.stopped), "")
        return why and f"no more of the teacher's vectors are kept in {self.store.folder}: {why}"

    def together(
        self, views: Views, place: int, outputs: tuple[TeacherOutput, ...]
    ) -> dict[TeacherOutput, Tensor]:
        """Several outputs for one view of each image, each as it is kept."""
        return {output: self.of(views, place, output) for output in outputs}

    def _asked(
        self, views: Views, place: int, output: TeacherOutput, side: int | None
    ) -> dict[tuple[int, TeacherOutput], Tensor]:
        if output not in self.outputs or views.indices is None:
            return super()._asked(views, place, output, side)
        indices = views.indices.cpu().numpy()
        found, there = self._read(views.epoch, place, indices, output)
        missing = np.flatnonzero(~there)
        given: dict[TeacherOutput, NDArray[Any]] = {output: found}
        if len(missing):
            computed = self._computed(views, place, side, missing)
            for name, values in computed.items():
                if len(missing) == len(indices):
                    given[name] = values
                elif name == output:
                    found[missing] = values
        device = views[place].device
        return {(place, name): _restored(name, values, device) for name, values in given.items()}

    def _read(
        self, epoch: int, place: int, indices: NDArray[np.int64], output: TeacherOutput
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What is kept of an output, and for which images all outputs that are to be kept are there."""
        found, there = np.empty(0, _HALF), np.ones(len(indices), np.bool_)
        for name in self.outputs:
            array = self._array(name, place)
            if array is None:
                there[:] = False
            elif name == output:
                found, complete = array.read(epoch, indices)
                there &= complete
            else:
                there &= array.present(epoch, indices)
        return found, there

    def _computed(
        self, views: Views, place: int, side: int | None, missing: NDArray[np.int64]
    ) -> dict[TeacherOutput, NDArray[Any]]:
        """All outputs for some images of a batch, as they are now kept."""
        assert views.indices is not None
        seen = self._seen(views, place, side)
        if len(missing) < len(seen):
            seen = seen[torch.from_numpy(missing).to(seen.device)]
        indices, began = views.indices.cpu().numpy()[missing], time.perf_counter()
        only_rows = self.outputs == ("rows",)
        given: dict[TeacherOutput, Tensor] = (
            {"rows": self.teacher(seen)} if only_rows else self.teacher.outputs(seen, self.outputs)
        )
        halves: dict[TeacherOutput, NDArray[Any]] = {name: _rounded(each) for name, each in given.items()}
        self.speed.add(len(missing), time.perf_counter() - began)
        return {name: self._keep(name, place, views.epoch, indices, half) for name, half in halves.items()}

    def _keep(
        self, output: TeacherOutput, place: int, epoch: int, indices: NDArray[np.int64], values: NDArray[Any]
    ) -> NDArray[Any]:
        try:
            array = self._array(output, place) or self.store.array(
                _name(output, place), values.shape[1:], _HALF
            )
        except RunError as error:  # its description cannot be written
            self._failed = self._failed or first_line(error)
            return values
        self._arrays[_name(output, place)] = array
        return array.keep(epoch, indices, values)

    def _array(self, output: TeacherOutput, place: int) -> ShardedArray | None:
        name = _name(output, place)
        found = self._arrays.get(name) or self.store.find(name)
        if found is not None:
            self._arrays[name] = found
        return found


def _name(output: TeacherOutput, place: int) -> str:
    return f"{output}-{place}"


def _rounded(values: Tensor) -> NDArray[Any]:
    """In float16; what it cannot hold becomes its largest number."""
    return values.float().clamp(-_LARGEST, _LARGEST).half().cpu().contiguous().numpy()


def _restored(output: TeacherOutput, values: NDArray[Any], device: torch.device) -> Tensor:
    restored = torch.from_numpy(values).to(device).float()
    return functional.normalize(restored, dim=1) if output == "rows" else restored
