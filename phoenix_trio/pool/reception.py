"""Serves an incoming striped transfer: its streams, its window, its end.

Floor 4.  The lower half of :class:`~phoenix_trio.pool.receiving.IncomingTransfer`, whose
methods applications call.  It has no task of its own: it runs in the tasks that serve
streams and in the reader's task.  ``striping.py`` has the arithmetic; the hub finds the
transfer of each stream.

A transfer's line is the TRANSFER stream on which the sender speaks at present, together with
the TRANSFER_REPLY stream for the answers.  When the line's connection is lost, the sender
opens another line, and the receiver repeats everything that the sender needs to know.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from ..errors import ApplicationErrorCode, StreamReset
from ..quic.conflict import ConflictDetector
from ..quic.connection import QuicConnection, SendStream
from ..quic.groups import unwrap_lone
from ..quic.stream_errors import fresh
from ..storage.open_storages import OpenStorages
from ..streams.framing import FramingError
from ..streams.kinds import StreamKind
from ..streams.reader import StreamReader
from ..streams.watching import while_open
from .stall_clock import LEAST_PROGRESS, StallClock
from .striping import Arrival, ReassemblyWindow, StripeRefused
from .transfer_errors import (
    ChecksumMismatch,
    TransferAbandoned,
    TransferCode,
    TransferFailed,
    TransferInterrupted,
    describe,
)
from .transfer_records import (
    Accepted,
    Credit,
    End,
    Manifest,
    Skipped,
    Verdict,
    encode_record,
    split_ranges,
)
from .transfer_streams import LINE_ERRORS, first_bytes, read_record, refuse

__all__ = ["Reception"]

#: Bytes asked of a stream at once, and handed out at once: as large as its pieces.
_PIECE = 64 * 1024


class Reception:
    """The state of one incoming transfer, and the methods that change it."""

    def __init__(
        self,
        transfer_id: bytes,
        manifest: Manifest,
        connection: QuicConnection,
        *,
        stripe_size: int,
        window: int,
        resume_timeout: float,
        idle_timeout: float,
        max_size: int | None,
        storages: OpenStorages,
        on_end: Callable[[Any, Verdict | None], None],
        on_new_deadline: Callable[[], object],
    ) -> None:
        self._id = transfer_id
        self._manifest = manifest
        self._connection = connection
        self._resume_timeout = resume_timeout
        self._stall = StallClock(idle_timeout, trio.current_time())
        self._storages = storages
        self._on_end = on_end
        self._on_new_deadline = on_new_deadline
        self._window = ReassemblyWindow(
            stripe_size=stripe_size, window=window, size=manifest.size, max_size=max_size
        )
        self._hash = hashlib.sha256()
        self._end: End | None = None
        self._verdict: Verdict | None = None
        self._error: TransferFailed | None = None
        self._closed = False
        self._verified = False
        self._is_stored = False
        self._chunks: deque[bytes | bytearray] = deque()
        self._line: trio.CancelScope | None = None
        self._line_lost_at: float | None = None
        self._sent_credit = -1
        # The bytes left by an earlier attempt are known when the application begins to read.
        self._holds_credit = manifest.may_resume
        self._is_checking = False
        self._resumed_at = 0
        self._skipped = 0
        self._verdict_sent = False
        self._read_lot = trio.lowlevel.ParkingLot()
        self._reply_lot = trio.lowlevel.ParkingLot()
        self._conflict = ConflictDetector("another task is already reading this transfer")

    # ------------------------------------------------------------------ called by the reader

    def _restore(self, prefix: int) -> None:
        """An earlier attempt has left so many bytes; they need not be sent."""
        self._window.restore(prefix)
        self._resumed_at = prefix
        self._give_credit()

    def _begin_check(self) -> None:
        """The bytes left by an earlier attempt are being checked; that takes time."""
        self._is_checking = True

    def _give_credit(self) -> None:
        if self._holds_credit:
            self._holds_credit = False
            self._stall.restart(trio.current_time())
        self._reply_lot.unpark_all()

    async def _take(self, max_bytes: int) -> tuple[list[bytes | bytearray], int]:
        """Take whole stripes in order, as pieces and their size; nothing at the end."""
        window = self._window
        if self._holds_credit:
            self._give_credit()
        await trio.lowlevel.checkpoint()
        while not window.has_next:
            self._check()
            if window.is_complete and self._end is not None:
                return [], 0
            await self._wait()
        self._check()
        pieces: list[bytes | bytearray] = []
        size = 0
        while size < max_bytes and (arrival := window.take()) is not None:
            size += arrival.length
            while piece := arrival.buffer.take(_PIECE):
                pieces.append(piece)
        return pieces, size

    def _check(self) -> None:
        if self._error is not None:
            raise fresh(self._error)
        if self._closed and not self._verified:
            raise trio.ClosedResourceError("this transfer was closed")

    def _check_unread(self) -> None:
        if self._window.consumed or self._chunks or self._verified:
            raise RuntimeError("the transfer was read already: it cannot be stored from its start")

    async def _wait(self) -> None:
        """Wait until something happens, at most until the sender's time is over."""
        with trio.move_on_at(self._expires_at):
            await self._read_lot.park()
        self._expire()

    @property
    def _awaits_sender(self) -> bool:
        """Whether the next move is the sender's: it has credit, or has not told the end."""
        window = self._window
        if self._holds_credit:
            return False
        if window.size is not None and window.received >= window.size:
            return self._end is None
        return window.received < window.limit

    @property
    def _expires_at(self) -> float:
        """When to look whether the sender's time is over; it may have more by then."""
        if self._verified:
            return math.inf  # the next move is the application's
        lost_at = self._line_lost_at
        if lost_at is not None:
            return lost_at + self._resume_timeout
        if self._awaits_sender or (self._holds_credit and not self._is_checking):
            return self._stall.deadline
        # The sender gets a whole period with its next credit, so its time is not over before.
        return trio.current_time() + self._stall.timeout

    def _expire(self) -> bool:
        """Give up if the sender's time is over.  Returns whether it is."""
        if self._verdict is not None or trio.current_time() < self._expires_at:
            return False
        if self._line_lost_at is None and self._holds_credit:
            # No task reads it.  The sender gets its credit, so that a sender that sends nothing
            # holds its place no longer than any other.
            self._give_credit()
            return False
        if self._line_lost_at is None:
            self._give_up(
                TransferCode.STALLED,
                f"the sender has sent less than {LEAST_PROGRESS} bytes in"
                f" {self._stall.timeout:g} s, and is given up",
            )
            return True
        self._conclude(
            Verdict(TransferCode.UNKNOWN_TRANSFER),
            TransferInterrupted(
                f"the sender's connections were lost after {self._window.received} bytes, and it"
                f" did not come back within {self._resume_timeout:g} s",
                transfer_id=self._id,
                bytes_acknowledged=self._window.received,
            ),
            by_sender=True,
        )
        return True

    def _consume(self, count: int) -> None:
        limit = self._window.limit
        self._window.consume(count)
        if self._window.limit != limit:
            self._stall.restart(trio.current_time())
            self._reply_lot.unpark_all()

    async def _verify(self, digest: bytes | None = None) -> None:
        """Everything was read: compare the checksum, computed here or given as `digest`."""
        end = self._end
        assert end is not None
        if digest is None:
            digest = self._hash.digest()
        if self._verdict is None and not self._verified:
            if digest == end.digest:
                self._verified = True
            else:
                self._conclude(
                    Verdict(TransferCode.CHECKSUM_MISMATCH, end.size, digest),
                    ChecksumMismatch(
                        f"the {end.size} bytes which arrived are not those which were sent",
                        transfer_id=self._id,
                        bytes_acknowledged=end.size,
                    ),
                )
                await self._wait_until_verdict_sent()
        await trio.lowlevel.checkpoint()
        self._check()

    @property
    def _is_confirmed(self) -> bool:
        return self._verdict is not None and self._verdict.code == TransferCode.VERIFIED

    async def _confirm(self) -> None:
        """See :meth:`IncomingTransfer.confirm`."""
        if self._verdict is None:
            end = self._end
            if not self._verified or end is None:
                raise RuntimeError("a transfer is confirmed after it was read to its end")
            self._conclude(Verdict(TransferCode.VERIFIED, end.size, end.digest), None)
        # So that the sender is told even if this program ends right now.
        await self._wait_until_verdict_sent()
        self._check()
        if not self._is_confirmed:
            raise trio.ClosedResourceError("this transfer was abandoned")

    async def _wait_until_verdict_sent(self) -> None:
        await trio.lowlevel.checkpoint()
        # A peer that gives no credit for the answer must not hold the caller for ever.
        with trio.move_on_after(self._stall.timeout):
            while self._line is not None and not self._verdict_sent:
                await self._read_lot.park()

    # ------------------------------------------------------------------ the end

    def _conclude(
        self, verdict: Verdict, error: TransferFailed | None, *, by_sender: bool = False
    ) -> None:
        if self._verdict is not None:
            return
        self._verdict = verdict
        self._error = error
        if verdict.code != TransferCode.VERIFIED:
            self._window.clear()
            self._chunks.clear()
        # A sender that lost the line before it got the verdict asks again.  A sender that has
        # given up, or comes too late, begins anew instead.
        self._on_end(self, None if by_sender else verdict)
        self._read_lot.unpark_all()
        self._reply_lot.unpark_all()

    def _give_up(self, code: int, what: str, *, by_sender: bool = False) -> None:
        self._conclude(
            Verdict(code),
            TransferAbandoned(
                f"{what} ({describe(code)}) after {self._window.received} bytes",
                transfer_id=self._id,
                code=code,
                bytes_acknowledged=self._window.received,
            ),
            by_sender=by_sender,
        )

    # ------------------------------------------------------------------ called by the hub

    def _matches(self, manifest: Manifest) -> bool:
        """Whether a repeated manifest is of the same transfer."""
        mine = self._manifest
        return (manifest.size, manifest.metadata, manifest.checksum) == (
            mine.size,
            mine.metadata,
            mine.checksum,
        )

    async def _serve_line(self, reader: StreamReader, connection: QuicConnection) -> None:
        """Serve a TRANSFER stream, past its manifest, until it ends."""
        if self._line is not None:
            self._line.cancel()  # the sender has left it, although this side does not know yet
        scope = trio.CancelScope()
        self._line = scope
        if self._line_lost_at is not None:
            self._line_lost_at = None
            self._stall.restart_after_loss(trio.current_time())
            self._on_new_deadline()
        self._sent_credit = -1
        self._skipped = 0
        self._verdict_sent = False
        self._window.repeat_all_ranges()  # (of nothing, as long as credit is held back)
        try:
            with unwrap_lone(), scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._answer, connection, scope)
                    await self._listen(reader)
                    if not self._verdict_sent:
                        # The sender has ended its side of the line, to open another one.
                        scope.cancel()
        except StreamReset as error:
            if self._line is scope:
                self._give_up(error.error_code, "the sender has given up", by_sender=True)
        except (FramingError, StripeRefused) as error:
            code = error.code if isinstance(error, StripeRefused) else TransferCode.MALFORMED
            refuse(reader, code)
            self._give_up(code, f"the sender is wrong: {error}")
        except LINE_ERRORS:
            pass  # The line is lost; the sender may open another one.
        finally:
            if self._line is scope:
                self._line = None
                if self._verdict is None:
                    self._line_lost_at = trio.current_time()
                    self._on_new_deadline()
                self._read_lot.unpark_all()

    async def _listen(self, reader: StreamReader) -> None:
        while (record := await read_record(reader)) is not None:
            match record:
                case End():
                    if self._end not in (None, record):
                        raise FramingError("the transfer has two different ends")
                    self._window.finish(record.size)
                    self._end = record
                    self._read_lot.unpark_all()
                case Skipped(stop):
                    if stop > self._window.limit:
                        raise FramingError("the sender has skipped what it was to send")
                    if stop > self._skipped:
                        self._stall.note(stop - self._skipped, trio.current_time())
                        self._skipped = stop
                case _:
                    raise FramingError(f"a {type(record).__name__} record from a sender")

    async def _answer(self, connection: QuicConnection, line: trio.CancelScope) -> None:
        """Write the TRANSFER_REPLY stream of the present line."""
        try:
            async with await connection.open_send_stream() as stream:
                await while_open(stream, partial(self._send_replies, stream))
        except LINE_ERRORS:
            line.cancel()

    @property
    def _credit(self) -> int:
        return 0 if self._holds_credit else self._window.limit

    async def _send_replies(self, stream: SendStream) -> None:
        window = self._window
        await stream.send_all(
            first_bytes(StreamKind.TRANSFER_REPLY, self._id)
            + encode_record(Accepted(window.stripe_size))
        )
        while True:
            records = [encode_record(record) for record in split_ranges(window.take_new_ranges())]
            verdict = self._verdict
            if verdict is None and self._credit != self._sent_credit:
                self._sent_credit = self._credit
                records.append(encode_record(Credit(self._credit)))
            if verdict is not None:
                records.append(encode_record(verdict))
            if records:
                await stream.send_all(b"".join(records), end=verdict is not None)
            if verdict is not None:
                self._verdict_sent = True
                self._read_lot.unpark_all()
                return
            if (
                not window.has_new_ranges
                and self._credit == self._sent_credit
                and self._verdict is None
            ):
                await self._reply_lot.park()

    async def _receive_stripes(self, reader: StreamReader) -> None:
        """Serve a STRIPES stream, past the transfer's ID, until it ends."""
        arrival: Arrival | None = None
        try:
            while True:
                offset = await reader.read_varint()
                if offset is None:
                    return
                length = await reader.read_varint()
                if length is None:
                    raise FramingError("a stripe ends before it begins")
                if self._verdict is not None:
                    self._refuse_stripes(reader)
                    return
                arrival = self._window.begin(offset, length)
                while length:
                    data = await reader.read_some(min(length, _PIECE))
                    if not data:
                        raise FramingError("a stripe ends before its last byte")
                    arrival.append(data)
                    if arrival.wanted:
                        self._stall.note(len(data), trio.current_time())
                    length -= len(data)
                    if self._verdict is not None:
                        self._refuse_stripes(reader)
                        return
                self._window.complete(arrival)
                arrival = None
                self._reply_lot.unpark_all()
                if self._window.has_next:
                    self._read_lot.unpark_all()
        except FramingError:
            # Like a lost connection: the stripe was not acknowledged, and comes again.
            refuse(reader, TransferCode.MALFORMED)
        except StripeRefused as error:
            refuse(reader, error.code)
            self._give_up(error.code, f"the sender is wrong: {error}")
        except LINE_ERRORS:
            pass  # The sender notices that, too, and sends the rest elsewhere.
        finally:
            if arrival is not None:
                self._window.drop(arrival)

    def _refuse_stripes(self, reader: StreamReader) -> None:
        assert self._verdict is not None
        quiet = self._verdict.code == TransferCode.VERIFIED
        refuse(reader, ApplicationErrorCode.NO_ERROR if quiet else self._verdict.code)
