"""Tracks the sending part of one stream (RFC 9000 section 3.1), and queues streams for sending.

Floor 1, sans-IO.  A stream keeps a border instead of a list of pending bytes: bytes behind
:attr:`SendStream.sent` were never sent; lost bytes before it are kept as ranges.  Most streams
never lose anything and have no ranges at all.  A stream enters the queue when it has something
to send, so idle streams cost a packet nothing.

A probe repeats data that may still arrive (RFC 9002 section 6.2.4), so several copies of a byte
may be on their way.  Any copy may be acknowledged or lost, in any order.
"""

from __future__ import annotations

from bisect import bisect_right

from ..wire.ranges import Ranges
from .send_buffer import SendBuffer

__all__ = ["SendQueue", "SendStream"]


class SendQueue:
    """The streams of a connection with something to send, and their bytes in all.

    Args:
      ended: gets the ID of each stream whose sending part has ended.
    """

    __slots__ = (
        "active",
        "buffered",
        "bytes_acknowledged",
        "ended",
        "progress",
        "resets",
        "starved",
        "unsent",
    )

    def __init__(self, ended: list[int]) -> None:
        self.active: dict[int, SendStream] = {}
        """Streams with data, or an end, to send within their own limit, in the order of their
        turns."""
        self.starved: dict[int, SendStream] = {}
        """Streams that left :attr:`active` because the connection's credit is used up."""
        self.resets: dict[int, SendStream] = {}
        """Streams with a RESET_STREAM frame to send."""
        self.ended: list[int] = ended
        self.buffered: int = 0
        """Bytes held in the send buffers, both unsent and unacknowledged."""
        self.unsent: int = 0
        """Bytes never sent."""
        self.bytes_acknowledged: int = 0
        """Stream bytes acknowledged so far."""
        self.progress: bool = False
        """Whether anything was acknowledged or dropped since this was last set to false."""


class SendStream:
    """The sending part of a stream.

    Args:
      stream_id: its ID.
      limit: bytes that the peer permits to send at first.
      queue: shared by the streams of the connection.
    """

    __slots__ = (
        "_is_fin_acknowledged",
        "_queue",
        "ahead",
        "buffer",
        "fin_pending",
        "final_size",
        "is_finished",
        "is_held",
        "is_released",
        "limit",
        "lost",
        "reset_code",
        "sent",
        "stream_id",
    )

    def __init__(self, stream_id: int, limit: int, queue: SendQueue) -> None:
        self.stream_id: int = stream_id
        self.buffer: SendBuffer = SendBuffer()
        """The bytes from the first unacknowledged one to the last one written."""
        self.sent: int = 0
        """All bytes below this offset were sent at least once."""
        self.limit: int = limit
        """The highest offset that the peer permits (RFC 9000 section 4.1)."""
        self.final_size: int = -1
        """The offset of the stream's end; -1: it is not known yet."""
        self.fin_pending: bool = False
        """Whether the end has to be sent, for the first time or again."""
        self.is_finished: bool = False
        """Whether the peer has acknowledged all data and the end, or the reset."""
        self.is_held: bool = False
        """Whether nothing may be sent because the peer does not permit the stream any more.
        (It was opened for early data, and the peer has refused the data.)"""
        self.is_released: bool = False
        """Whether the application is done with it."""
        self.reset_code: int = -1
        """The application error code of its RESET_STREAM; -1: it was not reset."""
        self.lost: Ranges | None = None
        """Ranges below :attr:`sent` to send again; ``None`` if there are none."""
        self.ahead: Ranges | None = None
        """Ranges acknowledged behind a gap of unacknowledged bytes; ``None``: no ranges."""
        self._is_fin_acknowledged: bool = False
        self._queue: SendQueue = queue

    # -- data to send

    def has_work(self) -> bool:
        """Whether there is data, or an end, to send within the stream's own limit."""
        if self.reset_code >= 0 or self.is_held:
            return False
        if self.lost is not None:
            return True
        sent = self.sent
        if sent < self.buffer.stop:
            return sent < self.limit
        return self.fin_pending

    def is_blocked(self) -> bool:
        """Whether bytes never sent wait for credit of this stream."""
        return self.reset_code < 0 and self.limit <= self.sent < self.buffer.stop

    def next_range(self) -> tuple[int, int]:
        """Begin and end of the next bytes to send: first lost ones, then new ones."""
        lost = self.lost
        if lost is not None:
            return lost.starts[0], lost.stops[0]
        return self.sent, self.buffer.stop

    def activate(self) -> None:
        """Enter the queue if there is something to send."""
        if self.has_work():
            self._queue.active[self.stream_id] = self

    def raise_limit(self, maximum: int) -> None:
        """Take a new limit: the peer permits bytes up to `maximum` (RFC 9000 section 19.10)."""
        if maximum > self.limit:
            self.limit = maximum
            self.activate()

    def end(self) -> None:
        """End the stream: the application writes no more, and the end has to be sent."""
        self.final_size = self.buffer.stop
        self.fin_pending = True

    def note_sent(self, start: int, stop: int) -> bool:
        """Note that these bytes leave; whether the end of the stream goes with them."""
        lost = self.lost
        if lost is not None and stop > start:
            lost.subtract(start, stop)
            if not lost.starts:
                self.lost = None
        if stop > self.sent:
            self._queue.unsent -= stop - self.sent
            self.sent = stop
        if stop == self.final_size:
            self.fin_pending = False
            return True
        return False

    # -- fate of sent data

    def on_acknowledged(self, start: int, stop: int, fin: bool) -> None:
        """Note that the peer has the bytes from `start` to `stop` (and, with `fin`, the end)."""
        if self.reset_code >= 0:
            return  # (The stream ends with the acknowledgement of its reset.)
        buffer = self.buffer
        before = buffer.start
        repeats = self.lost is not None or self.fin_pending
        if stop > before and start < stop:
            if repeats:
                self._drop_lost(start, stop)
            if start > before or self.ahead is not None:
                stop = self._acknowledge_ahead(start, stop)
            if stop > before:
                buffer.release(stop)
                queue = self._queue
                queue.bytes_acknowledged += stop - before
                queue.buffered -= stop - before
                queue.progress = True
        if fin:
            self._is_fin_acknowledged = True
            self.fin_pending = False
            self._queue.progress = True
        if self._is_fin_acknowledged and buffer.start == self.final_size:
            self._finish()
        elif repeats and not self.has_work():
            # One copy has arrived, so the other need not leave.
            self._queue.active.pop(self.stream_id, None)

    def on_lost(self, start: int, stop: int, fin: bool) -> None:
        """Queue lost bytes from `start` to `stop` (and, with `fin`, the end) to be sent again."""
        if self.reset_code >= 0:
            return
        if start < self.buffer.start:
            start = self.buffer.start
        if stop > self.sent:
            stop = self.sent  # (Refused early data counts as not sent.)
        if start < stop:
            self._add_lost(start, stop)
        if fin and not self._is_fin_acknowledged:
            self.fin_pending = True
        self.activate()

    def repeat(self, start: int, stop: int, fin: bool) -> None:
        """Send another copy of bytes in flight, in a probe (RFC 9002 section 6.2.4)."""
        self.on_lost(start, stop, fin)

    def _acknowledge_ahead(self, start: int, stop: int) -> int:
        """Record bytes behind a gap, or in the gap; returns the offset below which all is known."""
        ahead = self.ahead
        if ahead is None:
            ahead = self.ahead = Ranges()
        ahead.add(start, stop)
        reached = self.buffer.start
        if ahead.starts[0] <= reached:
            reached = ahead.drop_first().stop
            if not ahead.starts:
                self.ahead = None
        return reached

    def _add_lost(self, start: int, stop: int) -> None:
        lost = self.lost
        if lost is None:
            lost = self.lost = Ranges()
        lost.add(start, stop)
        ahead = self.ahead
        if ahead is None:
            return
        # Another copy of a part may have arrived.
        index = bisect_right(ahead.stops, start)
        while index < len(ahead.starts) and ahead.starts[index] < stop:
            self._drop_lost(ahead.starts[index], ahead.stops[index])
            index += 1

    def _drop_lost(self, start: int, stop: int) -> None:
        lost = self.lost
        if lost is not None:
            lost.subtract(start, stop)
            if not lost.starts:
                self.lost = None

    def _finish(self) -> None:
        if not self.is_finished:
            self.is_finished = True
            queue = self._queue
            queue.active.pop(self.stream_id, None)
            queue.ended.append(self.stream_id)

    # -- reset

    def reset(self, code: int) -> None:
        """End the stream at once with RESET_STREAM; unacknowledged data is dropped.

        Has no effect on a stream that was reset or has ended.
        """
        if self.reset_code >= 0 or self.is_finished:
            return
        self.reset_code = code
        queue, buffer = self._queue, self.buffer
        queue.buffered -= len(buffer)
        queue.unsent -= buffer.stop - self.sent
        queue.progress = True
        # (RESET_STREAM needs only the highest offset.)
        buffer.clear()
        self.lost = self.ahead = None
        self.fin_pending = False
        queue.active.pop(self.stream_id, None)
        queue.starved.pop(self.stream_id, None)
        if not self.is_held:
            queue.resets[self.stream_id] = self

    def on_reset_acknowledged(self) -> None:
        """Note that the peer has the RESET_STREAM frame."""
        # (A call that waits until all is acknowledged waits for this, too.)
        self._queue.progress = True
        self._queue.resets.pop(self.stream_id, None)
        self._finish()

    def on_reset_lost(self) -> None:
        """Send the lost RESET_STREAM frame again (RFC 9000 section 13.3)."""
        if not self.is_finished and not self.is_held:
            self._queue.resets[self.stream_id] = self

    # -- early data

    def hold(self) -> None:
        """Count everything as not sent after early data was refused; nothing may be sent.

        RFC 9001 section 4.6.2.  Call :meth:`permit` to end this state.
        """
        self.is_held = True
        queue, buffer = self._queue, self.buffer
        if self.reset_code < 0:
            queue.unsent += self.sent - buffer.start
            self.sent = buffer.start
        else:
            self.sent = 0  # (the final size in the RESET_STREAM frame)
        self.limit = 0
        self.lost = None
        if self.final_size >= 0:
            self.fin_pending = self.reset_code < 0
        queue.active.pop(self.stream_id, None)
        queue.starved.pop(self.stream_id, None)
        queue.resets.pop(self.stream_id, None)

    def permit(self, limit: int) -> None:
        """Permit the stream to send up to the offset `limit`."""
        self.is_held = False
        if limit > self.limit:
            self.limit = limit
        if self.reset_code >= 0 and not self.is_finished:
            self._queue.resets[self.stream_id] = self
        self.activate()
