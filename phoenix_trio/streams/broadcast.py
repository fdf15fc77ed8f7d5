"""Sends published messages to all subscribers; a slow subscriber does not delay the others.

Floor 4.  Each subscriber has a stream, a bounded queue, and a task that serves it.
Publishing never waits: if a queue is full, its oldest messages are dropped, or its
subscriber is given up.  The streams carry batches, as :mod:`.batch_sending` writes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, final, overload

import attrs
import trio

from ..errors import ApplicationErrorCode, MessageTooLarge
from ..quic.connection import QuicStream, SendStream
from .batch_sending import KIBIBYTE, LARGEST_BATCH, MEBIBYTE, batch_of
from .framing import encode_frame
from .messages import Buffer, as_view
from .watching import while_open

__all__ = ["Broadcast", "BroadcastStatistics", "SubscriberSummary", "WhenSlow"]

T_contra = TypeVar("T_contra", contravariant=True)

#: What happens to a subscriber whose queue is full.
WhenSlow = Literal["drop-oldest", "end"]

#: The most bytes of messages that share a batch, except for a single larger message.
_BATCH = 64 * KIBIBYTE


@attrs.frozen
class SubscriberSummary:
    """How serving one subscriber went.

    Attributes:
      end: The broadcast was closed, the subscriber left, or it was given up as too slow.
      messages_sent: Messages handed to its stream.
      messages_dropped: Messages it did not get because its queue was full, or because it was
        given up.
      error: For a subscriber that left: how its stream or connection ended.
    """

    end: Literal["closed", "left", "too-slow"]
    messages_sent: int
    messages_dropped: int
    error: trio.BrokenResourceError | None


@attrs.frozen
class BroadcastStatistics:
    """A snapshot of a broadcast.

    Attributes:
      subscribers: Subscribers at present.
      messages_published: Messages published so far.
      messages_dropped: Messages that single subscribers did not get, summed over all
        subscribers.
      subscribers_too_slow: Subscribers given up.
      queued_bytes: Bytes waiting in all queues; a message in several of them is in memory once.
      largest_queue: Bytes in the fullest queue at present.
    """

    subscribers: int
    messages_published: int
    messages_dropped: int
    subscribers_too_slow: int
    queued_bytes: int
    largest_queue: int


class _Subscriber:
    """The queue of one subscriber."""

    def __init__(self) -> None:
        self.queue: deque[bytes] = deque()
        self.size = 0
        self.in_batch = 0
        self.sent = 0
        self.dropped = 0
        self.is_too_slow = False
        self.scope = trio.CancelScope()
        self.lot = trio.lowlevel.ParkingLot()

    def put(self, frame: bytes, limit: int, when_slow: WhenSlow) -> None:
        if self.is_too_slow:
            self.dropped += 1
            return
        self.size += len(frame)
        self.queue.append(frame)
        if self.size > limit:
            if when_slow == "end":
                self.is_too_slow = True
                self.dropped += self.in_batch  # part of it may be in its stream, which is reset
                self.drop(0)
                self.scope.cancel()
                return
            self.drop(limit)
        self.lot.unpark()

    def drop(self, limit: int) -> None:
        """Drop the oldest messages until the queue has `limit` bytes at most."""
        while self.size > limit:
            self.size -= len(self.queue.popleft())
            self.dropped += 1

    def take(self) -> tuple[bytes, int]:
        """A batch of the oldest messages, and their number."""
        queue = self.queue
        frames = [queue.popleft()]
        size = len(frames[0])
        while queue and size + len(queue[0]) <= _BATCH:
            size += len(queue[0])
            frames.append(queue.popleft())
        self.size -= size
        return batch_of(frames), len(frames)


@final
class Broadcast(Generic[T_contra]):
    """Any number of publishers, any number of subscribers.

    Any task may publish.  The task that calls :meth:`serve` for a subscriber's stream serves
    that subscriber, usually in the handler of its connection; a broadcast has no tasks of its
    own.  The subscriber needs a :class:`BatchReceiver` or a batching channel.

    Args:
      max_queued_bytes: the most bytes that wait for one subscriber (1 to 2**30 - 9).
        On top of it come a batch of 64 KiB or a single message, and the bytes that the stream
        itself holds (for a :class:`QuicStream`: ``stream_send_buffer_size``, so a subscriber
        is that far behind before its queue fills).
      when_slow: what happens when that is full.  ``"drop-oldest"``: the oldest messages make
        room for the new one, and are counted.  ``"end"``: the subscriber is given up; its
        stream is reset with ``TOO_SLOW``.
      encode: makes bytes of each published value, once for all subscribers; ``None``: values
        are bytes-like.

    Leaving its block closes it.

    Raises:
      ValueError: an argument is out of range.
    """

    @overload
    def __init__(
        self: Broadcast[Buffer],
        *,
        max_queued_bytes: int = MEBIBYTE,
        when_slow: WhenSlow = "drop-oldest",
        encode: None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        max_queued_bytes: int = MEBIBYTE,
        when_slow: WhenSlow = "drop-oldest",
        encode: Callable[[T_contra], Buffer],
    ) -> None: ...

    def __init__(
        self,
        *,
        max_queued_bytes: int = MEBIBYTE,
        when_slow: WhenSlow = "drop-oldest",
        encode: Callable[[Any], Buffer] | None = None,
    ) -> None:
        if not 1 <= max_queued_bytes <= LARGEST_BATCH:
            raise ValueError(
                f"max_queued_bytes must be between 1 and {LARGEST_BATCH}, not {max_queued_bytes}"
            )
        if when_slow not in ("drop-oldest", "end"):
            raise ValueError(f'when_slow must be "drop-oldest" or "end", not {when_slow!r}')
        self._limit = max_queued_bytes
        self._when_slow: WhenSlow = when_slow
        self._encode = encode
        self._subscribers: dict[_Subscriber, None] = {}
        self._published = 0
        self._dropped = 0
        self._too_slow = 0
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Broadcast ({state}, {len(self._subscribers)} subscribers)>"

    def publish_nowait(self, value: T_contra) -> None:
        """Queue one message for all subscribers of this moment; never waits.

        Raises:
          TypeError: it is not bytes-like, and there is no `encode`.
          MessageTooLarge: it is larger than `max_queued_bytes`, including up to 8 bytes for its
            length.
          trio.ClosedResourceError: the broadcast was closed.
          And whatever `encode` raises.
        """
        if self._closed:
            raise trio.ClosedResourceError("this broadcast was closed")
        payload = as_view(value, self._encode)
        frame = encode_frame(bytes(payload))
        if len(frame) > self._limit:
            raise MessageTooLarge(len(payload), self._limit, whose="the limit of this broadcast")
        self._published += 1
        for subscriber in self._subscribers:
            subscriber.put(frame, self._limit, self._when_slow)

    async def publish(self, value: T_contra) -> None:
        """The same as :meth:`publish_nowait`, as a checkpoint: for a task that publishes a lot.

        Cancellation: the message was not published.
        """
        await trio.lowlevel.checkpoint()
        self.publish_nowait(value)

    async def serve(self, stream: trio.abc.SendStream) -> SubscriberSummary:
        """Send all messages published from now on, until the broadcast or the subscriber ends.

        When the broadcast is closed, the queued messages are still sent, and the stream is ended.
        A subscriber that stops receiving, or loses its connection, is not an error.  On a
        QUIC stream that is noticed at once, on others when the next message is sent.

        Args:
          stream: used by no other task for sending meanwhile.

        Cancellation: the subscriber gets nothing more.  The stream stays the caller's; its
        ``async with`` resets it.

        Raises:
          trio.ClosedResourceError: the broadcast, the stream or its connection was closed here.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this broadcast was closed")
        subscriber = _Subscriber()
        self._subscribers[subscriber] = None
        error: trio.BrokenResourceError | None = None
        try:
            with subscriber.scope:
                await self._send(stream, subscriber)
        except trio.BrokenResourceError as broken:
            error = broken
        finally:
            del self._subscribers[subscriber]
            self._dropped += subscriber.dropped
        sent, dropped = subscriber.sent, subscriber.dropped
        if subscriber.is_too_slow:
            self._too_slow += 1
            await _give_up(stream)
            return SubscriberSummary("too-slow", sent, dropped, None)
        return SubscriberSummary("closed" if error is None else "left", sent, dropped, error)

    async def _send(self, stream: trio.abc.SendStream, subscriber: _Subscriber) -> None:
        work = partial(self._send_all, stream, subscriber)
        if isinstance(stream, QuicStream):
            await while_open(stream.send_stream, work)
        elif isinstance(stream, SendStream):
            await while_open(stream, work)
        else:
            await work()
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        else:
            await stream.aclose()

    async def _send_all(self, stream: trio.abc.SendStream, subscriber: _Subscriber) -> None:
        while True:
            while not subscriber.queue:
                if self._closed:
                    await trio.lowlevel.checkpoint()
                    return
                await subscriber.lot.park()
            batch, subscriber.in_batch = subscriber.take()
            await stream.send_all(batch)
            subscriber.sent += subscriber.in_batch
            subscriber.in_batch = 0

    def statistics(self) -> BroadcastStatistics:
        """A snapshot; also after the end."""
        sizes = [subscriber.size for subscriber in self._subscribers]
        return BroadcastStatistics(
            subscribers=len(sizes),
            messages_published=self._published,
            messages_dropped=self._dropped + sum(each.dropped for each in self._subscribers),
            subscribers_too_slow=self._too_slow,
            queued_bytes=sum(sizes),
            largest_queue=max(sizes, default=0),
        )

    def close(self) -> None:
        """End publishing; the calls of :meth:`serve` send the queued messages, and return.

        Idempotent.
        """
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.lot.unpark_all()

    def __enter__(self) -> Broadcast[T_contra]:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _give_up(stream: trio.abc.SendStream) -> None:
    if isinstance(stream, (SendStream, QuicStream)):
        stream.reset(ApplicationErrorCode.TOO_SLOW)
        await trio.lowlevel.checkpoint()
    else:
        await trio.aclose_forcefully(stream)
