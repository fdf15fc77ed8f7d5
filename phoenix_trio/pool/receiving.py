"""How does an application receive a striped transfer?

Floor 4.  :class:`IncomingTransfer` is what the application reads from, and what the
streams of the transfer are served by; it has no task of its own, but lives in the tasks
which serve streams and in the reader's.  The arithmetic is in ``striping.py``; which
stream belongs to which transfer is the hub's question.

Its line is the TRANSFER stream on which the sender speaks at present, with the
TRANSFER_REPLY stream for the answers.  When its connection is lost, the sender opens
another one, and everything which is to be known is said again.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Protocol, final, runtime_checkable

import trio

from ..errors import ApplicationErrorCode, StreamReset
from ..quic.conflict import ConflictDetector
from ..quic.connection import QuicConnection, SendStream
from ..quic.construction import NoPublicConstructor
from ..quic.groups import unwrap_lone
from ..quic.stream_errors import fresh
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
    TransferRefused,
    describe,
)
from .transfer_records import (
    Accepted,
    Credit,
    End,
    Manifest,
    Verdict,
    encode_record,
    split_ranges,
)
from .transfer_source import update_digest
from .transfer_streams import LINE_ERRORS, first_bytes, read_record, refuse

__all__ = ["IncomingTransfer", "WritableFile"]

#: Bytes which are asked of a stream at once, and handed out at once: as large as its pieces.
_PIECE = 64 * 1024

#: Bytes which are hashed or written at once, so that a change of threads pays.
_BATCH = 4 * 1024 * 1024


class WritableFile(Protocol):
    """What a binary file object has to have; ``open(path, "wb")`` gives one."""

    def write(self, data: bytes, /) -> Any:
        """Write `data`; returns how many bytes were written, or ``None`` for all.

        (Of an :class:`io.RawIOBase`, ``None`` means that it would block, which is an error.)
        """
        ...


@runtime_checkable
class AsyncFile(Protocol):
    """A file of :func:`trio.open_file`."""

    @property
    def wrapped(self) -> Any:
        """The plain file below."""
        ...


def _write(file: Any, pieces: list[bytes | bytearray], digest: Any) -> None:
    # Joined: with many small calls, this thread would wait for the interpreter's lock at
    # each of them.
    data = b"".join(pieces)
    if digest is not None:
        digest.update(data)
    view = memoryview(data)
    while view:
        count = file.write(view)
        if count is None and not isinstance(file, io.RawIOBase):
            return  # a file object which does not count takes everything
        if not count:
            raise BlockingIOError("the file takes nothing: it must be a blocking one")
        view = view[count:]


@final
class IncomingTransfer(trio.abc.AsyncResource, metaclass=NoPublicConstructor):
    """A striped transfer which this side receives.  Obtained from :meth:`TransferHub.accept`.

    Read it in one of three ways: ``async for chunk in transfer``, :meth:`receive_into`
    or :meth:`read_all`.  At most the hub's ``window`` of bytes wait in memory; the
    sender goes on as they are read.  The end is only reported after the checksum over
    all bytes was found right, and the sender's call returns only then.

    One task at a time may read.  Used as a context manager, a block which is left
    before the end tells the sender, whose call raises :class:`TransferRefused`.
    """

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
        on_end: Callable[[IncomingTransfer, Verdict | None], None],
        on_new_deadline: Callable[[], object],
    ) -> None:
        self._id = transfer_id
        self._manifest = manifest
        self._connection = connection
        self._resume_timeout = resume_timeout
        self._stall = StallClock(idle_timeout, trio.current_time())
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
        self._chunks: deque[bytes | bytearray] = deque()
        self._line: trio.CancelScope | None = None
        self._line_lost_at: float | None = None
        self._told_credit = -1
        self._verdict_told = False
        self._read_lot = trio.lowlevel.ParkingLot()
        self._reply_lot = trio.lowlevel.ParkingLot()
        self._conflict = ConflictDetector("another task is already reading this transfer")

    def __repr__(self) -> str:
        return f"<IncomingTransfer {self._id.hex()}: {self.bytes_received} of {self.size} bytes>"

    # ------------------------------------------------------------------ facts

    @property
    def id(self) -> bytes:
        """The transfer's 16 bytes, drawn by the sender."""
        return self._id

    @property
    def size(self) -> int | None:
        """Bytes in all; ``None`` while the sender has not told."""
        return self._window.size

    @property
    def metadata(self) -> bytes:
        """What the sender says about the transfer; a name, for instance.  Untrusted."""
        return self._manifest.metadata

    @property
    def connection(self) -> QuicConnection:
        """The connection on which the transfer was begun."""
        return self._connection

    @property
    def bytes_received(self) -> int:
        """How many bytes have arrived, holes not counted."""
        return self._window.received

    @property
    def bytes_read(self) -> int:
        """How many bytes the application has taken."""
        return self._window.consumed

    @property
    def is_verified(self) -> bool:
        """Whether everything was read, and its checksum was right."""
        return self._verified

    # ------------------------------------------------------------------ reading

    def __aiter__(self) -> IncomingTransfer:
        return self

    async def __anext__(self) -> bytes | bytearray:
        """The next bytes in order, at most 64 KiB.

        Cancellation: nothing is lost; the next call goes on.

        Raises:
          StopAsyncIteration: all bytes were read, and their checksum is right.
          ChecksumMismatch: all bytes were read, and their checksum is wrong.
          TransferAbandoned: the sender has given up, has broken the format, or has sent
            next to nothing for the hub's ``idle_timeout``.
          TransferInterrupted: its connections were lost, and it did not come back within
            the hub's ``resume_timeout``.
          trio.ClosedResourceError: the transfer was closed here.
          trio.BusyResourceError: another task is reading.
        """
        with self._conflict:
            if self._chunks and self._error is None:
                await trio.lowlevel.checkpoint()
            else:
                pieces, size = await self._take(_BATCH)
                if not pieces:
                    await self._verify()
                    raise StopAsyncIteration
                # What was taken has to be hashed and kept, whatever happens meanwhile.
                with trio.CancelScope(shield=True):
                    await update_digest(self._hash, [*pieces], size)
                self._chunks.extend(pieces)
            chunk = self._chunks.popleft()
            self._consume(len(chunk))
            return chunk

    async def receive_into(self, file: WritableFile | AsyncFile) -> int:
        """Write the rest of the transfer to `file`, in a thread; returns how many bytes.

        Args:
          file: a binary file object, Trio's (:func:`trio.open_file`) or a plain one.  It
            is neither flushed nor closed.

        Cancellation: the transfer is abandoned, and part of it was written.  A write
        which is under way is waited for.

        Raises:
          OSError: the file's; the transfer is abandoned.
          And what reading raises, as a loop over it does.
        """
        plain = file.wrapped if isinstance(file, AsyncFile) else file
        written = 0
        with self._conflict:
            try:
                while True:
                    # What a loop over the transfer has left is hashed already.
                    pieces, digest = list(self._chunks), None
                    size = sum(map(len, pieces))
                    self._chunks.clear()
                    if not pieces:
                        pieces, size = await self._take(_BATCH)
                        digest = self._hash
                    if not pieces:
                        await self._verify()
                        return written
                    await trio.to_thread.run_sync(_write, plain, pieces, digest)
                    self._consume(size)
                    written += size
            except BaseException:
                self.abandon()
                raise

    async def read_all(self, *, max_size: int) -> bytes:
        """The rest of the transfer, at most `max_size` bytes.

        Cancellation: the transfer is abandoned.

        Raises:
          TransferRefused: there is more; the sender is told (code ``TOO_LARGE``).
          And what reading raises, as a loop over it does.
        """
        parts: list[bytes | bytearray] = []
        size = 0
        try:
            while True:
                announced = self.size
                if size > max_size or (
                    announced is not None and announced - self.bytes_read + size > max_size
                ):
                    self.abandon(TransferCode.TOO_LARGE)
                    raise TransferRefused(
                        f"the transfer has more than {max_size} bytes",
                        transfer_id=self._id,
                        code=TransferCode.TOO_LARGE,
                        bytes_acknowledged=self.bytes_received,
                    )
                try:
                    parts.append(await anext(self))
                except StopAsyncIteration:
                    return b"".join(parts)
                size += len(parts[-1])
        except BaseException:
            self.abandon()
            raise

    async def _take(self, max_bytes: int) -> tuple[list[bytes | bytearray], int]:
        """Whole stripes in order, as pieces and their size; nothing at the end."""
        window = self._window
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

    async def _wait(self) -> None:
        """Until something happens, at most until the sender's time is over."""
        with trio.move_on_at(self._expires_at):
            await self._read_lot.park()
        self._expire()

    @property
    def _awaits_sender(self) -> bool:
        """Whether the next move is the sender's: it has credit, or has not told the end."""
        window = self._window
        if window.size is not None and window.received >= window.size:
            return self._end is None
        return window.received < window.limit

    @property
    def _expires_at(self) -> float:
        """When to look whether the sender's time is over; it may have more by then."""
        lost_at = self._line_lost_at
        if lost_at is not None:
            return lost_at + self._resume_timeout
        if self._awaits_sender:
            return self._stall.deadline
        # The sender gets a whole period with its next credit, so it is not over before.
        return trio.current_time() + self._stall.timeout

    def _expire(self) -> bool:
        """Give up if the sender's time is over.  Returns whether it is."""
        if self._verdict is not None or trio.current_time() < self._expires_at:
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
                f"the sender's connections were lost after {self.bytes_received} bytes, and it"
                f" did not come back within {self._resume_timeout:g} s",
                transfer_id=self._id,
                bytes_acknowledged=self.bytes_received,
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

    async def _verify(self) -> None:
        if self._verdict is None:
            end = self._end
            assert end is not None
            if self._hash.digest() == end.digest:
                self._verified = True
                self._conclude(Verdict(TransferCode.VERIFIED, end.size, end.digest), None)
            else:
                self._conclude(
                    Verdict(TransferCode.CHECKSUM_MISMATCH, end.size, self._hash.digest()),
                    ChecksumMismatch(
                        f"the {end.size} bytes which arrived are not those which were sent",
                        transfer_id=self._id,
                        bytes_acknowledged=end.size,
                    ),
                )
        # So that a program which ends right now has told the sender.
        await self._wait_told()
        self._check()

    async def _wait_told(self) -> None:
        await trio.lowlevel.checkpoint()
        # A peer which gives no credit for the answer must not hold the caller for ever.
        with trio.move_on_after(self._stall.timeout):
            while self._line is not None and not self._verdict_told:
                await self._read_lot.park()

    # ------------------------------------------------------------------ leaving

    def abandon(self, code: int = TransferCode.CANCELLED) -> None:
        """Leave the transfer: the sender's call raises :class:`TransferRefused` with `code`.

        Without effect once the transfer has ended.
        """
        self._closed = True
        self._conclude(Verdict(code), None)

    async def aclose(self) -> None:
        """Leave the transfer if it has not ended, and wait until the sender was told.

        Cancellation: it is left all the same.
        """
        self.abandon()
        await self._wait_told()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

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
        # Who has lost the line before it heard the verdict asks again.  A sender which has
        # given up, or comes too late, begins anew instead.
        self._on_end(self, None if by_sender else verdict)
        self._read_lot.unpark_all()
        self._reply_lot.unpark_all()

    def _give_up(self, code: int, what: str, *, by_sender: bool = False) -> None:
        self._conclude(
            Verdict(code),
            TransferAbandoned(
                f"{what} ({describe(code)}) after {self.bytes_received} bytes",
                transfer_id=self._id,
                code=code,
                bytes_acknowledged=self.bytes_received,
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
        """A TRANSFER stream, past its manifest, until it ends."""
        if self._line is not None:
            self._line.cancel()  # the sender has left it; we only do not know yet
        scope = trio.CancelScope()
        self._line = scope
        if self._line_lost_at is not None:
            self._line_lost_at = None
            self._stall.excuse(trio.current_time())
            self._on_new_deadline()
        self._told_credit = -1
        self._verdict_told = False
        self._window.repeat_news()
        try:
            with unwrap_lone(), scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._answer, connection, scope)
                    await self._listen(reader)
                    if not self._verdict_told:
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
                case _:
                    raise FramingError(f"a {type(record).__name__} record from a sender")

    async def _answer(self, connection: QuicConnection, line: trio.CancelScope) -> None:
        """The TRANSFER_REPLY stream of the present line."""
        try:
            async with await connection.open_send_stream() as stream:
                await while_open(stream, partial(self._send_news, stream))
        except LINE_ERRORS:
            line.cancel()

    async def _send_news(self, stream: SendStream) -> None:
        window = self._window
        await stream.send_all(
            first_bytes(StreamKind.TRANSFER_REPLY, self._id)
            + encode_record(Accepted(window.stripe_size))
        )
        while True:
            records = [encode_record(record) for record in split_ranges(window.take_news())]
            verdict = self._verdict
            if verdict is None and window.limit != self._told_credit:
                self._told_credit = window.limit
                records.append(encode_record(Credit(window.limit)))
            if verdict is not None:
                records.append(encode_record(verdict))
            if records:
                await stream.send_all(b"".join(records), end=verdict is not None)
            if verdict is not None:
                self._verdict_told = True
                self._read_lot.unpark_all()
                return
            if not window.has_news and window.limit == self._told_credit and self._verdict is None:
                await self._reply_lot.park()

    async def _receive_stripes(self, reader: StreamReader) -> None:
        """A STRIPES stream, past the transfer's ID, until it ends."""
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
            pass  # The sender hears of that, too, and sends the rest elsewhere.
        finally:
            if arrival is not None:
                self._window.drop(arrival)

    def _refuse_stripes(self, reader: StreamReader) -> None:
        assert self._verdict is not None
        quiet = self._verdict.code == TransferCode.VERIFIED
        refuse(reader, ApplicationErrorCode.NO_ERROR if quiet else self._verdict.code)
