"""Sends files one after the other, over new connections where one breaks.

Floor 6.  What concerns one file alone (a name that is taken, a file that cannot be read) ends
that file; the others go on, and the total names what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from ..config import TransportConfig
from ..errors import ConnectionBroken, HandshakeFailed, HandshakeTimedOut, ServerUnreachable
from ..quic.connection import QuicConnection
from ..quic.datagram_socket import Network
from ..quic.endpoint import open_connection
from ..quic.handshake.tls import ClientTLS
from .failures import in_options
from .options import format_rate, format_size
from .reports import Report
from .sources import Directory, File, LeftOut
from .transfer import (
    ALPN,
    Outcome,
    SourceChanged,
    TransferError,
    TransferRefused,
    send_directory,
    send_file,
)

__all__ = ["Sending"]

#: Refusals that say nothing about other files.
_OF_ONE_FILE = {"bad-name", "exists", "too-large", "size", "checksum"}

#: Names of missing files in the last line.
_SHOWN = 10


@attrs.define
class Sending:
    """One run of the sender.

    Args:
      sources: what to send, in order, and what is left out.
      retries: attempts in a row after a connection broke.
      retry_delay: seconds before each of them.
      skip_existing: whether a file that exists at the receiver is no failure.
    """

    sources: Sequence[File | Directory | LeftOut]
    retries: int
    retry_delay: float
    skip_existing: bool
    files: int = 0
    directories: int = 0
    existing: int = 0
    bytes_moved: int = 0
    _missing: list[str] = attrs.field(factory=list)
    _waiting: list[File | Directory] = attrs.field(factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all was sent."""
        return not self._missing and not self._waiting

    async def run(
        self,
        target: tuple[str, int],
        tls: ClientTLS,
        config: TransportConfig,
        report: Report,
        network: Network | None = None,
    ) -> None:
        """Send everything, and report each file and the total.

        Raises:
          ConnectionBroken, trio.BrokenResourceError, OSError: there is no connection, or none
            after all attempts.
          TransferError: the receiver takes nothing more.
        """
        for source in self.sources:
            if isinstance(source, LeftOut):
                text = f"not sent: {source.name}: {source.reason}"
                report.problem(text, "left_out", path=source.name, message=source.reason)
                self._missing.append(source.name)
            else:
                self._waiting.append(source)
        started = trio.current_time()
        try:
            await self._send_all(target, tls, config, report, network)
        finally:
            self._report_total(report, trio.current_time() - started)

    async def _send_all(
        self,
        target: tuple[str, int],
        tls: ClientTLS,
        config: TransportConfig,
        report: Report,
        network: Network | None,
    ) -> None:
        failures = 0
        while self._waiting:
            before = len(self._waiting)
            try:
                async with open_connection(
                    *target, tls=tls, alpn=(ALPN,), config=config, network=network
                ) as there:
                    while self._waiting:
                        await self._send_next(there, report)
                        failures = 0
            except TransferRefused as error:
                if not self._may_try_again(error) or failures >= self.retries:
                    raise
                failures += 1
                await self._pause(report, str(error), failures)
            except (ConnectionBroken, trio.BrokenResourceError) as error:
                if not self._waiting:
                    return
                if isinstance(error, HandshakeFailed) and not isinstance(
                    error, (HandshakeTimedOut, ServerUnreachable)
                ):
                    raise  # another attempt would fail in the same way
                is_read_once = not self._can_be_repeated(self._waiting[0])
                if (is_read_once and len(self._waiting) == before) or failures >= self.retries:
                    raise
                failures += 1
                await self._pause(
                    report, f"the connection broke ({in_options(str(error))})", failures
                )

    async def _pause(self, report: Report, why: str, number: int) -> None:
        report.note(
            f"{why}; attempt {number} of {self.retries} in {self.retry_delay:g} s",
            "retry",
            attempt=number,
            retries=self.retries,
            delay=self.retry_delay,
            message=why,
        )
        await trio.sleep(self.retry_delay)

    @staticmethod
    def _can_be_repeated(source: File | Directory) -> bool:
        return isinstance(source, Directory) or source.identity is not None

    def _may_try_again(self, error: TransferRefused) -> bool:
        # Places become free, so "busy" may be over the next time.  After a wrong checksum of a
        # continued part, the receiver has dropped the part, and takes the whole file.
        again = error.code == "busy" or (error.code == "checksum" and bool(error.resumed_at))
        return again and self._can_be_repeated(self._waiting[0])

    async def _send_next(self, there: QuicConnection, report: Report) -> None:
        source = self._waiting[0]
        started = trio.current_time()
        try:
            outcome = await self._send_one(there, source, report)
        except TransferRefused as error:
            if self._may_try_again(error) or error.code not in _OF_ONE_FILE:
                raise TransferRefused(
                    error.code, f"{source.name}: {error}", resumed_at=error.resumed_at
                ) from error
            if error.code == "exists" and self.skip_existing:
                self.existing += 1
                report.result(f"{source.name}: exists there already", "existing", path=source.name)
            else:
                self._fail(report, source.name, "refused", str(error), code=error.code)
        except (SourceChanged, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            self._fail(report, source.name, "failed", reason or str(error))
        except TransferError as error:
            raise TransferError(f"{source.name}: {error}") from error
        else:
            self._succeed(report, outcome, trio.current_time() - started)
        del self._waiting[0]

    async def _send_one(
        self, there: QuicConnection, source: File | Directory, report: Report
    ) -> Outcome:
        if isinstance(source, Directory):
            async with await there.open_stream() as stream:
                return await send_directory(stream, source.name)
        display = report.display
        await trio.to_thread.run_sync(source.rewind)
        number = display.begin(source.name, source.size)
        try:
            async with await there.open_stream() as stream:
                return await send_file(
                    stream,
                    source,
                    source.name,
                    digests=source.digests,
                    on_progress=lambda position: display.update(number, position),
                )
        finally:
            source.close()
            display.finish(number)

    def _fail(self, report: Report, name: str, event: str, reason: str, **facts: object) -> None:
        self._missing.append(name)
        report.problem(f"not sent: {name}: {reason}", event, path=name, message=reason, **facts)

    def _succeed(self, report: Report, outcome: Outcome, seconds: float) -> None:
        if outcome.is_directory:
            self.directories += 1
            text = f"{outcome.path}/: an empty directory"
            report.result(text, "directory", path=outcome.path)
            return
        moved = outcome.size - outcome.resumed_at
        self.files += 1
        self.bytes_moved += moved
        resumed = f" (resumed at {format_size(outcome.resumed_at)})" if outcome.resumed_at else ""
        rate = moved * 8 / max(seconds, 1e-9)
        report.result(
            f"{outcome.path}: {format_size(outcome.size)}{resumed} in {seconds:.2f} s,"
            f" {format_rate(rate)} to the receiver's confirmation, SHA-256 {outcome.sha256}"
            " verified",
            "stored",
            path=outcome.path,
            size=outcome.size,
            resumed_at=outcome.resumed_at,
            seconds=seconds,
            sha256=outcome.sha256,
        )

    def _report_total(self, report: Report, seconds: float) -> None:
        missing = [*self._missing, *(source.name for source in self._waiting)]
        text = ""
        if len(self.sources) > 1:
            rate = self.bytes_moved * 8 / max(seconds, 1e-9)
            text = (
                f"total: {_count(self.files, 'file')}, {format_size(self.bytes_moved)} in"
                f" {seconds:.2f} s, {format_rate(rate)}"
            )
            if self.existing:
                text += f"; {_count(self.existing, 'file')} existed there, not compared"
        facts = {
            "files": self.files,
            "directories": self.directories,
            "existing": self.existing,
            "bytes": self.bytes_moved,
            "seconds": seconds,
        }
        if text and missing:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            text += f"; {len(missing)} not sent: {shown}"
            if self._waiting:
                text += " (the same command with --skip-existing sends the rest)"
            report.problem(text, "total", **facts, missing=missing)
        else:
            report.result(text, "total", **facts, missing=missing)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
