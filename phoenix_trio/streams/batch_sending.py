"""Sends many small messages together, in batches on one stream: the sending side.

Floor 4.  A message alone costs a checkpoint, a frame and a share of a packet; a thousand
in a batch cost hardly more than their bytes.  A batch leaves when it is full, when its
first message has waited for `max_delay`, or when a call asks for it.

On the stream each batch is a frame, and each message in it is a frame of its own.
:mod:`.batching` has the receiving side, and both together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, final, overload

import attrs
import trio

from ..errors import ApplicationErrorCode, MessageTooLarge, StreamStopped
from ..quic.connection import QuicStream
from ..quic.groups import unwrap_lone
from ..quic.misuse import check_stream
from ..quic.stream_errors import split_code
from .framing import encode_varint
from .limits import refused_by_peer
from .messages import Buffer, not_bytes

__all__ = [
    "KIBIBYTE",
    "LARGEST_BATCH",
    "MEBIBYTE",
    "BatchSender",
    "batch_of",
    "check_sizes",
    "open_batch_sender",
]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE

#: The length of a batch always has this form, 4 bytes for values up to 2**30 - 1, so that
#: its room is reserved before the content of the batch is known.
_LENGTH = 4
_LENGTH_FORM = 2 << 30
LARGEST_BATCH = (1 << 30) - 1 - 8


def check_sizes(max_batch_bytes: int, max_delay: float, max_message_size: int) -> None:
    """Check these arguments of a channel.

    Raises:
      ValueError: one is out of range.
    """
    if not 1 <= max_batch_bytes <= LARGEST_BATCH:
        raise ValueError(
            f"max_batch_bytes must be between 1 and {LARGEST_BATCH}, not {max_batch_bytes}"
        )
    if not 0 <= max_delay <= 3600:
        raise ValueError(f"max_delay must be between 0 and 3600 seconds, not {max_delay!r}")
    if not 1 <= max_message_size <= LARGEST_BATCH:
        raise ValueError(
            f"max_message_size must be between 1 and {LARGEST_BATCH}, not {max_message_size}"
        )


def batch_of(frames: list[bytes]) -> bytes:
    """One batch of messages, given as frames; at most `LARGEST_BATCH` bytes."""
    size = _LENGTH_FORM | sum(map(len, frames))
    return b"".join((size.to_bytes(_LENGTH, "big"), *frames))


@attrs.define(eq=False)
class _Place:
    """A message that waits for room."""

    payload: bytes
    express: bool
    is_queued: bool = False


@final
class BatchSender(trio.abc.SendChannel[T_contra]):
    """Puts messages into batches.  From :func:`open_batching_channel`.

    Any number of tasks may send.  At most one full batch is queued while another is being
    written into the stream.  Further calls wait, and are served in the order in which they
    came: small messages do not overtake a large message that needs an empty batch.

    Generic in the values that `encode` takes; without it, in bytes-like objects.
    """

    def __init__(
        self,
        stream: trio.abc.SendStream,
        *,
        max_batch_bytes: int,
        max_delay: float,
        max_message_size: int,
        encode: Callable[[T_contra], Buffer] | None,
    ) -> None:
        check_sizes(max_batch_bytes, max_delay, max_message_size)
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
        self._largest = 0
        self._written = 0
        self._batches = 0
        self._error: BaseException | None = None
        self._closed = False
        self._left = False
        self._work_lot = trio.lowlevel.ParkingLot()  # the writing task's
        # Tasks that want to send, in the order in which they came.  While there are any, the
        # batch is urgent, and only messages of the line go into it.
        self._line: OrderedDict[trio.lowlevel.Task, _Place] = OrderedDict()
        self._written_lot = trio.lowlevel.ParkingLot()  # tasks in flush()

    def __repr__(self) -> str:
        state = "failed" if self._error is not None else "closed" if self._closed else "open"
        return f"<BatchSender over {self._stream!r} ({state}, {self._written} messages sent)>"

    @property
    def messages_sent(self) -> int:
        """Messages handed to the stream so far."""
        return self._written

    @property
    def batches_sent(self) -> int:
        """Batches that carried them."""
        return self._batches

    async def send(self, value: T_contra, *, express: bool = False) -> None:
        """Queue one message; waits while the batch is full and the last one is being written.

        Args:
          value: bytes-like, or any value that `encode` takes.
          express: send it at once, together with the messages queued before it.

        Cancellation: the message was queued whole, or not at all; the latter if
        :exc:`trio.Cancelled` is raised.

        Raises:
          TypeError: it is not bytes-like, and there is no `encode`.
          MessageTooLarge: it is larger than `max_message_size`, or than the peer's limit.
          MessageRefusedByPeer: the peer does not take an earlier message.
          trio.ClosedResourceError: the channel was closed here.
          trio.BrokenResourceError: the stream has failed; a subclass says how.
          And whatever `encode` raises.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        encode = self._encode
        payload = value if encode is None else encode(value)
        if type(payload) is not bytes:
            payload = self._to_bytes(payload)
        size = len(payload)
        if size > self._largest:
            self._note_size(size)
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
            self._send_batch_now()

    async def send_many(self, values: Iterable[T_contra], *, express: bool = False) -> int:
        """Queue many messages in order, with one checkpoint for all that find room at once.

        Args:
          values: taken one by one, when there is room.
          express: send them at once.

        Returns how many there were.

        Cancellation: some may have been queued, in order and each whole; from an iterator,
        at most one more was taken.

        Raises:
          The same as :meth:`send`; messages before the invalid one were queued.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        encode = self._encode
        count = 0
        for value in values:
            payload = value if encode is None else encode(value)
            if type(payload) is not bytes:
                payload = self._to_bytes(payload)
            size = len(payload)
            if size > self._largest:
                self._note_size(size)
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
            self._send_batch_now()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return count

    def _to_bytes(self, payload: Any) -> bytes:
        try:
            return bytes(memoryview(payload))
        except TypeError:
            raise not_bytes(payload, self._encode, "a message") from None

    def _note_size(self, size: int) -> None:
        """Note the size of a message that is larger than all before it."""
        if size > self._max_message_size:
            raise MessageTooLarge(size, self._max_message_size, whose="the limit of this channel")
        self._largest = size

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed for sending")
        if self._error is not None:
            raise self._broken("the stream has failed") from self._error

    def _broken(self, what: str) -> trio.BrokenResourceError:
        """The error to raise after the stream has failed."""
        error = self._error
        if (
            isinstance(error, StreamStopped)
            and split_code(error.error_code)[0] == ApplicationErrorCode.MESSAGE_TOO_LARGE
        ):
            return refused_by_peer(
                error.stream_id,
                error.error_code,
                size=self._largest,
                what="a batching channel with a message",
            )
        return trio.BrokenResourceError(f"{what}: {error}")

    def _has_room(self, size: int) -> bool:
        # A message larger than a batch travels alone.
        return not self._count or len(self._batch) + size + 4 <= self._max_batch_bytes

    async def _queue(self, payload: bytes, express: bool) -> None:
        """Queue one message: now if there is room and no task waits, otherwise in its turn.

        A checkpoint only if it waits.
        """
        if not self._line and self._has_room(len(payload)):
            self._append(payload)
            if express:
                self._send_batch_now()
            return
        task = trio.lowlevel.current_task()
        place = self._line[task] = _Place(payload, express)
        self._send_batch_now()

        def leave(_: object) -> trio.lowlevel.Abort:
            del self._line[task]
            self._serve_line()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        if not place.is_queued:
            self._check_open()

    def _serve_line(self) -> None:
        """Queue messages of waiting tasks, as long as there is room for the first of them."""
        line = self._line
        while line:
            task, place = next(iter(line.items()))
            if not self._has_room(len(place.payload)):
                self._send_batch_now()
                return
            del line[task]
            self._append(place.payload)
            if place.express:
                self._send_batch_now()
            place.is_queued = True
            trio.lowlevel.reschedule(task)

    def _dissolve_line(self) -> None:
        """Wake all waiting tasks without serving them; each finds out why."""
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
            self._send_batch_now()

    def _send_batch_now(self) -> None:
        if not self._urgent:
            self._urgent = True
            self._work_lot.unpark()

    async def flush(self) -> None:
        """Send the messages queued now, and wait until the stream has taken them.

        This says nothing about the peer; a QUIC stream's ``wait_acked`` does.

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
                raise self._broken("the stream has failed") from self._error
            if self._count:
                self._send_batch_now()
            await self._written_lot.park()

    async def aclose(self) -> None:
        """Send the queued messages, and end the stream's direction.  Idempotent.

        Cancellation: data that the stream has not taken yet is lost, and the stream is closed
        forcefully, so that the peer does not take a part for the whole.

        Raises:
          trio.BrokenResourceError: the queued messages could not be sent.
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
            try:
                if isinstance(self._stream, trio.abc.HalfCloseableStream):
                    await self._stream.send_eof()
                else:
                    await self._stream.aclose()
            except StreamStopped as error:
                self._error = error
                raise self._broken("the stream has failed") from error
        except BaseException:
            await trio.aclose_forcefully(self._stream)
            raise

    def _check_not_left(self) -> None:
        if self._left:
            raise trio.ClosedResourceError(
                "the block of this channel was left by an exception: what was queued is dropped"
            )

    async def _leave(self) -> None:
        """End the channel when its block is left: no task writes any more.

        If that drops messages, the peer must not take a part for the whole.
        """
        was_closed, self._closed = self._closed, True
        if self._written < self._queued:
            self._left = True
        self._dissolve_line()
        self._written_lot.unpark_all()
        if not self._left or was_closed:
            return  # (closing has ended the stream)
        if isinstance(self._stream, QuicStream):
            self._stream.send_stream.reset()
        else:
            await trio.aclose_forcefully(self._stream)

    async def _flush_closed(self) -> None:
        while self._written < self._queued:
            if self._count:
                self._send_batch_now()
            await self._written_lot.park()
            self._check_not_left()
            if self._error is not None:
                waiting = self._queued - self._written
                raise self._broken(
                    f"{waiting} messages were queued when the stream failed"
                ) from self._error

    async def _write(self) -> None:
        """The writing task: sleeps while nothing is queued, and until a batch is due."""
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


@overload
def open_batch_sender(
    stream: trio.abc.SendStream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    encode: None = None,
) -> AbstractAsyncContextManager[BatchSender[Buffer]]: ...


@overload
def open_batch_sender(
    stream: trio.abc.SendStream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    encode: Callable[[T], Buffer],
) -> AbstractAsyncContextManager[BatchSender[T]]: ...


def open_batch_sender(
    stream: trio.abc.SendStream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    encode: Callable[[Any], Buffer] | None = None,
) -> AbstractAsyncContextManager[BatchSender[Any]]:
    """The sending half of :func:`open_batching_channel`, for one direction alone."""
    check_stream(stream, "send_all")
    return _open_batch_sender(stream, max_batch_bytes, max_delay, max_message_size, encode)


@asynccontextmanager
async def _open_batch_sender(
    stream: trio.abc.SendStream,
    max_batch_bytes: int,
    max_delay: float,
    max_message_size: int,
    encode: Callable[[Any], Buffer] | None,
) -> AsyncIterator[BatchSender[Any]]:
    sender: BatchSender[Any] = BatchSender(
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
