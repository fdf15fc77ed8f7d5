"""Reads 1-RTT and 0-RTT packets: opens them, records their numbers, follows the peer's moves.

Floor 1, sans-IO.  Packets come in runs of one size, as the kernel hands them over.  One cipher
call removes the header protection of a whole run (RFC 9001 section 5.4).  Each packet is opened
by itself (section 5.3), and its content is used only after that.
"""

from __future__ import annotations

from ..path_address import Address
from ..wire.errors import PROTOCOL_VIOLATION, TransportError
from ..wire.frames import LONG_VARINT, STREAM, build_stream_prefix, parse_stream
from ..wire.protection import (
    SAMPLE_SIZE,
    TAG_SIZE,
    NotAuthentic,
    decode_packet_number,
    open_packet,
)
from ..wire.qlog import log_key_update, log_packet
from .frame_handlers import ELICITING, NON_PROBING, take_frames
from .paths import Path
from .state import State

__all__ = ["receive_run", "receive_zero_rtt"]

_SAMPLE_AFTER_NUMBER = 4  # RFC 9001 section 5.4.2: bytes from the number to the sample

#: Packets of more bytes are opened into a bytearray, whose front can be cut off without copying
#: the rest.
_LARGE = 8192

#: No frame begins like this (an unassigned type), so no frame is taken for the expected one.
_NOTHING = b"\xff\xff"


def receive_run(
    s: State,
    data: bytes | bytearray,
    start: int,
    size: int,
    address: Address,
    now: float,
    mark: int,
    stop: int,
) -> int:
    """Take 1-RTT packets, one a datagram of `size` bytes (the last may be shorter).

    The packets are in `data` from `start` to `stop`.  The first one is for a connection ID of
    this connection; reading ends before a datagram for another ID, or with a long header.

    Returns where it ended, behind one datagram at least.
    """
    s.now = now
    path = s.paths.all[0]
    has_moved = path.addr != address
    if has_moved:
        if s.is_client and not s.paths.knows(address):
            return stop  # RFC 9000 section 9: packets from an unknown server are discarded
        path = s.paths.find(address)
    keys = s.keys
    header_key = keys.header_receive
    after_cid = start + 1 + len(s.local_cid)
    if header_key is None or keys.receive is None:
        return stop
    offset_to_cid = after_cid - start
    sample_at = offset_to_cid + _SAMPLE_AFTER_NUMBER
    shortest = sample_at + SAMPLE_SIZE
    if size < shortest:
        # RFC 9001 section 5.4.2: without a full sample it is not a packet.  (And a part of a
        # sample would disturb the cipher, which works on whole blocks, for ever.)
        return min(start + size, stop)
    whole = stop
    last = start + (stop - start - 1) // size * size
    if stop - last < shortest:
        if last == start:
            return stop
        stop = last
    if stop - start <= size:
        masks = header_key.mask(data[start + sample_at : start + shortest])
    else:
        masks = header_key.masks(
            b"".join([data[at + sample_at : at + shortest] for at in range(start, stop, size)])
        )
    cid = bytes(data[start + 1 : after_cid])
    if cid != s.local_ids.current:
        has_moved = True
        if s.local_ids.number_of(cid) < 0:
            return min(start + size, stop)  # RFC 9000 section 5.2: the ID is retired, or not ours
    s.arrival_path, s.arrival_cid = path, cid
    s.streams.now, s.streams.rtt = now, s.rtt.smoothed or s.rtt.initial
    view = memoryview(data)
    is_large = size >= _LARGE and s.trace is None  # (a trace needs whole payloads)
    received = s.received
    expected = received.expected

    # The first bytes of the next packet if it continues the data of the last one, and the offset
    # up to which that is permitted.
    stream_id = 0
    prefix = b""
    head = _NOTHING
    head_size = offset = limit = 0
    pieces: list[bytes | bytearray] = []
    flags = eliciting = 0
    run_start = run_stop = -1  # packet numbers taken and not yet recorded
    any_taken = False
    highest = -1
    spin = 0
    mask = 0
    position = start
    plain: bytes | bytearray
    while position < stop:
        end = position + size
        if end > stop:
            end = stop
        first = data[position]
        if position > start and (first & 0x80 or not data.startswith(cid, position + 1)):
            break
        if not first & 0x40:
            position = end  # RFC 9000 section 17.3.1: without the fixed bit, it is no packet.
            mask += SAMPLE_SIZE
            continue
        first ^= masks[mask] & 0x1F
        length = (first & 3) + 1
        at = position + offset_to_cid
        if length == 2:
            truncated = (data[at] << 8 | data[at + 1]) ^ (masks[mask + 1] << 8 | masks[mask + 2])
            number = truncated | expected & ~0xFFFF
            if number != expected:
                # RFC 9000 appendix A.3
                if number <= expected - 0x8000:
                    number += 0x10000
                elif number > expected + 0x8000 and number >= 0x10000:
                    number -= 0x10000
        else:
            truncated = int.from_bytes(view[at : at + length], "big") ^ int.from_bytes(
                masks[mask + 1 : mask + 1 + length], "big"
            )
            number = decode_packet_number(truncated, 8 * length, expected)
        mask += SAMPLE_SIZE
        body_at = at + length
        header = b"%c%b%b" % (first, cid, truncated.to_bytes(length, "big"))
        try:
            if first >> 2 & 1 == keys.phase:
                if is_large:
                    plain = bytearray(end - body_at - TAG_SIZE)
                    keys.receive.decrypt_into(number, header, view[body_at:end], plain)
                else:
                    plain = keys.receive.decrypt(number, header, view[body_at:end])
                if number < keys.lowest_number:
                    keys.lowest_number = number
            else:
                updates = keys.updates
                plain = keys.open_other_phase(number, header, bytes(view[body_at:end]))
                if s.trace is not None and keys.updates != updates:
                    log_key_update(s.trace, "remote_update")
        except NotAuthentic:
            position = end
            continue
        except TransportError as error:
            s.fault = error
            return whole
        packet_size = end - position
        position = end
        if number < expected and (received.is_duplicate(number) or run_start <= number < run_stop):
            continue  # RFC 9000 section 12.3
        any_taken = True
        if s.trace is not None:
            log_packet(s.trace, "packet_received", "1RTT", cid, number, packet_size, plain)
        if plain.startswith(head) and not first & 0x18:
            following = offset + len(plain) - head_size
            if offset < following <= limit:
                if type(plain) is bytearray:
                    del plain[:head_size]
                    pieces.append(plain)
                else:
                    pieces.append(plain[head_size:])
                offset = following
                head = prefix + (offset | LONG_VARINT).to_bytes(8, "big")
                flags = ELICITING | NON_PROBING
            else:
                head = _NOTHING
        else:
            head = _NOTHING
        if head is _NOTHING:
            if pieces:
                s.streams.take_bulk(stream_id, b"".join(pieces), offset)
                pieces = []
            limit = 0  # (no frame is expected, so none can match)
            if first & 0x18:
                s.fault = TransportError(PROTOCOL_VIOLATION, 0, "Reserved bits must be zero")
                return whole
            try:
                # A STREAM frame without FIN and nothing else: more of it may follow.
                begin = 0
                if position < stop and plain and plain[0] & 0xF9 == STREAM:
                    stream_id, offset, begin, frame_end, _ = parse_stream(plain, 0)
                    limit = -1
                    if begin < frame_end == len(plain):
                        limit = s.streams.bulk_limit(stream_id, offset)
                    offset += frame_end - begin
                    if offset > limit:
                        begin = 0
                if begin:
                    if type(plain) is bytearray:
                        del plain[:begin]
                        pieces.append(plain)
                    else:
                        pieces.append(plain[begin:])
                    prefix = build_stream_prefix(stream_id)
                    head_size = len(prefix) + 8
                    head = prefix + (offset | LONG_VARINT).to_bytes(8, "big")
                    flags = ELICITING | NON_PROBING
                else:
                    flags = take_frames(s, plain if type(plain) is bytes else bytes(plain), now)
            except TransportError as error:
                s.fault = error
                return whole
            if s.peer_close is not None:
                return whole
        if has_moved and _follow(s, path, cid, number, flags):
            has_moved = False
        eliciting |= flags
        if number == run_stop:
            run_stop += 1
        else:
            if run_start >= 0:
                received.note_run(run_start, run_stop, now, False, mark, 0)
            run_start, run_stop = number, number + 1
        if number >= expected:
            expected = number + 1
            highest, spin = number, first & 0x20
    if pieces:
        s.streams.take_bulk(stream_id, b"".join(pieces), offset)
    if not any_taken:
        return position
    if run_stop - run_start == 1:
        received.note(run_start, now, eliciting & ELICITING != 0, mark, position - start)
    else:
        received.note_run(
            run_start, run_stop, now, eliciting & ELICITING != 0, mark, position - start
        )
    s.note_received(now)
    if highest > s.spin_number:
        # RFC 9000 section 17.4.
        s.spin_number = highest
        s.spin = spin ^ 0x20 if s.is_client else spin
    if s.zero_rtt_key is not None and not s.is_client:
        s.zero_rtt_key = s.zero_rtt_header = None  # RFC 9001 section 4.9.3
    return position


def _follow(s: State, path: Path, cid: bytes, number: int, flags: int) -> bool:
    """Follow a packet on another path, or to another connection ID (RFC 9000 section 9).

    Probing packets move nothing.  Only clients migrate; a client whose server uses another one
    of its connection IDs need not act.

    Returns whether path and connection ID are the active ones now.
    """
    paths, ids = s.paths, s.peer_ids
    is_non_probing = flags & NON_PROBING != 0
    is_newest = number > s.received.largest
    if cid != s.local_ids.current and is_non_probing and is_newest:
        s.local_ids.current = cid
        # RFC 9000 section 9.5: a peer that changes its connection ID expects a new one in
        # return.  A path with a connection ID reserved for it uses that once it is active.
        if not s.is_client and path.reserved_id < 0 and ids.change():
            s.spin = 0
    if path not in paths.all:
        paths.add(path, ids)
    if path is not paths.all[0]:
        if s.is_client or not is_non_probing or not is_newest or not paths.may_follow(path):
            return False
        if paths.promote(path, ids):
            s.spin = 0
    return cid == s.local_ids.current


def receive_zero_rtt(s: State, packet: bytes, address: Address, now: float, mark: int) -> None:
    """Take a 0-RTT packet (RFC 9000 section 17.2.3); `packet` has nothing else."""
    key, header_key = s.zero_rtt_key, s.zero_rtt_header
    if key is None or header_key is None or s.is_client:
        return
    s.now = now
    # Version, both connection IDs, and the length.
    at = 6 + packet[5]
    at += 1 + packet[at]
    at += 1 << (packet[at] >> 6)
    received = s.received
    try:
        first, number, plain = open_packet(
            packet, 0, at, len(packet), key, header_key, received.expected
        )
    except NotAuthentic:
        return
    if received.is_duplicate(number):
        return
    if s.trace is not None:
        cid = packet[6 : 6 + packet[5]]
        log_packet(s.trace, "packet_received", "0RTT", cid, number, len(packet), plain)
    if first & 0x0C:
        s.fault = TransportError(PROTOCOL_VIOLATION, 0, "Reserved bits must be zero")
        return
    path = s.paths.find(address)
    s.arrival_path, s.arrival_cid = path, s.local_cid
    s.streams.now, s.streams.rtt = now, s.rtt.smoothed or s.rtt.initial
    try:
        flags = take_frames(s, plain, now, is_early=True)
    except TransportError as error:
        s.fault = error
        return
    if s.peer_close is not None:
        return
    received.note_run(number, number + 1, now, flags & ELICITING != 0, mark, len(packet))
    if path not in s.paths.all:
        s.paths.add(path, s.peer_ids)
    s.note_received(now)
