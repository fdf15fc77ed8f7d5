"""``phoenix-trio certificate``: a development authority, and a certificate it has signed."""

from __future__ import annotations

import datetime as dt
import os

import click

from ..quic.handshake.certificates import create_development_ca, fingerprint, issue_certificate
from .failures import failures_in_one_line

__all__ = ["certificate"]


@click.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False),
    default=".",
    show_default=True,
    help="Where the files go.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    default=("localhost", "127.0.0.1", "::1"),
    show_default=True,
    help="DNS name or IP address of the server; may be given several times.",
)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=398, show_default=True, help="Validity."
)
@click.option("--force", is_flag=True, help="Replace existing files.")
@failures_in_one_line
def certificate(directory: str, names: tuple[str, ...], days: int, force: bool) -> None:
    """Make a development authority, and a server's and a client's certificate signed by it.

    For development and private networks: with ca-key.pem one can pose as any
    server to all clients that trust ca.pem.

    \b
    Writes:
        ca.pem, ca-key.pem            the authority; clients trust ca.pem
        server.pem, server-key.pem    for the server's NAMEs
        client.pem, client-key.pem    for servers that ask for a certificate
    \b
    Example:
        phoenix-trio certificate --directory certificates --name files.example.org
    """
    authority = create_development_ca()
    valid_for = dt.timedelta(days=days)
    server = issue_certificate(authority, names, valid_for=valid_for)
    client = issue_certificate(authority, ["client.invalid"], valid_for=valid_for)
    contents = {
        "ca.pem": authority.certificate,
        "ca-key.pem": authority.private_key,
        "server.pem": server.certificate,
        "server-key.pem": server.private_key,
        "client.pem": client.certificate,
        "client-key.pem": client.private_key,
    }
    os.makedirs(directory, exist_ok=True)
    existing = [name for name in contents if os.path.lexists(os.path.join(directory, name))]
    if existing and not force:
        raise FileExistsError(
            f"{', '.join(existing)} exist in {directory!r}; --force replaces them"
        )
    for name, content in contents.items():
        _write(os.path.join(directory, name), content, secret=name.endswith("-key.pem"))
    click.echo(f"wrote {', '.join(contents)} to {directory}")
    click.echo(f"server fingerprint: {fingerprint(server.certificate)}")
    click.echo("next: phoenix-trio receive incoming --certificate server.pem --key server-key.pem")
    click.echo("      phoenix-trio send HOST FILE --ca ca.pem")


def _write(path: str, content: bytes, *, secret: bool) -> None:
    temporary = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600 if secret else 0o644)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600 if secret else 0o644)
        file.write(content)
    os.replace(temporary, path)
