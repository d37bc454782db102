"""The teacher's vectors and the crops of a run that are kept on disk: where, from what, and how large they become."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tinyseed.checkpoints.known import FOLDER as TEACHERS
from tinyseed.data.augmentation import View
from tinyseed.data.kept import KeptCrops
from tinyseed.data.shards import ShardedArray, Store, open_store
from tinyseed.engine.data import RunData
from tinyseed.engine.runtime import Runtime
from tinyseed.errors import InputError, RunError, argument
from tinyseed.files import cache_folder, digest, read_json, write_json
from tinyseed.methods.cached import CachedTargets
from tinyseed.methods.distillation import teacher_bands
from tinyseed.models.teacher import Teacher
from tinyseed.progress import duration
from tinyseed.settings.train import DistillSettings
from tinyseed.text import size_text

VECTORS, CROPS = "teacher-vectors", "crops"
"""Folders of the cache folder in which they are kept, each under the digest of its key."""

_FEWEST_TIMED = 256
_RESERVE = 64 << 20
"""Bytes of a disk that are left free."""


@dataclass(frozen=True)
class Kept:
    """What a run reads instead of computing it, as far as it is there.

    Attributes:
        targets: the teacher's vectors.
        crops: of the views; None: images are decoded.
        notes: what people should know before training.
    """

    targets: CachedTargets
    crops: KeptCrops | None
    notes: tuple[str, ...]


@contextmanager
def opened(
    settings: DistillSettings,
    runtime: Runtime,
    data: RunData,
    teacher: Teacher,
    views: Sequence[View],
    *,
    taught: Sequence[View],
) -> Iterator[Kept | None]:
    """The caches of a run, for as long as it lasts; None where it has none.

    Args:
        settings: of the run.
        runtime: where it computes.
        data: its images.
        teacher: whose vectors are kept.
        views: the random views of each image, whose crops are kept.
        taught: the first of them, which the teacher sees.

    Raises:
        InputError: the folder was filled from something else, or the disk is too small.
        RunError: it cannot be written.
    """
    if settings.cache_views is None:
        yield None
        return
    origin = _Origin(settings, runtime, data, teacher, tuple(views), tuple(taught))
    with ExitStack() as stack:
        with argument("cache"):
            kept = _open(origin, stack)
        yield kept
        if runtime.is_main:
            _note_speed(origin, kept.targets)


def _open(origin: "_Origin", stack: ExitStack) -> Kept:
    settings, teacher = origin.settings, origin.teacher
    teacher.require(settings.cache_outputs)
    store = origin.store(VECTORS, origin.vectors)
    stack.callback(store.close)
    outputs = tuple(dict.fromkeys(settings.cache_outputs))
    targets = CachedTargets(teacher, teacher_bands(settings, teacher.input), store, outputs)
    crops = None
    if settings.cache_crops:
        crops_store = origin.store(CROPS, origin.crops)
        stack.callback(crops_store.close)
        crops = KeptCrops.of(crops_store, origin.views, origin.data.reader)
    return Kept(targets, crops, _Forecast(origin, targets, crops).notes())


@dataclass(frozen=True)
class _Origin:
    """What vectors and crops are computed from."""

    settings: DistillSettings
    runtime: Runtime
    data: RunData
    teacher: Teacher
    views: tuple[View, ...]
    taught: tuple[View, ...]

    @property
    def images(self) -> dict[str, Any]:
        """The part of a key that says which images these are, and how they are read."""
        source = self.data.source
        return {"data": source.fingerprint, "images": len(source), "reader": str(self.data.reader)}

    @property
    def crops(self) -> dict[str, Any]:
        """All that decides the crops."""
        shapes = [[*view.settings.crop_scale, *view.settings.crop_ratio, view.size] for view in self.views]
        return self.images | {"view_seed": self.settings.views_seed, "crops": shapes}

    @property
    def vectors(self) -> dict[str, Any]:
        """All that decides the teacher's vectors."""
        teacher, settings = self.teacher, self.settings
        return {
            "teacher": teacher.key,
            "architecture": teacher.architecture,
            "teacher_input": asdict(teacher.input),
            "teacher_bands": teacher_bands(settings, teacher.input),
            **self.images,
            "view_seed": settings.views_seed,
            "views": [asdict(view) for view in self.taught],
            "precision": self.runtime.precision,
            "device": self.runtime.device.type,
            "engine": teacher.engine,
        }

    def store(self, kind: str, key: dict[str, Any]) -> Store:
        """The store of vectors or crops with this key."""
        given = self.settings.cache
        name = digest(json.dumps(key, sort_keys=True))
        folder = cache_folder() / kind / name if given is None else given.expanduser()
        if given is not None and kind == CROPS:
            folder /= CROPS
        about = {
            "kind": kind,
            "names": {"teacher": self.teacher.spec, "data": ", ".join(self.settings.data)},
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return open_store(folder, key, about, named_by_key=given is None)

    @property
    def speed_at(self) -> Path:
        """Where it is kept how fast the teacher computes."""
        return cache_folder() / TEACHERS / f"{self.teacher.digest}-speed.json"

    @property
    def speed_name(self) -> str:
        """Under which name in that file."""
        runtime, teacher = self.runtime, self.teacher
        return f"{runtime.device.type} {runtime.precision} {teacher.input.size} {teacher.engine}"


@dataclass(frozen=True)
class _Forecast:
    """How large the caches become, and how much of them is there."""

    origin: _Origin
    targets: CachedTargets
    crops: KeptCrops | None

    def notes(self) -> tuple[str, ...]:
        """A line for the vectors, and one for the crops.

        Raises:
            InputError: the disk is too small.
        """
        speed = _known_speed(self.origin)
        notes = [self._note("teacher cache", self.targets.store.folder, self._vectors, speed)]
        if self.crops is not None:
            notes.append(self._note("crop cache", self.crops.arrays[0].folder.parent, self.crops.arrays))
        return tuple(notes)

    @property
    def _vectors(self) -> tuple[ShardedArray, ...]:
        """The arrays of the vectors, as far as their sizes are known: patches are not before the first batch."""
        teacher, store = self.origin.teacher, self.targets.store
        lengths = {"rows": teacher.dim, "features": teacher.width}
        found = []
        for place in range(len(self.origin.taught)):
            for output in self.targets.outputs:
                array = store.find(f"{output}-{place}")
                if array is None and output in lengths:
                    array = ShardedArray(
                        store.folder / f"{output}-{place}", (lengths[output],), np.dtype(np.float16)
                    )
                found += [] if array is None else [array]
        return tuple(found)

    def _note(
        self, title: str, folder: Path, arrays: Sequence[ShardedArray], speed: float | None = None
    ) -> str:
        settings, images = self.origin.settings, self.origin.data.training
        views = settings.cache_views or 0
        there = [
            np.logical_and.reduce([array.present(view, images) for array in arrays]) for view in range(views)
        ]
        missing = sum(int(np.count_nonzero(~each)) for each in there)
        row_bytes = sum(array.row_bytes for array in arrays)
        self._require_space(folder, missing * row_bytes)
        share = 1 - missing / (views * len(images))
        size = size_text(views * len(images) * row_bytes)
        line = f"{title}: {views} {'view' if views == 1 else 'views'} of {len(images):,} images, {size} in {folder}"
        if not missing:
            return f"{line}; all there"
        last = min(views, settings.epochs) if settings.max_minutes is None else views
        when = "epoch 1" if last == 1 else f"epochs 1–{last}"
        takes = f", {duration(missing / speed)} of the teacher" if speed else ""
        return f"{line}; {int(100 * share)} % there, filled in {when}{takes}"

    def _require_space(self, folder: Path, needed: int) -> None:
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            return
        if needed > max(0, free - _RESERVE):
            remedy = f"needs {size_text(needed)}, and its disk has {size_text(free)} free; give one on a larger disk"
            raise InputError(folder, f"{remedy}, or fewer `cache_views`")


def _known_speed(origin: _Origin) -> float | None:
    """Images per second of this teacher on this kind of device, if an earlier run has measured it."""
    known = (read_json(origin.speed_at) or {}).get(origin.speed_name)
    return float(known) if isinstance(known, int | float) and known > 0 else None


def _note_speed(origin: _Origin, targets: CachedTargets) -> None:
    speed = targets.speed.images_per_s
    if speed is None or targets.speed.timed < _FEWEST_TIMED:
        return
    known = read_json(origin.speed_at) or {}
    with suppress(RunError):
        write_json(origin.speed_at, known | {origin.speed_name: round(speed, 2)})
