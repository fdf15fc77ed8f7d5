"""Sends one transfer over several connections side by side.

Floor 4.  :class:`~phoenix_trio.pool.striping.SendingPlan` decides which stripe goes where;
the tasks here carry that out.  One task for each connection sends the stripes given to it
on a STRIPES stream, and looks for a replacement when the connection is lost.  One task
reads the source.  One task keeps the line to the receiver: the TRANSFER stream, on any
connection that is alive.  The receiver's answers are handed in by the task that serves
incoming streams.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import final

import attrs
import trio

from ..errors import ApplicationErrorCode, StreamStopped
from ..quic.connection import QuicConnection, SendStream
from ..quic.established.idle import keep_alive_interval
from ..quic.groups import unwrap_lone
from ..streams.framing import FramingError
from ..streams.kinds import StreamKind
from ..streams.reader import StreamReader
from ..streams.watching import while_open
from .striping import SendingPlan, Stripe, StripeRefused, choose_stripe_size
from .transfer_errors import (
    ChecksumMismatch,
    TransferCode,
    TransferFailed,
    TransferInterrupted,
    TransferRefused,
    TransferUnconfirmed,
    describe,
)
from .transfer_records import (
    SMALLEST_STRIPE,
    TRANSFER_ID_SIZE,
    Accepted,
    Credit,
    End,
    Manifest,
    Received,
    Skipped,
    Verdict,
    check_labels,
    encode_record,
    encode_stripe_header,
)
from .transfer_source import Source, SourceData, open_source
from .transfer_streams import LINE_ERRORS, first_bytes, read_record, refuse
from .transfer_summary import TransferSummary

__all__ = ["OutgoingTransfer"]

_MEBIBYTE = 1024 * 1024

#: Bytes read and hashed at once.
_BATCH = 4 * _MEBIBYTE

#: Bytes of the source read but not sent, after which the receiver is told so.
_SKIPPED_AT_ONCE = _MEBIBYTE

#: Errors that end an attempt to get a new connection, besides those that end a connection.
_DIAL_ERRORS = (OSError, *LINE_ERRORS)

#: Attempts at a new line, stream or connection that may fail in a row before it is given up.
_MOST_FAILURES = 5

#: Seconds between signs of life on each connection.  A receiver that reads nothing for a while
#: gets no packets, and must not lose its connections to their idle timeout.
_KEEP_ALIVE = 5.0

#: The reason that the receiver has given, by the code that it sent.
_REASONS: dict[int, str] = {
    TransferCode.NOT_STORED: "has failed before it had stored the transfer",
    TransferCode.CANCELLED: "has left the transfer before it had stored it",
}

#: Seconds before the second such attempt; doubled for each further one.
_FIRST_DELAY = 0.1


@attrs.define(eq=False)
class _Member:
    """One connection of the set."""

    connection: QuicConnection
    lot: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    is_idle: bool = False
    stripe: Stripe | None = None
    """Stripes given to it that it has not begun to send."""


class _LineLost(Exception):
    """The receiver has ended its answers without a verdict; this module catches it."""


@final
class OutgoingTransfer:
    """An outgoing transfer.  For :meth:`TransferHub.send`, which documents what it does."""

    def __init__(
        self,
        connections: Sequence[QuicConnection],
        *,
        stripe_size: int | None,
        window: int,
        replace: Callable[[], Awaitable[QuicConnection]] | None,
        transfer_id: bytes | None,
        metadata: bytes,
    ) -> None:
        if not connections:
            raise ValueError("a transfer needs at least one connection")
        if stripe_size is not None and stripe_size < SMALLEST_STRIPE:
            raise ValueError(f"stripe_size must be at least {SMALLEST_STRIPE}, not {stripe_size}")
        if window < SMALLEST_STRIPE:
            raise ValueError(f"window must be at least {SMALLEST_STRIPE} bytes, not {window}")
        check_labels(metadata, transfer_id)
        self._may_resume = transfer_id is not None
        self.id: bytes = (
            bytes(transfer_id) if transfer_id is not None else os.urandom(TRANSFER_ID_SIZE)
        )
        self._wished_stripe_size = stripe_size
        self._window = window
        self._replace = replace
        self._metadata = bytes(metadata)
        self._members = [_Member(connection) for connection in dict.fromkeys(connections)]
        self._slots = len(self._members)
        self._plan: SendingPlan | None = None
        self._source: Source | None = None
        self._end: End | None = None
        self._verdict: Verdict | None = None
        self._failure: Exception | None = None
        self._last_error: Exception | None = None
        self._line: QuicConnection | None = None
        self._line_scope = trio.CancelScope()
        self._end_sent = False
        self._streams: list[SendStream] = []
        self._lost = 0
        self._replaced = 0
        self._progress_lot = trio.lowlevel.ParkingLot()  # the caller's
        self._read_lot = trio.lowlevel.ParkingLot()  # the source's
        self._line_lot = trio.lowlevel.ParkingLot()  # the line's

    @property
    def _acknowledged(self) -> int:
        return self._plan.acknowledged if self._plan is not None else 0

    async def run(
        self, data: SourceData, on_progress: Callable[[int], object] | None
    ) -> TransferSummary:
        """Send everything; see :meth:`TransferHub.send`."""
        started = trio.current_time()
        source = self._source = await open_source(data)
        with unwrap_lone():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_source, source)
                for member in list(self._members):
                    nursery.start_soon(self._run_slot, member)
                nursery.start_soon(self._keep_line)
                verdict = await self._follow(on_progress)
                for stream in self._streams:
                    stream.close()  # in good order, before the scope would reset the stream
                nursery.cancel_scope.cancel()
        plan = self._plan
        return TransferSummary(
            transfer_id=self.id,
            size=verdict.size,
            sha256=verdict.digest,
            duration=trio.current_time() - started,
            stripe_size=plan.stripe_size if plan is not None else 0,
            stripes_sent=plan.stripes_sent if plan is not None else 0,
            bytes_sent_again=plan.bytes_sent_again if plan is not None else 0,
            connections_lost=self._lost,
            connections_replaced=self._replaced,
            bytes_skipped=verdict.size - (plan.bytes_sent_once if plan is not None else 0),
        )

    # ------------------------------------------------------------------ the caller's task

    async def _follow(self, on_progress: Callable[[int], object] | None) -> Verdict:
        """Tell the caller how far the receiver is; return its good verdict."""
        told = 0
        while True:
            verdict, failure = self._verdict, self._failure
            if verdict is not None and self._is_to_be_compared:
                await self._progress_lot.park()
                continue
            now = (
                verdict.size
                if verdict is not None and self._confirms_data(verdict)
                else (self._acknowledged)
            )
            if now > told:
                told = now
                if on_progress is not None:
                    on_progress(now)
            if verdict is not None:
                self._judge(verdict)
                return verdict
            if failure is not None:
                raise failure
            await self._progress_lot.park()

    @property
    def _is_to_be_compared(self) -> bool:
        """Whether the receiver has stored this before, and our data are still to be hashed."""
        verdict = self._verdict
        return (
            verdict is not None
            and verdict.code == TransferCode.VERIFIED
            and self._plan is None
            and self._end is None
        )

    def _confirms_data(self, verdict: Verdict) -> bool:
        if verdict.code != TransferCode.VERIFIED:
            return False
        return self._end == End(verdict.size, verdict.digest)

    def _judge(self, verdict: Verdict) -> None:
        if self._confirms_data(verdict):
            return
        size = self._acknowledged
        if verdict.code == TransferCode.CHECKSUM_MISMATCH:
            raise ChecksumMismatch(
                f"the receiver has {verdict.size} bytes, but not those which were sent",
                transfer_id=self.id,
                bytes_acknowledged=size,
            )
        if verdict.code == TransferCode.VERIFIED and self._plan is None:
            raise ChecksumMismatch(
                "the receiver has stored other data under this transfer_id",
                transfer_id=self.id,
                bytes_acknowledged=verdict.size,
            )
        if verdict.code == TransferCode.VERIFIED:
            raise self._refused(TransferCode.MALFORMED, "has verified what was never sent")
        if verdict.code == TransferCode.UNKNOWN_TRANSFER:
            raise self._interrupted("the receiver does not know the transfer any more")
        raise self._refused(verdict.code, _REASONS.get(verdict.code, "has refused the transfer"))

    def _refused(self, code: int, what: str) -> TransferFailed:
        return TransferRefused(
            f"the receiver {what} ({describe(code)}) after {self._acknowledged} bytes",
            transfer_id=self.id,
            code=code,
            bytes_acknowledged=self._acknowledged,
        )

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            self._progress_lot.unpark_all()

    def _interrupt(self, what: str) -> None:
        self._fail(self._interrupted(what))

    def _interrupted(self, what: str) -> TransferInterrupted:
        if self._end_sent and self._plan is not None and self._plan.all_sent:
            kind: type[TransferInterrupted] = TransferUnconfirmed
            when = "after everything was sent, so it is unknown whether it is stored there"
        else:
            kind = TransferInterrupted
            when = f"after {self._acknowledged} bytes were acknowledged"
        last = f": {self._last_error}" if self._last_error is not None else ""
        error = kind(
            f"{what} {when}{last}", transfer_id=self.id, bytes_acknowledged=self._acknowledged
        )
        error.__cause__ = self._last_error
        return error

    # ------------------------------------------------------------------ the source

    async def _read_source(self, source: Source) -> None:
        try:
            await self._read_all(source)
        finally:
            # Closed here because a generator's own scope must be left where it was entered.
            await source.aclose()

    async def _read_all(self, source: Source) -> None:
        while self._plan is None:
            if self._is_to_be_compared:
                await self._hash_all(source)
                return
            await self._read_lot.park()
        plan = self._plan
        batch = max(1, min(_BATCH, plan.window // 4) // plan.stripe_size)
        while not source.at_end:
            while not plan.room:
                await self._read_lot.park()
            count = min(batch, plan.room // plan.stripe_size)
            for stripe in await source.read(plan.stripe_size, count):
                plan.add(stripe)
            self._give_out()
            if plan.skipped_to == plan.read:
                self._line_lot.unpark_all()
        plan.finish()
        self._end = End(plan.read, source.digest)
        self._line_lot.unpark_all()

    async def _hash_all(self, source: Source) -> None:
        """The receiver has this transfer already: check whether these are the same data."""
        size = 0
        while not source.at_end:
            stripes = await source.read(SMALLEST_STRIPE, _BATCH // SMALLEST_STRIPE)
            size += sum(map(len, stripes))
        self._end = End(size, source.digest)
        self._progress_lot.unpark_all()

    # ------------------------------------------------------------------ connections

    def _give_out(self) -> None:
        """Give stripes to connections that have nothing to do."""
        plan = self._plan
        if plan is None:
            return
        for member in self._members:
            if member.is_idle and (stripe := self._next_for(member, plan)) is not None:
                member.is_idle = False
                member.stripe = stripe
                member.lot.unpark()

    def _next_for(self, member: _Member, plan: SendingPlan) -> Stripe | None:
        # At least two stripes, so that one is on its way while the other is acknowledged.
        # More if the path carries more; but a connection should never hold so much that the
        # others wait for it at the end of the window.
        allowance = 2 * plan.stripe_size
        if plan.outstanding(member) >= plan.stripe_size:
            window = member.connection.congestion_window
            allowance = max(allowance, 2 * window + plan.stripe_size)
        return plan.take(member, allowance)

    async def _run_slot(self, member: _Member) -> None:
        """Run one place in the set: its connection, then each replacement."""
        failures = 0
        while True:
            before = self._acknowledged
            try:
                with unwrap_lone():
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_keep_alive, member.connection)
                        await self._run_member(member)
                        nursery.cancel_scope.cancel()
            except LINE_ERRORS as error:
                self._last_error = error
            if self._plan is not None:
                self._plan.lose(member)
            member.stripe = None
            member.is_idle = False
            if self._acknowledged > before:
                failures = 0
            if member.connection.is_closed or failures >= _MOST_FAILURES:
                self._members.remove(member)
                self._lost += 1
                self._give_out()
                replacement = await self._find_replacement(failures)
                if replacement is None:
                    break
                member = _Member(replacement)
                self._members.append(member)
                self._replaced += 1
                self._line_lot.unpark_all()
            else:
                # The receiver has stopped the stream, but the connection is alive: the receiver may
                # expect another stream, or its verdict is on the way.
                self._give_out()
                await trio.sleep(_FIRST_DELAY * 2**failures)
            failures += 1
        self._slots -= 1
        if not self._slots:
            self._interrupt("all connections were lost")

    async def _find_replacement(self, failures: int) -> QuicConnection | None:
        if self._replace is None:
            return None
        while failures < _MOST_FAILURES:
            if failures:
                await trio.sleep(_FIRST_DELAY * 2**failures)
            try:
                return await self._replace()
            except _DIAL_ERRORS as error:
                self._last_error = error
                failures += 1
        return None

    async def _run_member(self, member: _Member) -> None:
        """Send on one connection, until it is lost or the receiver stops the stream."""
        connection = member.connection
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await connection.wait_closed()
                    scope.cancel()

                nursery.start_soon(watch)
                # Open no stream before there is something to send.
                await self._next_stripe(member)
                nursery.cancel_scope.cancel()
        async with await connection.open_send_stream() as stream:
            self._streams.append(stream)
            try:
                await while_open(stream, partial(self._send_stripes, member, stream))
            finally:
                self._streams.remove(stream)

    async def _next_stripe(self, member: _Member) -> None:
        if member.stripe is None and self._plan is not None:
            member.stripe = self._next_for(member, self._plan)
        while member.stripe is None:
            member.is_idle = True
            await member.lot.park()

    async def _send_stripes(self, member: _Member, stream: SendStream) -> None:
        head = first_bytes(StreamKind.STRIPES, self.id)
        while True:
            await self._next_stripe(member)
            stripe = member.stripe
            assert stripe is not None
            member.stripe = None
            await stream.send_all(head + encode_stripe_header(stripe.offset, len(stripe.data)))
            await stream.send_all(stripe.data)
            head = b""

    # ------------------------------------------------------------------ the line

    async def _keep_line(self) -> None:
        failures = 0
        last: QuicConnection | None = None
        while failures < _MOST_FAILURES:
            before = self._acknowledged
            connection = await self._choose_line(last)
            last = self._line = connection
            try:
                await self._hold_line(connection)
            except StreamStopped as error:
                self._last_error = error
                if error.error_code == ApplicationErrorCode.MALFORMED:
                    self._fail(self._refused(error.error_code, "does not understand transfers"))
            except (*LINE_ERRORS, _LineLost) as error:
                self._last_error = error
            finally:
                self._line = None
            failures = 0 if self._acknowledged > before else failures + 1
            if not connection.is_closed:
                await trio.sleep(_FIRST_DELAY * 2**failures)
        self._interrupt("the receiver has left")

    async def _choose_line(self, last: QuicConnection | None) -> QuicConnection:
        """A connection that is alive; a different one from the last if there is one."""
        while True:
            living = [m.connection for m in self._members if not m.connection.is_closed]
            others = [connection for connection in living if connection is not last]
            if others or living:
                await trio.lowlevel.checkpoint()
                return (others or living)[0]
            await self._line_lot.park()

    async def _hold_line(self, connection: QuicConnection) -> None:
        """Keep the TRANSFER stream on one connection.

        Raises:
          _LineLost: the receiver has ended its answers.
          StreamStopped, ConnectionBroken, trio.ClosedResourceError: see :func:`while_open`.
        """
        plan = self._plan
        source = self._source
        assert source is not None
        manifest = Manifest(
            stripe_size=plan.stripe_size if plan is not None else self._choose_stripe_size(),
            window=self._window,
            size=source.size,
            continues=plan is not None,
            may_resume=self._may_resume,
            metadata=self._metadata,
        )
        with trio.CancelScope() as scope:
            self._line_scope = scope
            async with await connection.open_send_stream() as stream:
                self._streams.append(stream)
                try:
                    await while_open(stream, partial(self._send_manifest_and_end, stream, manifest))
                finally:
                    self._streams.remove(stream)
        raise _LineLost("the receiver has ended its answers without a verdict")

    async def _send_manifest_and_end(self, stream: SendStream, manifest: Manifest) -> None:
        await stream.send_all(first_bytes(StreamKind.TRANSFER, self.id) + encode_record(manifest))
        told = 0
        while self._end is None:
            skipped = self._plan.skipped_to if self._plan is not None else 0
            if skipped - told >= _SKIPPED_AT_ONCE:
                told = skipped
                await stream.send_all(encode_record(Skipped(skipped)))
            else:
                await self._line_lot.park()
        self._end_sent = True
        await stream.send_all(encode_record(self._end))
        await trio.sleep_forever()

    def _choose_stripe_size(self) -> int:
        assert self._source is not None
        wish = self._wished_stripe_size
        if wish is None:
            wish = choose_stripe_size(self._source.size, len(self._members))
        return max(SMALLEST_STRIPE, min(wish, self._window))

    async def handle_reply(self, reader: StreamReader, connection: QuicConnection) -> None:
        """Read a TRANSFER_REPLY stream, past the transfer's ID, until it ends."""
        if connection is not self._line:
            refuse(reader, ApplicationErrorCode.NO_ERROR)
            return
        try:
            while (record := await read_record(reader)) is not None:
                match record:
                    case Accepted(stripe_size):
                        self._on_accepted(stripe_size)
                    case Credit(limit):
                        self._checked_plan().extend_credit(limit)
                    case Received(ranges):
                        plan = self._checked_plan()
                        for start, stop in ranges:
                            plan.receive(start, stop)
                        self._read_lot.unpark_all()
                        self._progress_lot.unpark_all()
                    case Verdict():
                        self._verdict = self._verdict or record
                        self._progress_lot.unpark_all()
                        self._read_lot.unpark_all()
                    case _:
                        raise FramingError(f"a {type(record).__name__} record from a receiver")
                self._give_out()
        except (FramingError, StripeRefused) as error:
            refuse(reader, TransferCode.MALFORMED)
            self._fail(self._refused(TransferCode.MALFORMED, f"is wrong: {error}"))
        except LINE_ERRORS as error:
            self._last_error = error
        finally:
            if connection is self._line and self._verdict is None:
                self._line_scope.cancel()

    def _checked_plan(self) -> SendingPlan:
        if self._plan is None:
            raise FramingError("the receiver gives credit before it has accepted")
        return self._plan

    def _on_accepted(self, stripe_size: int) -> None:
        if self._plan is None:
            assert self._source is not None
            if stripe_size > self._window:
                raise FramingError(f"stripes of {stripe_size} bytes are above our window")
            self._plan = SendingPlan(
                stripe_size=stripe_size, window=self._window, size=self._source.size
            )
            self._read_lot.unpark_all()
        elif stripe_size != self._plan.stripe_size:
            raise FramingError("the receiver has changed its mind about the size of stripes")


async def _keep_alive(connection: QuicConnection) -> None:
    try:
        while True:
            await trio.sleep(keep_alive_interval(_KEEP_ALIVE, connection.idle_timeout))
            await connection.ping()
    except LINE_ERRORS:
        await trio.lowlevel.checkpoint()  # the connection has ended; its member handles that
