"""``phoenix-trio send``: move files and directories to a receiver."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import click

from ..config import TransportConfig
from ..quic.handshake.tls import ClientTLS
from .failures import failures_in_one_line
from .options import TARGET, transport_config, transport_options
from .reports import Format, output_options, show_report
from .running import run
from .sending import Sending
from .sources import find_sources

__all__ = ["send"]


@click.command()
@click.argument("target", type=TARGET, metavar="HOST[:PORT]")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--ca", type=click.Path(), metavar="FILE", help="Trust this authority (PEM).")
@click.option(
    "--pin", metavar="FINGERPRINT", help="Trust exactly the certificate with this SHA-256."
)
@click.option(
    "--server-name", metavar="NAME", help="Which the certificate has to name.  [default: HOST]"
)
@click.option("--certificate", type=click.Path(), metavar="FILE", help="To show to the receiver.")
@click.option("--key", type=click.Path(), metavar="FILE", help="The key of --certificate.")
@click.option("--name", help="Store the (only) file or directory under this name.")
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
@click.option(
    "--skip-existing",
    is_flag=True,
    help="Files that exist at the receiver are no failure; they are not compared.",
)
@output_options
@transport_options
@failures_in_one_line
def send(
    target: tuple[str, int],
    files: Sequence[str],
    ca: str | None,
    pin: str | None,
    server_name: str | None,
    certificate: str | None,
    key: str | None,
    name: str | None,
    retries: int,
    retry_delay: float,
    skip_existing: bool,
    output: Format,
    max_udp_payload_size: int | None,
    idle_timeout: float,
) -> None:
    """Send each FILE or directory to a receiver ("-": standard input).

    A file counts as sent when the receiver has stored it and both checksums
    agree.  When the connection breaks, a new one goes on where it ended; so does
    the same command given again later.  Standard input cannot be read twice and
    is sent once.

    Of a directory, all files and directories below are sent.  Symbolic links,
    hidden files and others that cannot be sent are left out and named, and the
    exit status is 1 then.

    \b
    Examples:
        phoenix-trio send there:4433 big.iso --pin ab:cd:...
        phoenix-trio send there photos --pin ab:cd:... --skip-existing
        tar c photos | phoenix-trio send there - --name photos.tar --ca ca.pem
    """
    if name is not None and len(files) != 1:
        raise click.UsageError("--name goes with a single file")
    if list(files).count("-") > 1:
        raise click.UsageError("standard input (-) can be sent once")
    if ca is not None and pin is not None:
        raise click.UsageError("--ca and --pin exclude each other")
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key go together")
    sources = list(find_sources(files, name))
    tls = ClientTLS(
        ca=ca,
        pinned_sha256=pin,
        server_name=server_name,
        certificate=certificate,
        private_key=key,
    )
    config = transport_config(max_udp_payload_size, idle_timeout)
    sending = Sending(sources, retries, retry_delay, skip_existing)
    run(partial(_send, sending, target, tls, config, output))
    if not sending.is_complete:
        sys.exit(1)


async def _send(
    sending: Sending,
    target: tuple[str, int],
    tls: ClientTLS,
    config: TransportConfig,
    output: Format,
) -> None:
    with show_report(output) as report:
        await sending.run(target, tls, config, report)
