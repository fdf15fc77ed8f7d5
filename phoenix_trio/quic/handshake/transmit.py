"""Builds the datagrams of a handshake: Initial and Handshake packets, coalesced and padded.

Floor 1, sans-IO, functions on a :class:`~phoenix_trio.quic.handshake.state.HandshakeState`.
"""

from __future__ import annotations

import math
from typing import Final

from ...config import SMALLEST_UDP_PAYLOAD
from ..established.recovery import PROBES
from ..path_address import Address
from ..wire import frames
from ..wire.describe import describe_frames
from ..wire.errors import APPLICATION_ERROR
from ..wire.protection import seal_long
from .packets import HANDSHAKE, INITIAL, NAMES, long_overhead
from .parameters import ACK_DELAY_EXPONENT
from .space import HandshakePacket, Space
from .state import HandshakeState

__all__ = [
    "begin_probes",
    "build_close",
    "build_flight",
    "build_probes",
    "can_acknowledge",
    "can_probe",
    "early_close",
]

#: Bytes of a datagram: paths are only known to carry so many (RFC 9000 section 14.1).
_SIZE: Final = SMALLEST_UDP_PAYLOAD

#: Bytes of a CONNECTION_CLOSE frame without a reason, at most.
_SMALLEST_CLOSE: Final = 1 + 8 + 8 + 8

#: Bytes left of a datagram below which nothing more is put into it.
_SMALLEST_PACKET: Final = 128


class _Budget:
    """How much may leave."""

    __slots__ = ("flight", "total")

    def __init__(self, flight: int, total: float) -> None:
        self.flight = flight
        """Bytes in flight, by congestion control."""
        self.total = total
        """Bytes to an unvalidated address (RFC 9000 section 8.1)."""


def can_probe(s: HandshakeState) -> bool:
    """Whether the anti-amplification limit has room for a probe.

    A probe may carry Initial data, which needs a full datagram (RFC 9000 section 14.1), and
    a client keeps sending until its address is validated (RFC 9002 section 6.2.2.1).
    """
    return bool(s.host.paths.all) and s.host.paths.all[0].can_send(_SIZE)


def can_acknowledge(s: HandshakeState) -> bool:
    """Whether the anti-amplification limit has room for an acknowledgement."""
    return bool(s.host.paths.all) and s.host.paths.all[0].can_send(_SMALLEST_PACKET)


def build_flight(s: HandshakeState, now: float) -> list[tuple[bytes, Address]]:
    """All datagrams which may leave now."""
    if not (s.probe_pending or s.initial.has_work() or s.handshake.has_work()):
        return []
    path = s.host.paths.all[0]
    control = s.host.control
    flight = control.congestion_window - control.bytes_in_flight
    if flight < _SIZE and (s.probe_pending or _is_stranded(s)):
        # RFC 9002 section 7 lets probes exceed the congestion window.
        flight = _SIZE
    budget = _Budget(flight, path.room())
    result: list[tuple[bytes, Address]] = []
    while True:
        datagram = _build_datagram(s, budget, now)
        if not datagram:
            break
        result.append((datagram, path.addr))
    # (What is left of a probe is sent in 1-RTT packets, or nothing can be sent at all.)
    s.probe_pending = False
    return result


def _is_stranded(s: HandshakeState) -> bool:
    """Whether Handshake data waits, and no timer would ever send it.

    Before the handshake is confirmed, 1-RTT packets arm no timer (RFC 9002 section 6.2.1),
    and the peer may be unable to acknowledge them (RFC 9001 section 5.7): they can fill the
    congestion window for good.
    """
    return (
        s.handshake.send_keys is not None
        and s.handshake.crypto.has_pending
        and s.recovery.deadline(True) == math.inf
    )


def _build_datagram(s: HandshakeState, budget: _Budget, now: float) -> bytes:
    """One datagram with what there is to say; empty: there is nothing, or no room."""
    capacity = int(min(_SIZE, budget.total))
    parts: list[bytes] = []
    size = 0
    must_fill = has_handshake = False
    for space in (s.initial, s.handshake):
        while space.send_keys is not None and capacity - size >= _SMALLEST_PACKET:
            built = _build_packet(s, space, capacity, capacity - size, budget.flight, now)
            if built is None:
                break
            packet, sealed = built
            parts.append(sealed)
            size += len(sealed)
            if packet.is_in_flight:
                budget.flight -= len(sealed)
            if space.kind == HANDSHAKE:
                has_handshake = True
            elif s.is_client or packet.is_eliciting:
                must_fill = True  # RFC 9000 section 14.1
    if not parts:
        return b""
    path = s.host.paths.all[0]
    path.bytes_sent += size
    if capacity - size >= _SMALLEST_PACKET:
        rest = s.host.coalesce(now, capacity - size, must_fill)
        if rest:
            parts.append(rest)
            size += len(rest)
            budget.flight -= len(rest)
    if must_fill and size < capacity:
        # Bytes behind the last packet are no frames, and so not in flight (RFC 9002 section
        # 2); the receiver drops them.
        parts.append(bytes(capacity - size))
        path.bytes_sent += capacity - size
        size = capacity
    budget.total -= size
    if has_handshake and s.is_client and not s.initial.is_discarded:
        s.recovery.discard(s.initial)  # RFC 9001 section 4.9.1
    return b"".join(parts)


def _build_packet(
    s: HandshakeState, space: Space, capacity: int, room: int, flight: int, now: float
) -> tuple[HandshakePacket, bytes] | None:
    """One packet of at most `room` bytes; ``None``: there is nothing to say.

    The datagram may have `capacity` bytes in all.
    """
    # A server's datagrams with ack-eliciting Initial packets have to be full, too (RFC 9000
    # section 14.1).
    may_elicit = s.is_client or space.kind == HANDSHAKE or capacity >= _SIZE
    received = space.received
    token = s.token if space.kind == INITIAL else None
    overhead = long_overhead(s.peer_cid, s.host_cid, token)
    room -= overhead
    flight -= overhead
    packet = HandshakePacket(space.next_number, now)
    parts: list[bytes] = []
    if received.ack_at < math.inf and room > 0:
        delay = int(max(0.0, now - received.largest_time) * 1_000_000) >> ACK_DELAY_EXPONENT
        marks = received.marks
        ack = frames.build_ack(
            received.to_acknowledge, delay, room, None if marks is None else marks.as_fields()
        )
        if ack:
            parts.append(ack)
            room -= len(ack)
            packet.acknowledges = received.largest
            received.on_ack_sent()
    if may_elicit:
        if space.crypto.has_pending:
            space.crypto.fill(parts, min(room, flight), packet.frames)
        if not packet.frames and _needs_ping(s, space) and min(room, flight) > 0:
            parts.append(frames.PING_FRAME)
            packet.is_eliciting = True
    if packet.frames or packet.is_eliciting:
        packet.is_eliciting = packet.is_in_flight = True
        s.probe_pending = False
    if not parts:
        return None
    return packet, _seal(s, space, packet, b"".join(parts))


def _needs_ping(s: HandshakeState, space: Space) -> bool:
    """Whether a probe without data is to be sent in this space (RFC 9002 section 6.2.4)."""
    return (
        s.probe_pending
        and not s.is_complete
        and (space.kind == HANDSHAKE or s.handshake.send_keys is None)
    )


def _seal(s: HandshakeState, space: Space, packet: HandshakePacket, payload: bytes) -> bytes:
    """Protect the packet, and remember it as sent."""
    keys = space.send_keys
    assert keys is not None
    sealed = seal_long(
        space.kind,
        s.version,
        s.peer_cid,
        s.host_cid,
        s.token,
        packet.number,
        payload,
        keys.packet,
        keys.header,
    )
    space.next_number += 1
    s.packets_sent += 1
    packet.size = len(sealed)
    s.recovery.on_sent(space, packet)
    if packet.is_eliciting:
        s.host.on_eliciting_sent(packet.time)
    if s.trace is not None:
        s.log(
            "transport",
            "packet_sent",
            frames=describe_frames(payload),
            header={
                "packet_number": packet.number,
                "packet_type": NAMES[space.kind],
                "scid": s.host_cid.hex(),
                "dcid": s.peer_cid.hex(),
            },
            raw={"length": len(sealed)},
        )
    return sealed


def build_probes(s: HandshakeState, now: float) -> list[tuple[bytes, Address]]:
    """Two datagrams with what is in flight, or a PING each (RFC 9002 section 6.2.4).

    A flight of several datagrams leaves once, as a whole: that is no fewer.
    """
    count, s.probes_due = s.probes_due, 0
    result: list[tuple[bytes, Address]] = []
    while count and can_probe(s):
        count -= 1
        if s.recovery.repeat() > _SIZE:
            count = 0
        s.probe_pending = True
        # The server may know this side's address from 1-RTT packets alone, for it has no
        # Handshake keys any more.
        s.host.on_probe(s.is_client and s.is_complete)
        result += build_flight(s, now)
    return result


def begin_probes(s: HandshakeState) -> None:
    """A probe timeout: the next transmissions are probes."""
    s.probes_due = PROBES


def build_close(s: HandshakeState, now: float) -> list[tuple[bytes, Address]]:
    """One datagram with a CONNECTION_CLOSE at each level with keys (RFC 9000 section 10.2.3).

    The caller has to see whether the anti-amplification limit permits it.
    """
    if s.closing is None or not s.host.paths.all:
        return []
    code, frame_type, reason = s.closing
    s.closing = None
    parts: list[bytes] = []
    size = 0
    must_fill = False
    for space in (s.initial, s.handshake):
        if space.send_keys is None:
            continue
        token = s.token if space.kind == INITIAL else None
        room = _SIZE - size - long_overhead(s.peer_cid, s.host_cid, token)
        if room < _SMALLEST_CLOSE:
            continue  # (A long token of a Retry packet leaves no room.)
        payload = frames.build_transport_close(code, frame_type, reason, room)
        sealed = _seal(s, space, HandshakePacket(space.next_number, now), payload)
        parts.append(sealed)
        size += len(sealed)
        must_fill |= s.is_client and space.kind == INITIAL
    if not parts:
        return []
    if must_fill and size < _SIZE:
        parts.append(bytes(_SIZE - size))
    datagram = b"".join(parts)
    path = s.host.paths.all[0]
    path.bytes_sent += len(datagram)
    return [(datagram, path.addr)]


def early_close(code: int, frame_type: int | None, reason: str) -> tuple[int, int, str]:
    """RFC 9000 section 10.2.3: reasons of an application are for an authenticated peer only."""
    if frame_type is None:
        return APPLICATION_ERROR, 0, ""
    return code, frame_type, reason
