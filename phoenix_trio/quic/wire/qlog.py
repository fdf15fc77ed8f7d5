"""Takes qlog events, and writes those of 0-RTT and 1-RTT packets.

Floor 0.  Each connection has one trace, made by a :class:`TraceLogger`.
"""

from __future__ import annotations

from typing import Any, Protocol

from .describe import describe_frames

__all__ = ["Trace", "TraceLogger", "log_key_update", "log_packet", "log_packet_size"]


class Trace(Protocol):
    """Takes the qlog events of one connection."""

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Note one event."""


class TraceLogger(Protocol):
    """Makes the traces of connections."""

    def start_trace(self, is_client: bool, odcid: bytes) -> Trace:
        """The trace of a new connection.

        Args:
          is_client: which side writes it.
          odcid: the original destination connection ID, which identifies the trace.
        """

    def end_trace(self, trace: Any) -> None:
        """End the trace of a connection."""


def log_packet(
    trace: Trace,
    event: str,
    packet_type: str,
    cid: bytes,
    number: int,
    size: int,
    payload: bytes | bytearray,
) -> None:
    """Note that a packet was sent or received.

    Args:
      trace: takes the event.
      event: ``"packet_sent"`` or ``"packet_received"``.
      packet_type: ``"0RTT"`` or ``"1RTT"``.
      cid: the destination connection ID.
      number: the packet number.
      size: bytes of the whole packet.
      payload: its frames.
    """
    data: dict[str, Any] = {
        "frames": describe_frames(payload),
        "header": {
            "packet_number": number,
            "packet_type": packet_type,
            "dcid": cid.hex(),
            "scid": "",
        },
        "raw": {"length": size},
    }
    trace.log_event(category="transport", event=event, data=data)


def log_key_update(trace: Trace, trigger: str) -> None:
    """Note that the keys of 1-RTT packets were updated (RFC 9001 section 6).

    Args:
      trace: takes the event.
      trigger: ``"local_update"`` or ``"remote_update"``.
    """
    trace.log_event(
        category="security", event="key_updated", data={"key_type": "1rtt", "trigger": trigger}
    )


def log_packet_size(trace: Trace, old: int, new: int) -> None:
    """Note that packets of up to `new` bytes are sent from now on, `old` bytes before."""
    trace.log_event(category="connectivity", event="mtu_updated", data={"old": old, "new": new})
