"""A snapshot as a line of JSON, and lines from applications that cannot be trusted."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from phoenix_trio.inspection import (
    ConnectionView,
    PoolView,
    Snapshot,
    TargetView,
    TransportView,
)
from phoenix_trio.inspection import format as form

COUNT = (1 << 63) - 1


def filled(kind: type[Any], text: str = "x", **given: Any) -> Any:
    """A view with the largest values in all other fields."""
    values: dict[str, Any] = {"int": COUNT, "float": 1e300, "float | None": 1e300}
    values |= {"str": text, "bool": False}
    return kind(**{f.name: values.get(str(f.type)) for f in attrs.fields(kind)} | given)


def snapshot(transports: int = 1, connections: int = 1, targets: int = 1, text: str = "x") -> Any:
    peer = text[:60]
    pool = filled(PoolView, targets=(filled(TargetView, text),) * targets)
    links = (filled(ConnectionView, peer),) * connections
    transport = filled(TransportView, text, pool=pool, connections=links)
    return filled(Snapshot, transports=(transport,) * transports)


def test_a_snapshot_is_read_as_it_was_written() -> None:
    line = form.encode_snapshot(snapshot(2, 3, 4))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert form.decode_snapshot(line) == snapshot(2, 3, 4)


def test_the_longest_snapshot_is_within_the_limit_of_an_answer() -> None:
    longest = snapshot(
        form.MOST_TRANSPORTS, form.MOST_CONNECTIONS, form.MOST_TARGETS, "\u2028" * form.MOST_TEXT
    )
    assert len(form.encode_snapshot(longest)) <= form.MOST_ANSWER


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "another version"),
        (b'{"format": 2}', "another version"),
        (b'{"format": 1}', "no transports"),
        (b'{"format": 1, "transports": [1]}', "no pool"),
        (b'{"format": 1, "transports": [{"pool": 1}]}', "no pool"),
        (b'{"format": 1, "transports": [{"pool": {}}]}', "no targets"),
        (b'{"format": 1, "transports": [], "process": 1}', "other fields"),
        (b'{"error": "\\u001b[2J"}', r"answers: '\\x1b\[2J'"),
    ],
)
def test_a_line_that_is_no_snapshot_is_named(line: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        form.decode_snapshot(line)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("streams", -1),
        ("streams", 1 << 63),
        ("streams", True),
        ("streams", "many"),
        ("rtt", -0.1),
        ("rtt", float("inf")),
        ("rtt", float("nan")),
        ("rtt", []),
        ("peer", 5),
        ("peer", "x" * 1000),
        ("is_dialled", 1),
    ],
)
def test_values_of_another_type_or_range_are_refused(field: str, value: Any) -> None:
    record = json.loads(form.encode_snapshot(snapshot()))
    record["transports"][0]["connections"][0][field] = value
    with pytest.raises(ValueError, match=field):
        form.decode_snapshot(json.dumps(record).encode())


def test_more_connections_than_a_snapshot_may_have_are_refused() -> None:
    record = json.loads(form.encode_snapshot(snapshot()))
    record["transports"][0]["connections"] *= form.MOST_CONNECTIONS + 1
    with pytest.raises(ValueError, match="connections"):
        form.decode_snapshot(json.dumps(record).encode())
