"""The sending part of one stream (RFC 9000 section 3.1), and the queue which all of them share.

Floor 1, sans-IO.  A stream keeps a border instead of a list of pending bytes: what lies
behind :attr:`SendStream.sent` was never sent; what lies before it and was lost is kept as
ranges.  Most streams never lose anything and have no ranges at all.  A stream enters the
queue of those with something to send by itself, so idle streams cost a packet nothing.

A probe repeats data which may still arrive (RFC 9002 section 6.2.4), so several copies of
a byte may be on their way.  Any copy may be acknowledged or lost, in any order.
"""

from __future__ import annotations

from bisect import bisect_right

from ..wire.ranges import Ranges
from .send_buffer import SendBuffer

__all__ = ["SendQueue", "SendStream"]


class SendQueue:
    """The streams of a connection which have something to send, and their bytes in all.

    Args:
      ended: the ID of each stream whose sending part has ended is appended to it.
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
        """Streams with data, or an end, to send which their own limit permits, in the order
        of their turns."""
        self.starved: dict[int, SendStream] = {}
        """Streams which left :attr:`active` because the connection's credit is used up."""
        self.resets: dict[int, SendStream] = {}
        """Streams for which a RESET_STREAM frame has to be sent."""
        self.ended: list[int] = ended
        self.buffered: int = 0
        """Bytes which the send buffers hold, unsent and unacknowledged ones."""
        self.unsent: int = 0
        """Bytes which were never sent."""
        self.bytes_acknowledged: int = 0
        """Stream bytes acknowledged so far."""
        self.progress: bool = False
        """Whether anything was acknowledged or dropped since this was last set to false."""


class SendStream:
    """The sending part of a stream.

    Args:
      stream_id: its ID.
      limit: bytes which the peer permits to send at first.
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
        """The bytes from the first which is not acknowledged to the last one written."""
        self.sent: int = 0
        """All bytes below this offset were sent at least once."""
        self.limit: int = limit
        """The offset which the peer permits to reach (RFC 9000 section 4.1)."""
        self.final_size: int = -1
        """The offset of the stream's end; -1: it is not known yet."""
        self.fin_pending: bool = False
        """Whether the end has to be sent, for the first time or again."""
        self.is_finished: bool = False
        """Whether the peer has acknowledged all data and the end, or the reset."""
        self.is_held: bool = False
        """Whether nothing may be sent because the peer does not permit the stream any more.
        (It was opened for early data, which the peer has refused.)"""
        self.is_released: bool = False
        """Whether the application is done with it."""
        self.reset_code: int = -1
        """The application error code of its RESET_STREAM; -1: it was not reset."""
        self.lost: Ranges | None = None
        """Ranges below :attr:`sent` which have to be sent again; ``None`` if there are none."""
        self.ahead: Ranges | None = None
        """Ranges which were acknowledged behind bytes which were not; ``None``: no ranges."""
        self._is_fin_acknowledged: bool = False
        self._queue: SendQueue = queue

    # -- what there is to send

    def has_work(self) -> bool:
        """Whether there is data, or an end, to send which the stream's own limit permits."""
        if self.reset_code >= 0 or self.is_held:
            return False
        if self.lost is not None:
            return True
        sent = self.sent
        if sent < self.buffer.stop:
            return sent < self.limit
        return self.fin_pending

    def is_blocked(self) -> bool:
        """Whether bytes which were never sent wait for credit of this stream."""
        return self.reset_code < 0 and self.limit <= self.sent < self.buffer.stop

    def next_range(self) -> tuple[int, int]:
        """The next bytes to send, from where to where: first those lost, then the new ones."""
        lost = self.lost
        if lost is not None:
            return lost.starts[0], lost.stops[0]
        return self.sent, self.buffer.stop

    def activate(self) -> None:
        """Enter the queue if there is something to send."""
        if self.has_work():
            self._queue.active[self.stream_id] = self

    def raise_limit(self, maximum: int) -> None:
        """The peer permits to send up to the offset `maximum` (RFC 9000 section 19.10)."""
        if maximum > self.limit:
            self.limit = maximum
            self.activate()

    def end(self) -> None:
        """Nothing more is written: the end of the stream has to be sent."""
        self.final_size = self.buffer.stop
        self.fin_pending = True

    def note_sent(self, start: int, stop: int) -> bool:
        """The bytes from `start` to `stop` leave; whether the end of the stream goes with them."""
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

    # -- what became of it

    def on_acknowledged(self, start: int, stop: int, fin: bool) -> None:
        """The peer has the bytes from `start` to `stop` (and, with `fin`, the end)."""
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
        """A packet with the bytes from `start` to `stop` (and, with `fin`, the end) is lost."""
        if self.reset_code >= 0:
            return
        if start < self.buffer.start:
            start = self.buffer.start
        if stop > self.sent:
            stop = self.sent  # (Early data which was refused counts as not sent.)
        if start < stop:
            self._add_lost(start, stop)
        if fin and not self._is_fin_acknowledged:
            self.fin_pending = True
        self.activate()

    def repeat(self, start: int, stop: int, fin: bool) -> None:
        """Send a copy of what may still be on its way, in a probe (RFC 9002 section 6.2.4)."""
        self.on_lost(start, stop, fin)

    def _acknowledge_ahead(self, start: int, stop: int) -> int:
        """Something behind a gap, or the gap; returns up to where all is acknowledged."""
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
        """End the stream at once with RESET_STREAM; what was not acknowledged is dropped.

        Without effect on a stream which was reset or has ended.
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
        """The peer has the RESET_STREAM frame."""
        # (A call which waits until all is acknowledged waits for this, too.)
        self._queue.progress = True
        self._queue.resets.pop(self.stream_id, None)
        self._finish()

    def on_reset_lost(self) -> None:
        """The RESET_STREAM frame is lost, and has to be sent again (RFC 9000 section 13.3)."""
        if not self.is_finished and not self.is_held:
            self._queue.resets[self.stream_id] = self

    # -- early data

    def hold(self) -> None:
        """Early data was refused: everything counts as not sent, and nothing may be sent.

        RFC 9001 section 4.6.2.  :meth:`permit` ends that.
        """
        self.is_held = True
        queue, buffer = self._queue, self.buffer
        if self.reset_code < 0:
            queue.unsent += self.sent - buffer.start
            self.sent = buffer.start
        else:
            self.sent = 0  # (the final size which the RESET_STREAM frame tells)
        self.limit = 0
        self.lost = None
        if self.final_size >= 0:
            self.fin_pending = self.reset_code < 0
        queue.active.pop(self.stream_id, None)
        queue.starved.pop(self.stream_id, None)
        queue.resets.pop(self.stream_id, None)

    def permit(self, limit: int) -> None:
        """The peer permits the stream, and to send up to the offset `limit`."""
        self.is_held = False
        if limit > self.limit:
            self.limit = limit
        if self.reset_code >= 0 and not self.is_finished:
            self._queue.resets[self.stream_id] = self
        self.activate()
