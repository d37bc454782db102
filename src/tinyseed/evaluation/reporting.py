"""What an evaluation leaves: figures, and everything needed to repeat them, as JSON and Markdown.

Imports models, and this room's common.py.
"""

import dataclasses
import json
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tinyseed.evaluation.common import DataConfig, Sides, model_digest
from tinyseed.evaluation.state import Figures
from tinyseed.files import write_text
from tinyseed.models.encoder import Encoder

NAMES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "mean_per_class": "mean per class %",
    "fraction": "share of labels",
    "images": "images",
    "lr": "learning rate",
    "l2": "L2",
}
"""Headings of columns; other figures are named as in the JSON."""

_FIRST = ("model", "student", "teacher", "alone")
_SHARES = ("top1", "top5", "mean_per_class")


@dataclass(frozen=True)
class Report:
    """What evaluate-NAME.json holds; shares are in per cent.

    Attributes:
        results: a row of figures each.
        notes: what a reader of the figures has to know.
        settings: as given, with every default.
        data: fingerprints of the images and their labels.
        weights: stands for the trunk's weights and its input.
        seconds: of the whole evaluation, or of its last part where a stopped one went on.
        versions: of the packages that decide the figures.
    """

    evaluation: str
    model: str
    image_size: int
    train_images: int
    test_images: int
    unreadable_images: int
    classes: int
    results: tuple[Figures, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]
    data: dict[str, str]
    weights: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """When an evaluation began."""

    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since then."""
        return round(time.perf_counter() - self.began, 1)


def report(
    evaluation: str,
    config: DataConfig,
    sides: Sides,
    results: Sequence[Figures],
    *,
    model: str,
    encoder: Encoder,
    clock: Clock,
    notes: Sequence[str] = (),
    unreadable: int = 0,
) -> Report:
    """Put a report together, and write it where there is a folder for it."""
    if unreadable:
        notes = (*notes, f"{unreadable:,} unreadable images left out")
    folder = folder_for(config, model)
    if folder is None:
        notes = (*notes, "no report was written, since the model is no run folder: give --out DIR")
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
    }
    made = Report(
        evaluation=evaluation,
        model=model,
        image_size=encoder.input.size,
        train_images=len(sides.train),
        test_images=len(sides.test),
        unreadable_images=unreadable,
        classes=len(sides.classes),
        results=tuple(results),
        notes=tuple(dict.fromkeys(notes)),
        settings=settings,
        data={"train": sides.train.fingerprint, "test": sides.test.fingerprint},
        weights=model_digest(encoder),
        seconds=clock.seconds,
        versions=_versions(),
    )
    if folder is not None:
        write(made, folder, markdown(made, config))
    return made


def write(made: Report, folder: Path, page: str) -> None:
    """Write evaluate-NAME.json and evaluate-NAME.md.

    Raises:
        RunError: they could not be written.
    """
    contents = {"json": json.dumps(dataclasses.asdict(made), indent=2), "md": page}
    for kind, content in contents.items():
        _write(folder / f"evaluate-{made.evaluation}.{kind}", content)


def folder_for(config: DataConfig, model: str) -> Path | None:
    """Where the report goes: --out, else the run folder, else nowhere."""
    if config.out is not None:
        return config.out
    return Path(model) if Path(model).is_dir() else None


def _write(path: Path, content: str) -> None:
    write_text(path, content.rstrip() + "\n")


def columns(results: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table; a standard deviation stands with its mean."""
    names = list(dict.fromkeys(name for row in results for name in row if not name.endswith("_std")))
    cells = [[_cell(row, name) for name in names] for row in results]
    return [NAMES.get(name, name.replace("_", " ")) for name in names], cells


def _cell(row: Figures, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "—"
    if name not in _SHARES:
        return f"{value:g}" if isinstance(value, float) else str(value)
    spread = row.get(f"{name}_std")
    return f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"


def text_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines for a terminal, each column as wide as it needs to be."""
    rows = [list(head), *map(list, cells)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return [
        "  " + "   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]


def markdown_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The same for Markdown."""
    return [f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *map(list, cells)]]


def table(made: Report) -> str:
    """The figures for a terminal."""
    sides = f"{made.test_images:,} test images, {made.train_images:,} training images"
    head = f"{made.model}: {made.evaluation}, {sides}, {made.image_size} px"
    return "\n".join([head, *text_table(*columns(made.results)), *(f"  {note}" for note in made.notes)])


def markdown(made: Report, config: DataConfig) -> str:
    """The page beside the JSON."""
    sides = f"{made.test_images:,} test images, {made.train_images:,} training images, {made.classes} classes"
    head = f"# {made.evaluation}: {made.model}\n\n{sides}, {made.image_size} px, {made.seconds:,.0f} s."
    lines = [head, "", *markdown_table(*columns(made.results)), *foot(made, config)]
    return "\n".join(lines)


def foot(made: Report, config: DataConfig) -> list[str]:
    """Notes, and how to repeat it."""
    notes = [f"- {note}" for note in made.notes]
    versions = ", ".join(f"{name} {value}" for name, value in made.versions.items())
    return ["", *notes, *([""] if notes else []), f"    {command(made.evaluation, config)}", "", versions]


def command(evaluation: str, config: DataConfig) -> str:
    """The command line that gives this evaluation."""
    words = ["tinyseed", "evaluate", evaluation]
    fields = dataclasses.fields(config)
    for setting in sorted(fields, key=lambda field: field.name not in _FIRST):
        value = getattr(config, setting.name)
        if value in (setting.default, None, ()) or value is False:
            continue
        words.append("--" + setting.name.replace("_", "-"))
        if value is not True:
            words += [str(item) for item in (value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _versions() -> dict[str, str]:
    packages: Mapping[str, str] = {name: version(name) for name in ("tinyseed", "torch", "timm", "pillow")}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"python": platform.python_version(), **packages, **gpu}
