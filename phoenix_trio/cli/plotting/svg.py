"""Draws one chart as SVG, without scripts and without other files.

Floor 6, pure.  All text is escaped here.  Colours and fonts are classes of the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import attrs

__all__ = ["Chart", "Line", "draw", "format_bytes", "format_count", "format_time", "ticks"]

Point = tuple[float, float]

#: Units of the drawing.  It is made for 400 to 700 pixels, where text keeps a readable size.
WIDTH, HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 8, 20, 26

#: Units between the numbers of two marks at least; closer ones are drawn without.
_MARK_SPACE = 14


@attrs.frozen
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    """Times in milliseconds, ascending, and values of 0 or more."""


@attrs.frozen
class Chart:
    """One chart."""

    title: str
    lines: Sequence[Line]
    show: Callable[[float], str]
    """Makes the label of a value."""
    is_count: bool = False
    """Draw an upright bar for each value instead of a line, and label whole numbers only."""
    note: str = ""


def draw(chart: Chart, duration: float, marks: Sequence[tuple[int, float, str, str]]) -> str:
    """The chart with its title and legend, as HTML.

    Args:
      chart: what to draw.
      duration: milliseconds of the time axis.
      marks: numbers, times, kinds and texts, by time.
    """
    lines = [line for line in chart.lines if line.points]
    head = f"<h2>{escape(chart.title)}</h2>"
    if not lines:
        return f'<figure>{head}<p class="none">The trace does not tell.</p></figure>'
    top = max(value for line in lines for _, value in line.points)
    steps = ticks(top, smallest=1.0 if chart.is_count else 0.0)
    scale_y = (HEIGHT - _TOP - _BOTTOM) / (steps[-1] or 1.0)
    scale_x = (WIDTH - _LEFT - _RIGHT) / max(duration, 1e-6)

    def x(time: float) -> float:
        return _LEFT + min(time, duration) * scale_x

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - value * scale_y

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        f"<title>{escape(chart.title)}</title>",
    ]
    for step in steps:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(step):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="end" x="{_LEFT - 5}" y="{y(step) + 4:.1f}">'
            f"{escape(chart.show(step))}</text>"
        )
    for step in ticks(duration, most=5):
        if step > duration:
            continue
        place = "end" if x(step) > WIDTH - 40 else "mid"
        parts.append(
            f'<text class="{place}" x="{x(step):.1f}" y="{HEIGHT - 8}">{format_time(step)}</text>'
        )
    taken = -math.inf
    for number, time, kind, text in marks:
        at = x(time)
        parts.append(
            f'<g class="mark {escape(kind)}"><title>{number}: {escape(text)}</title>'
            f'<path d="M{at:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>'
        )
        if at - taken >= _MARK_SPACE:
            taken = at
            parts.append(f'<text class="mid" x="{at:.1f}" y="{_TOP - 6}">{number}</text>')
        parts.append("</g>")
    for index, line in enumerate(lines):
        style = f"line c{index % 8}"
        if chart.is_count:
            path = "".join(
                f"M{x(time):.1f} {HEIGHT - _BOTTOM}V{y(value):.1f}"
                for time, value in line.points
                if value
            )
            style += " bar"
        else:
            path = "M" + "L".join(f"{x(time):.1f} {y(value):.1f}" for time, value in line.points)
        if path:
            parts.append(f'<path class="{style}" d="{path}"/>')
    parts.append("</svg>")
    legend = ""
    if len(lines) > 1 or lines[0].name not in chart.title:
        entries = (
            f'<span><i class="c{index % 8}"></i>{escape(line.name)}</span>'
            for index, line in enumerate(lines)
        )
        legend = f'<p class="legend">{"".join(entries)}</p>'
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return f"<figure>{head}{legend}{''.join(parts)}{note}</figure>"


def ticks(top: float, *, most: int = 4, smallest: float = 0.0) -> list[float]:
    """Round values from 0 to `top` or a little above, `most` + 1 of them at most.

    Args:
      top: the largest value.
      most: how many steps there may be.
      smallest: the smallest step.
    """
    if top <= 0:
        return [0.0]
    rough = max(top / most, smallest)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [step * count for count in range(math.ceil(top / step - 1e-9) + 1)]


def format_count(value: float) -> str:
    """A number for people."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g} {unit}"
    return f"{value:.4g}"


def format_bytes(value: float) -> str:
    """A number of bytes for people, in powers of ten as the ticks are."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.4g} B"


def format_time(milliseconds: float) -> str:
    """A time for people."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.5g} s"
    return f"{milliseconds:.4g} ms"
