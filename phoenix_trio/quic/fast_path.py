"""Many packets at a time: the batched 1-RTT path for STREAM data, both ways.

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`.  aioquic builds and
parses one packet at a time, with a few dozen Python calls each.  When a stream
has much to send, or a run of datagrams brings little but one stream's data, the
same packets (RFC 9000 section 17.3.1, frames of section 19.8) are made and read
here in one loop: one encryption a packet (RFC 9001 section 5.3), and one cipher
call for the header protection of the whole run (section 5.4).

Nothing here is a protocol of its own.  Whatever is not plain stream data on an
established path is left to aioquic's code, with the reason counted in
:attr:`FastPath.fallbacks`; ``tests/quic/test_fast_path.py`` holds the two
against each other and provokes every reason.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from aioquic import tls
from aioquic.quic.connection import (
    END_STATES,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..config import MAX_RUN_BYTES, MAX_RUN_SEGMENTS
from .stream_state import BulkPacket, StreamRecord, TrackedSender

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["FastPath"]

_ONE_RTT = tls.Epoch.ONE_RTT

_TAG = 16  # bytes of the AEAD tag, and of a sample for header protection
_PACKET_NUMBER = 2  # bytes which aioquic sends of a packet number
_OFFSET = 8  # bytes of a frame's offset, always the long form: every packet is the same
_STREAM_WITH_OFFSET = 0x0C


def encode_varint(value: int) -> bytes:
    """A variable-length integer (RFC 9000 section 16)."""
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


class FastPath:
    """The batched path of one connection."""

    __slots__ = ("_engine", "enabled", "fallbacks", "packets_received", "packets_sent")

    def __init__(self, engine: Engine, *, enabled: bool) -> None:
        self._engine = engine
        self.enabled = enabled
        self.fallbacks: Counter[str] = Counter()
        """How often, and why, packets went through aioquic's own code."""
        self.packets_sent = 0
        self.packets_received = 0

    # ------------------------------------------------------------------ sending

    def cannot_send(self) -> str | None:
        """Why nothing can be sent in batches now, whatever the streams hold; else ``None``."""
        engine = self._engine
        if not self.enabled:
            return "disabled"
        if not engine._handshake_confirmed:
            return "handshake"
        if engine._state is not QuicConnectionState.CONNECTED or engine._close_pending:
            return "ending"
        if engine._quic_logger is not None:
            return "qlog"
        if not engine._network_paths[0].is_validated:
            return "path"
        pair = engine._cryptos[_ONE_RTT]
        if pair._update_key_requested:
            return "key update"
        if pair.send.aead is None or type(pair.send.aead._aead) is not AESGCM:
            return "cipher"
        return None

    def sendable(self, record: StreamRecord, room: int) -> int:
        """Bytes of the stream's next contiguous range which flow control permits, from `room`."""
        sender = record.sender
        if (
            sender.buffer_is_empty  # (also when it was reset)
            or sender.reset_pending
            or record.receiver.stop_pending
            or not len(sender._pending)
        ):
            return 0
        pending = sender._pending[0]
        stop = min(pending.stop, record.stream.max_stream_data_remote, sender.highest_offset + room)
        size = stop - pending.start
        # The frame with the end of the stream is aioquic's: no frame here has a FIN.
        return size - 1 if stop == sender._buffer_fin else size

    def payload_size(self, stream_id: int) -> int:
        """Stream bytes in one full packet."""
        engine = self._engine
        header = 1 + len(engine._peer_cid.cid) + _PACKET_NUMBER
        frame = 1 + len(encode_varint(stream_id)) + _OFFSET
        size: int = engine._max_datagram_size - header - frame - _TAG
        return size

    def send(
        self, record: StreamRecord, count: int, now: float, slab: bytearray
    ) -> tuple[memoryview, Any, int]:
        """`count` full packets with the next bytes of one stream, as one run.

        The caller has made sure that the stream has so much to send and that
        congestion control and flow control permit it.
        """
        engine = self._engine
        sender: TrackedSender = record.sender
        stream_id = record.stream_id
        size: int = engine._max_datagram_size
        capacity = self.payload_size(stream_id)
        pair = engine._cryptos[_ONE_RTT]
        aead, protection = pair.send.aead, pair.send.hp
        assert aead is not None
        assert protection is not None
        encrypt = aead._aead.encrypt_into
        iv: int = aead._iv
        number: int = engine._packet_number
        first = number
        offset = start = sender._pending[0].start
        # A short header (RFC 9000 section 17.3.1) and the frame's fixed part.
        prefix = (
            bytes((0x40 | engine._spin_bit << 5 | pair.key_phase << 2 | _PACKET_NUMBER - 1,))
            + engine._peer_cid.cid
        )
        frame = bytes((_STREAM_WITH_OFFSET,)) + encode_varint(stream_id)
        header_size = len(prefix) + _PACKET_NUMBER
        total = count * size
        view = memoryview(slab)[:total]
        space = engine._spaces[_ONE_RTT]
        sent = space.sent_packets
        pieces = sender.data.pieces
        join = b"".join
        # In most runs all bytes are in one chunk; slicing it is cheaper than finding pieces.
        held = pieces(start, start + count * capacity)
        chunk = held[0] if len(held) == 1 else None
        position = 0
        end = size
        while position < total:
            header = prefix + (number & 0xFFFF).to_bytes(2, "big")
            encoded = (offset | 0xC000_0000_0000_0000).to_bytes(8, "big")
            following = offset + capacity
            if chunk is not None:
                payload = join((frame, encoded, chunk[offset - start : following - start]))
            else:
                payload = join((frame, encoded, *pieces(offset, following)))
            body = position + header_size
            view[position:body] = header
            encrypt((iv ^ number).to_bytes(12, "big"), payload, header, view[body:end])
            sent[number] = BulkPacket(number, now, size, sender, offset, following)  # type: ignore[assignment]
            offset = following
            number += 1
            position = end
            end += size
        # Header protection (RFC 9001 section 5.4): the sample begins four bytes after
        # the beginning of the packet number.
        sample = len(prefix) + 4
        masks = protection._encryptor.update(
            join([view[at : at + _TAG] for at in range(sample, total, size)])
        )
        high = header_size - 2
        low = header_size - 1
        mask = 0
        for position in range(0, total, size):
            slab[position] ^= masks[mask] & 0x1F
            slab[position + high] ^= masks[mask + 1]
            slab[position + low] ^= masks[mask + 2]
            mask += 16

        # What aioquic keeps when it sends (connection.py 1597, recovery.py 396).
        sender._pending.subtract(start, offset)
        new = offset - sender.highest_offset
        if new > 0:
            engine._remote_max_data_used += new
            sender.note_sent(offset)
        engine._packet_number = number
        space.ack_eliciting_in_flight += count
        loss = engine._loss
        loss._time_of_last_sent_ack_eliciting_packet = now
        batch = BulkPacket(first, now, total, sender, start, offset)
        loss._cc.on_packet_sent(packet=batch)  # type: ignore[arg-type]
        path = engine._network_paths[0]
        path.bytes_sent += total
        if not engine._ack_eliciting_sent_since_receipt:
            engine._close_at = now + engine._idle_timeout()
            engine._ack_eliciting_sent_since_receipt = True
        self.packets_sent += count
        return view, path.addr, size

    @staticmethod
    def largest_run(size: int) -> int:
        """How many packets of `size` bytes the kernel takes in one run."""
        return max(1, min(MAX_RUN_SEGMENTS, MAX_RUN_BYTES // size))

    # ------------------------------------------------------------------ receiving

    def cannot_receive(self, address: Any) -> str | None:
        """Why datagrams from `address` cannot be read in batches now; else ``None``."""
        engine = self._engine
        if not self.enabled:
            return "disabled"
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
        recv = engine._cryptos[_ONE_RTT].recv
        if recv.hp is None or recv.hp._is_chacha20:
            return "cipher"
        return None

    def receive(self, data: bytes, start: int, size: int, address: Any, now: float) -> int:
        """Read datagrams of `size` bytes from `data`, from `start` on.

        Stops before the first one which is not for this connection's present ID.
        Returns where it stopped; at least one datagram was read.
        """
        engine = self._engine
        stop = len(data)
        host_cid = engine.host_cid
        after_cid = 1 + len(host_cid)
        if data[start + 1 : start + after_cid] != host_cid:
            return self._receive_slowly(
                data, start, min(start + size, stop), address, "connection ID"
            )
        reason = self.cannot_receive(address)
        if reason is not None:
            return self._receive_slowly(data, start, min(start + size, stop), address, reason)
        sample = after_cid + 4
        shortest = sample + _TAG
        if min(size, stop - start) < shortest:
            return self._receive_slowly(data, start, min(start + size, stop), address, "short")
        last = start + (stop - start - 1) // size * size
        if stop - last < shortest:
            stop = last  # a stunted datagram at the end: its turn comes by itself
        recv = engine._cryptos[_ONE_RTT].recv
        positions = range(start, stop, size)
        assert recv.hp is not None
        masks = recv.hp._encryptor.update(
            b"".join([data[at + sample : at + sample + _TAG] for at in positions])
        )
        batch = _ReceivedBatch(engine, now)
        try:
            reached = self._receive_batch(data, positions, stop, masks, address, batch)
        finally:
            batch.finish()
        return reached

    def _receive_slowly(self, data: bytes, start: int, stop: int, address: Any, reason: str) -> int:
        self.fallbacks["receive: " + reason] += 1
        whole = start == 0 and stop == len(data)
        engine = self._engine
        engine.receive_datagram(data if whole else data[start:stop], address, engine._now)
        return stop

    def _receive_batch(
        self,
        data: bytes,
        positions: range,
        stop: int,
        masks: bytes,
        address: Any,
        batch: _ReceivedBatch,
    ) -> int:
        engine = self._engine
        view = memoryview(data)
        size = positions.step
        host_cid = engine.host_cid
        after_cid = 1 + len(host_cid)
        after_number = after_cid + _PACKET_NUMBER
        pair = engine._cryptos[_ONE_RTT]
        recv = pair.recv
        assert recv.aead is not None
        decrypt = recv.aead._aead.decrypt
        iv: int = recv.aead._iv
        # Fixed bit, reserved bits, key phase and length of the packet number; any spin bit.
        wanted = 0x40 | recv.key_phase << 2 | _PACKET_NUMBER - 1
        prefixes = {
            wanted: bytes((wanted,)) + host_cid,
            wanted | 0x20: bytes((wanted | 0x20,)) + host_cid,
        }
        space = engine._spaces[_ONE_RTT]
        received = space.received_packets
        expected: int = space.expected_packet_number
        largest: int = space.largest_received_packet
        mask = -16
        for position in positions:
            mask += 16
            end = position + size
            if end > stop:
                end = stop
            first = data[position] ^ (masks[mask] & 0x1F)
            prefix = prefixes.get(first)
            if prefix is None or data[position + 1 : position + after_cid] != host_cid:
                batch.finish()
                if data[position] & 0x80 or data[position + 1 : position + after_cid] != host_cid:
                    # For another connection perhaps: the driver knows.
                    self.fallbacks["receive: connection ID"] += 1
                    return position
                self._receive_slowly(data, position, end, address, "header")
                # (Keys, path and state may have changed.)
                return end
            at = position + after_cid
            truncated = (data[at] << 8 | data[at + 1]) ^ (masks[mask + 1] << 8 | masks[mask + 2])
            # RFC 9000 appendix A.3, for two bytes.
            number = expected & ~0xFFFF | truncated
            if number <= expected - 0x8000:
                number += 0x10000
            elif number > expected + 0x8000 and number >= 0x10000:
                number -= 0x10000
            try:
                plain = decrypt(
                    (iv ^ number).to_bytes(12, "big"),
                    view[position + after_number : end],
                    prefix + truncated.to_bytes(2, "big"),
                )
            except InvalidTag:
                self.fallbacks["receive: not authentic"] += 1
                continue
            if number <= largest and (number in received or batch.covers(number)):
                continue
            if number >= expected:
                expected = space.expected_packet_number = number + 1
            if number > largest:
                largest = number
            if not batch.take(number, first & 0x20 != 0, plain):
                return end
            self.packets_received += 1
        return stop


class _ReceivedBatch:
    """What a run of packets brings, handed on in as few steps as possible."""

    __slots__ = (
        "_context",
        "_engine",
        "_frame_prefix",
        "_is_alive",
        "_is_eliciting",
        "_now",
        "_pieces",
        "_received_any",
        "_record",
        "_run_start",
        "_run_stop",
        "_space",
    )

    def __init__(self, engine: Engine, now: float) -> None:
        self._engine = engine
        self._now = now
        self._space: QuicPacketSpace = engine._spaces[_ONE_RTT]
        self._context: QuicReceiveContext | None = None
        self._frame_prefix = b""
        self._record: StreamRecord | None = None
        self._pieces: list[bytes | memoryview] = []
        self._run_start = self._run_stop = -1
        self._received_any = False
        self._is_eliciting = False
        self._is_alive = True

    def covers(self, number: int) -> bool:
        """Whether the packet was taken already in this batch."""
        return self._run_start <= number < self._run_stop

    def take(self, number: int, spin: bool, plain: bytes) -> bool:
        """Take an authenticated packet.  False: the connection is ending."""
        engine = self._engine
        if number > engine._spin_highest_pn:
            engine._spin_highest_pn = number
            engine._spin_bit = not spin if engine._is_client else spin
        if not self._take_stream_frame(plain):
            self.flush()
            self._record = None
            if not self._take_payload(plain):
                self._is_alive = False
                return False
        if number == self._run_stop:
            self._run_stop += 1
        else:
            self._note_run()
            self._run_start, self._run_stop = number, number + 1
        return True

    def _take_stream_frame(self, plain: bytes) -> bool:
        """Whether this packet is the next piece of a stream and nothing else."""
        if not plain:
            return False
        kind = plain[0]
        if self._record is not None and plain.startswith(self._frame_prefix):
            at = len(self._frame_prefix)
            record = self._record
        else:
            if kind & 0xF9 != 0x08:  # not STREAM, or with FIN
                return False
            at = 1 + (1 << (plain[1] >> 6)) if len(plain) > 1 else 0
            if not 0 < at <= len(plain):
                return False
            stream_id = int.from_bytes(plain[1:at], "big") & (1 << 8 * (at - 1) - 2) - 1
            found = self._engine._records.get(stream_id)
            if found is None or found.wire_done:
                return False
            if found is not self._record:
                self.flush()
            self._record = record = found
            self._frame_prefix = plain[:at]
        length = len(plain)
        offset = 0
        try:
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
            return False  # malformed: aioquic says how
        receiver = record.receiver
        engine = self._engine
        count = length - at
        reached = offset + count
        limit = engine._local_max_data
        if (
            count <= 0
            or offset != receiver._buffer_start
            or offset != receiver.highest_offset
            or receiver._final_size is not None
            or receiver.is_finished
            or reached > record.stream.max_stream_data_local
            or limit.used + count > limit.value
        ):
            return False
        receiver._buffer_start = receiver.highest_offset = reached
        limit.used += count
        self._pieces.append(plain[at:])
        self._is_eliciting = True
        return True

    def _take_payload(self, plain: bytes) -> bool:
        """Anything else: aioquic's own parser (connection.py 2852).  False: that is the end."""
        engine = self._engine
        engine._fast.fallbacks["receive: frames"] += 1
        if self._context is None:
            self._context = QuicReceiveContext(
                epoch=_ONE_RTT,
                host_cid=engine.host_cid,
                network_path=engine._network_paths[0],
                quic_logger_frames=None,
                time=self._now,
                version=None,
            )
        try:
            eliciting, _ = engine._payload_received(self._context, plain)
        except QuicConnectionError as error:
            engine.close(
                error_code=error.error_code,
                frame_type=error.frame_type,
                reason_phrase=error.reason_phrase,
            )
            return False
        self._is_eliciting = self._is_eliciting or eliciting
        return engine._state not in END_STATES and not engine._close_pending

    def flush(self) -> None:
        """Hand the stream data up; what was queued by aioquic before comes first."""
        if self._pieces:
            record = self._record
            assert record is not None
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._engine.deliver_data(record, bytes(data))

    def _note_run(self) -> None:
        """Record packet numbers as received (connection.py 1178)."""
        start, stop = self._run_start, self._run_stop
        if start < 0:
            return
        space = self._space
        if stop - 1 > space.largest_received_packet:
            space.largest_received_packet = stop - 1
            space.largest_received_time = self._now
        space.ack_queue.add(start, stop)
        # add() slides the window of duplicates; the others only have to be known in it.
        window = space.received_packets
        window._received.update(range(max(start, window._lower), stop - 1))
        window.add(stop - 1)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        self._received_any = True
        self._run_start = self._run_stop = -1

    def finish(self) -> None:
        """The end of the run."""
        engine = self._engine
        self.flush()
        self._note_run()
        if not self._received_any or not self._is_alive:
            return
        self._received_any = False
        engine._close_at = self._now + engine._idle_timeout()
        engine._ack_eliciting_sent_since_receipt = False
        if self._is_eliciting and self._space.ack_at is None:
            self._space.ack_at = self._now + engine._ack_delay
