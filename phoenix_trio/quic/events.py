"""Lists the events that the engine reports upwards, one small class each.

Floor 0: data only (the frequent ones are not frozen, since that would triple the cost of making
one).  The engine appends events in the order in which they happen; the Trio half takes all of
them after every call.  The list is bounded because it is emptied after each datagram, timer or
flush.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from .path_address import Address

__all__ = [
    "ConnectionIdIssued",
    "ConnectionIdRetired",
    "DatagramReceived",
    "DatagramsLost",
    "EarlyDataReady",
    "Event",
    "HandshakeCompleted",
    "HandshakeConfirmed",
    "PathProbed",
    "PingAcknowledged",
    "SendProgress",
    "StreamDataReceived",
    "StreamForgotten",
    "StreamOpened",
    "StreamResetReceived",
    "StreamStopReceived",
    "StreamsAvailable",
    "Terminated",
]


@attrs.frozen
class HandshakeCompleted:
    """The TLS handshake is complete; the peer is authenticated (RFC 9001 section 4.1.1)."""

    alpn_protocol: str | None
    session_resumed: bool
    early_data_accepted: bool


@attrs.frozen
class HandshakeConfirmed:
    """Both sides know that the handshake is complete (RFC 9001 section 4.1.2)."""


@attrs.frozen
class EarlyDataReady:
    """Server: 0-RTT was accepted; early streams may be served before the handshake completes."""

    alpn_protocol: str | None


@attrs.define
class StreamOpened:
    """The peer opened a stream, explicitly or by using a higher-numbered one."""

    stream_id: int


@attrs.define
class StreamDataReceived:
    """In-order data; `end_stream` marks the end."""

    stream_id: int
    data: bytes | bytearray
    end_stream: bool


@attrs.frozen
class StreamResetReceived:
    """RESET_STREAM from the peer."""

    stream_id: int
    error_code: int


@attrs.frozen
class StreamStopReceived:
    """STOP_SENDING from the peer; the sending part was reset in answer."""

    stream_id: int
    error_code: int


@attrs.frozen
class StreamForgotten:
    """The stream has ended on the wire and the application is done with it: no more events."""

    stream_id: int


@attrs.frozen
class StreamsAvailable:
    """The peer permits more streams than before."""


@attrs.define
class SendProgress:
    """Stream data was acknowledged, or datagrams left the queue: senders may go on."""


@attrs.define
class DatagramReceived:
    """An unreliable datagram (RFC 9221)."""

    data: bytes


@attrs.frozen
class DatagramsLost:
    """Datagrams with these tags were lost, were dropped from the queue, or have expired."""

    tags: list[int]


@attrs.frozen
class PingAcknowledged:
    """The packet with this PING was acknowledged."""

    uid: int


@attrs.frozen
class PathProbed:
    """Client: another path, to which the application wants to move, works or does not."""

    address: Address
    is_validated: bool


@attrs.frozen
class ConnectionIdIssued:
    """The peer may address us by this connection ID from now on."""

    connection_id: bytes


@attrs.frozen
class ConnectionIdRetired:
    """The peer has promised not to use this connection ID any more."""

    connection_id: bytes


@attrs.frozen
class Terminated:
    """The connection has ended: from now on only copies of its close may leave.

    `error` says why; ``None`` when this side's application closed it.
    """

    error: Exception | None


Event: TypeAlias = (
    HandshakeCompleted
    | HandshakeConfirmed
    | EarlyDataReady
    | StreamOpened
    | StreamDataReceived
    | StreamResetReceived
    | StreamStopReceived
    | StreamForgotten
    | StreamsAvailable
    | SendProgress
    | DatagramReceived
    | DatagramsLost
    | PingAcknowledged
    | PathProbed
    | ConnectionIdIssued
    | ConnectionIdRetired
    | Terminated
)
