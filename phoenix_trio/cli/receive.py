"""``phoenix-trio receive``: a server which stores incoming files in a directory."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

import click
import trio

from ..config import TransportConfig
from ..quic.certificates import create_development_ca, fingerprint, issue_certificate
from ..quic.connection import QuicConnection
from ..quic.serving import serve
from ..quic.stream import QuicStream
from ..quic.tls import ServerTLS
from .failures import failures_in_one_line
from .options import SIZE, format_size, transport_config, transport_options
from .progress import Display, show_progress
from .storage import Storage
from .transfer import ALPN, TransferError, receive_file

__all__ = ["receive"]

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
    "--count", type=click.IntRange(1), metavar="N", help="End after so many files were stored."
)
@click.option(
    "--ready-file",
    type=click.Path(),
    metavar="FILE",
    help="Write port and fingerprint there (JSON) when listening; for scripts.",
)
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
    count: int | None,
    ready_file: str | None,
    max_udp_payload_size: int | None,
    idle_timeout: float,
) -> None:
    """Store incoming files in DIRECTORY.

    Names from senders cannot lead outside of it, existing files are kept, and a
    file has its name only when it is whole and its checksum agrees; parts of
    broken transfers wait under hidden names (.NAME.*.part) to be continued.

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
    storage = Storage(directory, overwrite=overwrite, max_file_size=max_file_size)
    try:
        trio.run(
            partial(
                _receive,
                storage=storage,
                tls=tls,
                host=host,
                port=port,
                config=transport_config(max_udp_payload_size, idle_timeout),
                count=count,
                on_listening=partial(_announce, pin=pin, host=host, ready_file=ready_file),
            ),
        )
    finally:
        storage.close()


def _announce(port: int, *, pin: str, host: str | None, ready_file: str | None) -> None:
    where = host or socket.gethostname()
    shown = f"[{where}]" if ":" in where else where
    click.echo(f"listening on {shown}:{port}, certificate fingerprint {pin}")
    click.echo(f"send with: phoenix-trio send {shown}:{port} FILE --pin {pin}")
    sys.stdout.flush()
    if ready_file is not None:
        # Whoever waits for the file finds it whole.
        temporary = f"{ready_file}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"host": host, "port": port, "fingerprint": pin}, file)
        os.replace(temporary, ready_file)


async def _receive(
    *,
    storage: Storage,
    tls: ServerTLS,
    host: str | None,
    port: int,
    config: TransportConfig,
    count: int | None,
    on_listening: Callable[[int], object],
) -> None:
    remaining = count
    done = trio.Event()

    with show_progress() as display:

        async def take(stream: QuicStream) -> None:
            nonlocal remaining
            async with stream:
                stored = await _take_file(stream, storage, display)
            if stored and remaining is not None:
                remaining -= 1
                if remaining == 0:
                    done.set()

        async def handler(connection: QuicConnection) -> None:
            async with trio.open_nursery() as nursery:
                async for stream in connection.incoming_streams():
                    nursery.start_soon(take, stream)

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(serve, handler, port, tls=tls, host=host, alpn=(ALPN,), config=config)
            )
            on_listening(listeners[0].port)
            await done.wait()
            # The last sender still waits for the answer to its last file: the server ends
            # by itself when it has gone, or when it takes too long.
            for listener in listeners:
                await listener.aclose()
            nursery.cancel_scope.deadline = trio.current_time() + _GOODBYE_SECONDS


async def _take_file(stream: QuicStream, storage: Storage, display: Display) -> bool:
    number: int | None = None

    def begin(path: str, size: int | None, offset: int) -> None:
        nonlocal number
        number = display.begin(path, size)

    def progress(position: int) -> None:
        if number is not None:
            display.update(number, position)

    try:
        outcome = await receive_file(stream, storage, on_begin=begin, on_progress=progress)
    except TransferError as error:
        click.echo(f"refused: {error}", err=True)
        return False
    except trio.BrokenResourceError as error:
        click.echo(f"interrupted: {error}", err=True)
        return False
    finally:
        if number is not None:
            display.finish(number)
    resumed = f", resumed at {format_size(outcome.resumed_at)}" if outcome.resumed_at else ""
    click.echo(f"stored {outcome.path} ({format_size(outcome.size)}{resumed}) {outcome.sha256}")
    return True
