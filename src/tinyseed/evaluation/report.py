"""What an evaluation leaves: metrics and everything needed to repeat them, as JSON, as Markdown and on the terminal."""

import dataclasses
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinyseed.evaluation.base import EvaluationSpec, Metrics
from tinyseed.files import write_json, write_text
from tinyseed.settings.base import aliases, flag
from tinyseed.settings.evaluation import EvaluationSettings
from tinyseed.text import shown, visible

HEADINGS = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "mean_per_class": "mean per class %",
    "fraction": "share of labels",
    "images": "images",
    "lr": "learning rate",
    "l2": "L2",
}
"""Headings of columns; other metrics are named as in the JSON."""

_FIRST = ("model", "student", "teacher", "baseline")
_PERCENT = ("top1", "top5", "mean_per_class")

Table = tuple[list[str], list[list[str]]]
"""Headings, and rows of cells."""


@dataclass(frozen=True)
class Report:
    """What evaluate-NAME.json holds; shares are in per cent.

    Attributes:
        results: rows of metrics.
        notes: what a reader of the metrics has to know.
        settings: as given, with all defaults.
        data: fingerprints of the images and their labels.
        weights: stands for the backbone's weights and its input.
        seconds: of the whole evaluation; of the part since the last stop if it was stopped.
        versions: of the packages that decide the metrics.
    """

    evaluation: str
    model: str
    image_size: int
    train_images: int
    test_images: int
    unreadable_images: int
    classes: int
    results: tuple[Metrics, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]
    data: dict[str, str]
    weights: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)


def report_folder(settings: EvaluationSettings, model: str) -> Path | None:
    """Where the report goes: `out`, otherwise the model's run folder, otherwise nowhere."""
    if settings.out is not None:
        return settings.out
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else None


def write_report(
    spec: EvaluationSpec, report: Report, settings: EvaluationSettings, folder: Path, files: Mapping[str, str]
) -> None:
    """Write evaluate-NAME.json, evaluate-NAME.md, the evaluation's further pages, and these texts.

    Raises:
        RunError: a file could not be written.
    """
    write_json(folder / f"evaluate-{spec.name}.json", dataclasses.asdict(report))
    text = (spec.page or page)(report, settings)
    pages = dict.fromkeys((f"evaluate-{spec.name}.md", *spec.page_names), text.rstrip() + "\n")
    for name, content in {**pages, **files}.items():
        write_text(folder / name, shown(content, keep="\n"))


def show(spec: EvaluationSpec, report: Report) -> str:
    """The report for a terminal."""
    return (spec.table or table)(report)


def table(report: Report) -> str:
    """All metrics as a table for a terminal."""
    images = f"{report.test_images:,} test images, {report.train_images:,} training images"
    head = f"{visible(report.model)}: {report.evaluation}, {images}, {report.image_size} px"
    return "\n".join(
        [head, *text_table(metrics_table(report.results)), *(f"  {note}" for note in report.notes)]
    )


def page(report: Report, settings: EvaluationSettings) -> str:
    """All metrics as a Markdown page."""
    head = f"{images_of(report)}, {report.image_size} px, {report.seconds:,.0f} s."
    metrics = markdown_table(metrics_table(report.results))
    return "\n".join(
        [f"# {report.evaluation}: {visible(report.model)}", "", head, "", *metrics, *footer(report, settings)]
    )


def images_of(report: Report) -> str:
    """How many images and classes the metrics are of."""
    images = f"{report.test_images:,} test images, {report.train_images:,} training images"
    return f"{images}, {report.classes} classes"


def footer(report: Report, settings: EvaluationSettings) -> list[str]:
    """The end of a Markdown page: notes, the command that repeats the evaluation, and versions."""
    notes = [f"- {note}" for note in report.notes]
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items())
    return ["", *notes, *([""] if notes else []), f"    {command(report.evaluation, settings)}", "", versions]


def command(evaluation: str, settings: EvaluationSettings) -> str:
    """The command line of an evaluation with these settings."""
    words = ["tinyseed", "evaluate", evaluation]
    for setting in sorted(dataclasses.fields(settings), key=lambda field: field.name not in _FIRST):
        value = getattr(settings, setting.name)
        if value in (setting.default, None, ()) or value is False or setting.name == "recipe":
            continue
        words.append(flag(setting.name))
        if value is not True:
            words += [str(item) for item in (value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def settings_json(settings: EvaluationSettings) -> dict[str, Any]:
    """All settings as JSON values; a renamed one under its former name, too."""
    content = settings.as_json()
    return content | {former: content[name] for former, name in aliases(type(settings)).items()}


def versions() -> dict[str, str]:
    """Versions of the packages, and the name of the GPU, that the metrics depend on."""
    import torch

    packages = {name: version(name) for name in ("tinyseed", "torch", "timm", "pillow")}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"python": platform.python_version(), **packages, **gpu}


def metrics_table(results: Sequence[Metrics]) -> Table:
    """All metrics as a table; a standard deviation stands beside its mean."""
    names = list(dict.fromkeys(name for row in results for name in row if not name.endswith("_std")))
    cells = [[_cell(row, name) for name in names] for row in results]
    return [HEADINGS.get(name, name.replace("_", " ")) for name in names], cells


def _cell(row: Metrics, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "—"
    if name not in _PERCENT:
        return f"{value:g}" if isinstance(value, float) else str(value)
    spread = row.get(f"{name}_std")
    return f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"


def text_table(table: Table) -> list[str]:
    """Lines for a terminal, with each column as wide as it needs to be."""
    rows = [[visible(cell) for cell in row] for row in (table[0], *table[1])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]


def markdown_table(table: Table) -> list[str]:
    """Lines of a Markdown table."""
    head, cells = ([[_in_markdown(cell) for cell in row] for row in part] for part in ([table[0]], table[1]))
    return [f"| {' | '.join(row)} |" for row in [*head, ["---"] * len(table[0]), *cells]]


def _in_markdown(cell: str) -> str:
    """A cell that stays one: a class may be called `a|b`, or have a name that is a line of HTML."""
    return visible(cell).replace("|", "\\|").replace("<", "&lt;")
