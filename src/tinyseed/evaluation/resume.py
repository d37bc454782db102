"""Finished parts and checkpoints of an evaluation that was stopped, so that the same command resumes it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tinyseed.evaluation.base import Measurement
from tinyseed.files import cache_folder, digest, write_json

FORMAT = 3  # counts up when a former version's leftovers would be misread

Stop = Callable[[], bool]


class Resume:
    """A folder for the finished parts and the checkpoints of one model's evaluation.

    Attributes:
        folder: where they are.
        stop: whether the user has asked to stop; only evaluations that are `stoppable` need to look.
    """

    def __init__(self, folder: Path, stop: Stop = lambda: False) -> None:
        self.folder = folder
        self.stop = stop

    @classmethod
    def of(cls, *decisive: object, stop: Stop = lambda: False) -> "Resume":
        """A folder in the cache under a name that these values decide: settings, data and weights."""
        return cls(cache_folder() / "evaluations" / digest(FORMAT, *decisive), stop)

    def path(self, name: str) -> Path:
        """Where a part may keep its checkpoint."""
        return self.folder / name

    def remember(self, name: str, compute: Callable[[], Measurement]) -> Measurement:
        """The measurement of a part: the stopped run's if it finished this part, otherwise computed.

        Raises:
            RunError: it could not be saved.
        """
        path = self.folder / f"{name}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Measurement(
                tuple(kept["metrics"]), tuple(kept["notes"]), kept["unreadable"], kept["files"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            measured = compute()
        write_json(path, dataclasses.asdict(measured))
        return measured

    def clear(self) -> None:
        """Remove everything: the evaluation is finished and reported."""
        shutil.rmtree(self.folder, ignore_errors=True)
