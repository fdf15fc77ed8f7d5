"""``phoenix-trio doctor``: says what is below par on this machine and on the way to a server."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Iterator

import click
import trio

from ..diagnosis import OFFERED_ALPN, SYMPTOMS, Finding, Report, Status, TargetServer, examine
from ..diagnosis.results import count_statuses
from ..storage.names import printable
from .failures import failures_in_one_line
from .options import TARGET

__all__ = ["doctor", "render"]

_WIDTH = 79
_COLOURS = {
    Status.OK: "green",
    Status.WARN: "yellow",
    Status.FAIL: "red",
    Status.UNKNOWN: "magenta",
}
_INDENT = 28


@click.command()
@click.argument("target", type=TARGET, metavar="[HOST[:PORT]]", required=False)
@click.option("--ca", type=click.Path(), metavar="FILE", help="Trust this authority (PEM).")
@click.option(
    "--pin", metavar="FINGERPRINT", help="Trust exactly the certificate with this SHA-256."
)
@click.option("--server-name", metavar="NAME", help="The name the certificate must have.")
@click.option("--certificate", type=click.Path(), metavar="FILE", help="To show to the server.")
@click.option("--key", type=click.Path(), metavar="FILE", help="The key of --certificate.")
@click.option(
    "--alpn",
    multiple=True,
    metavar="NAME",
    help=f"Offer this protocol; may be given several times.  [default: {', '.join(OFFERED_ALPN)}]",
)
@click.option(
    "--symptom", type=click.Choice(SYMPTOMS), help="Tell the causes of this symptom apart."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--strict", is_flag=True, help="Exit with 1 also after warnings.")
@failures_in_one_line
def doctor(
    target: tuple[str, int] | None,
    ca: str | None,
    pin: str | None,
    server_name: str | None,
    certificate: str | None,
    key: str | None,
    alpn: tuple[str, ...],
    symptom: str | None,
    as_json: bool,
    strict: bool,
) -> None:
    """Say what is below par here, why it matters, and what to type.

    Looks at this machine, and at the server HOST[:PORT] if it is given
    (default port: 4433).  Changes nothing, here and there.

    \b
    Exit status:
        0  all is well (warnings may be there, see --strict)
        1  a check failed
        2  wrong usage

    \b
    Examples:
        phoenix-trio doctor
        phoenix-trio doctor files.example.org:4433 --ca ca.pem
        phoenix-trio doctor there:4434 --symptom low-throughput
    """
    given = {
        "--ca": ca,
        "--pin": pin,
        "--server-name": server_name,
        "--certificate": certificate,
        "--key": key,
        "--alpn": alpn or None,
    }
    if target is None and any(given.values()):
        named = ", ".join(name for name, value in given.items() if value)
        raise click.UsageError(f"{named} needs a server: phoenix-trio doctor HOST:PORT")
    server = None
    if target is not None:
        try:
            server = TargetServer(
                host=target[0],
                port=target[1],
                alpn=alpn or OFFERED_ALPN,
                ca=ca,
                pinned_sha256=pin,
                server_name=server_name,
                certificate=certificate,
                private_key=key,
            )
        except (OSError, ValueError) as error:
            raise click.UsageError(str(error)) from error
    # The report says all; a library without a handler would write its warnings beside it.
    logging.getLogger("phoenix_trio").addHandler(logging.NullHandler())
    report = trio.run(examine, server, symptom)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        for line in render(report):
            click.echo(line)
    sys.exit(report.exit_status(strict=strict))


def render(report: Report) -> Iterator[str]:
    """The lines for people, at most 79 columns wide but for commands; with colours."""
    titles = {
        "machine": "This machine",
        "target": f"The server {report.target}",
        "symptom": f"Causes of {report.symptom}",
    }
    for group, findings in report.groups.items():
        yield click.style(printable(titles[group]), bold=True)
        for finding in findings:
            yield from _render(finding)
        yield ""
    counts = count_statuses(report.findings)
    words = {
        Status.OK: "fine",
        Status.WARN: "below par",
        Status.FAIL: "failed",
        Status.UNKNOWN: "not checked",
    }
    yield ", ".join(f"{counts[status]} {words[status]}" for status in Status if counts[status])


def _render(finding: Finding) -> Iterator[str]:
    label = click.style(f"{finding.status.value:8}", fg=_COLOURS[finding.status])
    indent = " " * _INDENT
    found = _wrap(finding.found) or [""]
    yield f"  {label}{finding.name:{_INDENT - 11}} {found[0]}"
    for line in found[1:]:
        yield indent + line
    if finding.status in (Status.OK, Status.UNKNOWN):
        return
    for line in _wrap(f"why: {finding.why}" if finding.why else ""):
        yield indent + line
    for command in finding.commands:
        # In one piece, so that it can be copied.
        yield f"{indent}$ {printable(command)}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(printable(text), _WIDTH - _INDENT, break_on_hyphens=False)
