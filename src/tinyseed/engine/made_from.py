"""What a run was made from, so that a resumed one goes on with the same images and the same teacher.

Images are compared by their contents, so data may be moved, copied or touched between two parts of a run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseed.data.base import Source
from tinyseed.data.split import sample
from tinyseed.engine.data import RunData
from tinyseed.errors import InputError, argument
from tinyseed.files import digest
from tinyseed.models.teacher import Teacher
from tinyseed.settings.train import DistillSettings, TrainSettings

COMPARED = 256
"""Images of a data set that are compared; of a smaller one all."""


@dataclass(frozen=True)
class Contents:
    """What a data set holds.

    Attributes:
        images: how many images.
        digests: of the files of sampled images, "" for one that cannot be read.
    """

    images: int
    digests: list[str]

    @classmethod
    def of(cls, source: Source, seed: int) -> "Contents":
        """Read the sampled images."""
        return cls(len(source), [_digest(source, int(at)) for at in _compared(len(source), seed)])


@dataclass(frozen=True)
class MadeFrom:
    """The parts of a run that come from elsewhere.

    Attributes:
        data: the images.
        val_data: the held-out images; None where they are a part of the data.
        teacher: digest of the teacher's weights.
    """

    data: Contents
    val_data: Contents | None
    teacher: str | None

    @classmethod
    def of(cls, settings: TrainSettings, data: RunData, teacher: Teacher | None) -> "MadeFrom":
        """What this run is made from."""
        return cls(
            Contents.of(data.source, settings.seed),
            Contents.of(data.held_out_source, settings.seed) if settings.val_data else None,
            None if teacher is None else teacher.digest,
        )

    def as_json(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    def require(self, before: Mapping[str, Any], settings: TrainSettings, data: RunData) -> None:
        """Compare with what the run began with; a checkpoint of an earlier version of tinyseed does not say.

        Raises:
            InputError: something differs, by its setting.
        """
        with argument("data"):
            _require(self.data, before.get("data"), data.source, settings.data, settings.seed)
        with argument("val_data"):
            if self.val_data is not None:
                then = before.get("val_data")
                _require(self.val_data, then, data.held_out_source, settings.val_data, settings.seed)
        if isinstance(settings, DistillSettings) and before.get("teacher", self.teacher) != self.teacher:
            remedy = (
                "its weights are not those that the run began with; give the same teacher, or another `out`"
            )
            raise InputError(settings.teacher, remedy, argument="teacher")


def _compared(images: int, seed: int) -> NDArray[np.int64]:
    return sample(np.arange(images), COMPARED, seed, "made-from")


def _digest(source: Source, at: int) -> str:
    try:
        return digest(source.read(at), digits=16)
    except OSError:
        return ""


def _require(now: Contents, before: object, source: Source, given: tuple[str, ...], seed: int) -> None:
    """Refuse other images than before; those that cannot be read now, or could not be then, do not count."""
    if not isinstance(before, dict):
        return
    then = Contents(**before)
    remedy = "give the images that it began with, or another `out` to train from the beginning"
    if then.images != now.images:
        why = f"has {now.images:,} images; the run began with {then.images:,}"
        raise InputError(", ".join(given), f"{why}: {remedy}")
    pairs = zip(_compared(now.images, seed), then.digests, now.digests, strict=True)
    other = [int(at) for at, old, new in pairs if old and new and old != new]
    if other:
        why = f"{len(other):,} of {len(now.digests):,} images compared are not those that the run began with"
        raise InputError(", ".join(given), f"{why}, such as {source.name(other[0])}; {remedy}")
