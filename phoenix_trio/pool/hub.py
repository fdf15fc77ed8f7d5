"""Finds the striped transfer of each incoming stream, and bounds how many transfers there are.

Floor 4.  One hub serves all connections of an application, because the streams of one
transfer come over several of them.  The hub has no task of its own.  The task that takes in
a connection's unidirectional streams passes those of transfers to
:meth:`TransferHub.handle_stream`; :func:`serve_hub` does so for a connection that carries
nothing else.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import final

import attrs
import trio

from ..errors import ApplicationErrorCode, ShuttingDown
from ..quic.connection import QuicConnection, ReceiveStream
from ..quic.groups import unwrap_lone
from ..quic.handshake.places import peer_of
from ..storage.open_storages import OpenStorages
from ..streams.framing import VARINT_MAX, FramingError
from ..streams.kinds import StreamKind
from ..streams.reader import StreamReader
from .multiplex import OutgoingTransfer
from .receiving import IncomingTransfer
from .transfer_errors import TransferCode
from .transfer_records import (
    SHA256,
    SMALLEST_STRIPE,
    TRANSFER_ID_SIZE,
    VERSION,
    Manifest,
    Verdict,
    encode_record,
)
from .transfer_source import SourceData
from .transfer_streams import LINE_ERRORS, first_bytes, read_record, refuse
from .transfer_summary import TransferSummary

__all__ = ["TransferHub", "serve_hub"]

_MEBIBYTE = 1024 * 1024

#: The most verdicts remembered, for senders that lost their connection before the verdict came.
_REMEMBERED = 1024


@attrs.frozen
class _Remembered:
    verdict: Verdict
    until: float

    def answers(self, manifest: Manifest) -> bool:
        """Whether this manifest asks for the verdict rather than for another attempt."""
        return manifest.continues or self.verdict.code == TransferCode.VERIFIED


@final
class TransferHub(trio.abc.AsyncResource):
    """Sends and receives striped transfers over any number of connections.

    While a task reads a transfer or :meth:`give_up_in_time` runs, a transfer whose sender is
    gone or has stalled is given up when its time is over; otherwise when the hub is next used.

    Args:
      window: the most bytes of one incoming transfer that wait in memory.
      max_transfers: incoming transfers at most at once, interrupted ones included; the
        memory of all is bounded by `max_transfers` times `window`.  Further ones are
        refused.
      max_transfers_per_peer: the most of these that one peer may have, so that there is room
        for other peers.  All connections from one IPv4 address or one IPv6 /64 network count
        as one peer.  ``None``: half of `max_transfers`, rounded up.
      max_stripe_size: the largest stripe, in bytes; a sender that proposes a larger one uses
        this one.
      max_size: the most bytes of one incoming transfer; ``None``: any.
      resume_timeout: seconds for which a transfer whose connections were lost waits for
        its sender, and for which verdicts are remembered.
      idle_timeout: seconds in which a sender that has credit must send at least 16 KiB;
        otherwise the transfer is given up with ``STALLED``, and its place is free.
        ``math.inf``: never.  Time in which the sender waits for this side's reader does not
        count.

    Raises:
      ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        window: int = 32 * _MEBIBYTE,
        max_transfers: int = 16,
        max_transfers_per_peer: int | None = None,
        max_stripe_size: int = _MEBIBYTE,
        max_size: int | None = None,
        resume_timeout: float = 60.0,
        idle_timeout: float = 120.0,
    ) -> None:
        if not SMALLEST_STRIPE <= max_stripe_size <= window:
            raise ValueError(
                f"max_stripe_size must be between {SMALLEST_STRIPE} and window ({window}),"
                f" not {max_stripe_size}"
            )
        if max_transfers < 1:
            raise ValueError(f"max_transfers must be at least 1, not {max_transfers}")
        if max_transfers_per_peer is None:
            max_transfers_per_peer = (max_transfers + 1) // 2
        if max_transfers_per_peer < 1:
            raise ValueError(
                f"max_transfers_per_peer must be at least 1, not {max_transfers_per_peer}"
            )
        if not resume_timeout >= 0:
            raise ValueError(f"resume_timeout must be zero or more seconds, not {resume_timeout}")
        if not idle_timeout > 0:
            raise ValueError(f"idle_timeout must be more than zero seconds, not {idle_timeout}")
        if max_size is not None and not 0 <= max_size <= VARINT_MAX:
            raise ValueError(f"max_size must be between 0 and 2**62 - 1, not {max_size}")
        self._stripe_window = window
        self._max_transfers = max_transfers
        self._max_transfers_per_peer = max_transfers_per_peer
        self._max_stripe_size = max_stripe_size
        self._max_size = max_size
        self._resume_timeout = resume_timeout
        self._idle_timeout = idle_timeout
        self._incoming: dict[bytes, IncomingTransfer] = {}
        self._peers: dict[bytes, str] = {}  # the peer that began each transfer
        self._outgoing: dict[bytes, OutgoingTransfer] = {}
        self._queue: deque[IncomingTransfer] = deque()
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._storages = OpenStorages()
        self._accept_lot = trio.lowlevel.ParkingLot()
        self._time_lot = trio.lowlevel.ParkingLot()
        self._closed = False
        self._takes_new = True

    # ------------------------------------------------------------------ receiving

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._takes_new else "taking no new ones"
        count = len(self._incoming)
        return f"<TransferHub with {count} incoming, {self.outgoing} outgoing ({state})>"

    @property
    def incoming(self) -> int:
        """How many incoming transfers have not ended, interrupted ones included."""
        self._expire()
        return len(self._incoming)

    @property
    def outgoing(self) -> int:
        """How many transfers are being sent."""
        return len(self._outgoing)

    async def accept(self, *, connection: QuicConnection | None = None) -> IncomingTransfer:
        """The next incoming transfer.

        Args:
          connection: accept only transfers begun on this one.

        Cancellation: no transfer is lost.

        Raises:
          ShuttingDown: none waits, and new ones are refused.
          trio.ClosedResourceError: the hub was closed.
          ConnectionBroken, trio.ClosedResourceError: `connection` was given, and has ended.
        """
        await trio.lowlevel.checkpoint()
        if connection is None:
            return await self._accept(None)
        found: list[IncomingTransfer] = []

        async def watch(scope: trio.CancelScope) -> None:
            await connection.wait_closed()
            scope.cancel()

        try:
            with unwrap_lone():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(watch, nursery.cancel_scope)
                    found.append(await self._accept(connection))
                    nursery.cancel_scope.cancel()
        except BaseException:
            # Found and not handed out: other tasks may take it, unless it has ended meanwhile.
            self._queue.extendleft(each for each in found if each.id in self._incoming)
            self._accept_lot.unpark_all()
            raise
        if not found:
            await connection.ping()  # raises the reason why the connection has ended
        return found[0]

    async def _accept(self, connection: QuicConnection | None) -> IncomingTransfer:
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this hub was closed")
            self._expire()
            for transfer in self._queue:
                if connection is None or transfer.connection is connection:
                    self._queue.remove(transfer)
                    return transfer
            if not self._takes_new:
                raise ShuttingDown("this hub takes no further transfers")
            await self._accept_lot.park()

    def incoming_transfers(
        self, *, connection: QuicConnection | None = None
    ) -> AsyncIterator[IncomingTransfer]:
        """Iterate over :meth:`accept`; ends when the hub is closed, or `connection` has ended."""
        return _Incoming(self, connection)

    # ------------------------------------------------------------------ sending

    async def send(
        self,
        connections: Sequence[QuicConnection],
        data: SourceData,
        *,
        stripe_size: int | None = None,
        window: int = 32 * _MEBIBYTE,
        on_progress: Callable[[int], object] | None = None,
        replace: Callable[[], Awaitable[QuicConnection]] | None = None,
        transfer_id: bytes | None = None,
        metadata: bytes = b"",
    ) -> TransferSummary:
        """Send `data` over `connections` side by side; returns when the receiver has stored it.

        The receiver has stored the data when its program has confirmed the transfer
        (:class:`IncomingTransfer`).  There is no limit to how long that takes; limit it with a
        cancel scope.

        If a connection is lost, the others send again those of its stripes that the receiver
        had not acknowledged.  The streams that the receiver opens on these connections have to
        reach this hub's :meth:`handle_stream` meanwhile.

        Args:
          connections: one or more, all to the same receiver.
          data: bytes-like; a binary file, from its current position; an iterable or an async
            iterable of bytes-like items, of any size and number.
          stripe_size: bytes of a stripe, at least 1024; the receiver may choose less.
            ``None``: a size that suits the window and the number of connections.
          window: the most bytes read ahead of the acknowledged ones; that much memory is used.
          on_progress: called with the number of bytes that the *receiver* has acknowledged, each
            time the number has grown; the last call has the whole size.
          replace: called for a new connection after one was lost; without it the other
            connections go on alone.
          transfer_id: 16 bytes, of a :class:`TransferInterrupted` or drawn by the caller
            (``os.urandom(16)``) and kept until the transfer is through: an attempt with the
            same ID goes on with that transfer, with the same data from its beginning, and
            the bytes that the receiver has are not sent again.  Anyone who knows the ID can do
            this, so it is a secret of both sides; other data need another ID.
          metadata: up to 16 KiB for the receiver's application, as a name.

        Cancellation: the transfer is given up; the receiver's calls raise
        :class:`TransferAbandoned`, and nothing remains at the receiver.

        Raises:
          ValueError: an argument is out of range.
          TypeError: bytes cannot be taken from `data`.
          TransferUnconfirmed: all connections were lost after all data was sent, so it is
            unknown whether the receiver has stored it.
          TransferInterrupted: all connections were lost before that, or the receiver was
            started anew; see `transfer_id`.
          TransferRefused: the receiver does not want it, or has failed to store it.
          ChecksumMismatch: the bytes that arrived, or those that an earlier attempt had left
            there, are not the bytes that were sent.
          trio.BusyResourceError: a transfer with this ID is being sent already.
          trio.ClosedResourceError: this hub was closed.
          And whatever reading `data` raises.
        """
        outgoing = OutgoingTransfer(
            connections,
            stripe_size=stripe_size,
            window=window,
            replace=replace,
            transfer_id=transfer_id,
            metadata=metadata,
        )
        if self._closed:
            raise trio.ClosedResourceError("this hub was closed")
        if outgoing.id in self._outgoing:
            raise trio.BusyResourceError(f"transfer {outgoing.id.hex()} is being sent already")
        self._outgoing[outgoing.id] = outgoing
        try:
            return await outgoing.run(data, on_progress)
        finally:
            del self._outgoing[outgoing.id]

    # ------------------------------------------------------------------ dispatch

    async def handle_stream(
        self, kind: int, reader: StreamReader, connection: QuicConnection
    ) -> None:
        """Serve a unidirectional stream of the peer, until it ends.

        Args:
          kind: TRANSFER, STRIPES or TRANSFER_REPLY.
          reader: over the stream, past the kind; belongs to the hub from now on.
          connection: the one of the stream.

        No action of the peer and no failure of the connection raises here: it concerns the
        transfer, and the transfer's calls raise.

        Cancellation: the stream is stopped; its transfer waits for the sender as if the
        connection had been lost.

        Raises:
          ValueError: the kind is another one.
        """
        if kind not in (StreamKind.TRANSFER, StreamKind.STRIPES, StreamKind.TRANSFER_REPLY):
            raise ValueError(f"streams of kind 0x{kind:x} are not of transfers")
        async with reader.stream:
            try:
                transfer_id = await reader.read_exactly(TRANSFER_ID_SIZE)
                if kind == StreamKind.TRANSFER:
                    await self._handle_transfer(transfer_id, reader, connection)
                elif kind == StreamKind.STRIPES:
                    await self._handle_stripes(transfer_id, reader)
                else:
                    await self._handle_reply(transfer_id, reader, connection)
            except FramingError:
                refuse(reader, TransferCode.MALFORMED)
            except LINE_ERRORS:
                # The stream or its connection has ended; the transfer is told.
                await trio.lowlevel.checkpoint()

    async def _handle_stripes(self, transfer_id: bytes, reader: StreamReader) -> None:
        transfer = self._incoming.get(transfer_id)
        if transfer is not None:
            await transfer._receive_stripes(reader)
        elif transfer_id in self._remembered:
            refuse(reader, ApplicationErrorCode.NO_ERROR)  # late ones, sent twice
        else:
            refuse(reader, TransferCode.UNKNOWN_TRANSFER)

    async def _handle_reply(
        self, transfer_id: bytes, reader: StreamReader, connection: QuicConnection
    ) -> None:
        outgoing = self._outgoing.get(transfer_id)
        if outgoing is None:
            refuse(reader, ApplicationErrorCode.NO_ERROR)  # cancelled meanwhile
        else:
            await outgoing.handle_reply(reader, connection)

    async def _handle_transfer(
        self, transfer_id: bytes, reader: StreamReader, connection: QuicConnection
    ) -> None:
        manifest = await read_record(reader)
        if not isinstance(manifest, Manifest):
            refuse(reader, TransferCode.MALFORMED)
            return
        self._expire()
        verdict = self._judge(transfer_id, manifest, connection)
        if verdict is not None:
            await self._answer(transfer_id, verdict, reader, connection)
            return
        transfer = self._incoming.get(transfer_id)
        if transfer is None:
            stripe_size = min(manifest.stripe_size, self._max_stripe_size)
            transfer = IncomingTransfer._create(
                transfer_id,
                manifest,
                connection,
                stripe_size=stripe_size,
                window=min(max(manifest.window, stripe_size), self._stripe_window),
                resume_timeout=self._resume_timeout,
                idle_timeout=self._idle_timeout,
                max_size=self._max_size,
                storages=self._storages,
                on_end=self._on_end,
                on_new_deadline=self._time_lot.unpark_all,
            )
            self._remembered.pop(transfer_id, None)
            self._incoming[transfer_id] = transfer
            self._peers[transfer_id] = peer_of(connection.peer_address)
            self._queue.append(transfer)
            self._accept_lot.unpark_all()
            self._time_lot.unpark_all()
        await transfer._serve_line(reader, connection)

    def _judge(
        self, transfer_id: bytes, manifest: Manifest, connection: QuicConnection
    ) -> Verdict | None:
        """The verdict to give at once; ``None``: the transfer is welcome."""
        transfer = self._incoming.get(transfer_id)
        if transfer is not None:
            return None if transfer._matches(manifest) else Verdict(TransferCode.CONFLICT)
        remembered = self._remembered.get(transfer_id)
        if remembered is not None and remembered.answers(manifest):
            return remembered.verdict
        if manifest.version != VERSION or manifest.checksum != SHA256:
            return Verdict(TransferCode.UNSUPPORTED)
        if manifest.continues:
            return Verdict(TransferCode.UNKNOWN_TRANSFER)
        if self._closed or not self._takes_new:
            return Verdict(TransferCode.SHUTTING_DOWN)
        if self._max_size is not None and (manifest.size or 0) > self._max_size:
            return Verdict(TransferCode.TOO_LARGE)
        if len(self._incoming) >= self._max_transfers:
            return Verdict(TransferCode.TOO_MANY_TRANSFERS)
        # Transfers that this connection began before it migrated count as well.
        peer = peer_of(connection.peer_address)
        count = sum(
            each.connection is connection or self._peers[each.id] == peer
            for each in self._incoming.values()
        )
        if count >= self._max_transfers_per_peer:
            return Verdict(TransferCode.TOO_MANY_TRANSFERS)
        return None

    async def _answer(
        self,
        transfer_id: bytes,
        verdict: Verdict,
        reader: StreamReader,
        connection: QuicConnection,
    ) -> None:
        """Send a verdict on a stream of its own; then wait until the sender has ended its side."""
        async with await connection.open_send_stream() as stream:
            await stream.send_all(
                first_bytes(StreamKind.TRANSFER_REPLY, transfer_id) + encode_record(verdict),
                end=True,
            )
        while await read_record(reader) is not None:
            pass

    # ------------------------------------------------------------------ the end

    def _on_end(self, transfer: IncomingTransfer, verdict: Verdict | None) -> None:
        del self._incoming[transfer.id]
        del self._peers[transfer.id]
        if transfer in self._queue:
            self._queue.remove(transfer)
        if verdict is not None:
            until = trio.current_time() + self._resume_timeout
            self._remembered[transfer.id] = _Remembered(verdict, until)
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)

    async def give_up_in_time(self) -> None:
        """Give up transfers that no task reads, when the time of their senders is over.

        This frees their memory and places at that moment rather than when the hub is next used.
        Runs until it is cancelled, and sleeps until the next transfer's time;
        :func:`phoenix_trio.open_phoenix` runs it.
        """
        while True:
            deadline = min((each._expires_at for each in self._incoming.values()), default=math.inf)
            with trio.move_on_at(deadline):
                await self._time_lot.park()
            self._expire()

    def _expire(self) -> None:
        for transfer in list(self._incoming.values()):
            transfer._expire()
        now = trio.current_time()
        while self._remembered:
            first = next(iter(self._remembered))
            if self._remembered[first].until > now:
                break
            del self._remembered[first]

    def refuse_new(self) -> None:
        """Refuse new transfers from now on; transfers already begun go on; idempotent.

        Senders of new ones are told ``SHUTTING_DOWN``.
        """
        self._takes_new = False
        self._accept_lot.unpark_all()

    def close(self) -> None:
        """Refuse new transfers from now on, and abandon those being received; idempotent.

        Their senders are told ``SHUTTING_DOWN``, as far as connections are still served.
        Outgoing transfers go on.
        """
        self._closed = True
        for transfer in list(self._incoming.values()):
            transfer.abandon(TransferCode.SHUTTING_DOWN)
        self._storages.close()
        self._accept_lot.unpark_all()

    async def aclose(self) -> None:
        """Like :meth:`close`, as a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()


class _Incoming:
    """An iterator rather than an async generator, so that a loop can be left at any point."""

    def __init__(self, hub: TransferHub, connection: QuicConnection | None) -> None:
        self._hub = hub
        self._connection = connection

    def __aiter__(self) -> _Incoming:
        return self

    async def __anext__(self) -> IncomingTransfer:
        try:
            return await self._hub.accept(connection=self._connection)
        except LINE_ERRORS:
            raise StopAsyncIteration from None


async def serve_hub(
    connection: QuicConnection, hub: TransferHub, *, max_streams: int = 256
) -> None:
    """Take in the unidirectional streams of a connection that carries transfers only.

    Streams of other kinds are refused (STOP_SENDING with
    :attr:`ApplicationErrorCode.MALFORMED`).  Returns when the connection has ended, for any
    reason: the transfers' calls report it.

    Args:
      max_streams: the most streams served at once; further ones wait.

    Raises:
      ValueError: `max_streams` is below 1.
    """
    if max_streams < 1:
        raise ValueError(f"max_streams must be at least 1, not {max_streams}")
    slots = trio.Semaphore(max_streams)

    async def serve(stream: ReceiveStream) -> None:
        try:
            async with stream:
                reader = StreamReader(stream)
                try:
                    kind = await reader.read_varint()
                except (FramingError, *LINE_ERRORS):
                    kind = None  # refused below, if the stream can still carry the refusal
                if kind in (StreamKind.TRANSFER, StreamKind.STRIPES, StreamKind.TRANSFER_REPLY):
                    await hub.handle_stream(kind, reader, connection)
                else:
                    stream.stop_receiving(ApplicationErrorCode.MALFORMED)
        finally:
            slots.release()

    async with trio.open_nursery() as nursery:
        while True:
            await slots.acquire()
            try:
                stream = await connection.accept_receive_stream()
            except LINE_ERRORS:
                return
            nursery.start_soon(serve, stream)
