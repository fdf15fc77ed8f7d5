"""Defines a snapshot of transports, and its form as one line of JSON.

Floor 5, data only.  Both sides use it: the application writes, the viewer reads and checks.
A viewer of another user (root) does not have to trust the application, so every value is
checked.  There are no keys, no tokens and no application data in a snapshot.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

import attrs

__all__ = [
    "FORMAT",
    "MOST_ANSWER",
    "MOST_CONNECTIONS",
    "MOST_REQUEST",
    "MOST_TARGETS",
    "MOST_TEXT",
    "MOST_TRANSPORTS",
    "REQUEST",
    "ConnectionView",
    "PoolView",
    "Snapshot",
    "TargetView",
    "TransportView",
    "decode_snapshot",
    "encode_snapshot",
]

#: The number of this format; a viewer takes no other.
FORMAT = 1

#: The request line that a viewer sends for each snapshot.
REQUEST = b'{"want": "snapshot"}\n'

#: Bytes of a request line, and of an answer line, at most.
MOST_REQUEST = 1024
MOST_ANSWER = 16 * 1024 * 1024

#: Connections and targets of one transport in a snapshot, at most.
MOST_CONNECTIONS = 500
MOST_TARGETS = 100

#: Transports in a snapshot, and characters of a text, at most.
MOST_TRANSPORTS = 16
MOST_TEXT = 300

T = TypeVar("T")


def _count(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{attribute.name} is not a count")


def _figure(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{attribute.name} is not a number of 0 or more")


def _text(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not str or len(value) > MOST_TEXT:
        raise ValueError(f"{attribute.name} is not a text of up to {MOST_TEXT} characters")


def _flag(instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name} is neither true nor false")


def _views(most: int) -> Any:
    return attrs.field(validator=attrs.validators.max_len(most))


_COUNT: Any = {"validator": _count}
_FIGURE: Any = {"validator": _figure}
_PERHAPS: Any = {"validator": attrs.validators.optional(_figure)}
_TEXT: Any = {"validator": _text}


@attrs.frozen(kw_only=True)
class ConnectionView:
    """One open connection in a snapshot.  Bytes are UDP payload bytes, as on the network."""

    id: int = attrs.field(**_COUNT)
    """A number for this connection, the same in all snapshots of one application."""
    peer: str = attrs.field(**_TEXT)
    """The peer's address and port."""
    is_dialled: bool = attrs.field(validator=_flag)
    """Whether this side has opened it."""
    state: str = attrs.field(**_TEXT)
    """``"open"``, ``"draining"`` (one side wants no further streams) or ``"closing"``."""
    rtt: float | None = attrs.field(**_PERHAPS)
    """The smoothed round-trip time, in seconds; ``None`` before the first sample."""
    congestion_window: int = attrs.field(**_COUNT)
    """Bytes that may be in flight."""
    bytes_in_flight: int = attrs.field(**_COUNT)
    path_mtu: int = attrs.field(**_COUNT)
    """The largest UDP payload sent on this path, in bytes."""
    bytes_sent: int = attrs.field(**_COUNT)
    """So far, with repeated data and datagrams."""
    bytes_received: int = attrs.field(**_COUNT)
    packets_sent: int = attrs.field(**_COUNT)
    packets_lost: int = attrs.field(**_COUNT)
    streams: int = attrs.field(**_COUNT)
    """Streams that the application or the transport holds at present."""

    @property
    def loss(self) -> float:
        """The share of lost packets since the beginning, between 0 and 1."""
        return min(1.0, self.packets_lost / self.packets_sent) if self.packets_sent else 0.0


@attrs.frozen(kw_only=True)
class TargetView:
    """One target of a pool in a snapshot; see :class:`TargetStatistics`."""

    target: str = attrs.field(**_TEXT)
    connections: int = attrs.field(**_COUNT)
    idle: int = attrs.field(**_COUNT)
    dialling: int = attrs.field(**_COUNT)
    leases: int = attrs.field(**_COUNT)
    waiting: int = attrs.field(**_COUNT)
    dial_failures: int = attrs.field(**_COUNT)


@attrs.frozen(kw_only=True)
class PoolView:
    """The pool of a transport in a snapshot; see :class:`PoolStatistics`."""

    connections: int = attrs.field(**_COUNT)
    idle: int = attrs.field(**_COUNT)
    dialling: int = attrs.field(**_COUNT)
    closing: int = attrs.field(**_COUNT)
    leases: int = attrs.field(**_COUNT)
    waiting: int = attrs.field(**_COUNT)
    evicted_idle: int = attrs.field(**_COUNT)
    lost: int = attrs.field(**_COUNT)
    health_failures: int = attrs.field(**_COUNT)
    targets: tuple[TargetView, ...] = _views(MOST_TARGETS)
    """Those with most leases, 100 at most."""
    targets_left_out: int = attrs.field(**_COUNT)


@attrs.frozen(kw_only=True)
class TransportView:
    """One transport in a snapshot; see :class:`TransportStatistics`.

    Its bytes are stream bytes: sent ones when acknowledged, received ones when read.
    """

    name: str = attrs.field(**_TEXT)
    latency: float | None = attrs.field(**_PERHAPS)
    """The mean of the smoothed round-trip times, in seconds."""
    active_connections: int = attrs.field(**_COUNT)
    connections_opened: int = attrs.field(**_COUNT)
    total_bytes_sent: int = attrs.field(**_COUNT)
    total_bytes_received: int = attrs.field(**_COUNT)
    operations: int = attrs.field(**_COUNT)
    packets_lost: int = attrs.field(**_COUNT)
    incoming_transfers: int = attrs.field(**_COUNT)
    outgoing_transfers: int = attrs.field(**_COUNT)
    handlers_cancelled: int = attrs.field(**_COUNT)
    pool: PoolView
    connections: tuple[ConnectionView, ...] = _views(MOST_CONNECTIONS)
    """Those that moved most bytes since the last snapshot, 500 at most."""
    connections_left_out: int = attrs.field(**_COUNT)


@attrs.frozen(kw_only=True)
class Snapshot:
    """All transports of an inspection at one moment."""

    process: int = attrs.field(**_COUNT)
    """The ID of the process."""
    time: float = attrs.field(**_FIGURE)
    """Of the application's clock, in seconds; it begins anywhere, so differences count."""
    transports: tuple[TransportView, ...] = _views(MOST_TRANSPORTS)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The line of a snapshot; in :data:`MOST_ANSWER` bytes there is room for the longest."""
    record = {"format": FORMAT, **attrs.asdict(snapshot)}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def decode_snapshot(line: bytes | bytearray) -> Snapshot:
    """The snapshot of a line.

    Raises:
      ValueError: it is none, or of another format; the text is safe to print.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("the answer is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("the answer is not a JSON object")
    if "error" in record:
        raise ValueError(f"the application answers: {record['error']!a:.200}")
    if record.pop("format", None) != FORMAT:
        raise ValueError("the application has another version of phoenix_trio: another format")
    transports = []
    for each in _list(record, "transports"):
        pool = _part(each, "pool")
        pool["targets"] = _all(TargetView, _list(pool, "targets"))
        each["pool"] = _make(PoolView, pool)
        each["connections"] = _all(ConnectionView, _list(each, "connections"))
        transports.append(_make(TransportView, each))
    record["transports"] = tuple(transports)
    return _make(Snapshot, record)


def _part(record: Any, name: str) -> dict[str, Any]:
    part = record.get(name) if isinstance(record, dict) else None
    if not isinstance(part, dict):
        raise ValueError(f"the answer has no {name}")
    return part


def _list(record: Any, name: str) -> list[Any]:
    part = record.get(name) if isinstance(record, dict) else None
    if not isinstance(part, list):
        raise ValueError(f"the answer has no {name}")
    return part


def _all(kind: type[T], records: list[Any]) -> tuple[T, ...]:
    return tuple(_make(kind, record) for record in records)


def _make(kind: type[T], record: Any) -> T:
    names = {field.name for field in attrs.fields(kind)}  # type: ignore[arg-type] # attrs classes
    if not isinstance(record, dict) or record.keys() != names:
        raise ValueError(f"the answer has a {kind.__name__} with other fields")
    return kind(**record)
