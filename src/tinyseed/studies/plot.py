"""The plot of a study: k-NN and linear probe of each row, with the spread over the seeds, as PNG and as SVG.

Matplotlib draws it; the rest of tinyseed does without, so it comes with the extra named plots.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseed.files import replacing
from tinyseed.studies.base import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Entry = Mapping[str, Any]

MEASURES = (("knn_top1", "k-NN", "#0f8a5c", "o"), ("linear_top1", "linear probe", "#7a4bd0", "s"))
"""Metrics, their names, colors and marks: the colors of report.html."""

FAINT = "#8d9691"


def missing() -> str:
    """What to say where there will be no plot; empty where there will be one."""
    if find_spec("matplotlib") is not None:
        return ""
    return "no plot is drawn, since Matplotlib is not installed: pip install 'tinyseed[plots]'"


def draw(
    rows: Sequence[Entry], teachers: Sequence[Entry], axis: Axis | None, title: str, folder: Path
) -> bool:
    """Write plot.png and plot.svg of those rows that have been measured.

    Args:
        rows: of the table.
        teachers: references; a single one becomes a line.
        axis: where the rows stand on a line of numbers.
        title: above the plot.
        folder: where the files go.

    Returns:
        Whether they were written: Matplotlib is there, and a row has been measured.

    Raises:
        RunError: a file could not be written; the former one is intact.
    """
    measured = [row for row in rows if row.get("knn_top1") is not None]
    if missing() or not measured:
        return False
    with _style():
        numbers = [_place(row, axis) for row in measured]
        figure = _by_row(measured) if axis is None or None in numbers else _by_number(measured, axis)
        if len(teachers) == 1:
            _reference(figure.axes, teachers[0], upright=axis is None or None in numbers)
        figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=9)
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        for kind in ("png", "svg"):
            with replacing(folder / f"plot.{kind}") as unfinished:
                about = {"Date": None} if kind == "svg" else None
                figure.savefig(unfinished, format=kind, dpi=160, metadata=about)
    return True


@contextmanager
def _style() -> Iterator[None]:
    """Plain axes, text as text in the SVG, and the same bytes for the same numbers."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tinyseed",
        "font.size": 10,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
    }
    with mpl.rc_context(settings):
        yield


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(7.2, height), layout="constrained", facecolor="white")


def _by_row(rows: Sequence[Entry]) -> "Figure":
    """A line for each row, the first on top; means as dots, the spread as bars."""
    figure = _figure(1.1 + 0.42 * len(rows))
    axes = figure.add_subplot()
    for number, (name, label, color, mark) in enumerate(MEASURES):
        places = [place + 0.14 * (2 * number - 1) for place in range(len(rows))]
        spread = [row.get(f"{name}_std") or 0.0 for row in rows]
        axes.errorbar(
            [row[name] for row in rows],
            places,
            xerr=spread,
            fmt=mark,
            color=color,
            capsize=3,
            ms=5,
            label=label,
        )
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("top-1 on the test images, %")
    axes.grid(axis="both", color="#e3e8e4")
    return figure


def _by_number(rows: Sequence[Entry], axis: Axis) -> "Figure":
    """Lines over what the rows differ in."""
    ordered = sorted(rows, key=lambda row: _place(row, axis) or 0.0)
    numbers = [_place(row, axis) or 0.0 for row in ordered]
    lowest = min((number for number in numbers if number > 0), default=1.0)
    places = [number or lowest / 10 for number in numbers] if axis.log else numbers  # a logarithm has no zero
    figure = _figure(4.2)
    axes = figure.add_subplot()
    for name, label, color, mark in MEASURES:
        axes.errorbar(
            places,
            [row[name] for row in ordered],
            yerr=[row.get(f"{name}_std") or 0.0 for row in ordered],
            fmt=f"-{mark}",
            color=color,
            capsize=3,
            ms=5,
            label=label,
        )
    if axis.log:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(places, [_tick(number) for number in numbers])
    axes.set_xlabel(axis.label)
    axes.set_ylabel("top-1 on the test images, %")
    axes.grid(color="#e3e8e4")
    return figure


def _tick(number: float) -> str:
    """A number below the axis.

    >>> _tick(0.0), _tick(1e-3), _tick(0.3), _tick(11_180_000)
    ('→ 0', '0.001', '0.3', '11.2 M')
    """
    if number == 0:
        return "→ 0"
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:g}"


def _reference(all_axes: "Sequence[Axes]", teacher: Entry, *, upright: bool) -> None:
    """The teacher's metrics as dashed lines."""
    for name, label, color, _ in MEASURES:
        line = all_axes[0].axvline if upright else all_axes[0].axhline
        line(teacher[name], color=color, linestyle="--", linewidth=1, alpha=0.6, label=f"teacher, {label}")


def _place(row: Entry, axis: Axis | None) -> float | None:
    """Where a row stands on the axis."""
    return None if axis is None else row.get(axis.metric)
