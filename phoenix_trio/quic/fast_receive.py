"""Runs of datagrams with one stream's data, read in one loop.

Floor 1, sans-IO, private to the engine; see :mod:`phoenix_trio.quic.fast_path`.
One cipher call removes the header protection of a whole run (RFC 9001 section
5.4); each packet is decrypted and authenticated by itself (section 5.3), and
only then is anything in it believed.  A packet which carries the next piece of
a stream and nothing else is dealt with here, any other one is aioquic's.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionState,
)
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from cryptography.exceptions import InvalidTag

from .fast_send import STREAM_WITH_OFFSET
from .small_packet import take_frames
from .stream_state import StreamRecord

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["receive_batch", "why_not"]

_TAG = 16  # bytes of the AEAD tag, and of a sample for header protection
_PACKET_NUMBER = 2  # bytes of packet number which are read here; other lengths are aioquic's
_LONG_OFFSET = 3 << 62

#: Bytes received after which an acknowledgement does not wait for its timer: a sender on a
#: fast path must not run out of what it may have in flight (RFC 9000 section 13.2.2).
ACKNOWLEDGE_BYTES = 512 * 1024

#: Bytes of a packet above which it is decrypted into a bytearray.
_LARGE = 8192

#: No frame begins like this (an unassigned type), so nothing is taken for the expected one.
_NOTHING = b"\xff\xff"


def why_not(engine: Engine, address: Any) -> str | None:
    """Why datagrams from `address` cannot be read in batches now; else ``None``."""
    if not engine._handshake_confirmed:
        return "handshake"
    if engine._state is not QuicConnectionState.CONNECTED or engine._close_pending:
        return "ending"
    if engine._quic_logger is not None:
        return "qlog"
    path = engine._network_paths[0]
    if path.addr != address or not path.is_validated:
        return "path"
    if engine._cryptos[tls.Epoch.ZERO_RTT].recv.is_valid():
        return "early data"
    recv = engine.one_rtt_keys.recv
    if recv.hp is None or recv.hp._is_chacha20:
        return "cipher"
    return None


def receive_batch(
    engine: Engine,
    data: bytes | bytearray,
    start: int,
    stop: int,
    size: int,
    address: Any,
    now: float,
    fallbacks: Counter[str],
) -> int:
    """Read datagrams of `size` bytes (the last may be shorter) from `data`, `start` to `stop`.

    They begin with the connection's present ID, at least the first one.  Returns
    where it stopped: at the end, before a datagram for another ID, or behind
    one after which the state has to be looked at again.
    """
    host_cid = engine.host_cid
    after_cid = 1 + len(host_cid)
    after_number = after_cid + _PACKET_NUMBER
    sample = after_cid + 4
    shortest = sample + _TAG
    if min(size, stop - start) < shortest:
        return receive_slowly(engine, data, start, stop, size, address, "short", fallbacks)
    if stop - start <= min(size, _LARGE):
        return _receive_one(engine, data, start, stop, address, now, fallbacks)
    whole = stop
    last = start + (stop - start - 1) // size * size
    if stop - last < shortest:
        stop = last  # a stunted datagram at the end: its turn comes by itself
    recv = engine.one_rtt_keys.recv
    assert recv.hp is not None
    assert recv.aead is not None
    masks = recv.hp._encryptor.update(
        b"".join([data[at + sample : at + shortest] for at in range(start, stop, size)])
    )
    view = memoryview(data)
    # The front of a bytearray is cut off without copying the rest, which pays for large
    # packets; bytes are quicker for small ones.
    is_large = size >= _LARGE
    plain: bytes | bytearray
    decrypt_into = recv.aead._aead.decrypt_into
    decrypt = recv.aead._aead.decrypt
    iv: int = recv.aead._iv
    # Fixed bit, reserved bits, key phase and length of the packet number; any spin bit.
    wanted = 0x40 | recv.key_phase << 2 | _PACKET_NUMBER - 1
    prefixes = {
        wanted: bytes((wanted,)) + host_cid,
        wanted | 0x20: bytes((wanted | 0x20,)) + host_cid,
    }
    space = engine.application_space
    received = space.received_packets
    batch = _Batch(engine, space, now)
    # (aioquic's own number stays behind by one, connection.py 1055: no packet which was
    # received may look like a new one.)
    expected: int = max(space.expected_packet_number, space.largest_received_packet + 1)
    run_start = run_stop = -1  # packet numbers which were taken and not yet recorded
    first = spin = 0
    spin_number = -1
    mask = 0
    # What the next packet begins with if it goes on where the last one ended, and the
    # offset up to which that is permitted.
    frame = b""
    frame_size = 0
    header = _NOTHING
    offset = limit = 0
    pieces: list[bytes | bytearray] = []
    position = start
    try:
        while position < stop:
            end = position + size
            if end > stop:
                end = stop
            first = data[position] ^ (masks[mask] & 0x1F)
            prefix = prefixes.get(first)
            if prefix is None or not data.startswith(host_cid, position + 1):
                break
            at = position + after_cid
            truncated = (data[at] << 8 | data[at + 1]) ^ (masks[mask + 1] << 8 | masks[mask + 2])
            number = truncated | expected & ~0xFFFF
            if number != expected:
                number = _whole_number(number, expected)
            nonce = (iv ^ number).to_bytes(12, "big")
            body = view[position + after_number : end]
            try:
                if is_large:
                    plain = bytearray(end - position - after_number - _TAG)
                    decrypt_into(nonce, body, prefix + truncated.to_bytes(2, "big"), plain)
                else:
                    plain = decrypt(nonce, body, prefix + truncated.to_bytes(2, "big"))
            except InvalidTag:
                fallbacks["receive: not authentic"] += 1
                position = end
                mask += 16
                continue
            position = end
            mask += 16
            if number < expected and (number in received or run_start <= number < run_stop):
                continue  # RFC 9000 section 12.3
            if plain.startswith(header):
                following = offset + len(plain) - frame_size
                if offset < following <= limit:
                    if is_large:
                        del plain[:frame_size]  # type: ignore[union-attr]
                        pieces.append(plain)
                    else:
                        pieces.append(plain[frame_size:])
                    offset = following
                    header = frame + (offset | _LONG_OFFSET).to_bytes(8, "big")
                else:
                    header = _NOTHING
            else:
                header = _NOTHING
            if header is _NOTHING:
                limit = 0
                if pieces:
                    batch.deliver(pieces, offset)
                    pieces = []
                if batch.begin_stream(plain):
                    frame, frame_size, offset, limit = batch.expected()
                    pieces.append(batch.first_piece)
                    header = frame + (offset | _LONG_OFFSET).to_bytes(8, "big")
                elif not batch.take_payload(plain):
                    return position  # the connection is ending
            if number == run_stop:
                run_stop += 1
            else:
                batch.record(run_start, run_stop)
                run_start, run_stop = number, number + 1
            if number >= expected:
                expected = number + 1
                spin, spin_number = first, number
    finally:
        batch.spin = spin & 0x20 != 0
        batch.spin_number = spin_number
        if pieces:
            batch.deliver(pieces, offset)
        if expected > space.expected_packet_number:
            space.expected_packet_number = expected
        batch.record(run_start, run_stop)
        batch.finish(position - start)
    if position == start or (
        position < stop and not data[position] & 0x80 and data.startswith(host_cid, position + 1)
    ):
        # Another key phase, length of packet number or reserved bits; or noise.  (In front,
        # a long header as well: one datagram is taken in any case.)
        return receive_slowly(engine, data, position, whole, size, address, "header", fallbacks)
    if position < stop:
        fallbacks["receive: connection ID"] += 1
    return position


def _whole_number(number: int, expected: int) -> int:
    """RFC 9000 appendix A.3, for two bytes: which packet number is meant."""
    if number <= expected - 0x8000:
        return number + 0x10000
    if number > expected + 0x8000 and number >= 0x10000:
        return number - 0x10000
    return number


def _receive_one(
    engine: Engine,
    data: bytes | bytearray,
    start: int,
    stop: int,
    address: Any,
    now: float,
    fallbacks: Counter[str],
) -> int:
    """The only datagram of its run, and no large one: what a request or an answer is.

    The same as :func:`receive_batch`, without what only pays for many.
    """
    recv = engine.one_rtt_keys.recv
    assert recv.hp is not None
    assert recv.aead is not None
    at = start + 1 + len(engine.host_cid)
    sample = at + 4
    mask = recv.hp._encryptor.update(data[sample : sample + _TAG])
    first = data[start] ^ (mask[0] & 0x1F)
    # Fixed bit, reserved bits, key phase and length of the packet number; any spin bit.
    if first & ~0x20 != 0x40 | recv.key_phase << 2 | _PACKET_NUMBER - 1:
        return receive_slowly(engine, data, start, stop, stop - start, address, "header", fallbacks)
    truncated = (data[at] << 8 | data[at + 1]) ^ (mask[1] << 8 | mask[2])
    space = engine.application_space
    expected = max(space.expected_packet_number, space.largest_received_packet + 1)
    number = truncated | expected & ~0xFFFF
    if number != expected:
        number = _whole_number(number, expected)
    header = b"%c%b%b" % (first, engine.host_cid, truncated.to_bytes(_PACKET_NUMBER, "big"))
    try:
        plain: bytes = recv.aead._aead.decrypt(
            (recv.aead._iv ^ number).to_bytes(12, "big"),
            memoryview(data)[at + _PACKET_NUMBER : stop],
            header,
        )
    except InvalidTag:
        fallbacks["receive: not authentic"] += 1
        return stop
    if number < expected and number in space.received_packets:
        return stop  # RFC 9000 section 12.3
    batch = _Batch(engine, space, now)
    if not batch.take_payload(plain):
        return stop  # the connection is ending
    batch.record(number, number + 1)
    if number >= expected:
        space.expected_packet_number = number + 1
        batch.spin = first & 0x20 != 0
        batch.spin_number = number
    batch.finish(stop - start)
    return stop


def receive_slowly(
    engine: Engine,
    data: bytes | bytearray,
    start: int,
    stop: int,
    size: int,
    address: Any,
    reason: str,
    fallbacks: Counter[str],
) -> int:
    """Leave one datagram to aioquic; returns where it ends."""
    fallbacks["receive: " + reason] += 1
    end = min(start + size, stop)
    # (No copy of bytes as a whole; aioquic keeps what it is given.)
    engine.receive_datagram(bytes(data[start:end]), address, engine._now)
    return end


def _cut(plain: bytes | bytearray, size: int) -> bytes | bytearray:
    """The packet's payload without its first `size` bytes."""
    if type(plain) is bytearray:
        del plain[:size]
        return plain
    return plain[size:]


class _Batch:
    """What a run of packets brings besides, or at the end."""

    __slots__ = (
        "_engine",
        "_expected",
        "_is_eliciting",
        "_now",
        "_received_any",
        "_record",
        "_space",
        "first_piece",
        "spin",
        "spin_number",
    )

    def __init__(self, engine: Engine, space: QuicPacketSpace, now: float) -> None:
        self._engine = engine
        self._space = space
        self._now = now
        self._record: StreamRecord | None = None
        self._expected = (b"", 0, 0, 0)
        self._is_eliciting = False
        self._received_any = False
        self.first_piece: bytes | bytearray = b""
        self.spin = False
        self.spin_number = -1

    def begin_stream(self, plain: bytes | bytearray) -> bool:
        """Whether this packet is the next piece of a stream without FIN, and nothing else.

        Then it is :attr:`first_piece`, and :meth:`expected` says what may follow.
        """
        if not plain or plain[0] & 0xF9 != 0x08:
            return False
        kind = plain[0]
        length = len(plain)
        offset = 0
        try:
            at = 1 + (1 << (plain[1] >> 6))
            stream_id = int.from_bytes(plain[1:at], "big") & (1 << 8 * (at - 1) - 2) - 1
            encoded_id = bytes(plain[1:at])
            if kind & 4:
                width = 1 << (plain[at] >> 6)
                offset = int.from_bytes(plain[at : at + width], "big") & (1 << 8 * width - 2) - 1
                at += width
            if kind & 2:
                width = 1 << (plain[at] >> 6)
                count = int.from_bytes(plain[at : at + width], "big") & (1 << 8 * width - 2) - 1
                at += width
                if at + count != length:
                    return False
        except IndexError:
            return False  # cut short: aioquic says how
        engine = self._engine
        record = engine._records.get(stream_id)
        if record is None or record.wire_done:
            return False
        receiver = record.receiver
        credit = engine._local_max_data
        limit = min(
            record.max_stream_data_local,
            receiver.highest_offset + credit.value - credit.used,
        )
        reached = offset + length - at
        if (
            not offset < reached <= limit
            or offset != receiver._buffer_start
            or offset != receiver.highest_offset
            or receiver._final_size is not None
            or receiver.is_finished
        ):
            return False
        self._record = record
        self._is_eliciting = True
        self.first_piece = _cut(plain, at)
        frame = bytes((STREAM_WITH_OFFSET,)) + encoded_id
        self._expected = (frame, len(frame) + 8, reached, limit)
        return True

    def expected(self) -> tuple[bytes, int, int, int]:
        """Type and stream ID of the frame which may follow, its header's size, offset and limit."""
        return self._expected

    def deliver(self, pieces: list[bytes | bytearray], reached: int) -> None:
        """Pieces which follow each other, the last one up to the offset `reached`."""
        record = self._record
        assert record is not None
        receiver = record.receiver
        engine = self._engine
        engine._local_max_data.used += reached - receiver.highest_offset
        receiver._buffer_start = receiver.highest_offset = reached
        engine.deliver_data(record, pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def take_payload(self, plain: bytes | bytearray) -> bool:
        """Any other packet, frame by frame.  False: that is the end of the connection."""
        engine = self._engine
        try:
            eliciting = take_frames(
                engine, plain if type(plain) is bytes else bytes(plain), self._now
            )
        except QuicConnectionError as error:
            engine.close(
                error_code=error.error_code,
                frame_type=error.frame_type,
                reason_phrase=error.reason_phrase,
            )
            return False
        self._is_eliciting = self._is_eliciting or eliciting
        return engine._state is QuicConnectionState.CONNECTED and not engine._close_pending

    def record(self, start: int, stop: int) -> None:
        """Record packet numbers as received (connection.py 1178)."""
        if start < 0:
            return
        space = self._space
        if stop - 1 > space.largest_received_packet:
            space.largest_received_packet = stop - 1
            space.largest_received_time = self._now
        space.ack_queue.add(start, stop)
        # add() slides the window of duplicates; the others only have to be known in it.
        window = space.received_packets
        if stop - start > 1:
            window._received.update(range(max(start, window._lower), stop - 1))
        window.add(stop - 1)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        self._received_any = True
        engine = self._engine
        engine.note_keys_used(start)
        if engine.arriving_mark:
            engine.note_marks(space, stop - start)

    def finish(self, size: int) -> None:
        """The end of the run: idle timer, spin bit (RFC 9000 section 17.4), acknowledgement."""
        engine = self._engine
        if (
            not self._received_any
            or engine._state is not QuicConnectionState.CONNECTED
            or engine._close_pending
        ):
            return
        if self.spin_number > engine._spin_highest_pn:
            engine._spin_highest_pn = self.spin_number
            engine._spin_bit = not self.spin if engine._is_client else self.spin
        engine._close_at = self._now + engine._idle_timeout()
        engine._ack_eliciting_sent_since_receipt = False
        if self._is_eliciting:
            engine.unacknowledged_bytes += size
            if engine.unacknowledged_bytes >= ACKNOWLEDGE_BYTES:
                self._space.ack_at = self._now
            elif self._space.ack_at is None:
                self._space.ack_at = self._now + engine._ack_delay
