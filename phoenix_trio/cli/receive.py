"""``phoenix-trio receive``: a server that stores incoming files in a directory."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

import click
import trio

from ..config import TransportConfig
from ..quic.connection import QuicConnection, QuicStream
from ..quic.datagram_socket import Network
from ..quic.handshake.certificates import create_development_ca, fingerprint, issue_certificate
from ..quic.handshake.places import peer_of
from ..quic.handshake.tls import ServerTLS
from ..quic.serving import serve
from ..storage.directory import Storage
from ..storage.parts import PartLimits
from .failures import failures_in_one_line
from .options import SIZE, format_size, transport_config, transport_options
from .places import Places
from .reports import Format, Report, output_options, show_report
from .running import run
from .transfer import ALPN, TransferError, TransferRefused, receive_file

__all__ = ["Receiver", "receive"]

_GOODBYE_SECONDS = 5.0


@click.command()
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--host", help="Local address or name.  [default: all, IPv4 and IPv6]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4433,
    show_default=True,
    help="0: any free one.",
)
@click.option("--certificate", type=click.Path(), metavar="FILE", help="Certificate chain (PEM).")
@click.option("--key", type=click.Path(), metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--client-ca",
    type=click.Path(),
    metavar="FILE",
    help="Take files only from senders whose certificate this authority has signed.",
)
@click.option("--overwrite", is_flag=True, help="Replace files which exist.  [default: refuse]")
@click.option("--max-file-size", type=SIZE, metavar="SIZE", help="Refuse larger files.")
@click.option(
    "--keep-free",
    type=SIZE,
    metavar="SIZE",
    help="Leave so much of the disk free.  [default: a hundredth, at most 1 GiB]",
)
@click.option(
    "--part-lifetime",
    type=click.FloatRange(0, min_open=True),
    default=PartLimits().lifetime,
    show_default=True,
    metavar="SECONDS",
    help="Keep parts of broken transfers for so long.",
)
@click.option(
    "--max-parts",
    type=click.IntRange(0),
    default=PartLimits().max_count,
    show_default=True,
    metavar="N",
    help="Keep so many parts at most.",
)
@click.option(
    "--max-parts-per-peer",
    type=click.IntRange(0),
    default=PartLimits().max_count_per_peer,
    show_default=True,
    metavar="N",
    help="Of these, those of one address.",
)
@click.option(
    "--max-part-bytes",
    type=SIZE,
    metavar="SIZE",
    help="Keep parts of so many bytes in all.  [default: half of what is free without them]",
)
@click.option(
    "--max-part-bytes-per-peer",
    type=SIZE,
    metavar="SIZE",
    help="Of these, those of one address.  [default: as --max-part-bytes]",
)
@click.option(
    "--max-transfers",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Receive so many files at once.",
)
@click.option(
    "--max-transfers-per-peer",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    metavar="N",
    help="Of these, those of one address.",
)
@click.option(
    "--transfer-timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="End a transfer whose sender brings less than 16 KiB in so long.",
)
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="End after so many files were stored."
)
@click.option(
    "--ready-file",
    type=click.Path(),
    metavar="FILE",
    help="Write port and fingerprint there (JSON) when listening; for scripts.",
)
@output_options
@transport_options
@failures_in_one_line
def receive(
    directory: str,
    host: str | None,
    port: int,
    certificate: str | None,
    key: str | None,
    client_ca: str | None,
    overwrite: bool,
    max_file_size: int | None,
    keep_free: int | None,
    part_lifetime: float,
    max_parts: int,
    max_parts_per_peer: int,
    max_part_bytes: int | None,
    max_part_bytes_per_peer: int | None,
    max_transfers: int,
    max_transfers_per_peer: int,
    transfer_timeout: float,
    count: int | None,
    ready_file: str | None,
    output: Format,
    max_udp_payload_size: int | None,
    idle_timeout: float,
) -> None:
    """Store incoming files in DIRECTORY.

    Names from senders cannot lead outside of it, existing files are kept, and a
    file has its name only when it is whole and its checksum agrees.  Parts of
    broken transfers wait in DIRECTORY/.phoenix-trio to be continued; they are
    removed after a while, and give way when the disk is full.

    Without --certificate, one is made for this run, and the line to type on the
    sending machine is printed with its fingerprint.

    \b
    Examples:
        phoenix-trio receive incoming/
        phoenix-trio receive incoming/ --certificate server.pem --key server-key.pem
    """
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key go together")
    chain: str | bytes
    private_key: str | bytes
    if certificate is not None and key is not None:
        chain, private_key = certificate, key
    else:
        issued = issue_certificate(create_development_ca(), ["localhost", "127.0.0.1", "::1"])
        chain, private_key = issued.certificate, issued.private_key
    tls = ServerTLS(chain, private_key, client_ca=client_ca)
    pin = fingerprint(tls.identity.certificate)
    limits = PartLimits(
        lifetime=part_lifetime,
        max_count=max_parts,
        max_count_per_peer=max_parts_per_peer,
        max_bytes=max_part_bytes,
        max_bytes_per_peer=max_part_bytes_per_peer,
        keep_free=keep_free,
    )
    storage = Storage(directory, overwrite=overwrite, max_file_size=max_file_size, limits=limits)
    receiver = Receiver(
        storage, Places(max_transfers, max_transfers_per_peer), transfer_timeout, count, output
    )
    try:
        run(
            partial(
                receiver.serve,
                tls=tls,
                host=host,
                port=port,
                config=transport_config(max_udp_payload_size, idle_timeout),
                on_listening=partial(
                    _announce, pin=pin, host=host, ready_file=ready_file, output=output
                ),
            )
        )
    finally:
        storage.close()


def _announce(
    port: int, *, pin: str, host: str | None, ready_file: str | None, output: Format
) -> None:
    where = host or socket.gethostname()
    shown = f"[{where}]" if ":" in where else where
    if output == "json":
        facts = {"event": "listening", "host": host, "port": port, "fingerprint": pin}
        click.echo(json.dumps(facts))
    elif output == "lines":
        click.echo(f"listening on {shown}:{port}, certificate fingerprint {pin}")
        click.echo(f"send with: phoenix-trio send {shown}:{port} FILE --pin {pin}")
    sys.stdout.flush()
    if ready_file is not None:
        # A program that waits for this file finds it whole.
        temporary = f"{ready_file}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"host": host, "port": port, "fingerprint": pin}, file)
        os.replace(temporary, ready_file)


class Receiver:
    """Serves files into a storage.

    Args:
      storage: where they go.
      places: the places for transfers under way.
      idle_timeout: see :func:`receive_file`.
      count: end after so many files were stored; ``None``: never.
      output: how to report.
    """

    def __init__(
        self,
        storage: Storage,
        places: Places,
        idle_timeout: float,
        count: int | None = None,
        output: Format = "lines",
    ) -> None:
        self._storage = storage
        self._places = places
        self._idle_timeout = idle_timeout
        self._remaining = count
        self._output: Format = output
        self._files = 0
        self._bytes = 0
        self._done = trio.Event()
        self._part_left = trio.Event()

    async def serve(
        self,
        *,
        tls: ServerTLS,
        host: str | None,
        port: int,
        config: TransportConfig,
        on_listening: Callable[[int], object],
        network: Network | None = None,
    ) -> None:
        """Serve until cancelled, or until `count` files were stored."""
        with show_report(self._output) as report:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._remove_parts_in_time, report)
                    listeners = await nursery.start(
                        partial(
                            serve,
                            partial(self._handle, report),
                            port,
                            tls=tls,
                            host=host,
                            alpn=(ALPN,),
                            config=config,
                            network=network,
                        )
                    )
                    on_listening(listeners[0].port)
                    await self._done.wait()
                    # The last sender still waits for the answer to its last file: the server ends
                    # by itself when that sender has gone, or takes too long.
                    for listener in listeners:
                        await listener.aclose()
                    nursery.cancel_scope.deadline = trio.current_time() + _GOODBYE_SECONDS
                    self._part_left.set()
            finally:
                self._report_total(report)

    async def _handle(self, report: Report, connection: QuicConnection) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in connection.incoming_streams():
                peer = peer_of(connection.peer_address)
                nursery.start_soon(self._take, stream, peer, report)

    async def _take(self, stream: QuicStream, peer: str, report: Report) -> None:
        async with stream:
            stored = await self._take_file(stream, peer, report)
            # (Before the stream is closed, which fails if the connection is gone.)
            if not stored:
                self._part_left.set()
            elif self._remaining is not None:
                self._remaining -= 1
                if self._remaining == 0:
                    self._done.set()

    async def _take_file(self, stream: QuicStream, peer: str, report: Report) -> bool:
        display = report.display
        number: int | None = None

        def begin(path: str, size: int | None, offset: int) -> None:
            nonlocal number
            number = display.begin(path, size)

        def progress(position: int) -> None:
            if number is not None:
                display.update(number, position)

        try:
            outcome = await receive_file(
                stream,
                self._storage,
                peer=peer,
                places=self._places,
                idle_timeout=self._idle_timeout,
                on_begin=begin,
                on_progress=progress,
            )
        except TransferError as error:
            code = error.code if isinstance(error, TransferRefused) else None
            text = str(error)
            report.problem(f"refused: {text}", "refused", peer=peer, code=code, message=text)
            return False
        except trio.BrokenResourceError as error:
            text = str(error)
            report.problem(f"interrupted: {text}", "interrupted", peer=peer, message=text)
            return False
        finally:
            if number is not None:
                display.finish(number)
        if outcome.is_directory:
            text = f"made the directory {outcome.path}/"
            report.result(text, "directory", path=outcome.path, peer=peer)
            return False
        resumed = f", resumed at {format_size(outcome.resumed_at)}" if outcome.resumed_at else ""
        self._files += 1
        self._bytes += outcome.size - outcome.resumed_at
        report.result(
            f"stored {outcome.path} ({format_size(outcome.size)}{resumed}) {outcome.sha256}",
            "stored",
            path=outcome.path,
            size=outcome.size,
            resumed_at=outcome.resumed_at,
            sha256=outcome.sha256,
            peer=peer,
        )
        return True

    def _report_total(self, report: Report) -> None:
        text = ""
        if self._files > 1:
            text = f"total: {self._files} files, {format_size(self._bytes)}"
        report.result(text, "total", files=self._files, bytes=self._bytes)

    async def _remove_parts_in_time(self, report: Report) -> None:
        """Sleep until a part is too old, and remove it."""
        while not self._done.is_set():
            self._part_left = trio.Event()  # before looking, so that no part is missed
            try:
                delay = await trio.to_thread.run_sync(self._storage.clean)
            except OSError as error:
                text = f"parts cannot be cleaned up: {error}"
                report.problem(text, "problem", message=text)
                delay = math.inf  # until the next part is left
            with trio.move_on_after(delay):
                await self._part_left.wait()
