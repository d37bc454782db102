"""The files of a run. Imports the settings and the loader's records."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyseed.data.loader import BadRecord
from tinyseed.engine.channels import MEASURED
from tinyseed.engine.config import HARMLESS, RunConfig, as_json, flag
from tinyseed.errors import InputError
from tinyseed.files import write_json

Figures = dict[str, Any]
"""One line of metrics.jsonl, or summary.json: names and figures as they are written."""


class RunFolder:
    """Where a run's files are, and how they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.quarantine = path / "quarantine.jsonl"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.lineage = path / "lineage.json"
        self.summary = path / "summary.json"

    def make(self) -> None:
        """Make the folder.

        Raises:
            InputError: the operating system refuses.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "--out", self.path, f"cannot be made ({error.strerror}); give another folder"
            ) from error

    def write_json(self, file: Path, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        write_json(file, content)

    def log(self, figures: Figures) -> None:
        """Append a line to metrics.jsonl. What is no finite number is written as null."""
        line = {name: _plain(value) for name, value in figures.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def logged(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; an unfinished last line is left out."""
        yield from _lines(self.metrics)

    def forget_after(self, step: int) -> None:
        """Drop the lines after a step: a resumed run writes them anew."""
        kept = [line for line in self.logged() if line.get("step", 0) <= step]
        self.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def quarantined(self) -> set[str]:
        """Names of the images that could not be read."""
        return {line["name"] for line in _lines(self.quarantine)}

    def add_to_quarantine(self, record: BadRecord) -> None:
        """Append an unreadable image to quarantine.jsonl."""
        with self.quarantine.open("a", encoding="utf-8") as file:
            line = {"index": record.index, "name": record.name, "reason": record.reason}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def open_run_folder(config: RunConfig) -> RunFolder:
    """Look at `--out` before anything is loaded; writes nothing.

    Raises:
        InputError: it holds a run that is not to be resumed, other files, or a run with other settings.
    """
    folder = RunFolder(config.out)
    if config.out.exists() and not config.out.is_dir():
        raise InputError("--out", config.out, "is a file; give a folder")
    if folder.config.exists():
        if not config.resume:
            raise InputError(
                "--out",
                config.out,
                "holds another run; add --resume to go on with it, or give another folder",
            )
        _refuse_other_settings(folder, config)
    elif config.out.is_dir() and any(config.out.iterdir()):
        raise InputError("--out", config.out, "is a folder with other files; give a new one")
    parent = next(above for above in (config.out, *config.out.resolve().parents) if above.exists())
    if not os.access(parent, os.W_OK):
        raise InputError("--out", config.out, f"cannot be made: no right to write in {parent}")
    return folder


def _refuse_other_settings(folder: RunFolder, config: RunConfig) -> None:
    try:
        before = json.loads(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("--resume", folder.config, f"cannot be read ({error})") from error
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, now in as_json(config).items():
        # A setting that came to tinyseed after the run began had the effect of its default.
        then = before[name] if name in before else _json_value(defaults.get(name))
        # The first part of the run has settled it.
        settled = (now == "auto" and name not in HARMLESS) or (name in MEASURED and not now)
        if name not in HARMLESS and not settled and _json_value(now) != then:
            field = "--resume" if name == "command" else flag(name)
            raise InputError(field, now, f"the run in {config.out} has {then}; give that, or another --out")


def _json_value(value: object) -> Any:  # noqa: ANN401
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))


def settled(folder: RunFolder, name: str) -> Any:  # noqa: ANN401  (a JSON value)
    """What a former part of this run settled a setting to, None in a new run."""
    if not folder.config.exists():
        return None
    return json.loads(folder.config.read_text(encoding="utf-8")).get(name)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:  # cut off when the run was killed
                continue


def _plain(value: float | int | str | None) -> float | int | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
