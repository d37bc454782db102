"""`write_report`: a run's files become one HTML page that needs nothing else.

The page answers, from top to bottom: did it work, how did it go, with what settings, from what, and what went wrong.
Everything that comes from a file is escaped.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tinyseed.errors import InputError
from tinyseed.files import write_text
from tinyseed.report.charts import Bar, Format, bar_chart, legend, line_chart, percent, plain
from tinyseed.report.curves import Curves, curves
from tinyseed.report.files import Record, RunFiles, read_run
from tinyseed.report.style import MARK, STYLE
from tinyseed.report.verdict import Outcome, outcome, verdict, warnings
from tinyseed.text import in_html, public

MOST_LISTED = 50
"""Number of unreadable images shown; quarantine.jsonl has all of them."""

LONGEST_VALUE = 400
"""Characters of a setting that are shown."""


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder, from the folder's files alone.

    Missing or broken files are noted on the page. An existing report is replaced.

    Returns:
        The page's path.

    Raises:
        InputError: there is no such folder.
        RunError: the page cannot be written.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise InputError(run_folder, "no such folder; give the folder of a run")
    path = folder / "report.html"
    write_text(path, render(read_run(folder), folder.resolve().name))
    return path


def render(files: RunFiles, name: str) -> str:
    """The page of a run, as HTML text."""
    found = outcome(files)
    title = _title(files.config, name)
    sections = (
        _header(title, files, found, name),
        _verdict(files, found),
        _overview(found),
        _charts(files, found),
        _settings(files.config),
        _lineage(files.lineage),
        _quarantine(files.quarantine),
        _notes(files.notes),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{in_html(title)} · tinyseed</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<footer>Written by tinyseed from the files of {in_html(name)}.</footer>\n</main>\n</body>\n</html>\n"
    )


def _title(config: Record, name: str) -> str:
    teacher, student, backbone = (config.get(key) for key in ("teacher", "student", "backbone"))
    if teacher and student:
        return f"{_short(teacher)} → {_short(student)}"
    return _short(backbone) if backbone else name


def _short(model: object) -> str:
    """A model's name, or the last two parts of its path."""
    return "/".join(Path(public(str(model))).parts[-2:])


def _header(title: str, files: RunFiles, found: Outcome, name: str) -> str:
    facts = [
        str(files.config.get("command", "")),
        name if name != title else "",
        str(files.lineage.get("began", "")).replace("T", " ")[:16],
        "" if found.epochs is None else f"{found.epochs:,.0f} epochs",
        "" if found.steps is None else f"{found.steps:,.0f} steps",
        "" if found.minutes is None else duration(found.minutes),
        f"averaged weights (EMA {files.config['ema']})" if files.config.get("ema") else "",
        "" if found.finished else "not finished",
    ]
    about = " · ".join(in_html(fact) for fact in facts if fact)
    return f'<header>{MARK}<div><h1>{in_html(title)}</h1><p class="about">{about}</p></div></header>'


def duration(minutes: float) -> str:
    """A duration in words.

    >>> duration(0.5), duration(7), duration(754)
    ('30 s', '7 min', '12 h 34 min')
    """
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"


def _verdict(files: RunFiles, found: Outcome) -> str:
    answer = verdict(found)
    items = "".join(f"<li>{_prose(warning)}</li>" for warning in warnings(files, found))
    listed = f'<ul class="warnings">{items}</ul>' if items else ""
    sentence = f"<strong>{in_html(answer.word)}</strong><p>{_prose(answer.sentence)}</p>"
    return f'<section class="verdict {answer.level}">{sentence}</section>{listed}'


def _prose(text: str) -> str:
    """Escaped text in which flags and "k-NN" are not wrapped at their hyphens."""
    return re.sub(r"--[a-z-]+|k-NN", r'<span class="whole">\g<0></span>', in_html(text))


def _overview(found: Outcome) -> str:
    bars, tiles = _bars(found), _tiles(found)
    cards = [f'<div class="card">{card}</div>' for card in (bars, tiles) if card]
    kind = "overview" if len(cards) > 1 else "overview alone"
    return f'<section class="{kind}">{"".join(cards)}</section>' if cards else ""


def _bars(found: Outcome) -> str:
    trained = found.name.removeprefix("The ")
    if found.knn is not None:
        title = "k-NN top-1 on held-out images"
        figures = (found.knn_before, found.knn, found.knn_teacher)
    else:
        title = "Fraction of the teacher's nearest neighbors"
        figures = (found.agreement_before, found.agreement, None)
    named = zip(
        ("before training", trained, "teacher"), figures, ("untrained", "student", "teacher"), strict=True
    )
    bars = [Bar(name, value, role) for name, value, role in named if value is not None]
    return f"<h3>{in_html(title)}</h3>{bar_chart(title, bars)}" if bars else ""


def _tiles(found: Outcome) -> str:
    tiles = (
        ("k-NN top-1", _maybe(found.knn, percent), _beside("teacher", found.knn_teacher, percent)),
        (
            "neighbors shared",
            _maybe(found.agreement, percent),
            _beside("before", found.agreement_before, percent),
        ),
        (
            "effective rank",
            _maybe(found.rank, _one_decimal),
            _beside("teacher", found.rank_teacher, _one_decimal),
        ),
        ("parameters", _maybe(found.parameters, plain), _beside("teacher", found.parameters_teacher, plain)),
        ("loss", _maybe(found.loss_last, plain), "not comparable between runs"),
        (
            "images per second",
            _maybe(found.images_per_s, plain),
            _beside("waiting for data", found.data_wait, _rounded),
        ),
        ("unreadable images", f"{found.unreadable:,}" if found.unreadable else "", "listed below"),
    )
    entries = [
        f"<div><dt>{in_html(name)}</dt><dd>{in_html(value)}<small>{in_html(more)}</small></dd></div>"
        for name, value, more in tiles
        if value
    ]
    return f'<dl class="tiles">{"".join(entries)}</dl>' if entries else ""


def _maybe(value: float | None, write: Format) -> str:
    return "" if value is None else write(value)


def _beside(name: str, value: float | None, write: Format) -> str:
    return "" if value is None else f"{name} {write(value)}"


def _one_decimal(value: float) -> str:
    return f"{value:,.1f}"


def _rounded(value: float) -> str:
    return percent(round(100 * value))


def _charts(files: RunFiles, found: Outcome) -> str:
    figures = [_figure(chart) for chart in curves(files, found)]
    drawn = "".join(figure for figure in figures if figure)
    return f'<section><h2>How it went</h2><div class="charts">{drawn}</div></section>' if drawn else ""


def _figure(chart: Curves) -> str:
    drawing = line_chart(
        chart.title, chart.lines, y_label=chart.label, y_format=chart.write, from_zero=chart.from_zero
    )
    if not drawing:
        return ""
    head = f"<h3>{in_html(chart.title)}</h3><figcaption>{in_html(chart.caption)}</figcaption>"
    return f"<figure>{head}{legend(chart.lines, chart.write)}{drawing}</figure>"


def _settings(config: Record) -> str:
    return f'<section><h2>Settings</h2><div class="card">{_pairs(config)}</div></section>' if config else ""


def _pairs(record: Record) -> str:
    rows = "".join(
        f"<div><dt>{in_html(str(name))}</dt><dd>{in_html(_value(value))}</dd></div>"
        for name, value in record.items()
    )
    return f'<dl class="pairs">{rows}</dl>'


def _value(value: object) -> str:
    """A JSON value in words; a very long one is cut."""
    match value:
        case None:
            written = "—"
        case bool():
            written = "yes" if value else "no"
        case str():
            written = value
        case list() if all(isinstance(entry, str) for entry in value):
            written = " ".join(value) or "—"
        case _:
            written = json.dumps(value, ensure_ascii=False)
    return (
        written
        if len(written) <= LONGEST_VALUE
        else f"{written[:LONGEST_VALUE]} … ({len(written):,} characters)"
    )


def _lineage(lineage: Record) -> str:
    """The parts of lineage.json side by side: its plain entries first, then each of its objects."""
    if not lineage:
        return ""
    plain_entries = {name: value for name, value in lineage.items() if not isinstance(value, dict)}
    parts = {"run": plain_entries} | {
        name: value for name, value in lineage.items() if isinstance(value, dict)
    }
    blocks = "".join(
        f"<div><h3>{in_html(str(name))}</h3>{_pairs(part)}</div>" for name, part in parts.items() if part
    )
    return f'<section><h2>Origin</h2><div class="card lineage">{blocks}</div></section>'


def _quarantine(quarantine: Sequence[Record]) -> str:
    if not quarantine:
        return ""
    shown = quarantine[:MOST_LISTED]
    rows = "".join(
        f'<tr><td class="number">{in_html(_value(record.get("index")))}</td>'
        f"<td>{in_html(_value(record.get('name')))}</td><td>{in_html(_value(record.get('reason')))}</td></tr>"
        for record in shown
    )
    rest = len(quarantine) - len(shown)
    more = f'<p class="faint">… and {rest:,} more, all in quarantine.jsonl</p>' if rest else ""
    head = '<tr><th class="number">position</th><th>image</th><th>reason</th></tr>'
    title = f"<h2>Unreadable images: {len(quarantine):,}</h2>"
    return f'<section>{title}<div class="card"><table>{head}{rows}</table>{more}</div></section>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{in_html(note)}</li>" for note in notes)
    return f'<section><h2>Not on this page</h2><ul class="notes">{items}</ul></section>' if items else ""
