"""How do many small messages travel?  Together: as batches on one stream.

Floor 4.  A message alone costs a checkpoint, a frame and a share of a packet; a thousand
in a batch cost hardly more than their bytes.  A batch leaves when it is full, when its
first message has waited for `max_delay`, or when somebody asks for it.

On the stream each batch is a frame, and in it each message a frame of its own.  Works over
any :class:`trio.abc.Stream`, and over one direction of one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, final

import attrs
import trio

from ..errors import ApplicationErrorCode
from ..quic.conflict import ConflictDetector
from ..quic.connection import QuicStream, ReceiveStream
from ..quic.groups import unwrap_lone
from .framing import FrameTooLarge, FramingError, encode_varint
from .messages import Decode, Encode, MessageRefused
from .reader import StreamReader

__all__ = [
    "BatchReceiver",
    "BatchSender",
    "open_batch_sender",
    "open_batching_channel",
]

_KIBIBYTE = 1024
_MEBIBYTE = 1024 * _KIBIBYTE

#: The length of a batch is always written in this form, so that there is room for it
#: before anything is known of what follows: 4 bytes, values to 2**30 - 1.
_LENGTH = 4
_LENGTH_FORM = 2 << 30
_LARGEST = (1 << 30) - 1 - 8

#: Bytes of a batch which are made messages at once.
_AT_ONCE = 64 * _KIBIBYTE


def _check_sizes(max_batch_bytes: int, max_delay: float, max_message_size: int) -> None:
    if not 1 <= max_batch_bytes <= _LARGEST:
        raise ValueError(f"max_batch_bytes must be between 1 and {_LARGEST}, not {max_batch_bytes}")
    if not 0 <= max_delay <= 3600:
        raise ValueError(f"max_delay must be between 0 and 3600 seconds, not {max_delay!r}")
    if not 1 <= max_message_size <= _LARGEST:
        raise ValueError(
            f"max_message_size must be between 1 and {_LARGEST}, not {max_message_size}"
        )


@attrs.define(eq=False)
class _Place:
    """A message for which there is no room yet."""

    payload: bytes
    express: bool
    is_queued: bool = False


@final
class BatchSender(trio.abc.SendChannel[Any]):
    """Puts messages into batches.  From :func:`open_batching_channel`.

    Any number of tasks may send.  What is queued is at most one full batch, and one which
    is on its way into the stream; who comes then waits, and is served in the order of
    coming: a large message which needs an empty batch is not overtaken by small ones.
    """

    def __init__(
        self,
        stream: trio.abc.SendStream,
        *,
        max_batch_bytes: int,
        max_delay: float,
        max_message_size: int,
        encode: Encode | None,
    ) -> None:
        _check_sizes(max_batch_bytes, max_delay, max_message_size)
        self._stream = stream
        self._max_batch_bytes = max_batch_bytes
        self._max_delay = max_delay
        self._max_message_size = max_message_size
        self._encode = encode
        self._batch = bytearray(_LENGTH)
        self._count = 0
        self._since = 0.0
        self._urgent = False
        self._queued = 0
        self._written = 0
        self._batches = 0
        self._error: BaseException | None = None
        self._closed = False
        self._left = False
        self._work_lot = trio.lowlevel.ParkingLot()  # the writing task's
        # Those who want to send, in the order of coming.  While there are any, the batch is
        # urgent, and nobody else puts anything into it.
        self._line: OrderedDict[trio.lowlevel.Task, _Place] = OrderedDict()
        self._written_lot = trio.lowlevel.ParkingLot()  # those who flush

    def __repr__(self) -> str:
        state = "failed" if self._error is not None else "closed" if self._closed else "open"
        return f"<BatchSender over {self._stream!r} ({state}, {self._written} messages sent)>"

    @property
    def messages_sent(self) -> int:
        """Messages which were handed to the stream so far."""
        return self._written

    @property
    def batches_sent(self) -> int:
        """Batches in which they were."""
        return self._batches

    async def send(self, value: Any, *, express: bool = False) -> None:
        """Queue one message; waits while the batch is full and the last one is being written.

        Args:
          value: bytes-like, or whatever `encode` takes.
          express: send it at once, together with what was queued before it.

        Cancellation: the message was queued whole, or not at all; the latter if
        :exc:`trio.Cancelled` is raised.

        Raises:
          ValueError: it is larger than `max_message_size`.
          trio.ClosedResourceError: the channel was closed here.
          trio.BrokenResourceError: the stream has failed; a subclass says how.
          And what `encode` raises.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        encode = self._encode
        payload = value if encode is None else encode(value)
        if type(payload) is not bytes:
            payload = bytes(memoryview(payload))
        size = len(payload)
        if size > self._max_message_size:
            self._check_size(payload)
        batch = self._batch
        if self._line or not self._count or len(batch) + size + 4 >= self._max_batch_bytes:
            await self._queue(payload, express)
            return
        # The same as _append, for the usual case.
        if size < 64:
            batch.append(size)
        else:
            batch += encode_varint(size)
        batch += payload
        self._count += 1
        self._queued += 1
        if express:
            self._hurry()

    async def send_many(self, values: Iterable[Any], *, express: bool = False) -> int:
        """Queue many messages in order, with one checkpoint for all which find room at once.

        Args:
          values: taken one by one, as there is room.
          express: send them at once.

        Returns how many there were.

        Cancellation: some may have been queued, in order and each whole; of an iterator,
        at most one more was taken.

        Raises:
          The same as :meth:`send`; those before the one which is wrong were queued.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        encode, limit = self._encode, self._max_message_size
        count = 0
        for value in values:
            payload = value if encode is None else encode(value)
            if type(payload) is not bytes:
                payload = bytes(memoryview(payload))
            size = len(payload)
            if size > limit:
                self._check_size(payload)
            batch = self._batch
            if self._line or not self._count or len(batch) + size + 4 >= self._max_batch_bytes:
                await self._queue(payload, False)
            else:
                # The same as _append, for the usual case.
                if size < 64:
                    batch.append(size)
                else:
                    batch += encode_varint(size)
                batch += payload
                self._count += 1
                self._queued += 1
            count += 1
        if express and self._count:
            self._hurry()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return count

    def _check_size(self, payload: bytes) -> None:
        if len(payload) > self._max_message_size:
            raise ValueError(
                f"a message of {len(payload)} bytes is above max_message_size,"
                f" {self._max_message_size}"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed for sending")
        if self._error is not None:
            raise trio.BrokenResourceError(f"the stream has failed: {self._error}") from self._error

    def _has_room(self, size: int) -> bool:
        # One which is larger than a batch travels alone.
        return not self._count or len(self._batch) + size + 4 <= self._max_batch_bytes

    async def _queue(self, payload: bytes, express: bool) -> None:
        """Queue one message now if there is room and nobody waits for it, or in its turn.

        A checkpoint only if it waits.
        """
        if not self._line and self._has_room(len(payload)):
            self._append(payload)
            if express:
                self._hurry()
            return
        task = trio.lowlevel.current_task()
        place = self._line[task] = _Place(payload, express)
        self._hurry()

        def leave(_: object) -> trio.lowlevel.Abort:
            del self._line[task]
            self._serve_line()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        if not place.is_queued:
            self._check_open()

    def _serve_line(self) -> None:
        """Queue for those who wait, as long as there is room for the first of them."""
        line = self._line
        while line:
            task, place = next(iter(line.items()))
            if not self._has_room(len(place.payload)):
                self._hurry()
                return
            del line[task]
            self._append(place.payload)
            if place.express:
                self._hurry()
            place.is_queued = True
            trio.lowlevel.reschedule(task)

    def _dissolve_line(self) -> None:
        """Nobody in it will be served; each finds out why."""
        while self._line:
            task, _ = self._line.popitem(last=False)
            trio.lowlevel.reschedule(task)

    def _append(self, payload: bytes) -> None:
        if not self._count:
            self._since = trio.current_time()
            self._work_lot.unpark()
        self._batch += encode_varint(len(payload))
        self._batch += payload
        self._count += 1
        self._queued += 1
        if len(self._batch) >= self._max_batch_bytes:
            self._hurry()

    def _hurry(self) -> None:
        if not self._urgent:
            self._urgent = True
            self._work_lot.unpark()

    async def flush(self) -> None:
        """Send what is queued now, and wait until the stream has taken it.

        That says nothing of the peer; a QUIC stream's ``wait_acked`` does.

        Cancellation: it is sent all the same.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError: as :meth:`send`.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        await self._flush()

    async def _flush(self) -> None:
        goal = self._queued
        while self._written < goal:
            self._check_not_left()
            if self._error is not None:
                raise trio.BrokenResourceError("the stream has failed") from self._error
            if self._count:
                self._hurry()
            await self._written_lot.park()

    async def aclose(self) -> None:
        """Send what is queued, and end the stream's direction.  Idempotent.

        Cancellation: what the stream has not taken yet is lost, and the stream is closed
        forcefully, so that the peer does not take a part for the whole.

        Raises:
          trio.BrokenResourceError: what was queued could not be sent.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        self._dissolve_line()
        try:
            await trio.lowlevel.checkpoint()
            if self._error is None:
                await self._flush_closed()
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            else:
                await self._stream.aclose()
        except BaseException:
            await trio.aclose_forcefully(self._stream)
            raise

    def _check_not_left(self) -> None:
        if self._left:
            raise trio.ClosedResourceError(
                "the block of this channel was left by an exception: what was queued is dropped"
            )

    async def _leave(self) -> None:
        """The block of the channel is left: nobody writes any more.

        Where that drops messages, the peer must not take a part for the whole.
        """
        was_closed, self._closed = self._closed, True
        if self._written < self._queued:
            self._left = True
        self._dissolve_line()
        self._written_lot.unpark_all()
        if not self._left or was_closed:
            return  # (closing has seen to the stream)
        if isinstance(self._stream, QuicStream):
            self._stream.send_stream.reset()
        else:
            await trio.aclose_forcefully(self._stream)

    async def _flush_closed(self) -> None:
        while self._written < self._queued:
            if self._count:
                self._hurry()
            await self._written_lot.park()
            self._check_not_left()
            if self._error is not None:
                raise trio.BrokenResourceError(
                    f"{self._queued - self._written} messages were queued when the stream"
                    f" failed: {self._error}"
                ) from self._error

    async def _write(self) -> None:
        """The writing task: sleeps while nothing is queued, and until it is time."""
        while True:
            while not self._count:
                await self._work_lot.park()
            with trio.move_on_at(self._since + self._max_delay):
                while not self._urgent:
                    await self._work_lot.park()
            batch, count = self._batch, self._count
            self._batch = bytearray(_LENGTH)
            self._count = 0
            self._urgent = False
            batch[:_LENGTH] = (_LENGTH_FORM | (len(batch) - _LENGTH)).to_bytes(_LENGTH, "big")
            self._serve_line()
            try:
                await self._stream.send_all(batch)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._error = error
                self._dissolve_line()
                self._written_lot.unpark_all()
                return
            self._written += count
            self._batches += 1
            self._written_lot.unpark_all()


@final
class BatchReceiver(trio.abc.ReceiveChannel[Any]):
    """Takes batches apart.  From :func:`open_batching_channel`, or over any stream.

    Args:
      stream: where batches arrive; read by nobody else.
      max_message_size: the largest message taken, in bytes.
      max_batch_bytes: the largest batch, in bytes, though one of a single message may have
        `max_message_size`.  One batch is held at most, and taken apart by 64 KiB.
      decode: makes a value of a message's bytes.
    """

    def __init__(
        self,
        stream: trio.abc.ReceiveStream,
        *,
        max_message_size: int = _MEBIBYTE,
        max_batch_bytes: int = _MEBIBYTE,
        decode: Decode | None = None,
    ) -> None:
        _check_sizes(max_batch_bytes, 0, max_message_size)
        self._reader = StreamReader(stream)
        self._max_message_size = max_message_size
        self._limit = max(max_batch_bytes, max_message_size + 8)
        self._decode = decode
        self._messages: deque[bytes] = deque()
        self._batch = b""
        self._position = 0
        self._closed = False
        self._error: MessageRefused | None = None
        self._conflict = ConflictDetector("another task is already receiving from this channel")

    def __repr__(self) -> str:
        state = "failed" if self._error is not None else "closed" if self._closed else "open"
        return f"<BatchReceiver over {self._reader.stream!r} ({state})>"

    async def receive(self) -> Any:
        """The next message.

        Cancellation: nothing is lost.

        Raises:
          trio.EndOfChannel: the peer has closed its end in good order.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this receiver, or the stream, was closed here.
          MessageRefused: a message is too large, or what came is malformed; the stream
            cannot be read any further.
          trio.BrokenResourceError: the stream has failed; a subclass says how.
          And what `decode` raises; the channel goes on with the next message.
        """
        with self._conflict:
            if self._messages:
                await trio.lowlevel.checkpoint()
                self._check_open()
            else:
                await self._fill()
            message = self._messages.popleft()
        return message if self._decode is None else self._decode(message)

    async def receive_many(self) -> list[Any]:
        """All messages which have arrived and were not received yet, but at least one.

        Those of 64 KiB of one batch at most; one checkpoint for all of them.

        Cancellation and errors are those of :meth:`receive`, but for what `decode` raises:
        the messages of that call are lost then.
        """
        with self._conflict:
            if self._messages:
                await trio.lowlevel.checkpoint()
                self._check_open()
            else:
                await self._fill()
            messages: list[Any] = list(self._messages)
            self._messages.clear()
        decode = self._decode
        return messages if decode is None else [decode(message) for message in messages]

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed for receiving")

    async def _fill(self) -> None:
        """Have at least one message."""
        self._check_open()
        if self._error is not None:
            await trio.lowlevel.checkpoint()
            raise MessageRefused(str(self._error), self._error.code)
        try:
            if self._position < len(self._batch):
                await trio.lowlevel.checkpoint()
                self._check_open()
                self._take_apart()
            while not self._messages:
                batch = await self._reader.read_frame(self._limit)
                if batch is None:
                    raise trio.EndOfChannel
                self._batch, self._position = batch, 0
                self._take_apart()
        except FrameTooLarge as error:
            raise self._refuse(error, ApplicationErrorCode.MESSAGE_TOO_LARGE) from error
        except FramingError as error:
            raise self._refuse(error, ApplicationErrorCode.MALFORMED) from error

    def _take_apart(self) -> None:
        """Some messages of the batch: all at once, tiny ones would take many times its memory."""
        batch = self._batch
        messages = []
        position, stop = self._position, len(batch)
        pause = min(stop, position + _AT_ONCE)
        limit = self._max_message_size
        while position < pause:
            size = batch[position]
            if size < 64:
                position += 1
            else:
                length = 1 << (size >> 6)
                if position + length > stop:
                    raise FramingError("a batch ends in the middle of a length")
                field = int.from_bytes(batch[position : position + length], "big")
                size = field & ((1 << (8 * length - 2)) - 1)
                position += length
            if size > limit:
                raise FrameTooLarge(size, limit)
            end = position + size
            if end > stop:
                raise FramingError("a batch ends in the middle of a message")
            messages.append(batch[position:end])
            position = end
        self._messages.extend(messages)
        self._position = position
        if position == stop:
            self._batch, self._position = b"", 0

    def _refuse(self, error: Exception, code: ApplicationErrorCode) -> MessageRefused:
        stream = self._reader.stream
        if isinstance(stream, (ReceiveStream, QuicStream)):
            stream.stop_receiving(code)
        self._error = MessageRefused(f"a batch was refused: {error}", code)
        return self._error

    async def aclose(self) -> None:
        """Receive nothing any more; the peer of a QUIC stream is told.  Idempotent.

        A stream which can be half closed stays open for sending.
        """
        self._closed = True
        self._messages.clear()
        self._batch = b""
        stream = self._reader.stream
        if isinstance(stream, QuicStream):
            stream.receive_stream.close()
            await trio.lowlevel.checkpoint()
        elif isinstance(stream, trio.abc.HalfCloseableStream):
            await trio.lowlevel.checkpoint()
        else:
            await stream.aclose()


@asynccontextmanager
async def open_batch_sender(
    stream: trio.abc.SendStream,
    *,
    max_batch_bytes: int = 64 * _KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = _MEBIBYTE,
    encode: Encode | None = None,
) -> AsyncIterator[BatchSender]:
    """The sending half of :func:`open_batching_channel`, for one direction alone."""
    sender = BatchSender(
        stream,
        max_batch_bytes=max_batch_bytes,
        max_delay=max_delay,
        max_message_size=max_message_size,
        encode=encode,
    )
    with unwrap_lone():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender._write)
            try:
                yield sender
                await sender.aclose()
            finally:
                await sender._leave()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_batching_channel(
    stream: trio.abc.Stream,
    *,
    max_batch_bytes: int = 64 * _KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = _MEBIBYTE,
    encode: Encode | None = None,
    decode: Decode | None = None,
) -> AsyncIterator[tuple[BatchSender, BatchReceiver]]:
    """Two Trio channels over a stream, which send many small messages in few batches.

    When the block is left normally, what is queued is sent, and our direction ended; when
    it is left by an exception, what is queued is dropped.  Where that drops messages, our
    direction of a QUIC stream is reset, and another stream closed forcefully, so that the
    peer does not take a part for the whole; otherwise the stream stays the caller's, whose
    ``async with`` resets it after an exception.  Afterwards the sender is closed.  The
    peer's side needs a :class:`BatchReceiver` or a batching channel as well.

    Args:
      stream: used by nobody else meanwhile.
      max_batch_bytes: a batch leaves at this size (1 to 2**30 - 9).  64 KiB: more saves
        hardly anything.
      max_delay: seconds which the first message of a batch waits for more at most (0 to
        3600).  2 ms: a network's own delay is of this order, and hundreds of messages
        a second share batches already.  0: as soon as the tasks which are sending just
        now have had their turn.
      max_message_size: the largest message, in bytes, both ways (1 to 2**30 - 9).
      encode, decode: from an application's value to bytes and back, as
        ``msgspec.msgpack.encode``; ``None``: messages are bytes.

    Raises:
      ValueError: an argument is out of range.
    """
    receiver = BatchReceiver(
        stream,
        max_message_size=max_message_size,
        max_batch_bytes=max(max_batch_bytes, _MEBIBYTE),
        decode=decode,
    )
    async with open_batch_sender(
        stream,
        max_batch_bytes=max_batch_bytes,
        max_delay=max_delay,
        max_message_size=max_message_size,
        encode=encode,
    ) as sender:
        yield sender, receiver
