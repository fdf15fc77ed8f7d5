"""The private names of aioquic that the handshake depends on have not moved."""

from __future__ import annotations

import sys
from pathlib import Path

import aioquic
import pytest

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("aioquic_names.txt")


def test_every_private_name_of_aioquic_that_is_used_is_recorded_and_still_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.delitem(sys.modules, "list_aioquic_names", raising=False)
    import list_aioquic_names

    recorded = set(RECORD.read_text(encoding="utf-8").split())
    present = set(list_aioquic_names.dependencies())
    assert len(present) > 20, "the tool reads the sources"
    gone, new = sorted(recorded - present), sorted(present - recorded)
    assert not gone, (
        f"aioquic {aioquic.__version__} does not have, or nothing uses: {', '.join(gone)}."
        " Read the places that use them, then see tools/list_aioquic_names.py"
    )
    assert not new, f"not recorded: {', '.join(new)}. See tools/list_aioquic_names.py"


def test_a_name_that_moves_in_aioquic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.delitem(sys.modules, "list_aioquic_names", raising=False)
    import list_aioquic_names

    before = set(list_aioquic_names.dependencies())
    names = list_aioquic_names.names_in_aioquic()
    names["Context"].remove("_peer_certificate")
    monkeypatch.setattr(list_aioquic_names, "names_in_aioquic", lambda: names)
    after = set(list_aioquic_names.dependencies())
    assert before - after == {"Context._peer_certificate"}
