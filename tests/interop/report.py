"""The matrix as text, and as docs/interop.md."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from .cases import CASES
from .install import Installed
from .peers import PEERS, Role
from .runner import Cell

_SIGNS = {"good": "✓", "failed": "✗", "cannot": "-", "absent": "?"}
_COLUMNS: list[tuple[str, Role]] = [
    (peer.name, role) for peer in PEERS.values() for role in peer.roles
]


def summary(cells: Iterable[Cell]) -> str:
    cells = list(cells)
    counts = {status: sum(cell.status == status for cell in cells) for status in _SIGNS}
    tried = counts["good"] + counts["failed"]
    return (
        f"{counts['good']} of {tried} cells are good; {counts['cannot']} cannot be tried, "
        f"{counts['absent']} are absent"
    )


def _table(cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    found = {(cell.peer, cell.role, cell.case): cell for cell in cells}
    columns = [c for c in _COLUMNS if any((cell.peer, cell.role) == c for cell in cells)]
    rows = []
    for case in CASES:
        row = [case]
        for name, role in columns:
            cell = found.get((name, role, case))
            row.append(" " if cell is None else _SIGNS[cell.status])
        if any(sign != " " for sign in row[1:]):
            rows.append(row)
    return [f"{name} {role}" for name, role in columns], rows


def as_text(cells: list[Cell]) -> str:
    """The matrix, then each cell that failed."""
    header, rows = _table(cells)
    lines = [f"{'':22}" + " ".join(f"{name.split()[0][:8]:>8}" for name in header)]
    lines.append(f"{'the peer is the':22}" + " ".join(f"{n.split()[1]:>8}" for n in header))
    for case, *signs in rows:
        lines.append(f"{case:22}" + " ".join(f"{sign:>8}" for sign in signs))
    lines += ["", summary(cells)]
    for cell in cells:
        if cell.status == "failed":
            kind = "known" if cell.known else "NEW"
            lines.append(
                f"✗ [{kind}] {cell.peer} as {cell.role}, {cell.case}: {cell.reason}"
                f" (seed {cell.seed}, {cell.seconds:.1f} s)"
            )
        elif cell.reason.startswith("good, although"):
            lines.append(f"✓ {cell.peer} as {cell.role}, {cell.case}: {cell.reason}")
    return "\n".join(lines)


def as_markdown(cells: list[Cell], installed: dict[str, Installed], version: str) -> str:
    """The page of the documentation."""
    header, rows = _table(cells)
    lines = [
        "# Interoperability",
        "",
        "phoenix_trio against other QUIC implementations, in the cases of the public QUIC interop",
        "runner. `python -m tests.interop --install` makes this page; `CONTRIBUTING.md` says more.",
        "",
        f"{summary(cells)}. Made on {date.today().isoformat()} with phoenix_trio {version}.",  # noqa: DTZ011
        "",
        "Each cell downloads files through a relay, compares their hashes, and demands a proof",
        "from what was seen on the wire: that a Retry was sent and answered, that 0-RTT packets",
        "came and were accepted, that both key phases occurred, and so on. ✓ good, ✗ failed,",
        "- cannot be tried, ? not installed. A column is named after the peer's role; ours is the",
        "other one.",
        "",
        "| case | " + " | ".join(header) + " |",
        "|---|" + ":-:|" * len(header),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "## Peers", "", "| peer | what | version |", "|---|---|---|"]
    for name, peer in PEERS.items():
        if name in installed:
            has = installed[name]
            lines.append(f"| {name} | {peer.description} | {has.missing or has.version} |")
    failed = [cell for cell in cells if cell.status == "failed"]
    lines += ["", "## Failed", ""]
    if failed:
        lines += ["| peer | role | case | why |", "|---|---|---|---|"]
        lines += [f"| {c.peer} | {c.role} | {c.case} | {_escape(c.reason)} |" for c in failed]
    else:
        lines.append("None.")
    lines += ["", "## Cannot be tried", "", "| peer | role | cases | why |", "|---|---|---|---|"]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        if cell.status in ("cannot", "absent"):
            groups.setdefault((cell.peer, cell.role, cell.reason), []).append(cell.case)
    for (name, role, why), names in groups.items():
        which = ", ".join(names) if len(names) < len(CASES) else "all"
        lines.append(f"| {name} | {role} | {which} | {_escape(why)} |")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
