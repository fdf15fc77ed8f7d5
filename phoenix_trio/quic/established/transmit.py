"""Builds 1-RTT and 0-RTT packets: chooses their frames, sizes and times.

Floor 1, sans-IO.  Each call returns one paced run of datagrams, or a few.  A loop builds the
packets of a stream with many full packets, and seals them at once.  Any other packet is put
together from all frames that are due.
"""

from __future__ import annotations

import math

from ..path_address import Address, local_of
from ..wire import frames
from ..wire.frames import HANDSHAKE_DONE_FRAME, LONG_VARINT, PING_FRAME
from ..wire.protection import (
    FIRST_BYTE,
    NUMBER_SIZE,
    TAG_SIZE,
    ZERO_RTT,
    seal_long,
    seal_one,
    seal_run,
)
from ..wire.qlog import log_key_update, log_packet
from .ecn import NOT_ECT
from .path_search import next_probe
from .paths import PROBE_SIZE, Path
from .runs import Run, group, kernel_run
from .sending import BulkTurn
from .sent_packet import SentPacket
from .state import State

__all__ = [
    "BUILD_BYTES",
    "MTU_PROBE",
    "build_close",
    "coalesce",
    "transmit",
    "validation_period",
]

#: The most bytes built before the first of them is sent: enough to share the cost of a turn
#: among a few of the largest packets, few enough to keep both ends busy.
BUILD_BYTES = 4 * 65_536

#: The same in packets, when they are small.
_BUILD_PACKETS = 128

#: The most packets in one run.
_RUN_PACKETS = 64

#: The most packets of everyday frames built at a time.
_SMALL_PACKETS = 16

#: In a packet's `control` list: a probe of the path MTU, and its size.  (No frame type.)
MTU_PROBE = -1


#: Our ACK delays are shifted right by this (RFC 9000 section 18.2, the default).
_ACK_DELAY_EXPONENT = 3

#: The most bytes of an ACK frame (RFC 9000 section 19.3).
_LARGEST_ACK = 64

#: No packet fits in fewer bytes: header, tag and the smallest frame.
_SMALLEST_PACKET = 40

#: PATH_CHALLENGE and PATH_RESPONSE, each with its type.
_PATH_FRAME = 9


def transmit(s: State, now: float, slab: bytearray | None) -> list[Run]:
    """One paced run of UDP payloads, or a few; empty when there is nothing more to send now.

    Args:
      s: a connection that is neither closing nor over.
      now: the time.
      slab: room for a run.  The result may be a view of it, valid until the slab is used again.
    """
    s.now = now
    s.more = False
    keys = s.keys
    if keys.send is None:
        return _transmit_early(s, now) if s.can_send_early else []
    streams, recovery = s.streams, s.recovery
    streams.now, streams.rtt = now, s.rtt.smoothed or s.rtt.initial
    mark = NOT_ECT
    if s.is_confirmed:
        mark = _mark_to_send(s)
        if recovery.next_number >= keys.next_update:
            keys.consider_update(recovery.next_number, recovery.largest_acknowledged)
        if keys.update_pending:
            keys.begin_update()
            if s.trace is not None:
                log_key_update(s.trace, "local_update")
        if keys.has_previous:
            keys.age(now, 3 * recovery.probe_timeout())
        if s.mtu is not None:
            probe = _build_mtu_probe(s, now)
            if probe is not None:
                s.more = True
                if mark:
                    s.ecn.on_sent(recovery.next_number - 1, recovery.next_number)
                return [(probe, s.paths.all[0].addr, len(probe), mark)]
    first = recovery.next_number
    runs = _transmit(s, now, slab, mark)
    if mark and recovery.next_number > first:
        s.ecn.on_sent(first, recovery.next_number)
    return runs


def _mark_to_send(s: State) -> int:
    """The ECN codepoint of packets sent now; packets of the handshake are not marked."""
    path = s.paths.all[0]
    if path is not s.ecn_path:
        last = s.ecn_path
        if (
            last is not None
            and local_of(path.addr) != local_of(last.addr)
            and s.peer_ids.changes == s.used_peer_changes
            and s.peer_ids.change()
        ):
            # RFC 9000 section 9.5: one connection ID must not be used from two local addresses.
            # The peer may not know of the change: a middlebox can send its packets to another
            # address of ours.
            s.spin = 0
        s.ecn_path = path
        s.ecn.begin_path()
    s.used_peer_changes = s.peer_ids.changes
    # (Probes of another path in the same run would count as if they were of this one.)
    return NOT_ECT if s.paths.has_frames and len(s.paths.all) > 1 else s.ecn.codepoint


def _transmit(s: State, now: float, slab: bytearray | None, mark: int) -> list[Run]:
    """The runs of :func:`transmit`, for packets of everyday frames."""
    recovery, streams, pacer = s.recovery, s.streams, s.recovery.pacer
    sending, unreliable = streams.sending, s.datagrams
    size = s.max_datagram_size
    path = s.paths.all[0]
    datagrams: list[tuple[bytes, Address]] = []
    s.pacing_at = math.inf
    has_rare = s.has_rare_frames()
    if has_rare and s.is_complete and s.paths.has_frames:
        if s.paths.pending():
            size = min(size, PROBE_SIZE)  # (While possible: the path may carry no more.)
            _probe_other_paths(s, now, datagrams)
            s.paths.has_frames = path.has_frames()  # (the others lack an ID, or room)
        has_rare = s.has_rare_frames()
    has_control = has_rare or s.probes_due > 0 or s.received.ack_at <= now or streams.has_control()
    if not has_control and not sending.active and not unreliable.waiting:
        return group(datagrams, mark) if datagrams else []
    if not path.is_validated:
        room = path.room()
        if room < size:
            size = int(room)
            if size < _SMALLEST_PACKET:
                return group(datagrams, mark) if datagrams else []
    in_flight = s.control.bytes_in_flight
    packets = recovery.room() // s.max_datagram_size
    is_blocked = packets <= 0 and in_flight > 0 and not s.probes_due
    paced_until = pacer.next_send_time(now)
    if paced_until is not None and paced_until > now and not s.probes_due:
        if (sending.active or unreliable.waiting) and not is_blocked:
            s.pacing_at = paced_until
        is_blocked = True
    if is_blocked and not has_control:
        return group(datagrams, mark) if datagrams else []
    peer_id = s.peer_ids.current.cid
    turn: BulkTurn | None = None
    if (
        sending.active
        and packets > 0
        and not unreliable.waiting
        and path.is_validated
        and not s.probes_due
    ):
        turn = sending.next_bulk(s.max_datagram_size - 1 - len(peer_id) - NUMBER_SIZE - TAG_SIZE)
    if turn is not None and not has_control and not datagrams:
        runs = _transmit_run(s, turn, packets, now, slab, mark)
        if runs:
            return runs
    if (
        s.tail_held
        and not has_control
        and turn is None
        and not unreliable.waiting
        and sending.unsent < size
        and in_flight
        and not datagrams
    ):
        s.more = True
        return []
    # Other frames leave alone if a run of full packets follows.
    with_data = not is_blocked
    pacer.begin_call(_RUN_PACKETS)
    address = path.addr
    built = 0
    while built < _SMALL_PACKETS:
        data = _build(s, now, path, size, has_rare, with_data, with_data and turn is None)
        if data is None:
            break
        built += 1
        datagrams.append((data, address))
        if not path.is_validated:
            size = min(size, int(path.room()))
            if size < _SMALLEST_PACKET:
                break
        has_rare = s.has_rare_frames()
        has_more = (sending.active and turn is None) or unreliable.waiting
        if s.probes_due:
            if not (has_more or has_rare or streams.has_control()):
                if not recovery.repeat_oldest():
                    s.probes_due = 0  # (A second PING would add nothing.)
                    break
                has_rare = s.has_rare_frames()
        elif with_data and has_more:
            if (
                recovery.room() < s.max_datagram_size
                or pacer.next_send_time(now) is not None
                or recovery.next_number >= recovery.skipped.next
            ):
                break
        elif not (has_rare or streams.has_control()):
            break
    runs = group(datagrams, mark) if datagrams else []
    if not is_blocked:
        if built:
            s.more = bool(sending.active or unreliable.waiting)
        elif turn is not None:
            runs += _transmit_run(s, turn, packets, now, slab, mark)
    return runs


def _transmit_run(
    s: State, turn: BulkTurn, packets: int, now: float, slab: bytearray | None, mark: int
) -> list[Run]:
    """Full packets with the next bytes of one stream, one behind the other in the slab."""
    recovery, pacer = s.recovery, s.recovery.pacer
    size = s.max_datagram_size
    run = kernel_run(size)
    number = recovery.take_number()
    count = min(
        packets,
        turn.packets,
        max(1, min(_BUILD_PACKETS, BUILD_BYTES // size) // run * run),
        pacer.packets_available(now),
        recovery.skipped.next - number,
    )
    if count <= 0:
        return []
    keys, path, cid = s.keys, s.paths.all[0], s.peer_ids.current.cid
    assert keys.send is not None
    assert keys.header_send is not None
    total = count * size
    if slab is None or len(slab) < total:
        slab = bytearray(total)
    head, capacity, offset = turn.head, turn.capacity, turn.start
    buffer = turn.stream.buffer
    join = b"".join
    payloads: list[bytes] = []
    # In most runs all bytes are in one chunk; slicing it is cheaper than finding pieces.
    held = buffer.pieces(offset, offset + count * capacity)
    if len(held) == 1:
        chunk = held[0]
        for at in range(0, count * capacity, capacity):
            encoded = (offset + at | LONG_VARINT).to_bytes(8, "big")
            payloads.append(join((head, encoded, chunk[at : at + capacity])))
    else:
        for at in range(offset, offset + count * capacity, capacity):
            encoded = (at | LONG_VARINT).to_bytes(8, "big")
            payloads.append(join((head, encoded, *buffer.pieces(at, at + capacity))))
    first = FIRST_BYTE | s.spin | keys.phase << 2
    seal_run(first, cid, number, payloads, keys.send, keys.header_send, slab, 0)
    packet = SentPacket(number, now)
    packet.count, packet.size, packet.eliciting, packet.in_flight = count, size, True, True
    packet.sender, packet.start, packet.stop = turn.stream, offset, offset + capacity
    packet.capacity = capacity
    recovery.on_sent(packet)
    s.streams.sending.sent_bulk(turn, count)
    pacer.update_after_run(count)
    path.bytes_sent += total
    s.note_eliciting_sent(now)
    if s.trace is not None:
        for index, payload in enumerate(payloads):
            log_packet(s.trace, "packet_sent", "1RTT", cid, number + index, size, payload)
    s.more = bool(s.streams.sending.active)
    view = memoryview(slab)[:total]
    step = run * size
    if total <= step:
        return [(view, path.addr, size, mark)]
    return [(view[at : at + step], path.addr, size, mark) for at in range(0, total, step)]


def _build(
    s: State,
    now: float,
    path: Path,
    size: int,
    has_rare: bool,
    with_data: bool,
    with_streams: bool,
    must_fill: bool = False,
) -> bytes | None:
    """One packet with the frames that are due; ``None``: there are none, or no room for them.

    With `must_fill`, PADDING makes it `size` bytes long.
    """
    recovery, received, streams = s.recovery, s.received, s.streams
    cid = s.peer_ids.current.cid
    number = recovery.take_number()
    packet = SentPacket(number, now)
    parts: list[bytes] = []
    room = size - 1 - len(cid) - NUMBER_SIZE - TAG_SIZE
    acknowledges = received.ack_at < math.inf
    if acknowledges:
        room, acknowledges = _fill_ack(s, now, parts, room, packet)
    if has_rare:
        if s.is_complete and s.paths.has_frames:
            before = room
            room = _fill_path_frames(s, path, parts, room, now, packet)
            if room < before:
                must_fill = True  # RFC 9000 section 8.2.1
                with_data = False
        room = _fill_rare(s, parts, room, packet)
    if streams.has_control():
        room = streams.fill_control(parts, room, packet)
    if with_data:
        if s.datagrams.waiting:
            room = s.datagrams.fill(parts, room, packet, now)
        if with_streams and streams.sending.active:
            room = streams.sending.fill_data(parts, room, packet)
    eliciting = len(parts) > acknowledges
    if s.probes_due:
        if not eliciting and room > 0:
            parts.append(PING_FRAME)
            room -= 1
            eliciting = True
        if not acknowledges and len(received.to_acknowledge):
            # The peer may be waiting for the acknowledgement, so it goes along if there is room.
            room, acknowledges = _fill_ack(s, now, parts, room, packet)
    if not eliciting:
        if not acknowledges or received.ack_at > now or must_fill:
            return None
        # Now and then, ask for an acknowledgement, so that old ranges are forgotten (RFC 9000
        # section 13.2.4), and records of sent packets as well.
        if (
            with_data and len(received.to_acknowledge) > 1 and number % 8 == 0
        ) or recovery.wants_acknowledgement():
            parts.append(PING_FRAME)
            eliciting = True
    if must_fill and room > 0:
        parts.append(bytes(room))
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    data = _seal(s, cid, packet, payload)
    packet.eliciting = packet.in_flight = eliciting
    recovery.on_sent(packet)
    if acknowledges:
        received.on_ack_sent()
    if eliciting:
        recovery.pacer.update_after_send(now)
        s.note_eliciting_sent(now)
        if s.probes_due:
            s.probes_due -= 1
    path.bytes_sent += packet.size
    return data


def coalesce(s: State, now: float, room: int, must_fill: bool) -> bytes:
    """A packet of at most `room` bytes for the end of a datagram; empty: there is none.

    With `must_fill`, a 1-RTT packet has exactly `room` bytes: it has no length field, so nothing
    can be put behind it (RFC 9000 section 12.2).
    """
    recovery, streams, pacer = s.recovery, s.streams, s.recovery.pacer
    if s.keys.send is None:
        return (_build_early(s, now, room) or b"") if s.can_send_early else b""
    s.now = now
    streams.now, streams.rtt = now, s.rtt.smoothed or s.rtt.initial
    pacer.begin_call(_RUN_PACKETS)
    with_data = recovery.room() >= room and pacer.next_send_time(now) is None
    path, has_rare = s.paths.all[0], s.has_rare_frames()
    return _build(s, now, path, room, has_rare, with_data, with_data, must_fill) or b""


def validation_period(s: State) -> float:
    """Seconds for which an answer to a PATH_CHALLENGE is waited for (RFC 9000 section 8.2.4).

    The larger of the present probe timeout and that of a new path.
    """
    return max(s.recovery.probe_timeout(), 2 * s.config.initial_rtt)


def _fill_path_frames(
    s: State, path: Path, parts: list[bytes], room: int, now: float, packet: SentPacket
) -> int:
    """Add PATH_CHALLENGE and PATH_RESPONSE for a path; returns the room left."""
    if path.needs_challenge() and room >= _PATH_FRAME:
        parts.append(frames.build_path_challenge(path.new_challenge()))
        room -= _PATH_FRAME
        patience = validation_period(s)
        if path is not s.paths.all[0]:
            s.paths.expect_response(path, now, patience)
        else:
            _note_control(packet, frames.PATH_CHALLENGE, 0)
            if path.validation_deadline == math.inf:
                path.validation_deadline = now + 3 * patience  # RFC 9000 section 8.2.4
    while path.challenges and room >= _PATH_FRAME:
        parts.append(frames.build_path_response(path.challenges.pop(0)))
        room -= _PATH_FRAME
    return room


def _fill_rare(s: State, parts: list[bytes], room: int, packet: SentPacket) -> int:
    """Add frames that are seldom due; returns the room left."""
    if s.is_complete:
        if s.handshake_done_pending and room > 0:
            parts.append(HANDSHAKE_DONE_FRAME)
            room -= 1
            s.handshake_done_pending = False
            _note_control(packet, frames.HANDSHAKE_DONE, 0)
        if s.token_pending:
            frame = frames.build_new_token(s.token)
            if len(frame) <= room:
                parts.append(frame)
                room -= len(frame)
                s.token_pending = False
                _note_control(packet, frames.NEW_TOKEN, 0)
        control = packet.control if packet.control is not None else []
        room = s.local_ids.fill(parts, room, control)
        room = s.peer_ids.fill(parts, room, control)
        if control:
            packet.control = control
    if s.pings and room > 0:
        parts.append(PING_FRAME)
        room -= 1
        for uid in s.pings:
            _note_control(packet, frames.PING, uid)
        s.pings.clear()
    if s.crypto_send.has_pending:
        control = packet.control if packet.control is not None else []
        room = s.crypto_send.fill(parts, room, control)
        if control:
            packet.control = control
    return room


def _note_control(packet: SentPacket, kind: int, value: int) -> None:
    if packet.control is None:
        packet.control = []
    packet.control.append((kind, value, 0))


def _probe_other_paths(s: State, now: float, datagrams: list[tuple[bytes, Address]]) -> None:
    """Build probing frames on inactive paths (RFC 9000 section 9.1).

    They use a connection ID of their own (section 9.5); without a spare one, nothing can
    be sent.  They are not limited by congestion control, and their loss tells nothing of the
    active path (section 9.4): they do not count as in flight.
    """
    for path in s.paths.all[1:]:
        if not path.challenges and not path.needs_challenge():
            continue
        if path.reserved_id < 0:
            reserved = s.peer_ids.reserve()
            if reserved is None:
                continue
            path.reserved_id = reserved.number
        cid = s.peer_ids.reserved[path.reserved_id].cid
        size = PROBE_SIZE
        if not path.is_validated and (path.challenge_sent or not s.is_client):
            size = min(size, int(path.room()))
            if size < _SMALLEST_PACKET:
                continue
        parts: list[bytes] = []
        room = size - 1 - len(cid) - NUMBER_SIZE - TAG_SIZE
        if room < _PATH_FRAME:
            continue
        packet = SentPacket(s.recovery.take_number(), now)
        room = _fill_path_frames(s, path, parts, room, now, packet)
        parts.append(bytes(room))
        data = _seal(s, cid, packet, b"".join(parts))
        packet.eliciting = True
        s.recovery.on_sent(packet)
        s.note_eliciting_sent(now)
        path.bytes_sent += packet.size
        datagrams.append((data, path.addr))


def _seal(s: State, cid: bytes, packet: SentPacket, payload: bytes) -> bytes:
    """Seal a 1-RTT packet, or a client's 0-RTT packet before it has the keys of 1-RTT packets."""
    keys = s.keys
    if keys.send is not None and keys.header_send is not None:
        first = FIRST_BYTE | s.spin | keys.phase << 2
        data = seal_one(first, cid, packet.number, payload, keys.send, keys.header_send)
    else:
        key, header = s.zero_rtt_key, s.zero_rtt_header
        assert key is not None
        assert header is not None
        packet.is_zero_rtt = True
        number, version = packet.number, s.version
        data = seal_long(ZERO_RTT, version, cid, s.local_cid, b"", number, payload, key, header)
    packet.size = len(data)
    if s.trace is not None:
        name = "0RTT" if packet.is_zero_rtt else "1RTT"
        log_packet(s.trace, "packet_sent", name, cid, packet.number, packet.size, payload)
    return data


def _build_mtu_probe(s: State, now: float) -> bytes | None:
    """A padded PING of the size that the search wants to try, if any (RFC 9000 section 14.4).

    It is not counted in flight, so its loss is no congestion (RFC 8899 section 3).
    """
    size = next_probe(s, now)
    if size < 0:
        return None
    cid = s.peer_ids.current.cid
    packet = SentPacket(s.recovery.take_number(), now)
    payload = PING_FRAME + bytes(size - 1 - len(cid) - NUMBER_SIZE - TAG_SIZE - 1)
    data = _seal(s, cid, packet, payload)
    packet.eliciting = True
    packet.control = [(MTU_PROBE, size, 0)]
    s.recovery.on_sent(packet)
    s.paths.all[0].bytes_sent += size
    s.note_eliciting_sent(now)
    return data


def _fill_ack(
    s: State, now: float, parts: list[bytes], room: int, packet: SentPacket
) -> tuple[int, bool]:
    """Put an ACK frame in front of `parts`; returns the room left, and whether it fits."""
    frame = _ack_frame(s, now, min(room, _LARGEST_ACK))
    if not frame:
        return room, False
    parts.insert(0, frame)
    packet.acknowledges = s.received.largest
    return room - len(frame), True


def _ack_frame(s: State, now: float, room: int) -> bytes:
    """The ACK frame of received packets, in at most *room* bytes (RFC 9000 section 19.3)."""
    received = s.received
    marks = received.marks
    return frames.build_ack(
        received.to_acknowledge,
        max(0, int((now - received.largest_time) * 1_000_000)) >> _ACK_DELAY_EXPONENT,
        room,
        None if marks is None else marks.as_fields(),
    )


def build_close(s: State, now: float, frame: bytes) -> bytes | None:
    """A packet with a CONNECTION_CLOSE frame; ``None``: there are no keys yet, or no more.

    The frame follows the acknowledgements still due, since nothing is acknowledged after it (RFC
    9000 section 10.2).  Otherwise a peer whose data was read would have to believe that it was
    lost.
    """
    if s.keys.send is None:
        return None
    payload = frame
    if s.received.ack_at < math.inf:
        payload = _ack_frame(s, now, _LARGEST_ACK) + frame
    packet = SentPacket(s.recovery.take_number(), now)
    data = _seal(s, s.peer_ids.current.cid, packet, payload)
    s.recovery.on_sent(packet)
    s.paths.all[0].bytes_sent += len(data)
    return data


def _transmit_early(s: State, now: float) -> list[Run]:
    """0-RTT packets of a client (RFC 9000 section 17.2.3)."""
    address = s.paths.all[0].addr
    datagrams: list[tuple[bytes, Address]] = []
    while len(datagrams) < _SMALL_PACKETS:
        data = _build_early(s, now, s.max_datagram_size)
        if data is None:
            break
        datagrams.append((data, address))
    s.more = len(datagrams) == _SMALL_PACKETS
    return group(datagrams) if datagrams else []


def _build_early(s: State, now: float, size: int) -> bytes | None:
    """One 0-RTT packet of at most `size` bytes; ``None``: nothing to send, or no room."""
    streams = s.streams
    if s.zero_rtt_key is None or (s.recovery.room() < size and s.control.bytes_in_flight):
        return None
    streams.now, streams.rtt = now, s.rtt.smoothed or s.rtt.initial
    # Version, both connection IDs and the length make its header longer.
    size -= 8 + len(s.local_cid)
    return _build(s, now, s.paths.all[0], size, s.has_rare_frames(), True, True)
