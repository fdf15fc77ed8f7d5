"""Tracks the receiving part of one stream (RFC 9000 section 3.2).

Floor 1, sans-IO.  Data nearly always comes in order, and the reader of frames handles that case
itself.  This module handles the others: gaps, repetitions, the final size, resets.
"""

from __future__ import annotations

from ..wire.errors import FINAL_SIZE_ERROR, INTERNAL_ERROR, TransportError
from ..wire.frames import RESET_STREAM, STREAM
from .flow_control import ReceiveWindow
from .reassembly import PieceLimit, ReassemblyBuffer

__all__ = ["ReceiveStream"]


class ReceiveStream:
    """The receiving part of a stream.

    Args:
      stream_id: its ID.
      window: its flow-control window; the first limit was announced in the transport parameters.
      pieces: bounds the pieces behind gaps on all streams of the connection.
    """

    __slots__ = (
        "_pieces",
        "delivered",
        "final_size",
        "is_discarding",
        "is_finished",
        "is_released",
        "limit",
        "pending",
        "received",
        "stop_code",
        "stream_id",
        "window",
    )

    def __init__(self, stream_id: int, window: ReceiveWindow, pieces: PieceLimit) -> None:
        self.stream_id: int = stream_id
        self.received: int = 0
        """The highest offset reached by data, an end or a reset."""
        self.delivered: int = 0
        """All bytes below this offset were delivered, or discarded."""
        self.final_size: int = -1
        """The offset of the stream's end; -1: it is not known yet."""
        self.limit: int = window.limit
        """The limit announced to the peer (RFC 9000 section 4.1)."""
        self.window: ReceiveWindow = window
        self.is_finished: bool = False
        """Whether all was delivered or discarded up to the end, or the peer reset the stream."""
        self.is_discarding: bool = False
        """Whether further data is discarded, as the application asked."""
        self.is_released: bool = False
        """Whether the application is done with it."""
        self.stop_code: int = -1
        """The application error code of our STOP_SENDING; -1: it was not requested."""
        self.pending: ReassemblyBuffer | None = None
        """The data behind a gap; ``None``: there is no gap."""
        self._pieces: PieceLimit = pieces

    def take(self, offset: int, data: bytes, fin: bool) -> bytes | bytearray:
        """Take the content of a STREAM frame; returns the data that can be delivered now.

        Even with an empty result, :attr:`is_finished` may have become true.

        Raises:
          TransportError: it contradicts the final size, or there are too many gaps.
        """
        stop = offset + len(data)
        self._check_final_size(stop, fin)
        if fin:
            self.final_size = stop
        if stop > self.received:
            self.received = stop
        if self.is_finished:
            return b""  # a repetition, or late after a reset
        if self.is_discarding:
            self.discard()
            return b""
        start = self.delivered
        if offset < start:
            data = data[start - offset :]
            offset = start
        taken: bytes | bytearray = data
        pending = self.pending
        if pending is not None:
            if data:
                self._keep(offset, data)
            taken = pending.take(start)
            if not len(pending):
                self.pending = None
        elif offset > start and data:
            self._keep(offset, data)
            return b""
        self.delivered = start + len(taken)
        if self.delivered == self.final_size:
            self.is_finished = True
        return taken

    def reset(self, final_size: int) -> bool:
        """Take a RESET_STREAM frame; whether it changes anything (RFC 9000 section 3.2).

        Raises:
          TransportError: it contradicts the final size.
        """
        if self.final_size >= 0 and final_size != self.final_size:
            raise TransportError(FINAL_SIZE_ERROR, RESET_STREAM, "Cannot change final size")
        if final_size < self.received:
            raise TransportError(FINAL_SIZE_ERROR, RESET_STREAM, "Data received beyond final size")
        if self.is_finished:
            return False
        self.received = self.final_size = final_size
        self.is_finished = True
        self.drop_pending()
        return True

    def discard(self) -> None:
        """Drop data behind gaps, since the application is done with the stream.

        With the final size known, the credit for the missing data is known as well, so the
        stream is over.
        """
        self.drop_pending()
        self.delivered = self.received
        if self.final_size >= 0:
            self.is_finished = True

    def drop_pending(self) -> None:
        """Free the data behind gaps."""
        if self.pending is not None:
            self.pending.clear()
            self.pending = None

    def pending_ranges(self) -> list[range]:
        """The offsets received behind a gap."""
        return self.pending.ranges() if self.pending is not None else []

    def _check_final_size(self, stop: int, fin: bool) -> None:
        """Check that the size never changes and no data lies beyond it (RFC 9000 section 4.5)."""
        final = self.final_size
        if final >= 0:
            if stop > final:
                raise TransportError(FINAL_SIZE_ERROR, STREAM, "Data received beyond final size")
            if fin and stop != final:
                raise TransportError(FINAL_SIZE_ERROR, STREAM, "Cannot change final size")
        elif fin and stop < self.received:
            raise TransportError(FINAL_SIZE_ERROR, STREAM, "Data received beyond final size")

    def _keep(self, offset: int, data: bytes) -> None:
        pending = self.pending
        if pending is None:
            pending = self.pending = ReassemblyBuffer(self._pieces)
        pending.add(offset, data)
        if self._pieces.is_exceeded:
            raise TransportError(INTERNAL_ERROR, STREAM, "Too many gaps in streams")
