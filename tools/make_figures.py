#!/usr/bin/env python3
"""Makes the chart and the short tables of figures from the tables in docs/performance.md.

    tools/make_figures.py            writes docs/chart.svg and the marked parts of pages
    tools/make_figures.py --check    writes nothing; fails if one of them is stale

A marked part stands between `<!-- figures: begin, ... -->` and `<!-- figures: end -->`.  Run this
after `phoenix-trio bench --markdown docs/performance.md`; tests/test_figures.py fails until then.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import attrs

ROOT = Path(__file__).resolve().parent.parent

OURS = "phoenix_trio"
AIOQUIC = "aioquic (asyncio)"
QH3 = "qh3 (asyncio)"
LIBP2P = "py-libp2p (QUIC)"
TLS = "TLS over TCP (trio)"

#: Implementations as the chart and the short tables name them.
SHORT = {
    OURS: "phoenix_trio",
    AIOQUIC: "aioquic",
    QH3: "qh3",
    LIBP2P: "py-libp2p",
    TLS: "TLS over TCP",
}

BULK = "transfer 100 MB: rate"
SMALL = "64 bytes there and back"


@attrs.frozen(kw_only=True)
class Row:
    """A row of the tables: the text of each implementation's figure, without brackets."""

    unit: str
    cells: dict[str, str]

    def value(self, name: str) -> float | None:
        """An implementation's figure as a number; ``None``: there is none."""
        try:
            return float(self.cells.get(name, "").replace(",", ""))
        except ValueError:
            return None


def read_tables(text: str) -> dict[str, Row]:
    """The rows of the tables in docs/performance.md, by name."""
    begin = text.index("<!-- tables: begin")
    lines = text[begin : text.index("<!-- tables: end")].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    head = table[0]
    rows = {}
    for cells in table[2:]:
        figures = dict(zip(head[2:], cells[2:], strict=True))
        del figures["min to max"]
        short = {name: re.sub(r" \(.*\)$", "", figure) for name, figure in figures.items()}
        rows[cells[0]] = Row(unit=cells[1], cells=short)
    return rows


# ------------------------------------------------------------------------- the chart

_WIDTH, _LABEL, _BAR, _LINE = 400, 96, 204, 21

_STYLE = """\
.card{fill:#fff;stroke:#d0d7de}text{font:12px system-ui,sans-serif;fill:#1f2328}
.head{font-weight:600}.other{fill:#8c959f}.own{fill:#0a6cd6}
@media(prefers-color-scheme:dark){.card{fill:#0d1117;stroke:#30363d}text{fill:#e6edf3}
.other{fill:#6e7681}.own{fill:#4493f8}}"""


def _panel(row: Row, title: str, top: int, *, more_is_better: bool) -> Iterator[str]:
    """The lines of one panel: its title, then a bar for each implementation, the best first."""
    found = [(row.value(name), name) for name in SHORT]
    bars = sorted(
        ((value, name) for value, name in found if value is not None), reverse=more_is_better
    )
    longest = max(value for value, _ in bars)
    yield f'<text class="head" x="12" y="{top}">{escape(title)}</text>'
    for number, (value, name) in enumerate(bars):
        y = top + 19 + number * _LINE
        width = max(2.0, _BAR * value / longest)
        kind = "own" if name == OURS else "other"
        yield f'<text x="12" y="{y}">{escape(SHORT[name])}</text>'
        place = f'x="{_LABEL}" y="{y - 11}" width="{width:.1f}"'
        yield f'<rect class="{kind}" {place} height="14" rx="2"/>'
        yield f'<text x="{_LABEL + width + 6:.1f}" y="{y}">{row.cells[name]} {row.unit}</text>'


def draw(rows: dict[str, Row]) -> str:
    """The chart: large transfers and small exchanges, so that it shows both ends."""
    bulk, small = rows[BULK], rows[SMALL]
    bars = [sum(row.value(name) is not None for name in SHORT) for row in (bulk, small)]
    middle = 24 + bars[0] * _LINE + 36
    height = middle + bars[1] * _LINE + 18
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        "<title>100 MB on one stream, and 64 bytes there and back, by implementation</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        *_panel(bulk, "100 MB on one stream (more is better)", 24, more_is_better=True),
        *_panel(small, "64 bytes there and back (less is better)", middle, more_is_better=False),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------- parts of pages


def five_figures(rows: dict[str, Row]) -> str:
    """README.md's five figures."""
    wanted = [
        (BULK, "100 MB on one stream", AIOQUIC, TLS),
        (f"{BULK}, 1452-byte packets", "the same in packets of 1,452 bytes", AIOQUIC, QH3),
        ("connection, full handshake", "a new connection", AIOQUIC, TLS),
        ("new stream and a 64-byte echo", "a new stream and a 64-byte echo", AIOQUIC, QH3),
        ("memory of an idle connection, server", "an idle connection at a server", AIOQUIC, QH3),
    ]
    lines = ["| | phoenix_trio | others |", "|---|---|---|"]
    for name, text, *others in wanted:
        row = rows[name]
        beside = ", ".join(f"{SHORT[other]} {row.cells[other]}" for other in others)
        lines.append(f"| {text} | {row.cells[OURS]} {row.unit} | {beside} |")
    return "\n".join(lines) + "\n"


def comparison(rows: dict[str, Row]) -> str:
    """The table of docs/comparison.md; the best figure of a row is bold."""
    wanted = [
        (BULK, "100 MB on one stream", max),
        (f"{BULK}, 1452-byte packets", "the same, 1,452-byte packets", max),
        ("transfer 1 MiB", "1 MiB on a warm connection", min),
        (SMALL, "64 bytes there and back", min),
        ("new stream and a 64-byte echo", "new stream and a 64-byte echo", min),
        ("echoes a second, 100 at a time", "echoes a second, 100 at a time", max),
        ("connection, full handshake", "full handshake", min),
        ("datagrams a second, received", "datagrams a second, received", max),
        ("datagrams received of those sent", "datagrams received of those sent", max),
        ("memory of an idle connection, server", "memory of an idle connection, server", min),
    ]
    lines = [
        "| | unit | " + " | ".join(SHORT.values()) + " |",
        "|---|---|" + "---|" * len(SHORT),
    ]
    best: Callable[[list[float]], float]
    for name, text, best in wanted:
        row = rows[name]
        values = [value for value in map(row.value, SHORT) if value is not None]
        cells = []
        for each in SHORT:
            cell = row.cells.get(each) or "-"
            cells.append(f"**{cell}**" if row.value(each) == best(values) else cell)
        lines.append(f"| {text} | {row.unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[dict[str, Row]], str]] = {
    "README.md": five_figures,
    "docs/comparison.md": comparison,
}


def replace_part(page: str, part: str) -> str:
    """The page with `part` between its marks.

    Raises:
      ValueError: the page has no such marks.
    """
    pattern = re.compile(
        r"(?<=<!-- figures: begin, written by tools/make_figures\.py -->\n\n).*?"
        r"(?=\n<!-- figures: end -->)",
        re.DOTALL,
    )
    if len(pattern.findall(page)) != 1:
        raise ValueError("the page needs one part between marks of figures")
    return pattern.sub(lambda _: part, page)


def wanted_files(root: Path = ROOT) -> dict[Path, str]:
    """Each file that is made here, with the text it must have."""
    rows = read_tables((root / "docs" / "performance.md").read_text(encoding="utf-8"))
    files = {root / "docs" / "chart.svg": draw(rows)}
    for name, make in PARTS.items():
        path = root / name
        files[path] = replace_part(path.read_text(encoding="utf-8"), make(rows))
    return files


def stale_files(root: Path = ROOT) -> list[str]:
    """The names of files that do not agree with the tables."""
    return [
        str(path.relative_to(root))
        for path, text in wanted_files(root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the files, or check them; 1: one is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    if parser.parse_args().check:
        stale = stale_files()
        for name in stale:
            print(f"{name} is stale: run tools/make_figures.py")
        return int(bool(stale))
    for path, text in wanted_files().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
