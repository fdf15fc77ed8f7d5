"""The quick part of the matrix as tests: each peer, as client and as server, in each quick case.

All selected cells run at the first test, some at a time, since most of a cell is the start of
its programs.  ``python -m tests.interop`` runs the whole.
"""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import pytest
import trio

from .cases import CASES, Case
from .install import find_all
from .peers import PEERS, Peer, Role
from .runner import Cell, run_cells

pytestmark = pytest.mark.interop

QUICK = [
    pytest.param(peer, role, case, id=f"{peer.name}-{role}-{case.name}")
    for peer in PEERS.values()
    for role in peer.roles
    for case in CASES.values()
    if case.quick
    and (role, case.name) not in peer.cannot
    and ("client" if role == "server" else "server") not in case.ours_cannot
]


@pytest.fixture(scope="session")
def cells(request: pytest.FixtureRequest) -> dict[tuple[str, str, str], Cell]:
    wanted: list[tuple[Peer, Role, Case]] = [
        (item.callspec.params["peer"], item.callspec.params["role"], item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == Path(__file__)
    ]
    installed = find_all(install=False)
    found = trio.run(
        partial(
            run_cells,
            wanted,
            installed,
            quick=True,
            seed=random.randrange(2**32),
            jobs=max(2, (os.cpu_count() or 1) + 1),
            on_cell=lambda cell: None,
        )
    )
    return {(cell.peer, cell.role, cell.case): cell for cell in found}


@pytest.mark.parametrize(("peer", "role", "case"), QUICK)
def test_files_arrive_whole_and_the_case_is_proved(
    peer: Peer, role: Role, case: Case, cells: dict[tuple[str, str, str], Cell]
) -> None:
    cell = cells[peer.name, role, case.name]
    if cell.status == "absent":
        pytest.skip(f"absent: {peer.name}: {cell.reason}")
    if cell.status == "failed" and cell.known:
        pytest.xfail(cell.reason)
    assert cell.status == "good", f"{cell.reason} (seed {cell.seed})"
