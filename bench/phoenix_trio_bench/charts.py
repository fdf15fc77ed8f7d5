"""Draws the charts of the benchmark's page: bars, distributions, transfers over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from . import svg
from .over_time import Moment, Timeline
from .peers import PHOENIX
from .report import format_value, missing
from .results import PERCENTILES, Report, Row
from .verdicts import is_noisy, judge, middle_half

__all__ = ["compared_bars", "distributions", "over_time", "own_bars", "verdict_style"]

_WIDTH = 340.0

# Bars: names to the left, figures to the right.
_NAMES = 104.0
_LONGEST = 132.0
_LONGEST_ALONE = 240.0
_STEP = 36.0

#: The height of a line of small words.
_LINE = 18.0

# Distributions.
_BLOCK = 66.0
_BINS = 48
_STRIP = 26.0

#: Fewer samples than this are dots; a histogram of them would be a comb.
_FEW = 24

# Over time: the scale to the left.
_SCALE = 46.0
_PANEL = 84.0
_BUCKETS = 60

Map = Callable[[float], float]


def verdict_style(ratio: float | None) -> str:
    """The class of a verdict's text."""
    if ratio is None:
        return "open"
    return "ahead" if ratio > 1 else "behind"


def _side(row: Row) -> str:
    return "ours" if row.implementation == PHOENIX.name else "peer"


def _remark(report: Report, row: Row) -> tuple[str, str]:
    """The small words below a figure, and their class."""
    verdict = judge(report, row)
    if verdict is not None:
        return verdict.text, verdict_style(verdict.ratio)
    if is_noisy(row):
        return "noisy", "open"
    return "", ""


def _words(rows: Sequence[Row]) -> str:
    """A chart for a reader who cannot see it."""
    return "; ".join(
        f"{row.implementation}: "
        + (missing(row) if row.median is None else f"{format_value(row.median)} {row.unit}")
        for row in rows
    )


def _left_out(rows: Sequence[Row], y: float, parts: list[str]) -> float:
    """One line for each reason why rows have no figure; returns the height of them all."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.median is None:
            reasons.setdefault(missing(row), []).append(row.implementation.partition(" (")[0])
    for number, (reason, names) in enumerate(reasons.items()):
        text = f"{reason}: {', '.join(names)}"
        parts.append(svg.label(0, y + 13 + number * _LINE, text, "small", length=56))
    return len(reasons) * _LINE


def compared_bars(report: Report, rows: Sequence[Row]) -> str:
    """A bar for each implementation, its name before and its figure behind."""
    measured = [row for row in rows if row.median is not None]
    scale = _scale(measured, _LONGEST)
    parts: list[str] = []
    for number, row in enumerate(measured):
        y = number * _STEP
        name, _, detail = row.implementation.partition(" (")
        style = f"name {_side(row)}"
        parts.append(svg.label(0, y + (14 if detail else 18), name, style, length=14))
        if detail:
            parts.append(svg.label(0, y + 27, f"({detail}", "small", length=16))
        end = _bar(row, _NAMES, y + 5, scale, parts)
        remark, style = _remark(report, row)
        parts.append(svg.label(end, y + (14 if remark else 18), format_value(row.median), "value"))
        if remark:
            parts.append(svg.label(end, y + 27, remark, f"small {style}"))
    height = len(measured) * _STEP
    height += _left_out(rows, height, parts)
    return svg.drawing(_WIDTH, height, _words(rows), parts)


def _bar(row: Row, x: float, y: float, scale: float, parts: list[str]) -> float:
    """Draw a bar with the middle half of its runs; returns where there is room behind it."""
    width = max(0.0, row.median or 0.0) * scale
    parts.append(svg.rectangle(x, y, width, 18, _side(row)))
    end = x + width
    if len(row.runs) > 1:
        low, high = (x + max(0.0, value) * scale for value in middle_half(row.runs))
        if high - low > 1:
            parts.append(svg.whisker(low, high, y + 9, "whisker"))
            end = max(end, high)
    return end + 6


def _scale(rows: Sequence[Row], longest: float) -> float:
    """Units of the drawing for a unit of the figures."""
    top = max((middle_half(row.runs)[1] for row in rows), default=0.0)
    return longest / top if top > 0 else 0.0


def own_bars(report: Report, rows: Sequence[Row], names: Sequence[str]) -> str:
    """A bar for each row of one implementation, its name above: all have runs, in one unit."""
    scale = _scale(rows, _LONGEST_ALONE)
    parts: list[str] = []
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = number * (_STEP + 6)
        parts.append(svg.label(0, y + 13, name, "small", length=50))
        end = _bar(row, 0, y + 18, scale, parts)
        remark, style = _remark(report, row)
        parts.append(svg.label(end, y + 32, format_value(row.median), "value"))
        if remark:
            parts.append(svg.label(_WIDTH - 2, y + 32, remark, f"small {style}", anchor="end"))
    words = "; ".join(
        f"{name}: {format_value(row.median)}" for row, name in zip(rows, names, strict=True)
    )
    return svg.drawing(_WIDTH, len(rows) * (_STEP + 6), words, parts)


# ------------------------------------------------------------------ distributions


def distributions(report: Report, rows: Sequence[Row]) -> str:
    """For each implementation its percentiles, and a histogram on a common logarithmic axis."""
    sampled = [row for row in rows if row.samples]
    # A few outliers would leave no room for the rest; they are in the outermost bins.
    high = max(row.percentile(99) or 0 for row in sampled)
    high = high * 1.04 if high > 0 else 1.0
    low = max(min(row.percentile(1) or 0 for row in sampled) / 1.04, high / 1e6)

    def across(value: float) -> float:
        return (math.log(min(max(value, low), high) / low)) / math.log(high / low) * _WIDTH

    parts: list[str] = []
    for number, row in enumerate(sampled):
        y = number * _BLOCK
        parts.append(svg.label(0, y + 13, row.implementation, f"name {_side(row)}"))
        remark, style = _remark(report, row)
        if remark:
            parts.append(svg.label(_WIDTH - 2, y + 13, remark, f"small {style}", anchor="end"))
        parts.append(svg.label(0, y + 28, _percentiles(row), "small", length=60))
        parts += _histogram(row, across, y + 34)
    base = len(sampled) * _BLOCK
    for tick in svg.logarithmic_ticks(low, high):
        x = across(tick)
        anchor = "start" if x < 16 else "end" if x > _WIDTH - 16 else "middle"
        parts.append(svg.line(x, base - 2, x, base + 2, "axis"))
        parts.append(svg.label(x, base + 14, format_value(tick), "small", anchor=anchor))
    parts.append(svg.line(0, base - 2, _WIDTH, base - 2, "axis"))
    words = "; ".join(f"{row.implementation}: {_percentiles(row)}" for row in sampled)
    height = base + 18 + _left_out(rows, base + 18, parts)
    return svg.drawing(_WIDTH, height, words, parts)


def _percentiles(row: Row) -> str:
    values = [f"p{each} {format_value(row.percentile(each))}" for each in PERCENTILES]
    return " \N{MIDDLE DOT} ".join([*values, f"n {len(row.samples):,}"])


def _histogram(row: Row, across: Map, y: float) -> list[str]:
    base = y + _STRIP
    if len(row.samples) < _FEW:
        middle = y + _STRIP / 2
        return [svg.dot(across(sample), middle, 4, _side(row)) for sample in row.samples]
    bins = [0] * (_BINS if len(row.samples) >= 2 * _BINS else _BINS // 2)
    for sample in row.samples:
        bins[min(int(across(sample) / _WIDTH * len(bins)), len(bins) - 1)] += 1
    most = max(bins)
    width = _WIDTH / len(bins)
    points = []
    for number, count in enumerate(bins):
        height = base - count / most * _STRIP
        points += [(number * width, height), ((number + 1) * width, height)]
    parts = [svg.area(points, base, _side(row))]
    for percent in PERCENTILES:
        x = across(row.percentile(percent) or 0)
        parts.append(svg.line(x, y, x, base + 3, "mark"))
    return parts


# ------------------------------------------------------------------ over time


def over_time(timeline: Timeline) -> str:
    """Throughput, round-trip time and congestion window, one below the other."""
    moments = timeline.moments
    until = moments[-1].seconds
    limit = None if timeline.bandwidth is None else timeline.bandwidth / 1e6
    rates = _rates(moments)
    rtt = [(each.seconds, each.rtt * 1e3) for each in moments if each.rtt is not None]
    window = [(each.seconds, each.congestion_window / 1024) for each in moments]
    parts = _panel(0, "throughput, Mbit/s", rates, until, limit=limit)
    parts += _panel(1, "round-trip time, ms", rtt, until)
    parts += _panel(2, "congestion window, KiB", window, until)
    parts += _losses(moments, until)
    base = 3 * _PANEL
    last = moments[-1]
    for tick in svg.linear_ticks(0, until, 5):
        x = _time(tick, until)
        anchor = "end" if x > _WIDTH - 16 else "middle"
        parts.append(svg.label(x, base + 8, format_value(tick), "small", anchor=anchor))
    parts.append(svg.label(0, base + 8, "s", "small"))
    words = (
        f"{timeline.name}: {format_value(until)} s, "
        f"{format_value(last.acknowledged * 8 / until / 1e6)} Mbit/s, "
        f"{last.packets_lost} packets lost"
    )
    return svg.drawing(_WIDTH, base + 12, words, parts)


def _time(seconds: float, until: float) -> float:
    return _SCALE + seconds / until * (_WIDTH - _SCALE - 4)


def _rates(moments: Sequence[Moment]) -> list[tuple[float, float]]:
    """Mbit/s in equal parts of the time, as steps: moments are too unevenly spaced."""
    until = moments[-1].seconds
    count = max(1, min(_BUCKETS, len(moments) // 2))
    edges = [until * number / count for number in range(count + 1)]
    totals = []
    at = 0
    for edge in edges:
        while at + 2 < len(moments) and moments[at + 1].seconds < edge:
            at += 1
        totals.append(_acknowledged(moments[at], moments[at + 1], edge))
    points = []
    for number in range(count):
        rate = max(0.0, totals[number + 1] - totals[number]) * 8 / 1e6 / (until / count)
        points += [(edges[number], rate), (edges[number + 1], rate)]
    return points


def _acknowledged(before: Moment, after: Moment, seconds: float) -> float:
    """Between two moments, as if bytes came evenly."""
    span = after.seconds - before.seconds
    share = min(max((seconds - before.seconds) / span, 0.0), 1.0) if span > 0 else 1.0
    return before.acknowledged + share * (after.acknowledged - before.acknowledged)


def _panel(
    number: int,
    title: str,
    points: Sequence[tuple[float, float]],
    until: float,
    *,
    limit: float | None = None,
) -> list[str]:
    y = number * _PANEL
    top, base = y + 20, y + _PANEL - 10
    parts = [svg.label(0, y + 12, title, "name")]
    most = max([value for _, value in points] + ([] if limit is None else [limit]), default=0)
    if most <= 0:
        return parts

    def up(value: float) -> float:
        return base - value / (most * 1.04) * (base - top)

    for tick in svg.linear_ticks(0, most * 1.04, 3):
        height = up(tick)
        parts.append(svg.line(_SCALE, height, _WIDTH - 4, height, "grid"))
        text = format_value(tick) if tick else "0"
        parts.append(svg.label(_SCALE - 5, height + 4, text, "small", anchor="end"))
    places = [(_time(seconds, until), up(value)) for seconds, value in points]
    if number == 0:
        parts.append(svg.area(places, base, "wash"))
    parts.append(svg.polyline(places, "curve"))
    if limit is not None:
        parts.append(svg.line(_SCALE, up(limit), _WIDTH - 4, up(limit), "limit"))
        text = f"- - link {format_value(limit)}"
        parts.append(svg.label(_WIDTH - 4, y + 12, text, "small behind", anchor="end"))
    return parts


def _losses(moments: Sequence[Moment], until: float) -> list[str]:
    """A mark wherever packets were found lost, in the panel of the congestion window."""
    total = moments[-1].packets_lost
    text = f"{total:,} packets lost" if total != 1 else "1 packet lost"
    top = 2 * _PANEL + 12
    parts = [svg.label(_WIDTH - 4, top, text, "small behind", anchor="end")]
    places = {
        svg.coordinate(_time(after.seconds, until))
        for before, after in pairwise(moments)
        if after.packets_lost > before.packets_lost
    }
    base = 3 * _PANEL - 10
    parts += [svg.line(float(x), base - 7, float(x), base, "loss") for x in sorted(places)]
    return parts
