"""Sends the items of an iterable, one after the other, on one unidirectional stream.

Floor 4.  The sender takes the next item only when the stream has room, so a slow consumer
slows its producer down, and no items pile up between them.  After the kind, each item is
a frame; the end of the stream is the end of the source.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sized
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias, final

import trio

from ..errors import ApplicationErrorCode, MessageTooLarge, StreamStopped
from ..quic.conflict import ConflictDetector
from ..quic.connection import QuicConnection, ReceiveStream, SendStream
from ..quic.stream_errors import split_code, too_large_code
from .framing import FrameTooLarge, FramingError, encode_varint
from .kinds import StreamKind
from .limits import PeerLimits, refused_by_peer
from .messages import PLAIN, Decode, Encode, MessageRefused, as_view
from .reader import StreamReader
from .watching import while_open

__all__ = ["SequenceReceiver", "SequenceSource", "send_sequence"]

#: Sources of items: an iterable, an async iterable, or a function that returns the next item
#: each time, and ``None`` at the end.
SequenceSource: TypeAlias = (
    "Iterable[Any] | AsyncIterable[Any] | Callable[[], Any] | Callable[[], Awaitable[Any]]"
)

#: Smaller items are joined up to about this, as far as the source gives them at once.
_JOIN = 16 * 1024


async def send_sequence(
    connection: QuicConnection,
    source: SequenceSource,
    *,
    encode: Encode | None = None,
    limits: PeerLimits | None = None,
) -> int:
    """Send all items of `source`; returns how many, once the peer's transport has them all.

    Args:
      source: an iterable, an async iterable, or a function, async or not, called for each
        item until it returns ``None``.  Generators are closed in any case.
      encode: makes bytes of an item; ``None``: items are bytes-like.
      limits: the peer's limits, as for :func:`send_message`.

    Cancellation: the receiver gets :class:`StreamReset` after the items it has read, unless
    the stream had taken all items already: then they may arrive whole.

    Raises:
      TypeError: `source` is not such a source, or an item is not bytes-like.
      MessageTooLarge: the peer has announced a limit below the size of an item; the items
        before it were sent, and the receiver gets :class:`StreamReset` with
        ``MESSAGE_TOO_LARGE``.
      MessageRefusedByPeer: the receiver does not take an item as large.
      StreamStopped: the receiver does not want more, also while the source is waiting;
        with the code ``NO_ERROR`` it has had enough.
      trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended.
      And whatever `source` or `encode` raises: the receiver gets :class:`StreamReset` with
      ``SOURCE_FAILED``.
    """
    give = _make_giver(source)
    items = _Items(give, encode, limits)
    try:
        async with await connection.open_send_stream() as stream:
            try:
                await while_open(stream, partial(_send_all_items, stream, items))
                await stream.send_eof()
                await stream.wait_acked()
            except StreamStopped as error:
                code = error.error_code
                if split_code(code)[0] != ApplicationErrorCode.MESSAGE_TOO_LARGE:
                    raise
                limit = None if limits is None else limits.max_message_size
                raise refused_by_peer(
                    stream.id, code, size=items.largest, limit=limit, what="a sequence with an item"
                ) from error
            if limits is not None:
                await limits.confirm(items.largest, PLAIN, stream_id=stream.id)
    finally:
        await give.aclose()
    return items.count


class _Items:
    """The items of a source on their way: their bytes, their number, the largest size."""

    def __init__(self, give: _Giver, encode: Encode | None, limits: PeerLimits | None) -> None:
        self.give = give
        self._encode = encode
        self._limits = limits
        self.count = 0
        self.largest = 0

    async def some(self) -> list[memoryview]:
        """At least one item; at the end nothing."""
        encode = self._encode
        views = [as_view(item, encode, "an item") for item in await self.give.some()]
        self.count += len(views)
        for view in views:
            if len(view) > self.largest:
                self.largest = len(view)
                if self._limits is not None:
                    self._limits.check_size(self.largest)
        return views


async def _send_all_items(stream: SendStream, items: _Items) -> None:
    # The source is closed within the nursery in which it was iterated, because a generator may
    # have a scope of its own.
    try:
        await _send_items(stream, items)
    except BaseException:
        try:
            await items.give.aclose()
        except trio.Cancelled:
            pass  # a reset stream ends this nursery; the original error counts
        raise
    await items.give.aclose()


async def _send_items(stream: SendStream, items: _Items) -> None:
    # At once, so that the receiver knows of the sequence while the source makes its first item.
    await stream.send_all(encode_varint(StreamKind.SEQUENCE))
    pending = bytearray()
    at_end = False
    while not at_end:
        try:
            views = await items.some()
        except MessageTooLarge:
            stream.reset(ApplicationErrorCode.MESSAGE_TOO_LARGE)
            raise
        except Exception:
            stream.reset(ApplicationErrorCode.SOURCE_FAILED)
            raise
        at_end = not views
        for view in views:
            pending += encode_varint(len(view))
            if len(view) < _JOIN:
                pending += view
                view = memoryview(b"")
            if view or len(pending) >= _JOIN:
                await stream.send_all(bytes(pending))
                pending.clear()
                if view:
                    await stream.send_all(view)
        if pending:
            await stream.send_all(bytes(pending))
            pending.clear()


class _Giver(ABC):
    """Items of a source, some at a time."""

    @abstractmethod
    async def some(self) -> list[Any]:
        """At least one item; at the end nothing."""

    async def aclose(self) -> None:
        """Close a generator.  Any other source stays its owner's."""
        await trio.lowlevel.checkpoint()


class _FromIterable(_Giver):
    """Takes several items at once: with no wait in between, single ones would only cost more."""

    _AT_ONCE = 64

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self._error: Exception | None = None

    async def some(self) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if self._error is not None:
            raise self._error
        found: list[Any] = []
        size = 0
        try:
            for item in self._items:
                found.append(item)
                size += len(item) if isinstance(item, Sized) else 0
                if len(found) == self._AT_ONCE or size >= _JOIN:
                    break
        except Exception as error:
            if not found:
                raise
            self._error = error  # raised after the items before it
        return found

    async def aclose(self) -> None:
        if inspect.isgenerator(self._items):
            self._items.close()
        await trio.lowlevel.checkpoint()


class _FromAsyncIterable(_Giver):
    def __init__(self, items: AsyncIterable[Any]) -> None:
        self._items = aiter(items)

    async def some(self) -> list[Any]:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            item = await anext(self._items)
        except StopAsyncIteration:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return []
        return [item]

    async def aclose(self) -> None:
        close = getattr(self._items, "aclose", None)
        if inspect.isasyncgen(self._items) and close is not None:
            await close()
        await trio.lowlevel.checkpoint()


class _FromFunction(_Giver):
    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    async def some(self) -> list[Any]:
        await trio.lowlevel.checkpoint()
        item = self._function()
        if inspect.isawaitable(item):
            item = await item
        return [] if item is None else [item]


def _make_giver(source: SequenceSource) -> _Giver:
    if isinstance(source, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"a {type(source).__name__} is one item; send it as a message, or [it]")
    if isinstance(source, AsyncIterable):
        return _FromAsyncIterable(source)
    if isinstance(source, Iterable):
        return _FromIterable(source)
    if callable(source):
        return _FromFunction(source)
    raise TypeError(
        "a sequence comes from an iterable, an async iterable or a function, not"
        f" {type(source).__name__}"
    )


@final
class SequenceReceiver(trio.abc.ReceiveChannel[Any]):
    """The items of a sequence: ``async with receiver: async for item in receiver: ...``.

    Leaving the block, as by ``break``, tells the sender to stop: with ``NO_ERROR``, or with
    ``CANCELLED`` if it is left by an exception.  There is no task behind it, so nothing leaks
    if it is merely dropped, but the sender then waits until the connection ends.

    Args:
      reader: over the stream, past its kind; belongs to this object from now on.
      max_item_size: the largest item taken, in bytes.
      decode: makes a value of an item's bytes.
    """

    def __init__(
        self, reader: StreamReader, *, max_item_size: int, decode: Decode | None = None
    ) -> None:
        self._reader = reader
        self._max_item_size = max_item_size
        self._decode = decode
        self._at_end = False
        self._closed = False
        self._conflict = ConflictDetector("another task is already receiving from this sequence")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "at its end" if self._at_end else "open"
        return f"<SequenceReceiver over {self._reader.stream!r} ({state})>"

    async def receive(self) -> Any:
        """The next item.

        Cancellation: nothing is lost.

        Raises:
          trio.EndOfChannel: there are no more.
          MessageRefused: an item is too large, or the input is malformed; the sender was
            told, and the sequence ends here.
          StreamReset: the sender has given up: with ``SOURCE_FAILED`` because its source
            raised.  Items not received yet may be lost then.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: this receiver, or the connection, was closed.
          ConnectionBroken: the connection ended.
          And whatever `decode` raises; the sequence goes on with the next item.
        """
        with self._conflict:
            if self._closed:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError("this sequence was closed")
            if self._at_end:
                await trio.lowlevel.checkpoint()
                raise trio.EndOfChannel
            try:
                item = await self._reader.read_frame(self._max_item_size)
            except FrameTooLarge as error:
                self._stop(too_large_code(error.limit))
                raise MessageRefused(
                    f"a sequence was refused: {error}",
                    ApplicationErrorCode.MESSAGE_TOO_LARGE,
                    size=error.size,
                    limit=error.limit,
                ) from error
            except FramingError as error:
                self._stop(ApplicationErrorCode.MALFORMED)
                raise MessageRefused(
                    f"a sequence was refused: {error}", ApplicationErrorCode.MALFORMED
                ) from error
            if item is None:
                self._at_end = True
                raise trio.EndOfChannel
        return item if self._decode is None else self._decode(item)

    def _stop(self, code: int) -> None:
        self._closed = True
        stream = self._reader.stream
        if isinstance(stream, ReceiveStream):
            stream.stop_receiving(code)

    async def aclose(self) -> None:
        """Tell the sender to stop.  Idempotent; closes even if cancelled."""
        self._stop(ApplicationErrorCode.NO_ERROR)
        await self._reader.stream.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self._stop(ApplicationErrorCode.CANCELLED)
        await self.aclose()
