"""Charts as pure functions: numbers in, an SVG string out.

Colors and type come from the page's style sheet by class name, so that a chart follows light, dark and print.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from tinyseed.text import in_html

Point = tuple[float, float]
Role = Literal["student", "teacher", "untrained", "raw"]
Format = Callable[[float], str]

MOST_POINTS = 500
MOST_HOVERS = 120
FEW_POINTS = 24
"""Up to this many points are also drawn as dots."""

WIDTH, HEIGHT = 460.0, 248.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 14.0, 24.0, 36.0


@dataclass(frozen=True)
class Series:
    """A line of a chart: its name in the legend, its (step, value) pairs by step, and whose it is (its color)."""

    name: str
    points: Sequence[Point]
    role: Role = "student"


@dataclass(frozen=True)
class Bar:
    """A bar: its name, its length and whose it is."""

    name: str
    value: float
    role: Role


@dataclass(frozen=True)
class Scale:
    """From values to positions in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value, in the drawing's units."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_step(low: float, high: float, count: int = 5) -> float:
    """The step 1, 2 or 5 · 10^i that divides a range into about `count` parts.

    >>> nice_step(0, 9), nice_step(0, 0.03), nice_step(0, 48_000)
    (2.0, 0.01, 10000.0)
    """
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    multiple = next(step for step in (1, 2, 5, 10) if step * magnitude >= rough * (1 - 1e-9))
    return multiple * magnitude


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within a range.

    >>> nice_ticks(0.3, 9)
    [2.0, 4.0, 6.0, 8.0]
    """
    step = nice_step(low, high, count)
    return _multiples(step, math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9))


def covering_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from one at or below a range to one at or above it; a range without width is widened.

    >>> covering_ticks(0.3, 9), covering_ticks(4, 4, 2), covering_ticks(0, 0, 2)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [3.0, 4.0, 5.0], [0.0, 0.5, 1.0])
    """
    size = max(abs(low), abs(high))
    if size < 1e-30:
        low, high = 0.0, 1.0
    elif high - low <= 1e-9 * size:
        low, high = low - 0.25 * size, high + 0.25 * size
    step = nice_step(low, high, count)
    return _multiples(step, math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9))


def _multiples(step: float, first: int, last: int) -> list[float]:
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def plain(value: float) -> str:
    """A number in as few characters as it needs.

    >>> [plain(value) for value in (0, 0.03, 2.5, 1234, 48_000, 1_250_000, 0.00012)]
    ['0', '0.03', '2.5', '1,234', '48k', '1.25M', '0.00012']
    """
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3g}"
    for limit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if name == 'k' else limit):.4g}{name}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    r"""A number that is already in per cent.

    >>> percent(43.52), percent(100.0)
    ('43.5\xa0%', '100\xa0%')
    """
    return f"{value:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"


def downsample(points: Sequence[Point], limit: int = MOST_POINTS) -> list[Point]:
    """At most `limit` points that look the same: the lowest and highest of each stretch, the first and the last."""
    if len(points) <= limit:
        return list(points)
    inner = points[1:-1]
    buckets = (limit - 2) // 2
    edges = [len(inner) * number // buckets for number in range(buckets + 1)]
    kept = [points[0]]
    for start, end in pairwise(edges):
        stretch = range(start, end)
        low = min(stretch, key=lambda place: inner[place][1])
        high = max(stretch, key=lambda place: inner[place][1])
        kept += [inner[place] for place in sorted({low, high})]
    return [*kept, points[-1]]


def smooth(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """Moving mean over a share of the points, over fewer at both ends."""
    half = max(1, round(len(points) * share / 2))
    sums = [0.0, *accumulate(value for _, value in points)]
    smoothed = []
    for place, (x, _) in enumerate(points):
        start, end = max(0, place - half), min(len(points), place + half + 1)
        smoothed.append((x, (sums[end] - sums[start]) / (end - start)))
    return smoothed


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    y_label: str = "",
    y_format: Format = plain,
    from_zero: bool = False,
) -> str:
    """Lines over training steps, with ticks, labels, and the values on hovering.

    Returns:
        An `<svg>` element; empty where no series has a point.
    """
    drawn = [Series(line.name, downsample(line.points), line.role) for line in series if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + ([0.0] if from_zero else [])
    across = Scale(min(0.0, *xs), max(*xs, 1.0), LEFT, WIDTH - RIGHT)
    levels = covering_ticks(min(ys), max(ys))
    up = Scale(levels[0], levels[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        _grid(across, up, levels, y_label, y_format),
        *(_line(line, across, up) for line in sorted(drawn, key=_order)),
        _hovers(drawn, across, up, y_format),
    ]
    spoken = "; ".join(_spoken(line, y_format) for line in drawn if line.role != "raw")
    return _svg("chart", HEIGHT, f"{title}: {spoken}", parts)


def _svg(kind: str, height: float, spoken: str, parts: Sequence[str]) -> str:
    frame = f'class="{kind}" viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{in_html(spoken)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{in_html(text)}</text>'


def legend(series: Sequence[Series], y_format: Format = plain) -> str:
    """The names of the lines, each with its last value, as HTML."""
    entries = [
        f'<li class="{line.role}"><span class="swatch"></span>{in_html(line.name)} '
        f"<b>{in_html(y_format(line.points[-1][1]))}</b></li>"
        for line in series
        if line.points and line.role != "raw"
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>' if entries else ""


def bar_chart(title: str, bars: Sequence[Bar], *, value_format: Format = percent) -> str:
    """Bars from zero, each with its name above and its value behind."""
    if not bars:
        return ""
    pitch, room = 46.0, 76.0
    longest = max(*(bar.value for bar in bars), 1e-12)
    scale = Scale(0.0, longest, 0.0, WIDTH - room)
    parts = []
    for place, bar in enumerate(bars):
        top, length = place * pitch, max(scale(max(bar.value, 0.0)), 2.0)
        rectangle = f'<rect x="0" y="{top + 20:g}" width="{length:.1f}" height="16" rx="3"/>'
        name = _text("name", 0, top + 13, bar.name)
        figure = _text("figure", length + 8, top + 33, value_format(bar.value))
        parts.append(f'<g class="bar {bar.role}">{name}{rectangle}{figure}</g>')
    spoken = ", ".join(f"{bar.name} {value_format(bar.value)}" for bar in bars)
    return _svg("bars", pitch * len(bars) - 6, f"{title}: {spoken}", parts)


def _order(line: Series) -> int:
    """The student is drawn last, over the others."""
    return ("raw", "untrained", "teacher", "student").index(line.role)


def _spoken(line: Series, y_format: Format) -> str:
    return f"{line.name} from {y_format(line.points[0][1])} to {y_format(line.points[-1][1])}"


def _grid(across: Scale, up: Scale, levels: Sequence[float], y_label: str, y_format: Format) -> str:
    parts = []
    for tick in levels:
        parts.append(f'<path class="rule" d="M{across.start:g} {up(tick):.1f}H{across.end:g}"/>')
        parts.append(_text("tick", across.start - 6, up(tick) + 3.5, y_format(tick), "end"))
    ticks = nice_ticks(across.low, across.high)
    for tick, name in zip(ticks, _together(ticks), strict=True):
        parts.append(f'<path class="axis" d="M{across(tick):.1f} {up.start:g}v4"/>')
        parts.append(_text("tick", across(tick), up.start + 16, name, "middle"))
    parts.append(f'<path class="axis" d="M{across.start:g} {up.start:g}H{across.end:g}"/>')
    parts.append(_text("label", across.end, HEIGHT - 5, "step", "end"))
    parts.append(_text("label", 0, 10, y_label))
    return "".join(parts)


def _together(ticks: Sequence[float]) -> list[str]:
    """Ticks of one axis in one unit."""
    largest = max(map(abs, ticks))
    unit, name = next(
        ((size, name) for size, name in ((1e6, "M"), (1e3, "k")) if largest >= 10 * size), (1.0, "")
    )
    return [f"{tick / unit:,g}{name}" if tick else "0" for tick in ticks]


def _line(line: Series, across: Scale, up: Scale) -> str:
    places = [f"{across(x):.1f} {up(y):.1f}" for x, y in line.points]
    path = f'<path class="line {line.role}" d="M{"L".join(places)}"/>'
    if line.role == "raw" or len(places) > FEW_POINTS or (line.role != "student" and len(places) > 1):
        return path
    dots = (
        f'<circle class="dot {line.role}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6"/>'
        for x, y in line.points
    )
    return path + "".join(dots)


def _hovers(series: Sequence[Series], across: Scale, up: Scale, y_format: Format) -> str:
    """Invisible columns over the drawing; the one under the pointer appears and shows its values."""
    told = [line for line in series if line.role != "raw"]
    xs = sorted({x for line in told for x, _ in line.points})
    xs = (
        [xs[len(xs) * number // MOST_HOVERS] for number in range(MOST_HOVERS)]
        if len(xs) > MOST_HOVERS
        else xs
    )
    places = [across(x) for x in xs]
    edges = [across.start, *((left + right) / 2 for left, right in pairwise(places)), across.end]
    figures = [dict(line.points) for line in told]
    parts = []
    for x, (left, right) in zip(xs, pairwise(edges), strict=True):
        here = [(line, values[x]) for line, values in zip(told, figures, strict=True) if x in values]
        lines = [f"step {x:,.0f}", *(f"{line.name}: {y_format(value)}" for line, value in here)]
        dots = (
            f'<circle class="{line.role}" cx="{across(x):.1f}" cy="{up(value):.1f}" r="3.5"/>'
            for line, value in here
        )
        parts.append(
            f'<g class="hover"><title>{chr(10).join(map(in_html, lines))}</title>'
            f'<rect x="{left:.1f}" y="{up.end:g}" width="{max(right - left, 0.1):.1f}" height="{up.start - up.end:g}"/>'
            f'<path d="M{across(x):.1f} {up.end:g}V{up.start:g}"/>{"".join(dots)}</g>'
        )
    return "".join(parts)
