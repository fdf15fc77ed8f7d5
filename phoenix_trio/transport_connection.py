"""An application's connection: messages, sequences and transfers over ``phoenix/1``.

Floor 5.  A QUIC connection with one dispatching task.  The task reads the kind of each
unidirectional stream that the peer opens.  Messages and sequences go to the queues of the
receiving calls here, stripes to the transport's hub.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, final, overload

import trio

from .config import TransportConfig
from .errors import ApplicationErrorCode, StreamReset
from .metrics import ConnectionMetrics, RateWindow
from .pool.hub import TransferHub
from .pool.receiving import IncomingTransfer
from .quic.connection import QuicConnection, QuicStream, ReceiveStream, SendStream
from .quic.construction import NoPublicConstructor
from .quic.misuse import check_stream
from .quic.until_closed import UntilClosed
from .streams.batching import BatchReceiver, BatchSender, open_batching_channel
from .streams.framing import FramingError, encode_varint
from .streams.generator import SequenceReceiver, SequenceSource, send_sequence
from .streams.kinds import StreamKind
from .streams.limits import (
    ANNOUNCING_PROTOCOL,
    Limits,
    PeerLimits,
    encode_limits,
    read_limits,
)
from .streams.messages import (
    Buffer,
    Decode,
    Encode,
    MessageReceiver,
    MessageRefused,
    known_codecs,
    send_message,
)
from .streams.reader import StreamReader
from .transport_incoming import IncomingQueue

__all__ = ["PhoenixConnection"]

logger: logging.Logger = logging.getLogger("phoenix_trio.transport")

_ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)
_TRANSFER_KINDS = (StreamKind.TRANSFER, StreamKind.STRIPES, StreamKind.TRANSFER_REPLY)

#: Bytes of a stream that are read before the application receives it.  A small message is read
#: whole, so that its sender may open other streams.
_READ_AHEAD = 4096

#: Streams which wait to be received, from which on nothing is read ahead.
_MOST_READ_AHEAD = 256

R = TypeVar("R")
S = TypeVar("S")


@final
class PhoenixConnection(metaclass=NoPublicConstructor):
    """A connection with messages, sequences, batches and striped transfers.

    From :meth:`PhoenixTransport.connect`, or as the argument of the handler of
    :meth:`PhoenixTransport.serve`.  Several tasks, and several leases, may share one.  The
    next message goes to the task that has waited longest.
    """

    def __init__(self, quic: QuicConnection, config: TransportConfig, hub: TransferHub) -> None:
        self._quic = quic
        quic._takes_one_way = True  # by the dispatching task, which is about to start
        self._config = config
        self._hub = hub
        self._messages: IncomingQueue[MessageReceiver] = IncomingQueue()
        self._sequences: IncomingQueue[StreamReader] = IncomingQueue()
        self._has_announced = False
        self._has_peer_limits = False
        # (None: early data is sent, and the protocol is not known yet.)  A peer without credit
        # for unidirectional streams cannot announce anything.
        awaited = (
            quic.alpn_protocol in (ANNOUNCING_PROTOCOL, None)
            and config.max_unidirectional_streams > 0
        )
        self._peer_limits = PeerLimits(quic, is_awaited=awaited)
        self._on_drain: Callable[[QuicConnection], None] | None = None
        self._dispatched = False
        self._is_draining = False
        self._nursery: trio.Nursery | None = None  # where its dispatching task runs
        self._has_sent_drain = False
        self._operations = 0
        self._messages_sent = 0
        self._messages_received = 0
        self._messages_refused = 0
        now = trio.current_time()
        self._send_window = RateWindow(now)
        self._receive_window = RateWindow(now)

    def __repr__(self) -> str:
        state = "closed" if self._quic.is_closed else "draining" if self._is_draining else "open"
        return f"<PhoenixConnection with {self._quic.peer_address} ({state})>"

    @property
    def quic(self) -> QuicConnection:
        """The QUIC connection below, with all it offers."""
        return self._quic

    @property
    def is_draining(self) -> bool:
        """Whether one side has asked for draining: no further streams on this connection."""
        return self._is_draining

    # ------------------------------------------------------------------ messages

    async def send_data(
        self, data: Any, *, encode: Encode | None = None, compress: str | None = None
    ) -> None:
        """Send one message on a stream of its own.

        Returns when the peer's transport has acknowledged every byte, and has not refused
        the message by its announced limits.  See
        :func:`phoenix_trio.streams.send_message` for arguments, cancellation and errors.
        """
        limits = self._peer_limits
        await send_message(self._quic, data, encode=encode, compress=compress, limits=limits)
        self._messages_sent += 1
        self._operations += 1

    @overload
    async def receive_data(self, *, max_size: int | None = None, decode: None = None) -> bytes: ...

    @overload
    async def receive_data(
        self, *, max_size: int | None = None, decode: Callable[[bytes], R]
    ) -> R: ...

    async def receive_data(
        self, *, max_size: int | None = None, decode: Decode | None = None
    ) -> Any:
        """The next message.

        Several messages may be arriving.  The call returns the one that the peer began first.
        A sender that waits for each ``send_data`` keeps its order.  Among messages sent side by
        side, one whose first packet is lost comes after the others.  A slow message delays
        later ones in this call, though not on the network.  Use different connections, or
        datagrams, for data that must not wait for each other.

        Args:
          max_size: the largest message, in bytes; ``None``, or more than that: the
            configuration's ``max_message_size``, which the transport announces to the peer.
            A smaller limit is not announced.  So a sender learns that its message was above
            it only while it still sends; the call for a small message has returned by then.
          decode: makes a value of its bytes.

        Cancellation: nothing is lost; the next call receives the message.

        Raises:
          TypeError: `max_size` is no integer, or `decode` no function; no message is lost.
          ValueError: `max_size` is negative; no message is lost.
          MessageRefused: the message is too large, malformed, or compressed with an unknown
            method.  This side has refused it with a code.  The next call is for the next
            message.
          StreamReset: the sender has given the message up.  The next call is for the next one.
          trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended,
            and no message is left.
          Errors from `decode`: that message is lost.
        """
        if max_size is not None and (not isinstance(max_size, int) or isinstance(max_size, bool)):
            raise TypeError(f"max_size must be an integer or None, not {max_size!r}")
        if max_size is not None and max_size < 0:
            raise ValueError(f"max_size must be 0 or more bytes, or None, not {max_size}")
        if decode is not None and not callable(decode):
            raise TypeError(f"decode must be a function that takes bytes, not {decode!r}")
        stream_id, message = await self._next(self._messages)
        if message.is_refused:
            with trio.CancelScope(shield=True):  # (It is not in the queue any more.)
                await message.receive_header()  # raises why
        limit = self._config.max_message_size
        message.max_size = limit if max_size is None else min(limit, max_size)
        try:
            data = await message.receive()
        except trio.Cancelled:
            self._messages.put(stream_id, message)
            raise
        except MessageRefused:
            self._messages_refused += 1
            raise
        self._close(message.stream)
        self._messages_received += 1
        self._operations += 1
        return data if decode is None else decode(data)

    @overload
    def messages(
        self, *, max_size: int | None = None, decode: None = None
    ) -> AsyncIterator[bytes]: ...

    @overload
    def messages(
        self, *, max_size: int | None = None, decode: Callable[[bytes], R]
    ) -> AsyncIterator[R]: ...

    def messages(
        self, *, max_size: int | None = None, decode: Decode | None = None
    ) -> AsyncIterator[Any]:
        """Iterate over :meth:`receive_data`; ends when the connection is closed in good order.

        The loop leaves out refused messages, and those given up by their sender; it logs and
        counts them.  So a bad message does not end the loop.
        """
        return _Messages(self, max_size, decode)

    # ------------------------------------------------------------------ sequences

    async def stream_data(self, source: SequenceSource, *, encode: Encode | None = None) -> int:
        """Send the items of an iterable, an async iterable or a function, one by one.

        See :func:`phoenix_trio.streams.send_sequence` for arguments, cancellation and errors.
        """
        count = await send_sequence(self._quic, source, encode=encode, limits=self._peer_limits)
        self._operations += 1
        return count

    async def receive_stream_data(
        self, *, max_item_size: int | None = None, decode: Decode | None = None
    ) -> SequenceReceiver:
        """The next sequence of the peer, as a channel.

        ``async with await connection.receive_stream_data() as items: async for item in items``

        Args:
          max_item_size: the largest item, in bytes; ``None``, or more than that: the
            configuration's ``max_message_size``, which the transport announces to the peer.
          decode: makes a value of an item's bytes.

        Cancellation: nothing is lost.

        Raises:
          trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended.
        """
        await trio.lowlevel.checkpoint()
        _, reader = await self._next(self._sequences)
        self._operations += 1
        limit = self._config.max_message_size
        return SequenceReceiver(
            reader,
            max_item_size=limit if max_item_size is None else min(limit, max_item_size),
            decode=decode,
        )

    # ------------------------------------------------------------------ batches, streams

    @overload
    def open_batching_channel(
        self, stream: trio.abc.Stream, *, encode: None = None, decode: None = None
    ) -> AbstractAsyncContextManager[tuple[BatchSender[Buffer], BatchReceiver[bytes]]]: ...

    @overload
    def open_batching_channel(
        self, stream: trio.abc.Stream, *, encode: Callable[[S], Buffer], decode: None = None
    ) -> AbstractAsyncContextManager[tuple[BatchSender[S], BatchReceiver[bytes]]]: ...

    @overload
    def open_batching_channel(
        self, stream: trio.abc.Stream, *, encode: None = None, decode: Callable[[bytes], R]
    ) -> AbstractAsyncContextManager[tuple[BatchSender[Buffer], BatchReceiver[R]]]: ...

    @overload
    def open_batching_channel(
        self,
        stream: trio.abc.Stream,
        *,
        encode: Callable[[S], Buffer],
        decode: Callable[[bytes], R],
    ) -> AbstractAsyncContextManager[tuple[BatchSender[S], BatchReceiver[R]]]: ...

    def open_batching_channel(
        self, stream: trio.abc.Stream, *, encode: Encode | None = None, decode: Decode | None = None
    ) -> AbstractAsyncContextManager[tuple[BatchSender[Any], BatchReceiver[Any]]]:
        """Batching channels over a stream, with the configuration's sizes and delay.

        The peer's announced limit bounds the sent messages as well.  So entering the block
        waits for the announcement, once a connection and usually for no time.

        See :func:`phoenix_trio.open_batching_channel`.  Entering also raises
        :class:`ConnectionBroken` or :class:`trio.ClosedResourceError` if the connection ends.
        """
        check_stream(stream, "receive_some")
        check_stream(stream, "send_all")
        return self._open_batching_channel(stream, encode, decode)

    @asynccontextmanager
    async def _open_batching_channel(
        self, stream: trio.abc.Stream, encode: Encode | None, decode: Decode | None
    ) -> AsyncIterator[tuple[BatchSender[Any], BatchReceiver[Any]]]:
        await self._peer_limits.wait_settled()
        config = self._config
        channel: Any = open_batching_channel  # its types are those of the overloads
        async with channel(
            stream,
            max_batch_bytes=config.batch_bytes,
            max_delay=config.batch_delay,
            max_message_size=config.max_message_size,
            max_sent_size=self._peer_limits.max_message_size,
            encode=encode,
            decode=decode,
        ) as channels:
            yield channels

    async def request(
        self, data: bytes | bytearray | memoryview, *, max_answer: int | None = None
    ) -> bytes:
        """See :meth:`QuicConnection.request`; bidirectional streams are the application's."""
        answer = await self._quic.request(data, max_answer=max_answer)
        self._operations += 1
        return answer

    async def open_stream(self) -> QuicStream:
        """See :meth:`QuicConnection.open_stream`; bidirectional streams are the application's."""
        stream = await self._quic.open_stream()
        self._operations += 1
        return stream

    async def accept_stream(self) -> QuicStream:
        """See :meth:`QuicConnection.accept_stream`."""
        stream = await self._quic.accept_stream()
        self._operations += 1
        return stream

    if not TYPE_CHECKING:

        def __aiter__(self):
            raise TypeError(
                "iterate over connection.messages(), incoming_streams() or incoming_transfers(),"
                " not over the connection itself"
            )

    def incoming_streams(self) -> AsyncIterator[QuicStream]:
        """Iterate over :meth:`accept_stream`; see :meth:`QuicConnection.incoming_streams`."""
        return UntilClosed(self.accept_stream)

    def incoming_transfers(self) -> AsyncIterator[IncomingTransfer]:
        """Iterate over striped transfers that the peer begins on this connection."""
        return self._hub.incoming_transfers(connection=self._quic)

    # ------------------------------------------------------------------ the rest

    async def drain(self) -> None:
        """Ask the peer to open no further streams on this connection.

        Its pool gives out no further leases on the connection, and closes it after the
        last one.  A second call has no effect.

        Cancellation: the request may not have been sent; another call sends it.

        Raises:
          trio.ClosedResourceError, ConnectionBroken: the connection was closed, or ended.
        """
        await trio.lowlevel.checkpoint()
        if self._has_sent_drain:
            return
        self._has_sent_drain = self._is_draining = True
        try:
            await self._send_drain(b"")
        except BaseException:
            self._has_sent_drain = False  # another call sends it
            raise

    async def _send_drain(self, details: bytes) -> None:
        async with await self._quic.open_send_stream() as stream:
            await stream.send_all(encode_varint(StreamKind.DRAIN) + details, end=True)

    def _leave(self, first: int) -> None:
        """Send a DRAIN stream: this side refuses streams from the ID `first` on."""
        self._is_draining = True
        if self._nursery is not None:
            self._nursery.start_soon(self._send_refusal_from, first)

    async def _send_refusal_from(self, first: int) -> None:
        try:
            await self._send_drain(encode_varint(first))
        except _ENDED:
            await trio.lowlevel.checkpoint()  # the connection has ended

    def metrics(self) -> ConnectionMetrics:
        """A frozen snapshot; also after the end."""
        facts = self._quic.statistics()
        now = trio.current_time()
        sent, received = facts.stream_bytes_acknowledged, facts.stream_bytes_read
        return ConnectionMetrics(
            bytes_sent=sent,
            bytes_received=received,
            operations=self._operations,
            messages_sent=self._messages_sent,
            messages_received=self._messages_received,
            messages_refused=self._messages_refused,
            send_rate=8 * self._send_window.rate(now, sent),
            receive_rate=8 * self._receive_window.rate(now, received),
            latency=facts.rtt_smoothed,
            zero_copy_operations=facts.zero_copy_operations,
            is_draining=self._is_draining,
            statistics=facts,
        )

    # ------------------------------------------------------------------ incoming streams

    async def _next(self, queue: IncomingQueue[R]) -> tuple[int, R]:
        while (found := queue.pop()) is None:
            if self._dispatched:
                # No further stream can arrive: this call raises the reason.
                await self._quic.accept_receive_stream()
            await queue.lot.park()
        return found

    def _announce(self) -> None:
        """Announce this side's limits, if the peer permits a stream at once.

        Called before the application can open streams.  Otherwise its messages, which may
        wait for the peer's application, could use up the stream credit.
        """
        if self._has_announced or self._quic.alpn_protocol != ANNOUNCING_PROTOCOL:
            return
        try:
            stream_id = self._quic._open_now(unidirectional=True)
        except _ENDED:
            return
        if stream_id is not None:
            self._announce_on(self._quic._make_sender(stream_id))

    def _announce_on(self, stream: SendStream) -> None:
        self._has_announced = True
        stream._finish(encode_limits(self._config.max_message_size, known_codecs()))

    async def _announce_later(self) -> None:
        """Announce the limits once the protocol is known and the peer permits a stream."""
        quic = self._quic
        try:
            if quic.alpn_protocol is None:
                await quic.wait_confirmed()  # early data precedes the choice of a protocol
            if quic.alpn_protocol == ANNOUNCING_PROTOCOL:
                self._announce_on(await quic.open_send_stream())
            elif not self._peer_limits.is_settled:
                self._peer_limits.settle(Limits())
        except _ENDED:
            await trio.lowlevel.checkpoint()  # the connection has ended

    async def _dispatch(self) -> None:
        """Read the kind of each unidirectional stream, until the connection ends.

        Each stream gets a task.  ``max_unidirectional_streams`` limits the streams that the
        peer has open, and so the tasks.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._announce()
                if not self._has_announced:
                    nursery.start_soon(self._announce_later)
                while True:
                    try:
                        stream = await self._quic.accept_receive_stream()
                    except _ENDED:
                        break
                    nursery.start_soon(self._sort, stream)
        finally:
            self._dispatched = True
            self._peer_limits.end()
            self._messages.lot.unpark_all()
            self._sequences.lot.unpark_all()

    async def _sort(self, stream: ReceiveStream) -> None:
        reader = StreamReader(stream)
        # Bytes read here free credit for the sender.  So reading ahead stops while many
        # messages wait: flow control has to stop a sender whose messages are not received.
        waiting = len(self._messages) + len(self._sequences)
        ahead = _READ_AHEAD if waiting < _MOST_READ_AHEAD else 0
        try:
            kind = await reader.read_varint(read_ahead=ahead)
        except FramingError:
            kind = None
        except _ENDED:
            return  # a reset before the kind arrived, or the end of the connection
        if kind == StreamKind.MESSAGE:
            await self._sort_message(stream, reader, at_once=ahead > 0)
        elif kind == StreamKind.SEQUENCE:
            self._sequences.put(stream.id, reader)
        elif kind == StreamKind.LIMITS:
            await self._take_limits(stream, reader)
        elif kind in _TRANSFER_KINDS:
            await self._hub.handle_stream(kind, reader, self._quic)
        elif kind == StreamKind.DRAIN:
            await self._take_drain(reader, stream)
        else:
            stream.stop_receiving(ApplicationErrorCode.MALFORMED)

    async def _sort_message(
        self, stream: ReceiveStream, reader: StreamReader, *, at_once: bool
    ) -> None:
        """Check a message's header, and refuse it at once where that is needed.

        Not while many messages wait: a refused stream, or one read to its end, frees stream
        credit, and the sender would not be held back.
        """
        message = MessageReceiver(reader, max_size=self._config.max_message_size)
        try:
            if at_once:
                await message.receive_header()
        except MessageRefused:
            self._messages_refused += 1  # and the application's call raises it
        except _ENDED:
            return  # a reset before the size arrived, or the end of the connection
        self._messages.put(stream.id, message)

    async def _take_limits(self, stream: ReceiveStream, reader: StreamReader) -> None:
        limits = self._peer_limits
        if self._has_peer_limits:
            stream.stop_receiving(ApplicationErrorCode.MALFORMED)  # a second announcement
            return
        self._has_peer_limits = True
        try:
            limits.settle(await read_limits(reader))
        except FramingError as error:
            logger.info("%s: the peer's limits cannot be read: %s", self, error)
            stream.stop_receiving(ApplicationErrorCode.MALFORMED)
            limits.settle(Limits())
        except _ENDED:
            if not self._quic.is_closed:
                limits.settle(Limits())  # the stream was reset: no announcement follows
        else:
            stream.close()

    async def _take_drain(self, reader: StreamReader, stream: ReceiveStream) -> None:
        try:
            first = await reader.read_varint(read_ahead=0)
        except FramingError:
            first = -1
        except _ENDED:
            return
        if first is not None and (first < 0 or first & 0b11 != self._own_kind):
            stream.stop_receiving(ApplicationErrorCode.MALFORMED)
            return
        stream.close()
        self._is_draining = True
        if first is not None:
            self._quic._on_peer_refuses(first)
        if self._on_drain is not None:
            self._on_drain(self._quic)

    @property
    def _own_kind(self) -> int:
        """The lowest bits of bidirectional streams of this side (RFC 9000 section 2.1)."""
        return 0 if self._quic._is_client else 1

    @staticmethod
    def _close(stream: trio.abc.ReceiveStream) -> None:
        if isinstance(stream, ReceiveStream):
            stream.close()


class _Messages(UntilClosed[Any]):
    def __init__(
        self, connection: PhoenixConnection, max_size: int | None, decode: Decode | None
    ) -> None:
        self._connection = connection
        self._max_size = max_size
        self._decode = decode
        super().__init__(self._receive)

    async def _receive(self) -> Any:
        while True:
            try:
                data = await self._connection.receive_data(max_size=self._max_size)
            except MessageRefused as error:
                logger.warning("%s: %s", self._connection, error)
            except StreamReset as error:
                logger.info("%s: a message was given up by its sender: %s", self._connection, error)
            else:
                return data if self._decode is None else self._decode(data)
