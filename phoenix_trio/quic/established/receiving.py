"""Grants receive credit on the streams, as the application reads.

Floor 1, sans-IO.  Credit follows reading, so memory is bounded (RFC 9000 section 4.1).  Each
stream has a window, and one window for all of them has an account with the endpoint's memory.
"""

from __future__ import annotations

from ...config import TransportConfig
from ..wire.errors import FLOW_CONTROL_ERROR, TransportError
from ..wire.frames import (
    MAX_DATA,
    MAX_STREAM_DATA,
    STOP_SENDING,
    build_max_data,
    build_max_stream_data,
    build_stop_sending,
)
from .flow_control import ReceiveWindow
from .memory_budget import MemoryAccount, MemoryBudget
from .reassembly import PieceLimit
from .receive_stream import ReceiveStream
from .sending import add_control
from .sent_packet import SentPacket

__all__ = ["Receiving"]

#: The first flow-control windows, in bytes; they grow to the configuration's ceilings.
INITIAL_STREAM_WINDOW = 1024 * 1024
INITIAL_CONNECTION_WINDOW = 3 * 512 * 1024

_LONGEST_MAX_DATA = 1 + 8
_LONGEST_MAX_STREAM_DATA = 1 + 8 + 8
_LONGEST_STOP_SENDING = 1 + 8 + 8


class Receiving:
    """The receiving parts of a connection's streams: their credit, and the frames that announce it.

    Args:
      config: the ceilings of the windows.
      memory: the endpoint's memory for data not yet read by the application.
    """

    __slots__ = (
        "_ceiling",
        "_full_window",
        "_was_lost",
        "account",
        "initial_connection_window",
        "initial_stream_window",
        "limits_to_send",
        "max_data",
        "max_data_pending",
        "pieces",
        "received",
        "stops",
        "window",
    )

    def __init__(self, config: TransportConfig, memory: MemoryBudget) -> None:
        self.account: MemoryAccount = memory.open()
        """The connection's share of the endpoint's memory."""
        self._ceiling: int = min(config.stream_receive_buffer_size, config.receive_buffer_size)
        stream_window = min(INITIAL_STREAM_WINDOW, self._ceiling)
        wanted = min(INITIAL_CONNECTION_WINDOW, config.receive_buffer_size)
        granted = self.account.begin(wanted)
        if granted < wanted:
            stream_window = min(stream_window, _stream_share(granted))
        self.initial_connection_window: int = granted
        """Bytes that the transport parameters permit on all streams together."""
        self.initial_stream_window: int = stream_window
        """Bytes that the transport parameters permit on each stream."""
        self._full_window: int = wanted
        self.window: ReceiveWindow = ReceiveWindow(
            granted, config.receive_buffer_size, self.account
        )
        self.max_data: int = granted
        """The announced limit of all streams together."""
        self.received: int = 0
        """The sum of the highest offsets received; :attr:`max_data` limits it."""
        self.max_data_pending: bool = False
        """Whether MAX_DATA has to be sent."""
        self._was_lost: bool = False
        self.limits_to_send: dict[int, ReceiveStream] = {}
        """Streams for which MAX_STREAM_DATA has to be sent."""
        self.stops: dict[int, ReceiveStream] = {}
        """Streams for which STOP_SENDING has to be sent."""
        self.pieces: PieceLimit = PieceLimit()
        """Bounds the pieces behind gaps on all streams."""

    def open(self, stream_id: int) -> ReceiveStream:
        """The receiving part of a new stream."""
        window = ReceiveWindow(self.initial_stream_window, self._ceiling)
        return ReceiveStream(stream_id, window, self.pieces)

    def check(self, stream: ReceiveStream, reached: int, frame_type: int) -> int:
        """The bytes by which `reached` exceeds the highest offset received of the stream.

        Raises:
          TransportError: it exceeds the stream's or the connection's limit (RFC 9000 section 4.1).
        """
        if reached > stream.limit:
            raise TransportError(FLOW_CONTROL_ERROR, frame_type, "Over stream data limit")
        new = reached - stream.received
        if new <= 0:
            return 0
        if self.received + new > self.max_data:
            raise TransportError(FLOW_CONTROL_ERROR, frame_type, "Over connection data limit")
        return new

    # -- credit

    def release_up_to(self, stream: ReceiveStream, offset: int, now: float, rtt: float) -> None:
        """Release the bytes of the stream below `offset`, since they were read or discarded."""
        window = stream.window
        count = offset - window.released
        if count > 0:
            self.window.released += count
            window.released = offset
            self.update(stream, now, rtt)

    def update(self, stream: ReceiveStream, now: float, rtt: float) -> None:
        """Grant more credit to the stream and to the connection, if that is worth a frame."""
        if self.window.is_due and self.window.update(now, rtt):
            self.max_data_pending = True
        window = stream.window
        if (
            window.is_due
            and stream.final_size < 0  # (else all credit needed was given)
            and not stream.is_discarding
            and window.update(now, rtt, ceiling=self._stream_ceiling())
        ):
            self.limits_to_send[stream.stream_id] = stream

    def _stream_ceiling(self) -> int | None:
        """The limit for one stream while memory is scarce, so that the others get credit, too."""
        size = self.window.size
        return _stream_share(size) if size < self._full_window else None

    # -- frames

    def fill_max_data(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add MAX_DATA (RFC 9000 section 19.9) if it is due; returns the room left, in bytes."""
        if room < _LONGEST_MAX_DATA:
            return room
        self.max_data_pending = False
        limit = self.window.limit
        if limit != self.max_data or self._was_lost:
            self._was_lost = False
            self.max_data = limit
            room -= add_control(parts, packet, build_max_data(limit), MAX_DATA, limit, 0)
        return room

    def fill_stream_limits(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add MAX_STREAM_DATA frames (RFC 9000 section 19.10); returns the room left, in bytes."""
        waiting = self.limits_to_send
        while waiting and room >= _LONGEST_MAX_STREAM_DATA:
            stream_id = next(iter(waiting))
            stream = waiting.pop(stream_id)
            if stream.final_size >= 0 or stream.is_discarding:
                continue
            limit = stream.limit = stream.window.limit
            frame = build_max_stream_data(stream_id, limit)
            room -= add_control(parts, packet, frame, MAX_STREAM_DATA, stream_id, limit)
        return room

    def fill_stops(self, parts: list[bytes], room: int, packet: SentPacket) -> int:
        """Add STOP_SENDING frames (RFC 9000 section 19.5); returns the room left, in bytes."""
        waiting = self.stops
        while waiting and room >= _LONGEST_STOP_SENDING:
            stream_id = next(iter(waiting))
            stream = waiting.pop(stream_id)
            if stream.is_finished:
                continue
            frame = build_stop_sending(stream_id, stream.stop_code)
            room -= add_control(parts, packet, frame, STOP_SENDING, stream_id, 0)
        return room

    def on_max_data_lost(self, limit: int) -> None:
        """Send the newest limit again after its frame was lost (RFC 9000 section 13.3)."""
        if limit == self.max_data:
            self.max_data_pending = self._was_lost = True

    def on_max_stream_data_lost(self, stream: ReceiveStream, limit: int) -> None:
        """Send a stream's newest limit again, as long as more data may come on it."""
        if limit == stream.limit and stream.final_size < 0:
            self.limits_to_send[stream.stream_id] = stream

    def clear(self) -> None:
        """Cut the references to the streams, since no more is sent."""
        self.limits_to_send.clear()
        self.stops.clear()


def _stream_share(window: int) -> int:
    """The bytes of a small connection window that one stream may use."""
    return window * 2 // 3
