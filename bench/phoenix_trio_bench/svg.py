"""Writes SVG: text, lines, shapes, and the ticks of axes.  Knows nothing of the benchmark.

A drawing has a fixed width in its own units and is as wide as its place on the page.  Colours
come from the page's style sheet, by the names of classes, so that dark pages need no other drawing.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

__all__ = [
    "area",
    "coordinate",
    "dot",
    "drawing",
    "label",
    "line",
    "linear_ticks",
    "logarithmic_ticks",
    "polyline",
    "rectangle",
    "shorten",
    "whisker",
]

#: The most characters of a label before it is cut.
_LABEL = 26


def coordinate(value: float) -> str:
    """A coordinate with one decimal place at most."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")


def shorten(text: str, length: int = _LABEL) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def drawing(width: float, height: float, words: str, parts: Iterable[str]) -> str:
    """A whole drawing; `words` say the same to a reader who cannot see it."""
    return (
        f'<svg viewBox="0 0 {coordinate(width)} {coordinate(height)}" role="img" '
        f'aria-label="{html.escape(words)}">{"".join(parts)}</svg>'
    )


def label(
    x: float, y: float, text: str, style: str = "", *, anchor: str = "start", length: int = _LABEL
) -> str:
    """Text with its baseline at `y`; a cut one shows all of itself under the pointer."""
    shown = shorten(text, length)
    whole = f"<title>{html.escape(text)}</title>" if shown != text else ""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return (
        f'<text x="{coordinate(x)}" y="{coordinate(y)}"{side}{_style(style)}>'
        f"{whole}{html.escape(shown)}</text>"
    )


def rectangle(x: float, y: float, width: float, height: float, style: str = "") -> str:
    """A filled rectangle with slightly round corners."""
    return (
        f'<rect x="{coordinate(x)}" y="{coordinate(y)}" width="{coordinate(max(width, 0.5))}" '
        f'height="{coordinate(height)}" rx="2"{_style(style)}/>'
    )


def dot(x: float, y: float, radius: float, style: str = "") -> str:
    """A filled circle."""
    return (
        f'<circle cx="{coordinate(x)}" cy="{coordinate(y)}" r="{coordinate(radius)}"'
        f"{_style(style)}/>"
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str = "") -> str:
    """A straight line."""
    return (
        f'<path d="M{coordinate(x1)} {coordinate(y1)}L{coordinate(x2)} {coordinate(y2)}"'
        f"{_style(style)}/>"
    )


def whisker(low: float, high: float, y: float, style: str = "") -> str:
    """A horizontal line with a short stroke across each end."""
    first, last = coordinate(low), coordinate(high)
    top = coordinate(y - 3)
    return (
        f'<path d="M{first} {coordinate(y)}H{last}M{first} {top}v6M{last} {top}v6"{_style(style)}/>'
    )


def polyline(points: Sequence[tuple[float, float]], style: str = "") -> str:
    """A line through the points."""
    return f'<path d="M{_through(points)}"{_style(style)}/>'


def area(points: Sequence[tuple[float, float]], base: float, style: str = "") -> str:
    """The area between the points and a base line."""
    first, last = coordinate(points[0][0]), coordinate(points[-1][0])
    bottom = coordinate(base)
    return f'<path d="M{first} {bottom}L{_through(points)}L{last} {bottom}Z"{_style(style)}/>'


def _through(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)


def _style(name: str) -> str:
    return f' class="{name}"' if name else ""


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between the two, both included if they are round."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the two for a logarithmic axis; both are above 0."""
    if high / low < 4:
        return linear_ticks(low, high, 4)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        tick
        for power in powers
        for factor in (1, 2, 5)
        if low <= (tick := factor * 10.0**power) <= high
    ]
    if len(ticks) <= 7:
        return ticks
    return [tick for tick in ticks if abs(math.log10(tick) - round(math.log10(tick))) < 1e-9]
