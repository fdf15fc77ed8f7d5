"""Builds STREAM frames: chooses streams in turn, within flow control and memory limits.

Floor 1, sans-IO.  Streams take turns (RFC 9000 section 2.3): a stream goes to the end of the
queue after its turn, and leaves the queue when it has nothing more to send.
"""

from __future__ import annotations

from ...config import TransportConfig
from ..wire.frames import (
    RESET_STREAM,
    build_reset_stream,
    build_stream_head,
    build_stream_prefix,
    stream_head_size,
)
from .memory_budget import MemoryBudget
from .send_stream import SendQueue, SendStream
from .sent_packet import SentPacket

__all__ = ["BulkTurn", "Sending", "add_control"]

#: Turns in one packet, which bound its cost when many streams have little data.
_TURNS = 32

#: The most bytes of type, stream ID, offset and length of a STREAM frame.
_LONGEST_HEAD = 1 + 8 + 8 + 4

#: Bytes up to which a frame's length takes two bytes (RFC 9000 section 16).
_TWO_BYTE_MAX = 16383

#: Bytes of an offset in a run of packets: always the long form, so that all are alike.
_LONG_OFFSET = 8

_LONGEST_RESET_STREAM = 1 + 8 + 8 + 8


def add_control(
    parts: list[bytes], packet: SentPacket, frame: bytes, kind: int, a: int, b: int
) -> int:
    """Add a frame, and note it in the packet's record; returns its size in bytes."""
    parts.append(frame)
    if packet.control is None:
        packet.control = [(kind, a, b)]
    else:
        packet.control.append((kind, a, b))
    return len(frame)


class BulkTurn:
    """A stream with at least one full packet to send, and the common values of its packets.

    The frame of packet ``i`` is :attr:`head`, the offset ``start + i * capacity`` in eight
    bytes, and `capacity` bytes of the stream; it has no length and no end.
    """

    __slots__ = ("capacity", "head", "packets", "start", "stream")

    def __init__(
        self, stream: SendStream, head: bytes, start: int, capacity: int, packets: int
    ) -> None:
        self.stream: SendStream = stream
        self.head: bytes = head
        """The beginning of every frame: type and stream ID."""
        self.start: int = start
        """The offset of the first packet's data."""
        self.capacity: int = capacity
        """Stream bytes in a packet."""
        self.packets: int = packets
        """Full packets that the stream has and flow control permits."""


class Sending(SendQueue):
    """The sending parts of a connection's streams, with the peer's credit and our memory.

    Args:
      config: the limits of the send buffers.
      memory: the endpoint's memory for data not yet acknowledged by peers.
      ended: gets the ID of each stream whose sending part has ended.
    """

    __slots__ = (
        "_account",
        "_allowance",
        "_is_closed",
        "_limit",
        "_minimum",
        "_reviewed",
        "_stream_limit",
        "bytes_written",
        "peer_max_data",
        "peer_max_data_used",
        "wrote",
        "zero_copy",
        "zero_copy_operations",
    )

    buffered: int
    unsent: int

    def __init__(self, config: TransportConfig, memory: MemoryBudget, ended: list[int]) -> None:
        super().__init__(ended)
        self._limit: int = config.send_buffer_size
        self._stream_limit: int = config.stream_send_buffer_size
        self.zero_copy: bool = config.enable_zero_copy
        self._account = memory.open()
        self._minimum: int = min(memory.minimum, config.send_buffer_size)
        self._allowance: int = self._minimum
        self._reviewed: int = 0  # bytes acknowledged when the allowance was last reviewed
        self._is_closed: bool = False
        self.peer_max_data: int = 0
        """Bytes that the peer permits on all streams together (RFC 9000 section 4.1)."""
        self.peer_max_data_used: int = 0
        """The part of these bytes already sent; each byte counts once."""
        self.bytes_written: int = 0
        """Bytes written to all streams so far."""
        self.zero_copy_operations: int = 0
        """Writes whose data was kept instead of copied."""
        self.wrote: bool = False
        """Whether anything was written since this was last set to false."""

    # -- the application's data

    def write(self, stream: SendStream, data: bytes | bytearray | memoryview, fin: bool) -> None:
        """Append to a stream's send buffer (the caller has asked :meth:`room`).

        Immutable data of some size is kept, not copied.

        Raises:
          RuntimeError: the stream has ended, or was reset.
        """
        if stream.final_size >= 0 or stream.reset_code >= 0:
            raise RuntimeError("cannot send data after the end of the stream, or its reset")
        self.wrote = True
        size = len(data)
        if size:
            if stream.buffer.append(data, keep=self.zero_copy):
                self.zero_copy_operations += 1
            self.buffered += size
            self.unsent += size
            self.bytes_written += size
        if fin:
            stream.end()
        if stream.stream_id not in self.active and stream.has_work():
            self.active[stream.stream_id] = stream

    def room(self, stream: SendStream, wanted: int) -> int:
        """Bytes that may be written to a stream now within the limits of the send buffers.

        Args:
          stream: the stream.
          wanted: bytes that the caller has to write; so many are requested of the endpoint's
            memory.
        """
        buffer, buffered = stream.buffer, self.buffered
        # (Plain comparisons, since every write runs this.)
        room = self._stream_limit - buffer.stop + buffer.start
        if self._limit - buffered < room:
            room = self._limit - buffered
        needed = buffered + room
        if wanted < room:
            needed = buffered + wanted
        if needed > self._allowance and not self._is_closed:
            # Half as much again, so that small writes seldom have to ask.
            self._allowance = self._account.adjust(buffered, min(needed + needed // 2, self._limit))
        if self._allowance - buffered < room:
            room = self._allowance - buffered
        return max(0, room)

    def has_room(self, stream: SendStream) -> bool:
        """Whether a blocked writer should go on: the buffers are half empty."""
        return len(stream.buffer) * 2 <= self._stream_limit and (
            self.buffered * 2 <= self._ceiling()
        )

    def _ceiling(self) -> int:
        """The most bytes that the connection could hold for sending now."""
        ceiling = self._limit
        if self._allowance < ceiling:
            return self._account.permitted(ceiling)
        return ceiling

    def review_memory(self) -> None:
        """Give back memory after acknowledgements, if it is not needed or is due to others."""
        allowance, buffered = self._allowance, self.buffered
        if allowance <= self._minimum or self._is_closed:
            return
        if 4 * buffered < allowance:
            wanted = max(2 * buffered, self._minimum)
        elif 4 * (self.bytes_acknowledged - self._reviewed) >= allowance:
            wanted = allowance
        else:
            return  # only after a quarter has changed: asking costs as much as a packet
        self._reviewed = self.bytes_acknowledged
        self._allowance = self._account.adjust(buffered, wanted)

    def close_memory(self) -> None:
        """Give back all memory for sending, since the connection has ended."""
        self._is_closed = True
        self._account.close()

    # -- the peer's credit

    def take_max_data(self, maximum: int) -> None:
        """Take a MAX_DATA frame (RFC 9000 section 19.9)."""
        if maximum > self.peer_max_data:
            self.peer_max_data = maximum
            if self.starved:
                self.active.update(self.starved)
                self.starved.clear()

    # -- frames

    def fill_data(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add STREAM frames of the next streams in turn; returns the room left, in bytes."""
        active = self.active
        turns = _TURNS
        while active and turns and room > _LONGEST_HEAD:
            stream = next(iter(active.values()))
            stream_id = stream.stream_id
            del active[stream_id]
            lost = stream.lost
            if lost is None:
                start = stream.sent
                stop = stream.buffer.stop
                if stop > stream.limit:
                    stop = stream.limit
                credit = self.peer_max_data - self.peer_max_data_used
                if stop - start > credit:
                    stop = start + credit
            else:
                start, stop = lost.starts[0], lost.stops[0]
            size = stop - start
            if size <= 0:
                if not stream.fin_pending or start != stream.final_size:
                    # Only credit can be missing: that of the stream, or that of the connection.
                    if stream.has_work():
                        self.starved[stream_id] = stream
                    continue
                size, stop = 0, start
            elif size > room - _LONGEST_HEAD:
                most = room - stream_head_size(stream_id, start)
                if most > _TWO_BYTE_MAX:
                    most -= 2
                if size > most:
                    size = most
                    stop = start + size
            if lost is None:
                stream.sent = stop
                self.unsent -= size
                self.peer_max_data_used += size
                fin = stop == stream.final_size
                if fin:
                    stream.fin_pending = False
            else:
                fin = stream.note_sent(start, stop)
            turns -= 1
            head = build_stream_head(stream_id, start, size, fin)
            parts.append(head)
            room -= len(head) + size
            if size:
                parts.append(stream.buffer.read(start, stop))
            if packet.sender is None:
                packet.sender = stream
                packet.start = start
                packet.stop = stop
                packet.fin = fin
            elif packet.streams is None:
                packet.streams = [(stream, start, stop, fin)]
            else:
                packet.streams.append((stream, start, stop, fin))
            if (lost is not None or stop < stream.buffer.stop) and stream.has_work():
                active[stream_id] = stream
        return room

    def next_bulk(self, room: int) -> BulkTurn | None:
        """The turn of the next stream, if it has a full packet's worth to send; else ``None``.

        Args:
          room: bytes of frames that fit in a packet.
        """
        for stream in self.active.values():
            start, stop = stream.next_range()
            if stream.lost is None:
                if stop > stream.limit:
                    stop = stream.limit
                credit = self.peer_max_data - self.peer_max_data_used
                if stop - start > credit:
                    stop = start + credit
            size = stop - start
            if stop == stream.final_size:
                size -= 1  # no frame of a run has a FIN, so the last byte goes by itself
            if size <= room - _LONGEST_HEAD:
                return None
            head = build_stream_prefix(stream.stream_id)
            capacity = room - len(head) - _LONG_OFFSET
            packets = size // capacity
            return BulkTurn(stream, head, start, capacity, packets) if packets else None
        return None

    def sent_bulk(self, turn: BulkTurn, count: int) -> None:
        """Note that the first `count` packets of a turn were built, and pass the turn on."""
        stream = turn.stream
        stop = turn.start + count * turn.capacity
        new = stop - stream.sent
        if new > 0:
            self.peer_max_data_used += new
        stream.note_sent(turn.start, stop)
        del self.active[stream.stream_id]
        stream.activate()

    def fill_resets(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add RESET_STREAM frames (RFC 9000 section 19.4); returns the room left, in bytes."""
        resets = self.resets
        while resets and room >= _LONGEST_RESET_STREAM:
            stream_id = next(iter(resets))
            stream = resets.pop(stream_id)
            frame = build_reset_stream(stream_id, stream.reset_code, stream.sent)
            room -= add_control(parts, packet, frame, RESET_STREAM, stream_id, 0)
        return room

    def clear(self) -> None:
        """Cut the references to the streams, since no more is sent."""
        self.active.clear()
        self.starved.clear()
        self.resets.clear()
