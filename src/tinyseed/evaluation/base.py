"""What an evaluation is: its settings, how it measures a model, what it is given, and what a measurement holds.

An evaluation is one file that ends in a record, `SPEC = EvaluationSpec(…)`, and one line in `tinyseed/evaluations.py`.
Opening data and models, timing, resuming and reporting are the driver's work (run.py).
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tinyseed.errors import InputError, RunError
from tinyseed.files import cache_folder, digest, write_json
from tinyseed.lazy import lazy
from tinyseed.locks import InUseError, locked
from tinyseed.progress import say_once

if TYPE_CHECKING:
    from tinyseed.evaluation import features
    from tinyseed.models import encoder as models
else:
    features, models = lazy("tinyseed.evaluation.features", "tinyseed.models.encoder")

Metrics = dict[str, Any]
"""Metrics by name, as JSON holds them; shares are in per cent."""


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes:
        metrics: rows of metrics.
        notes: what a reader of the metrics has to know, a sentence each.
        unreadable: images that could not be read.
        files: texts to write beside the report, by file name.
    """

    metrics: tuple[Metrics, ...]
    notes: tuple[str, ...] = ()
    unreadable: int = 0
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def row(self) -> Metrics:
        """The metrics of a measurement that has a single row."""
        (row,) = self.metrics
        return row


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        role: what it is in this evaluation, such as "model", "student" or "teacher".
        name: how the user named it.
    """

    role: str
    name: str
    encoder: "models.Encoder"

    @cached_property
    def digest(self) -> str:
        """What stands for the encoder's weights and contract; see `features.model_digest`."""
        return features.model_digest(self.encoder)


Measured = Sequence[tuple[Subject, Measurement]]
"""Each model with its measurement."""


def merge(measured: Measured, titles: Mapping[str, str] = MappingProxyType({})) -> Measurement:
    """The rows of all models one after another; a note on some of several models begins with their roles' titles."""
    notes: dict[str, list[str]] = {}
    for subject, measurement in measured:
        for note in dict.fromkeys(measurement.notes):
            notes.setdefault(note, []).append(titles.get(subject.role, subject.role))
    return Measurement(
        tuple(row for _, measurement in measured for row in measurement.metrics),
        tuple(
            note if len(roles) == len(measured) else f"{', '.join(roles)}: {note}"
            for note, roles in notes.items()
        ),
        max(measurement.unreadable for _, measurement in measured),
        {name: text for _, measurement in measured for name, text in measurement.files.items()},
    )


@runtime_checkable
class Data(Protocol):
    """What the driver asks of the images of an evaluation; `splits.Splits` is the usual one."""

    @property
    def train(self) -> Sized:
        """Training images."""
        ...

    @property
    def test(self) -> Sized:
        """Test images."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the metrics has to know about the images."""
        ...

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the images and their labels, by split."""
        ...


FORMAT = 3  # of what a stopped evaluation leaves; counts up when a former version's would be misread

Stop = Callable[[], bool]


class Resume:
    """Finished parts and checkpoints of one model's evaluation, so that the same command resumes it after a stop.

    From the first use on, the folder is held until `close`.

    Attributes:
        folder: where they are kept.
        stop: whether the user has asked to stop; only evaluations that are `stoppable` need to look.
        optional: the folder is in the cache, and where that cannot be written, the evaluation does without.
    """

    def __init__(self, folder: Path, stop: Stop = lambda: False, *, optional: bool = False) -> None:
        self.folder = folder
        self.stop = stop
        self.optional = optional
        self._held = ExitStack()
        self._claimed = False

    @classmethod
    def of(cls, *decisive: object, stop: Stop = lambda: False) -> "Resume":
        """A folder in the cache under a name that these values decide: settings, data and weights."""
        return cls(cache_folder() / "evaluations" / digest(FORMAT, *decisive), stop, optional=True)

    def path(self, name: str) -> Path:
        """Where a part may keep its checkpoint.

        Raises:
            InputError: another process runs the same evaluation.
        """
        self._claim()
        return self.folder / name

    def _claim(self) -> None:
        if self._claimed:
            return
        self._claimed = True
        try:
            self._held.enter_context(locked(self.folder))
        except InUseError as error:
            if not self.optional:
                raise
            remedy = f"the same evaluation of this model is being run by {error.holder}; wait for it to end"
            raise InputError(self.folder, remedy) from error
        except (InputError, RunError):
            if not self.optional:
                raise

    def close(self) -> None:
        """Let other processes have the folder."""
        self._held.close()

    def remember(self, name: str, compute: Callable[[], Measurement]) -> Measurement:
        """The measurement of a part: the stopped run's if it finished this part, otherwise computed.

        Raises:
            InputError: another process runs the same evaluation.
            RunError: it could not be saved.
        """
        path = self.path(f"{name}.json")
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Measurement(
                tuple(kept["metrics"]), tuple(kept["notes"]), kept["unreadable"], kept["files"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            measured = compute()
        try:
            write_json(path, dataclasses.asdict(measured))
        except RunError as error:
            if not self.optional:
                raise
            say_once(f"{error}; the evaluation goes on, but cannot be resumed")
        return measured

    def clear(self) -> None:
        """Remove everything: the evaluation is finished and reported."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Interrupted(BaseException):
    """The user asked to stop, and `measure` has saved what it needs to resume.

    A BaseException, like KeyboardInterrupt, so that no `except Exception` on the way takes it for a failure.
    """


@dataclass(frozen=True)
class EvaluationSpec:
    """One evaluation.

    Attributes:
        name: as in `tinyseed evaluate NAME` and evaluate-NAME.json.
        settings: its dataclass, which extends `EvaluationSettings` or `ModelEvaluationSettings`.
        measure: from an encoder, the opened data, the settings and a `Resume` to a measurement.
        about: what it answers, in a sentence.
        example: a command line.
        subjects: from the settings to the models that are measured; by default the one in `model`.
        open_data: from the settings to the images; by default `splits.open_splits`.
        combine: from all models and their measurements to the report's; by default `merge`.
        report: from the driver's report, the data and the settings to a report with further entries or typed rows.
        main: role of the model that the report is named after.
        stoppable: `measure` asks `resume.stop()` and raises `Interrupted` once it has saved, so that
            Ctrl-C loses nothing.
        table: from the report to a text for a terminal; by default `report.table`.
        page: from the report and the settings to Markdown; by default `report.page`.
        page_names: further files that the page is written to.
    """

    name: str
    settings: type[Any]
    measure: Callable[..., Measurement]
    about: str
    example: str
    subjects: Callable[[Any], Sequence[Subject]] | None = None
    open_data: Callable[[Any], Data] | None = None
    combine: Callable[[Measured, Any], Measurement] | None = None
    report: Callable[[Any, Any, Any], Any] | None = None
    main: str = "model"
    stoppable: bool = False
    table: Callable[[Any], str] | None = None
    page: Callable[[Any, Any], str] | None = None
    page_names: tuple[str, ...] = ()
