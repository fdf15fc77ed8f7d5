"""Writes the benchmark's pages: HTML with drawings, complete in itself, without a script."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import charts, style
from .over_time import Timeline
from .peers import PHOENIX
from .report import circumstances, format_value, missing
from .results import PERCENTILES, Report, Row
from .verdicts import RULE, judge, ratio_to_ours, summary

__all__ = ["save_page", "save_timelines"]

#: The sections of the page, each with the rows that belong there; the first match counts.
_SECTIONS = (
    ("Transfers", r"^(transfer|start of|\d+ MB beside)"),
    ("Latency", r"^(\d+ bytes there|new stream|request and|opening)"),
    ("Connections", r"^(connection,|cold )"),
    ("Side by side", r"^(echoes|requests|datagrams)"),
    ("Memory and files", r"^(memory|file descriptors)"),
)
_OTHER = "Other figures"

#: The end of a row's name if its packets have a size of their own.
_PACKETS = re.compile(r", (\d+-byte packets)$")

_UNITS = {
    "%": "per cent",
    "": "number",
    "1/s": "a second",
    "ms": "milliseconds",
    "s": "seconds",
    "us": "microseconds",
}

#: The figures at the top of the page: of each line the first that was measured.
_HEADLINES = (
    ("transfer 100 MB: rate", "transfer 10 MB: rate"),
    ("64 bytes there and back",),
    ("connection, full handshake",),
    ("echoes a second, 100 at a time", "requests a second, 100 at a time"),
)

_POLICY = (
    "<meta http-equiv='Content-Security-Policy'"
    " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)

_BETTER = {True: "higher is better", False: "lower is better", None: ""}


def save_page(report: Report, path: str) -> None:
    """Write the page of a report."""
    Path(path).write_text(_document("phoenix_trio benchmark", _body(report)), encoding="utf-8")


def save_timelines(title: str, lead: str, timelines: Sequence[Timeline], path: str) -> None:
    """Write a page with transfers over time alone."""
    body = [f"<p class='lead'>{html.escape(lead)}</p>", *_over_time(timelines)]
    Path(path).write_text(_document(title, body), encoding="utf-8")


def _document(title: str, body: Sequence[str]) -> str:
    return "\n".join(
        (
            "<!doctype html>",
            "<html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            "<meta name='color-scheme' content='light dark'>",
            # The page loads nothing and runs nothing; the browser holds it to that.
            _POLICY,
            f"<title>{html.escape(title)}</title>",
            f"<style>{style.SHEET}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            *body,
            "</body></html>\n",
        )
    )


def _body(report: Report) -> list[str]:
    parts = [f"<p class='lead'>{html.escape(summary(report))}</p>", *_headlines(report)]
    if report.rows:
        parts.append(f"<p class='soft'>{html.escape(_reading(report))}</p>")
    sections: dict[str, list[str]] = {name: [] for name, _ in _SECTIONS}
    for name in report.names:
        sections.setdefault(_section(name), []).append(name)
    sections[_OTHER] = sections.pop(_OTHER, [])  # the last one
    for section, names in sections.items():
        cards = list(_cards(report, names))
        if cards:
            parts += [f"<h2>{section}</h2><div class='cards'>", *cards, "</div>"]
    parts += _over_time(report.timelines)
    parts += _figures(report)
    parts.append(f"<h2>Where and when</h2><p class='soft'>{html.escape(circumstances(report))}</p>")
    return parts


def _reading(report: Report) -> str:
    words = "Figures are medians of the runs; a bar's whisker is their middle half."
    if len(report.implementations) > 1:
        words += (
            f" A ratio below a peer's figure: how many times better {PHOENIX.name} was, so that "
            f"1 is the same and less than 1 is worse. {RULE}"
        )
    if any(row.samples for row in report.rows):
        words += (
            " Half of the operations took p50 or less, 99 % took p99 or less; of fewer than "
            "100 operations (n), p99 is the slowest."
        )
    return words


def _section(name: str) -> str:
    packets = _PACKETS.search(name)
    if packets:
        return packets[1].capitalize()
    for section, pattern in _SECTIONS:
        if re.search(pattern, name):
            return section
    return _OTHER


def _headlines(report: Report) -> Iterator[str]:
    tiles = [
        found[0]
        for names in _HEADLINES
        if (found := [tile for name in names if (tile := _headline(report, name))])
    ]
    if tiles:
        yield from ("<div class='tiles'>", *tiles, "</div>")


def _headline(report: Report, name: str) -> str:
    ours = report.find(name, PHOENIX.name)
    if ours is None or ours.median is None:
        return ""
    rivals = [
        (ratio, row)
        for row in report.rows
        if row.name == name and (ratio := ratio_to_ours(report, row)) is not None
    ]
    against = ""
    if rivals:
        _, row = min(rivals, key=lambda each: each[0])
        verdict = judge(report, row)
        assert verdict is not None
        against = (
            f"<span class='soft'>{html.escape(row.implementation)}: {format_value(row.median)}, "
            f"<b class='{charts.verdict_style(verdict.ratio)}'>{verdict.text}</b></span>"
        )
    return (
        f"<div class='tile'><span>{html.escape(name)}</span>"
        f"<strong>{format_value(ours.median)} <small>{html.escape(ours.unit)}</small></strong>"
        f"{against}</div>"
    )


# ------------------------------------------------------------------ charts


def _cards(report: Report, names: Sequence[str]) -> Iterator[str]:
    alone: list[Row] = []
    for name in (name for name in names if not _is_twin(name, names)):
        rows = [row for row in report.rows if row.name == name]
        measured = [row for row in rows if row.runs]
        if measured and all(row.samples for row in measured):
            yield _card(_title(name), rows[0], charts.distributions(report, rows))
        elif [row.implementation for row in measured] == [PHOENIX.name]:
            alone += measured
        elif measured:
            yield _card(_title(name), rows[0], charts.compared_bars(report, rows))
    yield from _shared_cards(report, alone)


def _shared_cards(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    """Rows that no peer has: those of one unit share a chart."""
    units: dict[tuple[str, bool | None], list[Row]] = {}
    for row in rows:
        units.setdefault((row.unit, row.higher_is_better), []).append(row)
    alone = f"{PHOENIX.name} alone" if len(report.implementations) > 1 else ""
    for (unit, higher_is_better), shared in units.items():
        chart = charts.own_bars(report, shared, [_title(row.name) for row in shared])
        words = ", ".join(word for word in (_BETTER[higher_is_better], alone) if word)
        yield _figure(_UNITS.get(unit, unit), words, chart)


def _title(name: str) -> str:
    """A row's name below the heading of its section."""
    return _PACKETS.sub("", name)


def _is_twin(name: str, names: Sequence[str]) -> bool:
    """Whether another row shows the same measurement better: rates of large transfers, times
    of small ones.  The table has both."""
    plain, _, suffix = name.partition(": rate")
    is_rate = plain != name
    large = re.match(r"transfer \d+ [MG]B\b", name) is not None
    if is_rate:
        return not large and plain + suffix in names
    size, comma, packets = name.rpartition(", ")
    is_sized = comma and packets.endswith("-byte packets")
    rate = f"{size}: rate, {packets}" if is_sized else f"{name}: rate"
    return large and rate in names


def _unit(row: Row) -> str:
    """The unit, and which way is better."""
    return ", ".join(word for word in (row.unit, _BETTER[row.higher_is_better]) if word)


def _card(title: str, row: Row, chart: str) -> str:
    return _figure(title, _unit(row), chart)


def _figure(title: str, words: str, chart: str) -> str:
    soft = f" <span class='soft'>{html.escape(words)}</span>" if words else ""
    return f"<figure><figcaption>{html.escape(title)}{soft}</figcaption>{chart}</figure>"


def _over_time(timelines: Sequence[Timeline]) -> Iterator[str]:
    if not timelines:
        return
    yield "<h2>Over time</h2><div class='cards'>"
    for timeline in timelines:
        if len(timeline.moments) < 2 or timeline.moments[-1].seconds <= 0:
            note = html.escape(timeline.note or "too short to be drawn")
            yield _figure(timeline.name, "", f"<p class='soft'>{note}</p>")
        else:
            yield _figure(timeline.name, "", charts.over_time(timeline))
    yield "</div>"
    yield (
        "<p class='soft'>Throughput counts acknowledged bytes. Bytes behind a lost packet count "
        "when it has arrived at last, so that a gap and a peak follow a loss.</p>"
    )


# ------------------------------------------------------------------ the table


def _figures(report: Report) -> Iterator[str]:
    """All figures as text."""
    if not report.rows:
        return
    yield "<details><summary>All figures</summary><table>"
    yield "<tr><th>by</th><th>median</th><th>min to max, and remarks</th></tr>"
    for name in report.names:
        rows = [row for row in report.rows if row.name == name]
        yield (
            f"<tr class='row'><th colspan='3'>{html.escape(name)} "
            f"<span class='soft'>{html.escape(_unit(rows[0]))}</span></th></tr>"
        )
        for row in rows:
            yield (
                f"<tr><td>{html.escape(row.implementation)}</td>"
                f"<td>{_median(report, row)}</td><td>{html.escape(_remarks(row))}</td></tr>"
            )
    yield "</table></details>"


def _median(report: Report, row: Row) -> str:
    if row.median is None:
        return html.escape(missing(row))
    text = format_value(row.median)
    verdict = judge(report, row)
    if verdict is None:
        return text
    return f"{text} <b class='{charts.verdict_style(verdict.ratio)}'>{verdict.text}</b>"


def _remarks(row: Row) -> str:
    parts = []
    if row.runs:
        spread = f"{format_value(row.minimum)} to {format_value(row.maximum)}"
        parts.append("1 run" if len(row.runs) == 1 else f"{spread} ({len(row.runs)} runs)")
    if row.samples:
        parts += [f"p{each} {format_value(row.percentile(each))}" for each in PERCENTILES]
    if row.note:
        parts.append(row.note)
    return "; ".join(parts)
