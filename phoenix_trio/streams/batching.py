"""Receives batches of small messages, and opens channels that send and receive them.

Floor 4.  Takes apart a stream of batches, as :mod:`.batch_sending` writes it.  Works over
any :class:`trio.abc.Stream`, and over one direction of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, cast, final, overload

import trio

from ..errors import ApplicationErrorCode
from ..quic.conflict import ConflictDetector
from ..quic.connection import QuicStream, ReceiveStream
from ..quic.misuse import check_stream
from ..quic.stream_errors import too_large_code
from .batch_sending import KIBIBYTE, MEBIBYTE, BatchSender, check_sizes, open_batch_sender
from .framing import FrameTooLarge, FramingError
from .messages import Buffer, MessageRefused
from .reader import StreamReader

__all__ = [
    "BatchReceiver",
    "BatchSender",
    "open_batch_sender",
    "open_batching_channel",
]

T_co = TypeVar("T_co", covariant=True)
SentT = TypeVar("SentT")
ReceivedT = TypeVar("ReceivedT")

#: Bytes of a batch that are made into messages at once.
_AT_ONCE = 64 * KIBIBYTE


@final
class BatchReceiver(trio.abc.ReceiveChannel[T_co]):
    """Takes batches apart.  From :func:`open_batching_channel`, or over any stream.

    Args:
      stream: where batches arrive; no other task may read it.
      max_message_size: the largest message taken, in bytes.
      max_batch_bytes: the largest batch, in bytes, though a batch of a single message may
        have `max_message_size`.  At most one batch is held, and taken apart by 64 KiB.
      decode: makes a value of a message's bytes.

    Generic in the values that `decode` makes; without it, in bytes.
    """

    @overload
    def __init__(
        self: BatchReceiver[bytes],
        stream: trio.abc.ReceiveStream,
        *,
        max_message_size: int = MEBIBYTE,
        max_batch_bytes: int = MEBIBYTE,
        decode: None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        stream: trio.abc.ReceiveStream,
        *,
        max_message_size: int = MEBIBYTE,
        max_batch_bytes: int = MEBIBYTE,
        decode: Callable[[bytes], T_co],
    ) -> None: ...

    def __init__(
        self,
        stream: trio.abc.ReceiveStream,
        *,
        max_message_size: int = MEBIBYTE,
        max_batch_bytes: int = MEBIBYTE,
        decode: Callable[[bytes], Any] | None = None,
    ) -> None:
        check_sizes(max_batch_bytes, 0, max_message_size)
        check_stream(stream, "receive_some")
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

    async def receive(self) -> T_co:
        """The next message.

        Cancellation: nothing is lost.

        Raises:
          trio.EndOfChannel: the peer has closed its end in good order.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this receiver, or the stream, was closed here.
          MessageRefused: a message is too large, or the input is malformed; the stream
            cannot be read any further.
          trio.BrokenResourceError: the stream has failed; a subclass says how.
          And whatever `decode` raises; the channel goes on with the next message.
        """
        with self._conflict:
            if self._messages:
                await trio.lowlevel.checkpoint()
                self._check_open()
            else:
                await self._fill()
            message = self._messages.popleft()
        value: T_co = cast(T_co, message) if self._decode is None else self._decode(message)
        return value

    async def receive_many(self) -> list[T_co]:
        """All messages that have arrived and were not received yet, but at least one.

        At most those of 64 KiB of one batch, with one checkpoint for all of them.

        Cancellation and errors are those of :meth:`receive`, except that the messages of this
        call are lost if `decode` raises.
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
        """Wait until there is at least one message."""
        self._check_open()
        if self._error is not None:
            await trio.lowlevel.checkpoint()
            error = self._error
            raise MessageRefused(str(error), error.code, size=error.size, limit=error.limit)
        try:
            if self._position < len(self._batch):
                await trio.lowlevel.checkpoint()
                self._check_open()
                self._take_apart()
            while not self._messages:
                try:
                    batch = await self._reader.read_frame(self._limit)
                except FrameTooLarge as error:
                    # (Without a limit in the code: the limit of a batch says nothing of messages.)
                    code = ApplicationErrorCode.MESSAGE_TOO_LARGE
                    raise self._refuse(error, code) from error
                if batch is None:
                    raise trio.EndOfChannel
                self._batch, self._position = batch, 0
                self._take_apart()
        except FrameTooLarge as error:
            code = ApplicationErrorCode.MESSAGE_TOO_LARGE
            raise self._refuse(error, code, told=too_large_code(error.limit)) from error
        except FramingError as error:
            raise self._refuse(error, ApplicationErrorCode.MALFORMED) from error

    def _take_apart(self) -> None:
        """Make messages of a part of the batch: all at once would take many times its memory."""
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

    def _refuse(
        self, error: FramingError, code: ApplicationErrorCode, *, told: int | None = None
    ) -> MessageRefused:
        stream = self._reader.stream
        if isinstance(stream, (ReceiveStream, QuicStream)):
            stream.stop_receiving(code if told is None else told)
        size, limit = (
            (error.size, error.limit) if isinstance(error, FrameTooLarge) else (None, None)
        )
        self._error = MessageRefused(f"a batch was refused: {error}", code, size=size, limit=limit)
        return self._error

    async def aclose(self) -> None:
        """End receiving; the peer of a QUIC stream is told.  Idempotent.

        A half-closeable stream stays open for sending.
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


@overload
def open_batching_channel(
    stream: trio.abc.Stream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    max_sent_size: int | None = None,
    encode: None = None,
    decode: None = None,
) -> AbstractAsyncContextManager[tuple[BatchSender[Buffer], BatchReceiver[bytes]]]: ...


@overload
def open_batching_channel(
    stream: trio.abc.Stream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    max_sent_size: int | None = None,
    encode: Callable[[SentT], Buffer],
    decode: None = None,
) -> AbstractAsyncContextManager[tuple[BatchSender[SentT], BatchReceiver[bytes]]]: ...


@overload
def open_batching_channel(
    stream: trio.abc.Stream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    max_sent_size: int | None = None,
    encode: None = None,
    decode: Callable[[bytes], ReceivedT],
) -> AbstractAsyncContextManager[tuple[BatchSender[Buffer], BatchReceiver[ReceivedT]]]: ...


@overload
def open_batching_channel(
    stream: trio.abc.Stream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    max_sent_size: int | None = None,
    encode: Callable[[SentT], Buffer],
    decode: Callable[[bytes], ReceivedT],
) -> AbstractAsyncContextManager[tuple[BatchSender[SentT], BatchReceiver[ReceivedT]]]: ...


def open_batching_channel(
    stream: trio.abc.Stream,
    *,
    max_batch_bytes: int = 64 * KIBIBYTE,
    max_delay: float = 0.002,
    max_message_size: int = MEBIBYTE,
    max_sent_size: int | None = None,
    encode: Callable[[Any], Buffer] | None = None,
    decode: Callable[[bytes], Any] | None = None,
) -> AbstractAsyncContextManager[tuple[BatchSender[Any], BatchReceiver[Any]]]:
    """Two Trio channels over a stream, which send many small messages in few batches.

    When the block is left normally, the queued messages are sent, and our direction ended.
    When it is left by an exception, the queued messages are dropped.  If that drops messages,
    our direction of a QUIC stream is reset, and another stream is closed forcefully, so that
    the peer does not take a part for the whole.  Otherwise the stream stays the caller's;
    its ``async with`` resets it after an exception.  Afterwards the sender is closed.  The
    peer's side needs a :class:`BatchReceiver` or a batching channel as well.

    Args:
      stream: no other task may use it meanwhile.
      max_batch_bytes: a batch leaves at this size (1 to 2**30 - 9).  64 KiB: more saves
        hardly anything.
      max_delay: the most seconds for which the first message of a batch waits for further
        ones (0 to 3600).  2 ms: a network's own delay is of this order, and hundreds of
        messages a second share batches already.  0: until the tasks that are sending at this
        moment have had their turn.
      max_message_size: the largest message, in bytes, both ways (1 to 2**30 - 9).
      max_sent_size: the largest message sent, in bytes, if that is less, for instance
        because the peer takes less; ``None``: `max_message_size`.
      encode, decode: convert an application's value to bytes and back, like
        ``msgspec.msgpack.encode``; ``None``: messages are bytes.  The channels
        have the types of their values.

    Raises:
      TypeError: `stream` is no stream, but for instance a connection.
      ValueError: an argument is out of range.
    """
    check_stream(stream, "receive_some")
    check_stream(stream, "send_all")
    return _open_batching_channel(
        stream, max_batch_bytes, max_delay, max_message_size, max_sent_size, encode, decode
    )


@asynccontextmanager
async def _open_batching_channel(
    stream: trio.abc.Stream,
    max_batch_bytes: int,
    max_delay: float,
    max_message_size: int,
    max_sent_size: int | None,
    encode: Callable[[Any], Buffer] | None,
    decode: Callable[[bytes], Any] | None,
) -> AsyncIterator[tuple[BatchSender[Any], BatchReceiver[Any]]]:
    sent = max_message_size
    if max_sent_size is not None:
        sent = max(1, min(sent, max_sent_size))  # (The peer chooses this value freely.)
    receiver: BatchReceiver[Any] = BatchReceiver(
        stream,
        max_message_size=max_message_size,
        max_batch_bytes=max(max_batch_bytes, MEBIBYTE),
        decode=cast(Any, decode),
    )
    async with open_batch_sender(
        stream,
        max_batch_bytes=max_batch_bytes,
        max_delay=max_delay,
        max_message_size=sent,
        encode=cast(Any, encode),
    ) as sender:
        yield sender, receiver
