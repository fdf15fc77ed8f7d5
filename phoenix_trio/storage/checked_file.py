"""Writes an incoming file together with a ledger of the written ranges.

Floor 4.  A :class:`~phoenix_trio.storage.stored_file.StoredFile` knows how long its part is.
This module also ensures that the disk has the bytes that were written: it records each range
with its checksum (:mod:`~phoenix_trio.storage.ledger`), and reads and checks the ranges again
before another process continues the part.  Blocks.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from collections.abc import Iterator
from typing import Self, final

from .beside import LEDGER_SUFFIX, NEW_LEDGER_SUFFIX
from .directory import Storage
from .ledger import (
    MAX_LEDGER_SIZE,
    RECORD_SIZE,
    Header,
    LedgerRefused,
    Span,
    decode_ledger,
    encode_header,
    encode_record,
    least_span,
    next_stop,
)
from .stored_file import StoredFile

__all__ = ["CheckedFile"]

logger: logging.Logger = logging.getLogger("phoenix_trio.storage")

#: Bytes that one step reads again.
_CHUNK = 1024 * 1024

#: Bytes after which :meth:`CheckedFile.check` can be left.
_STEP = 16 * _CHUNK

#: System errors when something other than a file is in the way of a ledger.
_NO_FILE = (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO)


@final
class CheckedFile:
    """Obtained from :meth:`begin`; :meth:`check` comes next.

    One thread at a time may use it.
    """

    def __init__(self, stored: StoredFile, name: str, header: Header) -> None:
        self._stored = stored
        self._name = name
        self._header = header
        self._beginning = encode_header(header)
        self._ledger = -1
        self._ledger_size = 0
        # The range that was written and is not recorded yet.
        self._start = 0
        self._stop = 0
        self._crc = 0
        self._over = False

    @classmethod
    def begin(
        cls, storage: Storage, name: str, header: Header, *, identity: str, peer: str
    ) -> Self:
        """Open the part for the file `name`: a new one, or the one of an earlier attempt.

        Args:
          header: the facts that an earlier attempt must share with this one; otherwise its part
            is dropped.
          identity: identifies the part, to find it again.
          peer: the sender's address, for quotas.

        Raises:
          Whatever :meth:`Storage.begin` raises.
        """
        stored = storage.begin(name, header.size, identity, peer=peer)
        return cls(stored, name, header)

    @property
    def offset(self) -> int:
        """Bytes of an earlier attempt found right."""
        return self._stored.offset

    # ------------------------------------------------------------------ checking

    def check(self, unit: int) -> Iterator[int]:
        """Keep as much of an earlier attempt as is recorded and right; forget the rest.

        Reads bytes that this process has not seen yet, and yields at least every 16 MiB, so that
        the check can be left.

        Args:
          unit: the number of bytes kept is a multiple of this, or the whole file.

        Raises:
          OSError: a fault of the system.
        """
        stored = self._stored
        spans = self._read_ledger()
        target = self._whole(spans[-1].stop if spans else 0, unit)
        kept: list[Span] = []
        for span in spans:
            if span.start >= target:
                break
            if stored.hashed >= span.stop <= target:
                kept.append(span)
                continue
            checked = _Check(kept, span, target)
            while not checked.is_done:
                for _ in range(_STEP // _CHUNK):
                    checked.go_on(stored)
                yield checked.position
            if not checked.is_intact:
                logger.warning(
                    "the partial file for %r is damaged between byte %d and %d: it is continued"
                    " from before that",
                    self._name,
                    span.start,
                    span.stop,
                )
                while kept and kept[-1].stop != self._whole(kept[-1].stop, unit):
                    kept.pop()
                target = kept[-1].stop if kept else 0
                break
            checked.keep(kept)
        stored.cut(target)
        self._start = self._stop = target
        self._write_ledger(kept)

    def _whole(self, position: int, unit: int) -> int:
        return position if position == self._header.size else position - position % unit

    def _read_ledger(self) -> list[Span]:
        stored = self._stored
        if not stored.size:
            return []
        try:
            spans = decode_ledger(self._ledger_bytes(), self._header)
        except LedgerRefused as error:
            logger.warning(
                "the ledger of the partial file for %r is not used: %s; the transfer starts from"
                " zero",
                self._name,
                error,
            )
            return []
        if spans and spans[-1].stop > stored.size:
            logger.warning(
                "the partial file for %r has %d bytes, its ledger says %d: it is continued from"
                " before its end",
                self._name,
                stored.size,
                spans[-1].stop,
            )
            spans = [span for span in spans if span.stop <= stored.size]
        return spans

    def _ledger_bytes(self) -> bytes:
        try:
            descriptor = self._stored.open_beside(LEDGER_SUFFIX, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            raise LedgerRefused("it is no regular file") from None
        with open(descriptor, "rb") as file:
            return file.read(MAX_LEDGER_SIZE + 1)

    def _write_ledger(self, spans: list[Span]) -> None:
        """Write a new ledger, which takes the place of the old one at once."""
        data = b"".join(encode_record(self._beginning, span) for span in spans)
        stored = self._stored
        stored.remove_beside(NEW_LEDGER_SUFFIX)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._ledger = stored.open_beside(NEW_LEDGER_SUFFIX, flags)
        self._append(self._beginning + data)
        os.fsync(self._ledger)  # after a power cut, there is the old one or the new one
        stored.rename_beside(NEW_LEDGER_SUFFIX, LEDGER_SUFFIX)

    def _append(self, data: bytes) -> None:
        self._ledger_size += len(data)
        while data:
            data = data[os.write(self._ledger, data) :]

    # ------------------------------------------------------------------ writing

    def write(self, data: bytes) -> None:
        """Append `data`; raises the errors of :meth:`StoredFile.write`."""
        self._stored.write(data)
        view = memoryview(data)
        while view:
            until = next_stop(self._start)
            piece = view[: until - self._stop]
            self._crc = zlib.crc32(piece, self._crc)
            self._stop += len(piece)
            if self._stop == until:
                self._record()
            view = view[len(piece) :]

    def _record(self) -> None:
        # (Beyond the largest ledger, bytes are not recorded: no later attempt continues them.)
        if self._ledger_size + RECORD_SIZE <= MAX_LEDGER_SIZE:
            span = Span(self._start, self._stop, self._crc)
            self._append(encode_record(self._beginning, span))
        self._start, self._crc = self._stop, 0

    def catch_up(self) -> bool:
        """See :meth:`StoredFile.catch_up`."""
        return self._stored.catch_up()

    def digest(self) -> bytes:
        """The SHA-256 of all bytes; call :meth:`catch_up` before."""
        return bytes.fromhex(self._stored.sha256())

    # ------------------------------------------------------------------ the end

    def commit(self) -> None:
        """Give the file its final name, durably; see :meth:`StoredFile.commit`."""
        self._stored.commit()
        self._over = True

    def discard(self) -> None:
        """Remove the part and its ledger: their content is of no use."""
        self._over = True
        self._stored.discard()

    def close(self) -> None:
        """Close; a part not committed stays for another attempt, within the quotas.

        Raises:
          OSError: a fault of the system.  Everything is closed all the same.
        """
        try:
            if self._ledger >= 0:
                try:
                    if self._stop > self._start and not self._over:
                        self._record()
                finally:
                    os.close(self._ledger)
                    self._ledger = -1
        finally:
            self._stored.close()


class _Check:
    """Reads one span again; joins its record with the one before if both are small."""

    def __init__(self, kept: list[Span], span: Span, target: int) -> None:
        self._span = span
        self._target = min(span.stop, target)
        self._crc = 0
        self.position = span.start
        before = kept[-1] if kept else None
        if before is not None and self._target - before.start > least_span(before.start):
            before = None
        self._before = before
        self._start, self._joined = (
            (span.start, 0) if before is None else (before.start, before.crc)
        )

    @property
    def is_done(self) -> bool:
        """Whether all of it was read."""
        return self.position >= self._span.stop

    @property
    def is_intact(self) -> bool:
        """Whether the disk has the bytes that were written."""
        return self._crc == self._span.crc

    def go_on(self, stored: StoredFile) -> None:
        """Read a chunk, if there is one left."""
        inside = self.position < self._target
        stop = self._target if inside else self._span.stop
        size = min(_CHUNK, stop - self.position)
        if size <= 0:
            return
        chunk = stored.read_again(self.position, size, hashing=inside)
        self._crc = zlib.crc32(chunk, self._crc)
        if inside:
            self._joined = zlib.crc32(chunk, self._joined)
        self.position += len(chunk)

    def keep(self, kept: list[Span]) -> None:
        """Add the span read to the spans kept."""
        if self._before is not None:
            kept.pop()
        kept.append(Span(self._start, self._target, self._joined))
