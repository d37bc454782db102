"""What a study would train, for `--dry-run`: its cells, their number and the expected time."""

import json
from collections.abc import Iterator, Sequence
from statistics import fmean

from tinyseed.progress import duration
from tinyseed.studies.cells import Cell, Plan, groups
from tinyseed.studies.results import cost


def describe(plan: Plan) -> str:
    """The cells of a plan, their number and the expected time, as lines of text."""
    teachers, cells = list(plan.teachers.values()), [cell for cells in plan.cells() for cell in cells]
    lines = [f"{plan.study.name}: {plan.study.about}", plan.study.source, cost(plan), ""]
    if teachers:
        lines += ["teachers, trained first:", *(f"  {_line(cell)}" for cell in teachers)]
    if plan.axes:
        lines += [f"tuning: {plan.trials()} runs with seed {plan.settings.seed}:", *_axes(plan)]
    lines += ["cells:", *(f"  {_line(cell)}" for cell in cells)]
    todo = [cell for cell in (*teachers, *cells) if not cell.finished]
    counted = f"{len(cells)} cells in {len(groups(cells))} trainings"
    left = f"{len(todo)} of {len(teachers) + len(cells)} runs left"
    return "\n".join([*lines, "", f"{counted}; {left}; {expected_time(plan, todo)}"])


def expected_time(plan: Plan, left: Sequence[Cell]) -> str:
    """How long training takes, in words: from the budget in minutes, or from the pace of finished cells."""
    minutes, epochs = 0.0, 0
    for cell in left:
        if cell.settings is not None:
            minutes += cell.settings.max_minutes or 0.0
            epochs += 0 if cell.settings.max_minutes is not None else cell.settings.epochs
    tried = max(0, plan.trials() - sum(bool(plan.tuned_in(row)) for row in plan.rows))
    minutes += tried * (plan.budget.minutes or 0.0)
    epochs += tried * (plan.budget.epochs or 0)
    parts = [f"{duration(60 * minutes)} of training"] if minutes else []
    pace = list(_pace(plan)) if epochs else []
    if pace:
        parts.append(f"about {duration(60 * epochs * fmean(pace))} for {epochs:,} epochs, at the pace so far")
    elif epochs:
        parts.append(f"{epochs:,} epochs, whose time is known after the first cell")
    return " and ".join(parts) + ", evaluations not counted" if parts else "nothing to train"


def _pace(plan: Plan) -> Iterator[float]:
    """Minutes per epoch and cell of what has been trained by epochs."""
    for cells in ([*plan.teachers.values()], *plan.cells()):
        for group in groups(cells):
            for cell in group:
                if cell.finished and cell.settings is not None and cell.settings.max_minutes is None:
                    summary = json.loads((cell.folder / "summary.json").read_text(encoding="utf-8"))
                    yield summary["minutes"] / (cell.settings.epochs * len(group))


def _axes(plan: Plan) -> list[str]:
    return [
        f"  {row.name}: "
        + ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in plan.tuned_in(row))
        for row in plan.rows
        if plan.tuned_in(row)
    ]


def _line(cell: Cell) -> str:
    if cell.settings is None:
        took = "not trained"
    elif cell.settings.max_minutes is not None:
        took = f"{cell.settings.max_minutes:g} min"
    else:
        took = f"{cell.settings.epochs} epochs"
    return f"{cell.name}  ({took}{', finished' if cell.finished else ''})"
