"""A run's files as they are found: what is missing or broken becomes a note, never an error."""

import errno
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
"""A JSON object: config.json, or a line of metrics.jsonl."""

LARGEST = 1e30
"""Larger numbers are ignored: nothing in a run is that large, and sums of them would overflow."""


@dataclass(frozen=True)
class RunFiles:
    """What a run folder says.

    Attributes:
        config: the settings.
        summary: final metrics; empty while a run is not finished.
        lineage: what the run was made from.
        steps: lines of metrics.jsonl with a loss or a rate, by step, each step once.
        evaluations: lines of metrics.jsonl with metrics of held-out images, by step, each step once.
        quarantine: images that could not be read.
        notes: what was missing or broken.
    """

    config: Record
    summary: Record
    lineage: Record
    steps: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    quarantine: tuple[Record, ...]
    notes: tuple[str, ...]


EVALUATED = ("knn_top1", "neighbour_agreement", "effective_rank", "target_entropy")
LOGGED = ("loss", "lr", "images_per_s", "data_wait")


def read_run(folder: Path) -> RunFiles:
    """Read whatever can be read."""
    notes: list[str] = []
    config = _object(folder / "config.json", "the settings are not shown", notes)
    summary = _object(
        folder / "summary.json", "the run has not finished; the latest metrics are shown", notes
    )
    lineage = _object(folder / "lineage.json", "the origin of the run is not shown", notes)
    metrics = _lines(folder / "metrics.jsonl", notes)
    if not (folder / "metrics.jsonl").exists():
        notes.append("metrics.jsonl is missing: there are no charts")
    return RunFiles(
        config=config,
        summary=summary,
        lineage=lineage,
        steps=_by_step(metrics, LOGGED),
        evaluations=_by_step(metrics, EVALUATED),
        quarantine=_lines(folder / "quarantine.jsonl", notes),
        notes=tuple(notes),
    )


def number(record: Record, name: str) -> float | None:
    """A finite number of a record, None where it has none.

    >>> number({"loss": 2}, "loss"), number({"loss": None}, "loss"), number({}, "loss")
    (2.0, None, None)
    """
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None  # false for NaN too


def series(records: tuple[Record, ...], name: str) -> tuple[tuple[float, float], ...]:
    """(step, value) of the records that have both."""
    pairs = ((number(record, "step"), number(record, name)) for record in records)
    return tuple((step, value) for step, value in pairs if step is not None and value is not None)


def _by_step(records: tuple[Record, ...], names: tuple[str, ...]) -> tuple[Record, ...]:
    """A resumed run may have written a step twice; the later line counts."""
    by_step: dict[float, Record] = {}
    for record in records:
        step = number(record, "step")
        if step is not None and any(name in record for name in names):
            by_step[step] = record
    return tuple(by_step[step] for step in sorted(by_step))


def _object(path: Path, without: str, notes: list[str]) -> Record:
    try:
        _refuse_other_than_file(path)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: {without}")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({_reason(error)}): {without}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} does not hold a JSON object: {without}")
        return {}
    return content


def _lines(path: Path, notes: list[str]) -> tuple[Record, ...]:
    if not path.exists():
        return ()
    records, broken = [], 0
    try:
        _refuse_other_than_file(path)
        for line in _text_lines(path):
            record = _record(line)
            if record is None:
                broken += 1
            else:
                records.append(record)
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({_reason(error)})")
    if broken:
        lines = "1 line" if broken == 1 else f"{broken:,} lines"
        notes.append(
            f"{lines} of {path.name} could not be read and {'is' if broken == 1 else 'are'} left out"
        )
    return tuple(records)


def _refuse_other_than_file(path: Path) -> None:
    """Reading a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file")


def _text_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip():
                yield line


def _record(line: str) -> Record | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "invalid JSON" if isinstance(error, ValueError) else type(error).__name__


def mean(values: list[float]) -> float | None:
    """The mean; None of an empty list."""
    return math.fsum(values) / len(values) if values else None
