"""Many packets of one stream's data at a time, built in one loop.

Floor 1, sans-IO, private to the engine; see :mod:`phoenix_trio.quic.fast_path`.
The packets are those which aioquic would build (RFC 9000 section 17.3.1, one
STREAM frame of section 19.8 each): one encryption a packet (RFC 9001 section
5.3), one cipher call for the header protection of the whole run (section 5.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic.quic.connection import QuicConnectionState
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .stream_state import BulkPacket, BulkRun, StreamRecord

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["BulkTurn", "encode_varint", "next_turn", "send_bulk", "why_not"]


_TAG = 16  # bytes of the AEAD tag, and of a sample for header protection
_PACKET_NUMBER = 2  # bytes which aioquic sends of a packet number
_OFFSET = 8  # bytes of a frame's offset, always the long form: every packet is the same
_LONG_OFFSET = 3 << 62  # RFC 9000 section 16: an integer of eight bytes
STREAM_WITH_OFFSET = 0x0C


def encode_varint(value: int) -> bytes:
    """A variable-length integer (RFC 9000 section 16)."""
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


def why_not(engine: Engine) -> str | None:
    """Why nothing can be sent in batches now, whatever the streams hold; else ``None``."""
    if not engine._handshake_confirmed:
        return "handshake"
    if engine._state is not QuicConnectionState.CONNECTED or engine._close_pending:
        return "ending"
    if engine._quic_logger is not None:
        return "qlog"
    if not engine._network_paths[0].is_validated:
        return "path"
    pair = engine.one_rtt_keys
    if pair._update_key_requested:
        return "key update"
    if pair.send.aead is None or type(pair.send.aead._aead) is not AESGCM:
        return "cipher"
    return None


class BulkTurn:
    """A stream with at least one full packet to send, and what its packets have in common."""

    __slots__ = ("capacity", "frame", "packets", "record")

    def __init__(self, record: StreamRecord, frame: bytes, capacity: int, packets: int) -> None:
        self.record = record
        self.frame = frame
        """The beginning of every frame: type and stream ID."""
        self.capacity = capacity
        """Stream bytes in a packet."""
        self.packets = packets
        """Full packets which the stream has, and which flow control permits."""


def next_turn(engine: Engine, record: StreamRecord) -> BulkTurn | None:
    """The stream's turn, if it has a full packet's worth to send; else ``None``."""
    sender = record.sender
    # (The buffer counts as empty also when it was reset.)
    if sender.buffer_is_empty or sender.reset_pending or record.receiver.stop_pending:
        return None
    start, stop = sender.next_range()
    room = engine._remote_max_data - engine._remote_max_data_used
    stop = min(stop, record.max_stream_data_remote, sender.highest_offset + room)
    size = stop - start
    if stop == sender._buffer_fin:
        size -= 1  # the frame with the end of the stream is aioquic's: no frame here has a FIN
    if size < 1000:
        return None
    frame = bytes((STREAM_WITH_OFFSET,)) + encode_varint(record.stream_id)
    header = 1 + len(engine._peer_cid.cid) + _PACKET_NUMBER
    capacity = engine._max_datagram_size - header - len(frame) - _OFFSET - _TAG
    packets = size // capacity
    return BulkTurn(record, frame, capacity, packets) if packets else None


def send_bulk(
    engine: Engine, turn: BulkTurn, count: int, now: float, slab: bytearray
) -> memoryview:
    """`count` full packets with the next bytes of one stream, one behind the other in `slab`.

    The caller has made sure that congestion control permits it.
    """
    record, frame, capacity = turn.record, turn.frame, turn.capacity
    sender = record.sender
    size: int = engine._max_datagram_size
    pair = engine.one_rtt_keys
    aead, protection = pair.send.aead, pair.send.hp
    assert aead is not None
    assert protection is not None
    encrypt = aead._aead.encrypt_into
    iv: int = aead._iv
    number: int = engine._packet_number
    first = number
    offset = start = sender.next_range()[0]
    first_byte = 0x40 | engine._spin_bit << 5 | pair.key_phase << 2 | _PACKET_NUMBER - 1
    prefix = bytes((first_byte,)) + engine._peer_cid.cid
    header_size = len(prefix) + _PACKET_NUMBER
    total = count * size
    view = memoryview(slab)[:total]
    space = engine.application_space
    pieces = sender.data.pieces
    join = b"".join
    # In most runs all bytes are in one chunk; slicing it is cheaper than finding pieces.
    held = pieces(start, start + count * capacity)
    chunk = held[0] if len(held) == 1 else None
    at = 0
    position = 0
    end = size
    while position < total:
        header = prefix + (number & 0xFFFF).to_bytes(2, "big")
        encoded = (offset | _LONG_OFFSET).to_bytes(8, "big")
        following = offset + capacity
        if chunk is not None:
            payload = join((frame, encoded, chunk[at : at + capacity]))
            at += capacity
        else:
            payload = join((frame, encoded, *pieces(offset, following)))
        body = position + header_size
        view[position:body] = header
        encrypt((iv ^ number).to_bytes(12, "big"), payload, header, view[body:end])
        offset = following
        number += 1
        position = end
        end += size
    # Header protection (RFC 9001 section 5.4): the sample begins four bytes after the
    # beginning of the packet number.
    sample = len(prefix) + 4
    samples = join([view[at : at + _TAG] for at in range(sample, total, size)])
    masks = protection._encryptor.update(samples)
    high = header_size - 2
    low = header_size - 1
    mask = 0
    for position in range(0, total, size):
        slab[position] ^= masks[mask] & 0x1F
        slab[position + high] ^= masks[mask + 1]
        slab[position + low] ^= masks[mask + 2]
        mask += 16

    # What aioquic keeps when it sends (connection.py 1597, recovery.py 396).
    run: Any = BulkRun(first, number, now, size, sender, start, capacity)
    space.sent_packets.update(dict.fromkeys(range(first, number), run))
    new = offset - sender.highest_offset
    if new > 0:
        engine._remote_max_data_used += new
    sender.note_sent(start, offset)
    engine._packet_number = number
    space.ack_eliciting_in_flight += count
    loss = engine._loss
    loss._time_of_last_sent_ack_eliciting_packet = now
    batch: Any = BulkPacket(first, now, total, sender, start, offset)
    loss._cc.on_packet_sent(packet=batch)
    engine._network_paths[0].bytes_sent += total
    if not engine._ack_eliciting_sent_since_receipt:
        engine._close_at = now + engine._idle_timeout()
        engine._ack_eliciting_sent_since_receipt = True
    return view
