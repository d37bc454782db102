"""The files of a run folder: where they are, and how they are written and read."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

from tinyseed.data.loader import BadRecord
from tinyseed.errors import InputError, RunError, argument, first_line
from tinyseed.files import append_line, is_unfinished, json_text, write_text
from tinyseed.locks import LOCK
from tinyseed.methods.catalog import spec_of
from tinyseed.settings.base import aliases, holds
from tinyseed.settings.train import FREE_ON_RESUME, MEASURED, TrainSettings

Metrics = dict[str, Any]
"""One line of metrics.jsonl, or summary.json: names and values as they are written."""

MOST_UNREADABLE = 0.1
"""Fraction of a data set that may be unreadable."""


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.quarantine = path / "quarantine.jsonl"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.lineage = path / "lineage.json"
        self.summary = path / "summary.json"

    def log(self, metrics: Metrics) -> None:
        """Append a line to metrics.jsonl; a value that is not finite is written as null.

        Raises:
            RunError: it could not be written, or the folder is not there any more.
        """
        append_line(self.metrics, json_text(metrics))

    def logged(self) -> Iterator[Metrics]:
        """The lines of metrics.jsonl; an unfinished last line is left out."""
        yield from _lines(self.metrics)

    def forget_after(self, step: int, evaluations: Sequence[Metrics] = ()) -> list[Metrics]:
        """Drop the lines after a step, which a resumed run writes again, and put those evaluations back that are lost.

        Args:
            step: the last one whose lines stay.
            evaluations: what the run remembers of its evaluations.

        Returns:
            All evaluations up to this step, each step once.

        Raises:
            RunError: metrics.jsonl could not be replaced; the former file is intact.
        """
        counted = filter(_is_counted, (*evaluations, *self.logged()))
        kept = [line for line in counted if line["step"] <= step]
        remembered = {line["step"]: line for line in kept if "loss" not in line}
        lines = [line for line in kept if "loss" in line] + list(remembered.values())
        lines.sort(key=lambda line: (line["step"], "loss" not in line))  # as they are written
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in lines))
        return [remembered[at] for at in sorted(remembered)]

    def missing(self, model_file: str) -> list[Path]:
        """What a finished run leaves and is not there."""
        wanted = (self.path / model_file, self.summary, self.path / "report.html")
        return [path for path in wanted if not path.exists()]

    def settled(self, name: str) -> Any:  # noqa: ANN401  (a JSON value)
        """What an earlier part of this run settled a setting to, None in a new run."""
        return _read_config(self.config).get(name) if self.config.exists() else None


def _is_counted(line: Metrics) -> bool:
    """Whether a line says when it was written."""
    return type(line.get("step")) is int


class Quarantine:
    """Images of a run that could not be read; each is listed once, however often it is met."""

    def __init__(self, folder: RunFolder, images: int, processes: int = 1) -> None:
        self.path = folder.quarantine
        self.limit = MOST_UNREADABLE * images / processes
        self.known = {str(line["name"]) for line in _lines(self.path) if "name" in line}
        self._waiting: list[str] | None = []

    def __len__(self) -> int:
        return len(self.known)

    def begin(self) -> None:
        """The run has begun and its files are there: write what was found while it was set up, and then at once.

        Raises:
            RunError: quarantine.jsonl cannot be written.
        """
        waiting, self._waiting = self._waiting or [], None
        for line in waiting:
            append_line(self.path, line)

    def add(self, records: Sequence[BadRecord]) -> None:
        """List unreadable images in quarantine.jsonl.

        Raises:
            RunError: more than 10 % of the data set is unreadable, or the file cannot be written.
        """
        for record in records:
            if record.name in self.known:
                continue
            self.known.add(record.name)
            line = json_text({"index": record.index, "name": record.name, "reason": record.reason})
            if self._waiting is None:
                append_line(self.path, line)
            else:
                self._waiting.append(line)
            if len(self.known) > self.limit:
                raise RunError(
                    f"`data`: more than {MOST_UNREADABLE:.0%} of the images cannot be read ({len(self.known)} so far, "
                    f"the last is {record.name}: {record.reason}); all are listed in {self.path}"
                )


def open_run_folder(settings: TrainSettings) -> RunFolder:
    """Look at the output folder before anything is loaded; writes nothing.

    Raises:
        InputError: it holds a run that is finished or is not to be resumed, other files, or a run with other settings.
    """
    folder, out = RunFolder(settings.out), settings.out
    with argument("out"):
        if out.exists() and not out.is_dir():
            raise InputError(out, "is a file; give a folder")
        if folder.config.exists():
            if not settings.resume:
                raise InputError(out, "holds another run; resume it with `resume`, or give another folder")
            _refuse_other_settings(folder, settings)
        elif folder.checkpoint.exists():
            remedy = "holds a checkpoint, but its config.json is missing: restore it, or give another folder"
            raise InputError(out, remedy)
        elif out.is_dir() and any(path.name != LOCK and not is_unfinished(path) for path in out.iterdir()):
            raise InputError(out, "is a folder with other files; give a new one")
        parent = next(above for above in (out, *out.resolve().parents) if above.exists())
        if not os.access(parent, os.W_OK):
            raise InputError(out, f"cannot be created: no permission to write in {parent}")
    if folder.summary.exists() and not folder.missing(spec_of(settings).model_file):
        raise InputError(out, "this run is finished; give another `out` to train again", argument="resume")
    return folder


def _refuse_other_settings(folder: RunFolder, settings: TrainSettings) -> None:
    before = _read_config(folder.config)
    _require_kinds(before, type(settings), folder.config)
    command = spec_of(settings).command
    if before.get("command") != command:
        remedy = f"the run in {settings.out} is one of {before.get('command')}; give another `out`"
        raise InputError(command, remedy, argument="resume")
    former = {name: alias for alias, name in aliases(type(settings)).items()}
    defaults = {name: field.default for name, field in type(settings).__dataclass_fields__.items()}
    for name, now in settings.as_json().items():
        # A setting that was added to tinyseed after the run began had the effect of its default.
        fallback = before.get(former.get(name, name), _json_value(defaults[name]))
        then = before.get(name, fallback)
        # An earlier part of the run has settled it.
        settled = (now == "auto" and name not in FREE_ON_RESUME) or (name in MEASURED and not now)
        if name not in FREE_ON_RESUME and not settled and _json_value(now) != then:
            remedy = f"the run in {settings.out} has {then}; give that, or another `out`"
            raise InputError(now, remedy, argument=name)


def _require_kinds(config: dict[str, Any], kind: type[TrainSettings], path: Path) -> None:
    """Refuse a file whose settings are not of the kinds that the run's settings have: somebody has edited it."""
    hints = get_type_hints(kind)
    for name, value in config.items():
        hint = hints.get(aliases(kind).get(name, name))
        if hint is not None and not holds(value, hint):
            remedy = (
                f"cannot be read: its {name} cannot be {json.dumps(value)}; correct it, or give another `out`"
            )
            raise InputError(path, remedy, argument="resume")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise InputError(path, "is not a file", argument="resume")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, f"cannot be read ({first_line(error)})", argument="resume") from error
    if not isinstance(content, dict):
        raise InputError(path, "does not hold the settings of a run", argument="resume")
    return content


def _json_value(value: object) -> Any:  # noqa: ANN401
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; whatever else it holds is left out, such as what a kill has cut off."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                content = json.loads(line)
                if isinstance(content, dict):
                    yield content


def finite(metrics: Metrics) -> Metrics:
    """Metrics as JSON has them: a value that is not finite is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }
