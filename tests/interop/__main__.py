"""``python -m tests.interop``: runs the matrix, prints it and writes docs/interop.md.

The exit status is 1 if a cell failed that ``known.py`` does not explain.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Iterator
from functools import partial

import trio

import phoenix_trio

from .cases import CASES, Case
from .install import ROOT, find_all
from .peers import PEERS, Peer, Role
from .report import as_markdown, as_text
from .runner import Cell, run_cells


def wanted(options: argparse.Namespace) -> Iterator[tuple[Peer, Role, Case]]:
    for name in options.peer or PEERS:
        for role in PEERS[name].roles:
            if options.role in (None, role):
                for case in CASES.values():
                    if (not options.case or case.name in options.case) and (
                        case.quick or not options.quick
                    ):
                        yield PEERS[name], role, case


def show(cell: Cell) -> None:
    detail = f": {cell.reason}" if cell.reason else ""
    print(
        f"{cell.status:7}{cell.seconds:6.1f} s  {cell.peer} {cell.role}, {cell.case}{detail}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    parser.add_argument("--install", action="store_true", help="first install what is missing")
    parser.add_argument("--only-install", action="store_true", help="... and do nothing else")
    parser.add_argument("--quick", action="store_true", help="what CI runs")
    parser.add_argument("--peer", action="append", choices=list(PEERS))
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--role", choices=["client", "server"], help="the peer's")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; timings suffer")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/interop.md")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(2**32)
    installed = find_all(options.peer, install=options.install or options.only_install)
    for name, has in installed.items():
        print(f"{name}: {has.missing or has.version}")
    if options.only_install:
        return
    print(f"seed {options.seed}", flush=True)
    # So that the programs of running cells are ended as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cells = trio.run(
        partial(
            run_cells,
            list(wanted(options)),
            installed,
            quick=options.quick,
            seed=options.seed,
            jobs=options.jobs,
            on_cell=show,
        )
    )
    print()
    print(as_text(cells))
    chosen = options.quick or options.peer or options.case or options.role
    if not chosen and not options.no_page:
        page = ROOT / "docs" / "interop.md"
        page.write_text(as_markdown(cells, installed, phoenix_trio.__version__))
        print(f"wrote {page.relative_to(ROOT)}")
    sys.exit(any(cell.status == "failed" and not cell.known for cell in cells))


if __name__ == "__main__":
    main()
