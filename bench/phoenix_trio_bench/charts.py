"""Writes a report as one HTML page with charts, complete in itself."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from .report import format_value
from .results import Report

__all__ = ["save_page"]


def save_page(report: Report, path: str) -> None:
    """Write the page."""
    # (Loading plotly takes longer than some commands.)
    from plotly.graph_objects import Bar, Figure
    from plotly.offline import get_plotlyjs

    parts = [_head(report, get_plotlyjs())]
    for name in report.names:
        rows = [row for row in report.rows if row.name == name and row.median is not None]
        if not rows:
            continue
        figure: Any = Figure(
            Bar(
                x=[row.median for row in rows],
                y=[row.implementation for row in rows],
                orientation="h",
                text=[f"{format_value(row.median)} {row.unit}" for row in rows],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [(row.maximum or 0) - (row.median or 0) for row in rows],
                    "arrayminus": [(row.median or 0) - (row.minimum or 0) for row in rows],
                },
            )
        )
        better = {True: "; higher is better", False: "; lower is better", None: ""}
        figure.update_layout(
            title=f"{name} ({rows[0].unit or 'number'}{better[rows[0].higher_is_better]})",
            height=140 + 40 * len(rows),
            margin={"l": 180, "t": 50, "b": 30},
        )
        parts.append(figure.to_html(full_html=False, include_plotlyjs=False))
    parts.append("</body></html>\n")
    Path(path).write_text("\n".join(parts), encoding="utf-8")


def _head(report: Report, script: str) -> str:
    facts = {
        "date": report.date,
        "commit": report.commit or "",
        "command": report.command,
        **report.machine,
        **report.versions,
    }
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<title>phoenix_trio benchmark</title>"
        "<style>body{font-family:sans-serif;max-width:70em;margin:auto}"
        "th{text-align:left;padding-right:1em}</style>"
        f"<script>{script}</script></head><body><h1>phoenix_trio benchmark</h1>"
        f"<p>Medians; the whiskers reach from the smallest run to the largest.</p>"
        f"<table>{lines}</table>"
    )
