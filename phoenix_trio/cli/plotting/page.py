"""Makes the HTML page of a trace: a summary, the charts, and a table of what happened.

Floor 6, pure.  The page has no scripts, and its policy forbids them and everything from other
places.
"""

from __future__ import annotations

from html import escape

from ...storage.names import printable
from .story import Mark, Story, StreamFigures
from .svg import Chart, Line, draw, format_bytes, format_count, format_time
from .timeline import Counter

__all__ = ["write_page"]

_MOST_NAME = 200

#: Intervals of which a rate is the mean, so that single bursts do not cover the course.
_TOGETHER = 4

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #fff; --soft: #667; --grid: #ddd;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9;
  --c6: #8a6d00; --c7: #888; --mark: #a0a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --back: #15181c; --soft: #9aa3ad;
  --grid: #333a42; --c0: #4ea8de; --c1: #ff8c42; --c2: #2bc59b; --c6: #d4b13f; --mark: #e58be5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 12px; max-width: 1400px; font: 15px/1.45 system-ui, sans-serif;
  color: var(--text); background: var(--back); }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0 0 .2rem; }
.charts { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 13px; fill: var(--soft); }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.grid { stroke: var(--grid); fill: none; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.bar { stroke-width: 2; }
.mark path { stroke: var(--mark); stroke-dasharray: 4 3; opacity: .7; }
.mark text { fill: var(--mark); font-weight: 600; }
.legend { margin: 0; display: flex; flex-wrap: wrap; gap: 0 14px; }
.legend i { display: inline-block; width: 14px; height: 4px; margin-right: 5px;
  vertical-align: middle; }
.note, .none { margin: 0; color: var(--soft); font-size: .87rem; }
.remark { border-left: 4px solid var(--c1); padding: 4px 10px; margin: .4rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 0 0 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin-top: 1rem; }
td, th { text-align: left; vertical-align: top; padding: 3px 12px 3px 0; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } td:nth-child(2) { white-space: nowrap; }
"""
_COLOURS = "".join(
    f".line.c{n} {{ stroke: var(--c{n}); }} .legend .c{n} {{ background: var(--c{n}); }}\n"
    for n in range(8)
)


def write_page(story: Story, *, name: str, title: str, vantage: str, remarks: list[str]) -> str:
    """The whole page, below 500 KB.

    Args:
      story: the figures.
      name: of the file.
      title: of the trace, or its connection ID.
      vantage: the side that wrote it.
      remarks: texts about damage.
    """
    duration = max(story.duration, 1e-3)
    marks = [(n, each.time, each.kind, _text(each.text)) for n, each in enumerate(story.marks, 1)]
    charts = "\n".join(draw(chart, duration, marks) for chart in _charts(story))
    shown = _text(name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(shown)}: QUIC trace</title>
<style>{_STYLE}{_COLOURS}</style>
</head>
<body>
<h1>{escape(shown)}</h1>
{_remarks(remarks)}
{_summary(story, title, vantage)}
<div class="charts">
{charts}
</div>
{_table(story.marks, story.marks_left_out)}
</body>
</html>
"""


def _text(text: str) -> str:
    return printable(text[:_MOST_NAME])


def _remarks(remarks: list[str]) -> str:
    return "\n".join(f'<p class="remark">{escape(_text(each))}</p>' for each in remarks)


def _summary(story: Story, title: str, vantage: str) -> str:
    windows = [value for _, value in story.window.points()]
    rtts = [value for _, value in story.rtt_latest.points()]
    sent, received = int(story.sent.total), int(story.received.total)
    share = f" ({100 * story.lost.total / sent:.2f} % of those sent)" if sent else ""
    rows = [
        ("connection", _text(title) or "unnamed"),
        ("written by", _text(vantage) or "unknown"),
        ("duration", format_time(story.duration)),
        ("events", f"{story.events:,}"),
        ("sent", f"{sent:,} packets, {format_bytes(story.bytes_sent)}"),
        (
            "received",
            f"{received:,} packets, {format_bytes(story.bytes_received)}",
        ),
        ("lost", f"{int(story.lost.total):,} packets{share}"),
    ]
    if windows:
        rows.append(("largest congestion window", format_bytes(max(windows))))
    if rtts:
        rows.append(("round-trip times", f"{format_time(min(rtts))} to {format_time(max(rtts))}"))
    return "<dl>" + "".join(f"<dt>{a}</dt><dd>{escape(b)}</dd>" for a, b in rows) + "</dl>"


def _charts(story: Story) -> list[Chart]:
    width = _TOGETHER * story.timeline.width
    losses = story.lost.counts() if story.lost.total else [(0.0, 0.0)][: story.events]
    interval = f"In each interval of {format_time(story.timeline.width)}."
    return [
        Chart(
            "Congestion window and bytes in flight",
            [
                Line("congestion window", story.window.points()),
                Line("bytes in flight", story.in_flight.points()),
            ],
            format_bytes,
        ),
        Chart(
            "Round-trip time",
            [
                Line("latest", story.rtt_latest.points()),
                Line("smoothed", story.rtt_smoothed.points()),
                Line("smallest", story.rtt_min.points()),
            ],
            format_time,
        ),
        Chart(
            "Packets a second",
            [
                Line("sent", _rates(story.sent, width)),
                Line("received", _rates(story.received, width)),
            ],
            format_count,
            note=f"Means over intervals of {format_time(width)}.",
        ),
        Chart(
            "Packets declared lost",
            [Line("lost", losses)],
            format_count,
            is_count=True,
            note=interval if story.lost.total else "None.",
        ),
        _streams("Stream data sent", story.streams_sent),
        _streams("Stream data received", story.streams_received),
    ]


def _streams(title: str, figures: StreamFigures) -> Chart:
    lines = [Line(name, counter.sums()) for name, counter in figures.shown()]
    return Chart(title, lines, format_bytes, note="So far, repeated data included.")


def _rates(counter: Counter, width: float) -> list[tuple[float, float]]:
    return [(time, 1000 * count / width) for time, count in counter.counts(_TOGETHER)]


def _table(marks: list[Mark], left_out: int) -> str:
    if not marks:
        return ""
    rows = "".join(
        f"<tr><td>{n}</td><td>{format_time(each.time)}</td><td>{escape(_text(each.text))}</td></tr>"
        for n, each in enumerate(marks, 1)
    )
    more = f'<p class="note">{left_out:,} more are not marked.</p>' if left_out else ""
    return f"<table><tr><th></th><th>time</th><th>event</th></tr>{rows}</table>{more}"
