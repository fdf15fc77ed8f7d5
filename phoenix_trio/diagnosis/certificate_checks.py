"""Judges a server's certificate, the resumption of its sessions, and moves to another path.

Floor 4, pure functions.  Text of the server is quoted, and cannot command a terminal.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ..errors import (
    CertificateExpired,
    CertificateNameMismatch,
    CertificateUntrusted,
    MigrationFailed,
    MigrationForbidden,
)
from ..quic.handshake.tls_failures import MALFORMED, describe, names_of, quote
from .commands import command
from .results import Finding, Status, Value
from .text import format_seconds

__all__ = ["DAYS_LEFT_TO_WARN", "check_certificate", "check_migration", "check_resumption"]

#: A certificate with fewer days left should have been renewed.
DAYS_LEFT_TO_WARN = 14


def check_certificate(
    chain: Sequence[x509.Certificate],
    failure: Exception | None,
    where: str,
    system: str,
    now: dt.datetime | None = None,
) -> Finding:
    """Whether the certificate is trusted, and for how long.

    Args:
      chain: what the server has shown, its own certificate first.
      failure: why it is not trusted; ``None``: it is.
      where: the target, ``HOST:PORT``.
      system: for the commands.
      now: the time; ``None``: the clock's.
    """
    # Certificates carry calendar dates, so this takes the wall clock.
    now = dt.datetime.now(dt.UTC) if now is None else now
    values: dict[str, Value] = {"certificates": len(chain)}
    shown = ""
    days = math.inf
    fingerprint = ""
    if chain:
        fingerprint = chain[0].fingerprint(hashes.SHA256()).hex()
        values["sha256"] = fingerprint
        try:
            end = _end(chain, now if failure is None else None)
            shown = f"{len(chain)} sent, for {names_of(chain[0])}, "
            values["subject_and_issuer"] = describe(chain[0])
        except MALFORMED as error:
            shown = f"{len(chain)} sent, malformed: {quote(str(error))}"
        else:
            days = (end - now).total_seconds() / 86400
            shown += (
                f"valid until {end:%Y-%m-%d} ({days:.0f} days left)"
                if days >= 0
                else f"expired on {end:%Y-%m-%d %H:%M} UTC, {-days:.0f} days ago"
            )
            values |= {"not_after": end.isoformat(), "days_left": round(days, 2)}
    if failure is not None:
        values["error"] = type(failure).__name__
        why, commands = _untrusted(failure, days, fingerprint, where, system)
        return Finding(
            name="certificate",
            status=Status.FAIL,
            found=_failed(failure, shown, days),
            why=why,
            commands=commands,
            values=values,
        )
    if days < DAYS_LEFT_TO_WARN:
        return Finding(
            name="certificate",
            status=Status.WARN,
            found=shown,
            why=f"in {days:.1f} days every handshake fails; connections that are open go on. "
            "ServerTLS.reload takes the new one into use without a restart",
            commands=("certbot renew   # on the server, or your authority's way",),
            values=values,
        )
    return Finding(name="certificate", status=Status.OK, found=shown, values=values)


def _end(chain: Sequence[x509.Certificate], trusted_at: dt.datetime | None) -> dt.datetime:
    """When the server's certificate, or that of its issuer, ends.

    Others are left out: an authority can have several certificates, of which one is enough.  So
    is an issuer that had ended when the chain was trusted.
    """
    own = chain[0]
    issuers = [
        each
        for each in chain[1:]
        if each.subject == own.issuer
        and (trusted_at is None or each.not_valid_after_utc > trusted_at)
    ]
    return min(each.not_valid_after_utc for each in (own, *issuers))


def _failed(failure: Exception, shown: str, days: float) -> str:
    """The finding about a certificate that is not trusted."""
    if isinstance(failure, CertificateExpired) and days < 0:
        return shown
    return f"{failure}; {shown}" if shown else str(failure)


def _untrusted(
    failure: Exception, days: float, fingerprint: str, where: str, system: str
) -> tuple[str, tuple[str, ...]]:
    """Why it matters, and what to do."""
    if isinstance(failure, CertificateExpired):
        why = "every client that verifies it refuses the server"
        if days < 0:
            why += f", for {-days:.0f} days now"
        return (
            f"{why}; if the date here is wrong, set the clock instead",
            ("certbot renew   # on the server, or your authority's way", *command("clock", system)),
        )
    if isinstance(failure, CertificateNameMismatch):
        return "every client that dials this name refuses the server", (
            f"phoenix-trio doctor {where} --server-name NAME",
        )
    if isinstance(failure, CertificateUntrusted) and fingerprint:
        return "clients need its authority, or its fingerprint of 64 digits", (
            f"phoenix-trio doctor {where} --ca ca.pem",
            f"phoenix-trio doctor {where} --pin {fingerprint}",
        )
    return "clients with these settings refuse the server", ()


def check_resumption(
    resumed: bool | None, early_data: bool | None, seconds: float | None = None
) -> Finding:
    """Whether sessions are resumed, and early data is taken.

    Args:
      resumed: ``None``: the server has given no ticket.
      early_data: whether it took 0-RTT.
      seconds: of the resumed handshake, until it was confirmed.
    """
    values: dict[str, Value] = {
        "resumed": bool(resumed),
        "early_data": bool(early_data),
        "seconds": None if seconds is None else round(seconds, 6),
    }
    if resumed:
        found = "a session is resumed"
        found += " with early data (0-RTT)" if early_data else ", early data (0-RTT) is not taken"
        if seconds is not None:
            found += f"; confirmed after {format_seconds(seconds)}"
        return Finding(name="resumption", status=Status.OK, found=found, values=values)
    return Finding(
        name="resumption",
        status=Status.WARN,
        found="the server gives no ticket"
        if resumed is None
        else "the server does not take its own ticket",
        why="each connection proves the certificate anew, and an answer takes two round trips; "
        "with early data in a resumed session it takes one",
        values=values,
    )


def check_migration(outcome: MigrationFailed | bool | None) -> Finding:
    """Whether a connection may move to another path.

    Args:
      outcome: ``True``: it has moved; the error if not; ``None``: no answer in time.
    """
    if outcome is True:
        return Finding(
            name="migration",
            status=Status.OK,
            found="the connection has moved to another port of this host",
            values={"works": True},
        )
    if isinstance(outcome, MigrationForbidden):
        found = "the server permits no moves (disable_active_migration)"
    elif isinstance(outcome, MigrationFailed):
        found = str(outcome)
    else:
        found = "no answer on another port of this host for 3 s: a firewall, or a load balancer"
    return Finding(
        name="migration",
        status=Status.WARN,
        found=found,
        why="a device that comes to another network has to connect anew: one handshake, and all "
        "streams of the connection are lost",
        values={"works": False},
    )
