"""Reports for people: tables on a terminal, in Markdown, and against an older report."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from .peers import PHOENIX
from .results import Report, Row
from .verdicts import RULE, judge, summary

__all__ = ["circumstances", "compare", "format_value", "markdown", "missing", "print_report"]


def format_value(value: float | None) -> str:
    """A value with its significant digits only."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def missing(row: Row) -> str:
    """A word for a figure that is missing; the row's note has the whole reason."""
    reason = row.note.split(":", 1)[0]
    return reason if reason in ("failed", "left out") else "not measured"


def _cell(report: Report, row: Row | None) -> str:
    if row is None:
        return ""
    if row.median is None:
        return row.note.split(":", 1)[0] if row.note.startswith(("failed", "left out")) else "-"
    text = format_value(row.median)
    verdict = judge(report, row)
    return text if verdict is None else f"{text} ({verdict.text})"


def _spread(row: Row | None) -> str:
    if row is None or row.minimum is None or row.maximum is None:
        return ""
    return f"{format_value(row.minimum)} to {format_value(row.maximum)}"


def _lines(report: Report) -> Iterator[list[str]]:
    peers = [name for name in report.implementations if name != PHOENIX.name]
    for name in report.names:
        ours = report.find(name, PHOENIX.name)
        unit = next(row.unit for row in report.rows if row.name == name)
        cells = [_cell(report, report.find(name, peer)) for peer in peers]
        yield [name, unit, _cell(report, ours), _spread(ours), *cells]


def _columns(report: Report) -> list[str]:
    peers = [name for name in report.implementations if name != PHOENIX.name]
    return ["", "unit", PHOENIX.name, "min to max", *peers]


def print_report(report: Report, console: Console) -> None:
    """Print the table, and the circumstances of the run."""
    table = Table(*_columns(report), title=None)
    for line in _lines(report):
        table.add_row(*line)
    if report.rows:
        console.print(table)
    if len(report.implementations) > 1:
        console.print(
            "In brackets: how many times better phoenix_trio was; all took turns, run by run."
        )
        if _has_open_verdicts(report):
            console.print(RULE, markup=False, highlight=False)
    console.print(summary(report), markup=False, highlight=False)
    for note in _notes(report):
        console.print(note, markup=False, highlight=False)
    console.print(circumstances(report), markup=False, highlight=False)


def _has_open_verdicts(report: Report) -> bool:
    verdicts = [judge(report, row) for row in report.rows]
    return any(verdict is not None and verdict.ratio is None for verdict in verdicts)


def _notes(report: Report) -> Iterator[str]:
    """The reasons for gaps, and remarks about figures: a line each."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        if row.note:
            said.setdefault((row.implementation, row.note), []).append(row.name)
    for (implementation, note), names in said.items():
        yield f"{implementation}: {note}: {'; '.join(names)}"
    for timeline in report.timelines:
        if timeline.note:
            yield f"{timeline.name}: {timeline.note}"


def circumstances(report: Report) -> str:
    """When, where and with what the figures were measured, in one line."""
    words = {"cores": "{} cores", "memory": "{} of memory"}
    machine = ", ".join(
        words.get(name, "{}").format(value) for name, value in report.machine.items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    commit = f", commit {report.commit}" if report.commit else ""
    return f"{report.date}{commit}; {machine}; {versions}; {report.command}"


def markdown(report: Report) -> str:
    """The table for the documentation."""
    columns = _columns(report)
    lines = [
        f"Medians, with the spread of our own runs. {circumstances(report)}",
        "",
        summary(report),
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += ["| " + " | ".join(line) + " |" for line in _lines(report)]
    notes = [f"- {note}" for note in _notes(report)]
    if _has_open_verdicts(report):
        notes.insert(0, f"- {RULE}")
    if notes:
        lines += ["", *notes]
    return "\n".join(lines) + "\n"


def compare(old: Report, new: Report, console: Console) -> None:
    """Show the changes: the ratio of medians, marked if the spreads do not overlap.

    A single run says nothing of the noise, so it is never marked.
    """
    table = Table("", "implementation", "unit", "before", "now", "better by", "beyond noise")
    for row in new.rows:
        before = old.find(row.name, row.implementation)
        if before is None or not before.median or not row.median:
            continue
        change = row.median / before.median
        better = {True: change, False: 1 / change, None: None}[row.higher_is_better]
        assert row.minimum is not None
        assert row.maximum is not None
        assert before.minimum is not None
        assert before.maximum is not None
        apart = row.minimum > before.maximum or row.maximum < before.minimum
        known = min(len(row.runs), len(before.runs)) > 1
        table.add_row(
            row.name,
            row.implementation,
            row.unit,
            format_value(before.median),
            format_value(row.median),
            "" if better is None else f"{better:.2f}x",
            "yes" if apart and known else "",
        )
    console.print(f"compared with {old.date}{', commit ' + old.commit if old.commit else ''}:")
    console.print(table)
