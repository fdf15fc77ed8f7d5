"""Receives striped transfers for an application.

Floor 4.  The application reads from :class:`IncomingTransfer`; its lower half,
:class:`~phoenix_trio.pool.reception.Reception`, serves the streams of the transfer.
"""

from __future__ import annotations

from types import TracebackType
from typing import final

import trio

from ..quic.connection import QuicConnection
from ..quic.construction import NoPublicConstructor
from ..storage.parts import PartLimits
from .reception import Reception
from .storing import StrPath, store
from .transfer_errors import (
    TransferCode,
    TransferRefused,
)
from .transfer_records import (
    Verdict,
)
from .transfer_sink import AsyncFile, WritableFile, write_pieces
from .transfer_source import update_digest

__all__ = ["IncomingTransfer", "WritableFile"]

#: Bytes written at once, so that a change of threads pays.
_BATCH = 4 * 1024 * 1024


def _code_of(error: BaseException) -> TransferCode:
    """The code that the sender is told if a transfer is left by this exception."""
    return TransferCode.NOT_STORED if isinstance(error, Exception) else TransferCode.CANCELLED


@final
class IncomingTransfer(Reception, trio.abc.AsyncResource, metaclass=NoPublicConstructor):
    """An incoming striped transfer.  Obtained from :meth:`TransferHub.accept`.

    Read it in one of three ways: ``async for chunk in transfer``, :meth:`receive_into`
    or :meth:`read_all`; or let :meth:`store` write a file.  At most the hub's ``window`` of
    bytes wait in memory; the sender goes on as they are read.  The end is reported only after
    the checksum over all bytes was found right.

    The sender's call returns when this side has *confirmed* the transfer.  That happens when
    an ``async with`` block of the transfer is left normally after everything was read, when
    :meth:`confirm` is called, or when :meth:`store` has stored the file.  So a program stores
    the data inside the block.  When the block is left before the end, or by an exception, the
    sender's call raises :class:`TransferRefused`.  When the sender has given up before the
    confirmation, leaving the block raises :class:`TransferAbandoned`.

    One task at a time may read.
    """

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
        """Metadata that the sender has given, for instance a name.  Untrusted."""
        return self._manifest.metadata

    @property
    def connection(self) -> QuicConnection:
        """The connection on which the transfer was begun."""
        return self._connection

    @property
    def bytes_received(self) -> int:
        """How many bytes have arrived, not counting holes."""
        return self._window.received

    @property
    def bytes_read(self) -> int:
        """How many bytes the application has taken."""
        return self._window.consumed

    @property
    def bytes_resumed(self) -> int:
        """How many bytes an earlier attempt had left for :meth:`store`."""
        return self._resumed_at

    @property
    def is_verified(self) -> bool:
        """Whether everything was read, and its checksum was right."""
        return self._verified

    @property
    def is_confirmed(self) -> bool:
        """Whether this side has said that it has stored the transfer."""
        return self._is_confirmed

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
                # The bytes taken have to be hashed and kept, whatever happens meanwhile.
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

        Cancellation: the transfer is abandoned, with a part of it written.  The call waits
        for a write already under way.

        Raises:
          OSError: the file's; the transfer is abandoned.
          And whatever reading raises, as a loop over it does.
        """
        plain = file.wrapped if isinstance(file, AsyncFile) else file
        written = 0
        with self._conflict:
            try:
                while True:
                    # The pieces left by a loop over the transfer are hashed already.
                    pieces, digest = list(self._chunks), None
                    size = sum(map(len, pieces))
                    self._chunks.clear()
                    if not pieces:
                        pieces, size = await self._take(_BATCH)
                        digest = self._hash
                    if not pieces:
                        await self._verify()
                        return written
                    await trio.to_thread.run_sync(write_pieces, plain, pieces, digest)
                    self._consume(size)
                    written += size
            except BaseException as error:
                self.abandon(_code_of(error))
                raise

    async def read_all(self, *, max_size: int) -> bytes:
        """The rest of the transfer, at most `max_size` bytes.

        Cancellation: the transfer is abandoned.

        Raises:
          TransferRefused: there is more; the sender is told (code ``TOO_LARGE``).
          And whatever reading raises, as a loop over it does.
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
        except BaseException as error:
            self.abandon(_code_of(error))
            raise

    async def store(self, path: StrPath, *, limits: PartLimits | None = None) -> None:
        """Write the transfer to the file `path`, and confirm it when it is stored there.

        The bytes go into a partial file in the directory ``.phoenix-trio`` beside `path`.
        When all have come and their checksum is right, they are written through to the
        disk and the partial file takes the name of `path`, in one step; until then an
        existing file stays as it is.  All of that happens in threads.

        If it ends earlier, for whatever reason, the partial file waits for another attempt with
        the same transfer ID, in this process or another, and only the missing bytes are sent.
        The bytes on the disk are checked first.  If a transfer turns out wrong, its partial file
        is removed.  POSIX systems only.

        Args:
          path: of the file; its directory must exist.  A symbolic link is followed.
          limits: how long and how many partial files wait in that directory, including those
            already there.  ``None``: for seven days, otherwise as :class:`PartLimits` says.

        Cancellation: the transfer is abandoned, and the partial file stays; the call waits for a
        write already under way.  Once the file has its name, the transfer is confirmed all the
        same, and if the sender has given up in that moment, the call still returns.

        Raises:
          OSError: the file cannot be written; the transfer is abandoned.
          trio.BusyResourceError: another task is reading, or another receiver writes the same
            partial file.
          RuntimeError: some of the transfer was read already.
          And whatever reading raises, as a loop over it does.
        """
        try:
            with self._conflict:
                await store(self, self._storages, path, limits)
        except trio.BusyResourceError:
            raise
        except BaseException as error:
            self.abandon(_code_of(error))
            raise

    # ------------------------------------------------------------------ the end

    async def confirm(self) -> None:
        """Say that the transfer is stored: the sender's call returns.

        For programs that do not use the transfer as a context manager, or want to go on
        inside its block.  Without effect on a confirmed transfer.

        Cancellation: the transfer is confirmed all the same.

        Raises:
          RuntimeError: it was not read to its end.
          TransferAbandoned: the sender has given up meanwhile.
          trio.ClosedResourceError: it was abandoned here.
        """
        await self._confirm()

    def abandon(self, code: int = TransferCode.CANCELLED) -> None:
        """Leave the transfer: the sender's call raises :class:`TransferRefused` with `code`.

        Without effect once the transfer was confirmed or has failed.
        """
        self._closed = True
        self._conclude(Verdict(code), None)

    async def aclose(self) -> None:
        """Leave the transfer if it was not confirmed, and wait until the sender was told.

        Cancellation: it is left all the same.
        """
        self.abandon()
        await self._wait_until_verdict_sent()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_value is None and self._is_stored:
            await trio.lowlevel.checkpoint()
            return
        if exc_value is None and self._verified and not self._closed:
            await self.confirm()
            return
        self.abandon(TransferCode.CANCELLED if exc_value is None else _code_of(exc_value))
        await self._wait_until_verdict_sent()
