"""``phoenix-trio send``: move files to a receiver, and go on after broken connections."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO

import attrs
import click
import trio

from ..config import TransportConfig
from ..errors import ConnectionBroken, HandshakeFailed, HandshakeTimedOut, ServerUnreachable
from ..quic.connection import QuicConnection
from ..quic.endpoint import open_connection
from ..quic.handshake.tls import ClientTLS
from .failures import failures_in_one_line, say
from .options import TARGET, format_size, transport_config, transport_options
from .progress import Display, show_progress
from .running import run
from .transfer import (
    ALPN,
    Outcome,
    PrefixDigests,
    TransferError,
    TransferRefused,
    send_file,
)

__all__ = ["send"]

_STANDARD_INPUT = 0


@attrs.define
class _File:
    """A file, or standard input, as a source; a file can be begun again."""

    name: str
    path: str | None
    size: int | None = None
    identity: str | None = None
    digests: PrefixDigests = attrs.field(factory=PrefixDigests)
    _open: BinaryIO | io.FileIO | None = None

    @classmethod
    def of(cls, path: str, name: str | None) -> _File:
        if path == "-":
            if name is None:
                raise click.UsageError("standard input (-) needs a --name to be stored under")
            return cls(name, None)
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise click.UsageError(f"{path} is not a regular file")
        stored_as = name or os.path.basename(os.path.abspath(path))
        # The same as long as the file is unchanged, and hard to guess: only its own sender can
        # continue the part that the receiver has.  Hashed, since the facts are not for others.
        facts = (
            *(stored_as, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            *(status.st_dev, status.st_ino),
        )
        identity = hashlib.sha256(repr(facts).encode(errors="surrogatepass")).hexdigest()
        return cls(stored_as, path, status.st_size, identity)

    def rewind(self) -> None:
        self.close()
        if self.path is None:
            # Not sys.stdin, whose lock a thread that is left waiting for data would keep.
            self._open = io.FileIO(_STANDARD_INPUT, closefd=False)
        else:
            self._open = open(self.path, "rb")  # noqa: SIM115

    def read(self, size: int) -> bytes:
        assert self._open is not None
        data = self._open.read(size)
        if data is None:
            raise BlockingIOError(errno.EAGAIN, "standard input must not be non-blocking")
        return data

    def seek(self, position: int) -> None:
        assert self._open is not None
        self._open.seek(position)

    def close(self) -> None:
        if self._open is not None and self.path is not None:
            self._open.close()
        self._open = None


@click.command()
@click.argument("target", type=TARGET, metavar="HOST[:PORT]")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--ca", type=click.Path(), metavar="FILE", help="Trust this authority (PEM).")
@click.option(
    "--pin", metavar="FINGERPRINT", help="Trust exactly the certificate with this SHA-256."
)
@click.option("--certificate", type=click.Path(), metavar="FILE", help="To show to the receiver.")
@click.option("--key", type=click.Path(), metavar="FILE", help="The key of --certificate.")
@click.option("--name", help="Store the (only) file under this name.")
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Attempts in a row after a connection broke.",
)
@click.option(
    "--retry-delay",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause before each of them.",
)
@transport_options
@failures_in_one_line
def send(
    target: tuple[str, int],
    files: Sequence[str],
    ca: str | None,
    pin: str | None,
    certificate: str | None,
    key: str | None,
    name: str | None,
    retries: int,
    retry_delay: float,
    max_udp_payload_size: int | None,
    idle_timeout: float,
) -> None:
    """Send each FILE to a receiver ("-": standard input).

    A file counts as sent when the receiver has stored it and both checksums
    agree.  When the connection breaks, a new one goes on where it ended; so does
    the same command given again later.  Standard input cannot be read twice and
    is sent once.

    \b
    Examples:
        phoenix-trio send there:4433 big.iso --pin ab:cd:...
        tar c photos | phoenix-trio send there - --name photos.tar --ca ca.pem
    """
    if name is not None and len(files) != 1:
        raise click.UsageError("--name goes with a single file")
    if list(files).count("-") > 1:
        raise click.UsageError("standard input (-) can be sent once")
    if ca is not None and pin is not None:
        raise click.UsageError("--ca and --pin exclude each other")
    sources = [_File.of(path, name) for path in files]
    tls = ClientTLS(ca=ca, pinned_sha256=pin, certificate=certificate, private_key=key)
    config = transport_config(max_udp_payload_size, idle_timeout)
    run(partial(_send_all, target, sources, tls, config, retries, retry_delay))


async def _send_all(
    target: tuple[str, int],
    sources: list[_File],
    tls: ClientTLS,
    config: TransportConfig,
    retries: int,
    retry_delay: float,
) -> None:
    waiting = list(sources)
    failures = 0
    with show_progress() as display:
        while waiting:
            before = len(waiting)
            try:
                async with open_connection(*target, tls=tls, alpn=(ALPN,), config=config) as there:
                    while waiting:
                        outcome, seconds = await _send_one(there, waiting[0], display)
                        del waiting[0]
                        failures = 0
                        _report(outcome, seconds)
            except TransferRefused as error:
                # Places become free, so "busy" may be over the next time.  After a wrong checksum
                # of a continued part, the receiver has dropped the part, and takes the whole file.
                again = error.code == "busy" or (error.code == "checksum" and error.resumed_at)
                if not again or waiting[0].identity is None:
                    raise
                failures += 1
                if failures > retries:
                    raise
                say(f"{error}; {_next_attempt(failures, retries, retry_delay)}", err=True)
                await trio.sleep(retry_delay)
            except (ConnectionBroken, trio.BrokenResourceError) as error:
                if not waiting:
                    return
                if isinstance(error, HandshakeFailed) and not isinstance(
                    error, (HandshakeTimedOut, ServerUnreachable)
                ):
                    raise  # another attempt would fail in the same way
                if waiting[0].identity is None and len(waiting) == before:
                    raise
                failures += 1
                if failures > retries:
                    raise
                attempt = _next_attempt(failures, retries, retry_delay)
                say(f"the connection broke ({error}); {attempt}", err=True)
                await trio.sleep(retry_delay)


def _next_attempt(number: int, retries: int, delay: float) -> str:
    return f"attempt {number} of {retries} in {delay:g} s"


async def _send_one(
    connection: QuicConnection, source: _File, display: Display
) -> tuple[Outcome, float]:
    number = display.begin(source.name, source.size)
    started = trio.current_time()
    await trio.to_thread.run_sync(source.rewind)
    try:
        async with await connection.open_stream() as stream:
            outcome = await send_file(
                stream,
                source,
                source.name,
                digests=source.digests,
                on_progress=lambda position: display.update(number, position),
            )
    except TransferRefused as error:
        text = f"{source.name}: {error}"
        raise TransferRefused(error.code, text, resumed_at=error.resumed_at) from error
    except TransferError as error:
        raise TransferError(f"{source.name}: {error}") from error
    finally:
        source.close()
        display.finish(number)
    return outcome, trio.current_time() - started


def _report(outcome: Outcome, seconds: float) -> None:
    moved = outcome.size - outcome.resumed_at
    rate = moved * 8 / 1e6 / max(seconds, 1e-9)
    resumed = f" (resumed at {format_size(outcome.resumed_at)})" if outcome.resumed_at else ""
    click.echo(
        f"{outcome.path}: {format_size(outcome.size)}{resumed} in {seconds:.2f} s,"
        f" {rate:.0f} Mbit/s to the receiver's confirmation, SHA-256 {outcome.sha256} verified"
    )
