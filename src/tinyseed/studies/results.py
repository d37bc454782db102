"""What a study leaves: its table as JSON, as Markdown and for the terminal, and the plot."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyseed.evaluation.metrics import over_seeds
from tinyseed.evaluation.report import Table, markdown_table, text_table, versions
from tinyseed.files import write_json, write_text
from tinyseed.settings.base import flag
from tinyseed.studies import plot
from tinyseed.studies.base import Axis, Row
from tinyseed.studies.cells import Plan
from tinyseed.studies.settings import StudySettings
from tinyseed.text import shown, visible

Entry = dict[str, Any]
"""A row, or a cell, as JSON holds it."""

METRICS = ("knn_top1", "linear_top1")
"""Of each cell, in per cent, on the test images."""


@dataclass(frozen=True)
class Results:
    """What results.json holds.

    Attributes:
        cost: in what the rows are equal.
        rows: of the table; metrics are means over the seeds in per cent, `NAME_std` their sample standard deviation.
        teachers: measured in the same way.
        cells: each run by itself.
        failed: why cells have failed, by name; they are tried again by the same command.
        command: makes the study again.
    """

    study: str
    about: str
    source: str
    cost: str
    rows: tuple[Entry, ...]
    teachers: tuple[Entry, ...]
    cells: tuple[Entry, ...]
    failed: Mapping[str, str]
    settings: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls,
        plan: Plan,
        records: Sequence[Entry],
        failed: Mapping[str, str],
        chosen: Mapping[str, Mapping[str, Any]],
    ) -> "Results":
        """The table of the cells that have been measured so far."""
        return cls(
            study=plan.study.name,
            about=plan.study.about,
            source=plan.study.source,
            cost=cost(plan),
            rows=tuple(_row(row, records, chosen.get(row.name, {})) for row in plan.rows),
            teachers=tuple(record for record in records if record["row"] is None),
            cells=tuple(record for record in records if record["row"] is not None),
            failed=dict(failed),
            settings=plan.settings.as_json() | {"common": plan.common, "student": plan.student},
            command=command(plan),
            versions=versions(),
        )

    def table(self) -> Table:
        """Headings, and rows of cells."""
        quoted = any(row["published"] is not None for row in self.rows)
        head = ["row", "k-NN top-1 %", "linear top-1 %", "seeds", "images seen", "minutes"]
        rows = [
            [row["label"], *_cells(row), *([_figure(row["published"])] if quoted else [])]
            for row in self.rows
        ]
        teachers = [
            [f"teacher {_name(each)}", *_cells(each), *(["–"] if quoted else [])] for each in self.teachers
        ]
        return [*head, *(["published (ImageNet, linear)"] if quoted else [])], [*rows, *teachers]

    @property
    def notes(self) -> list[str]:
        """What a reader of the table has to know, a sentence each."""
        notes = [self.cost]
        if any(row["seeds"] > 1 for row in self.rows):
            notes.append("Mean ± sample standard deviation over the seeds.")
        for row in self.rows:
            if row["chosen"]:
                chosen = ", ".join(f"{name} {value}" for name, value in row["chosen"].items())
                notes.append(f"{row['label']}: {chosen}, chosen on held-out training images.")
        notes += [f"{name}: failed: {reason}" for name, reason in self.failed.items()]
        sources = dict.fromkeys(row["published_source"] for row in self.rows if row["published"] is not None)
        return [*notes, *(f"Published: {source}." for source in sources)]


def cost(plan: Plan) -> str:
    """In what the rows are equal, in a sentence or two."""
    budget, lengths = plan.budget, {row.length for row in plan.rows}
    times = "" if lengths == {1.0} else ", times the length of its row"
    if budget.minutes is None:
        alike = f"Equal cost: {budget} over the same images for each cell{times}, so equally many images are seen. "
        alike += "Cells that share a teacher and views are trained together; their minutes are those of all together."
    else:
        alike = f"Equal cost: {budget} of training for each cell{times}, by itself."
    if plan.teachers:
        alike += f" A teacher takes {plan.teacher_budget}, times its length, is trained once and not counted."
    return alike


def write_results(results: Results, folder: Path, axis: Axis | None) -> None:
    """Write results.json, results.md, plot.png and plot.svg, each atomically.

    Raises:
        RunError: a file could not be written; the former one is intact.
    """
    write_json(folder / "results.json", dataclasses.asdict(results))
    drawn = plot.draw(results.rows, results.teachers, axis, results.study, folder)
    write_text(folder / "results.md", shown(page(results, drawn=drawn), keep="\n"))


def page(results: Results, *, drawn: bool) -> str:
    """The results as a Markdown page."""
    picture = ["", "![k-NN and linear probe of each row](plot.svg)"] if drawn else []
    packages = ", ".join(f"{name} {value}" for name, value in results.versions.items())
    lines = [
        f"# {results.study}",
        "",
        f"{results.about}. Source: {results.source}",
        "",
        *markdown_table(results.table()),
        *picture,
        "",
        *(f"- {visible(note)}" for note in results.notes),
        "",
        f"    {results.command}",
        "",
        packages,
    ]
    return "\n".join(lines) + "\n"


def text(results: Results) -> str:
    """The results for a terminal."""
    head = f"{results.study}: {results.about}"
    return "\n".join([head, *text_table(results.table()), *(f"  {note}" for note in results.notes)])


def command(plan: Plan) -> str:
    """The command line of a study with these settings."""
    settings, words = plan.settings, ["tinyseed", "recipes", "run", plan.study.name]
    for each in dataclasses.fields(StudySettings):
        value = getattr(settings, each.name)
        if value == each.default or each.name == "dry_run":
            continue
        words += [flag(each.name), *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _row(row: Row, records: Sequence[Entry], chosen: Mapping[str, Any]) -> Entry:
    """A row of the table: its cells over the seeds."""
    of_row = [record for record in records if record["row"] == row.name]
    numbers = [{name: record[name] for name in METRICS} for record in of_row]
    took = {
        name: sum(record[name] for record in of_row) / len(of_row)
        for name in ("images", "minutes", "parameters_teacher", "parameters")
        if of_row and all(name in record for record in of_row)
    }
    return {
        "row": row.name,
        "label": row.label,
        "method": row.method,
        "seeds": len(of_row),
        **(over_seeds(numbers) if numbers else {}),
        **took,
        "x": row.x,
        "chosen": dict(chosen),
        "published": None if row.expected is None else row.expected.top1,
        "published_source": None if row.expected is None else row.expected.source,
    }


def _cells(entry: Entry) -> list[str]:
    measured = [_figure(entry.get(name), entry.get(f"{name}_std")) for name in METRICS]
    images, minutes = entry.get("images"), entry.get("minutes")
    seeds = "–" if "seeds" not in entry else str(entry["seeds"])
    took = ["–" if images is None else f"{images:,.0f}", "–" if minutes is None else f"{minutes:.1f}"]
    return [*measured, seeds, *took]


def _figure(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if spread is None else f"{value:.1f} ± {spread:.1f}"


def _name(teacher: Entry) -> str:
    return str(teacher.get("model", teacher["name"])).removeprefix("teacher-")
