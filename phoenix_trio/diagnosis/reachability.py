"""Judges whether a server can be reached, and why a handshake has failed.

Floor 4, pure functions.  Text of the server is quoted, and cannot command a terminal.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from ..errors import ClientCertificateRequired, HandshakeTimedOut, NoCommonProtocol
from ..quic.path_address import SocketAddress, display_address
from ..quic.wire.protection import VERSION_1, VERSION_2
from .commands import command
from .probing import Outcome, Probe
from .results import Finding, Status, Value
from .text import format_seconds

__all__ = ["check_failure", "check_name", "check_reachability", "name_unknown"]

#: RFC 8305 section 5: a client waits so long for an address before it tries the next one.
_ATTEMPT_SECONDS = 0.25

_VERSION_NAMES = {VERSION_1: "1", VERSION_2: "2"}


def name_unknown(host: str, reason: str, system: str) -> Finding:
    """The name has no address."""
    return Finding(
        name="name",
        status=Status.FAIL,
        found=reason,
        why="without an address, 0 of all connections can be made; a name server that answers "
        "elsewhere shows a typing error or a private name",
        commands=command("names", system, host=host),
        values={"addresses": []},
    )


def check_name(host: str, addresses: Sequence[str], seconds: float) -> Finding:
    """How the name was resolved."""
    families = {":" in address for address in addresses}
    words = {True: "IPv6", False: "IPv4"}
    found = f"{', '.join(addresses)} ({' and '.join(words[each] for each in sorted(families))})"
    values: dict[str, Value] = {"addresses": list(addresses), "seconds": round(seconds, 6)}
    if seconds <= _ATTEMPT_SECONDS:
        return Finding(name="name", status=Status.OK, found=found, values=values)
    return Finding(
        name="name",
        status=Status.WARN,
        found=f"{found} after {format_seconds(seconds)}",
        why=f"each new connection to {host} begins {format_seconds(seconds)} late; a pool, or "
        "a name server near by, saves that",
        values=values,
    )


def check_reachability(
    probes: Sequence[Probe], connected: SocketAddress | None, port: int, system: str
) -> list[Finding]:
    """Whether UDP reaches the server, by each family; and the versions it offers.

    Args:
      probes: of all addresses.
      connected: the address with which a handshake was completed; ``None``: there was none.
      port: the server's port.
      system: for the commands.
    """
    findings = [
        _check_family(
            "udp-ipv6" if is_ipv6 else "udp-ipv4",
            [probe for probe in probes if probe.is_ipv6 is is_ipv6],
            connected,
            port,
            system,
            is_only=all(probe.is_ipv6 is is_ipv6 for probe in probes),
        )
        for is_ipv6 in (False, True)
        if any(probe.is_ipv6 is is_ipv6 for probe in probes)
    ]
    offered = sorted({version for probe in probes for version in probe.versions})
    if offered:
        findings.append(_check_versions(offered))
    return findings


def _check_family(
    name: str,
    probes: Sequence[Probe],
    connected: SocketAddress | None,
    port: int,
    system: str,
    *,
    is_only: bool,
) -> Finding:
    # One address that works is enough: clients try all.
    order = list(Outcome)
    probe = min(probes, key=lambda each: order.index(each.outcome))
    host = display_address(probe.address)[0]
    values: dict[str, Value] = {
        "address": str(host),
        "outcome": probe.outcome.value,
        "seconds": None if probe.seconds is None else round(probe.seconds, 6),
    }
    if any(each.address == connected for each in probes) and connected is not None:
        where = display_address(connected)[0]
        found = f"{where} answers"
        if probe.seconds is not None:
            found += f" after {format_seconds(probe.seconds)}"
        elif probe.outcome is Outcome.SILENT:
            found += ", but not to a packet of an unknown version"
        return Finding(name=name, status=Status.OK, found=found, values=values)
    if probe.outcome is Outcome.ANSWERED:
        found = f"{host} answers after {format_seconds(probe.seconds or 0.0)}"
        return Finding(name=name, status=Status.OK, found=found, values=values)
    bad = Status.FAIL if is_only else Status.WARN
    if probe.outcome is Outcome.REFUSED:
        return Finding(
            name=name,
            status=bad,
            found=f"{host} says that nothing listens on port {port}/udp (ICMP port unreachable)",
            why="the answer took 1 round trip, so the way is open: the server does not run, or "
            "has another port",
            commands=command("listens", system, port=port),
            values=values,
        )
    if probe.outcome is Outcome.BLOCKED_HERE:
        return Finding(
            name=name,
            status=bad,
            found=f"this host refuses to send to {host}",
            why="a firewall here forbids UDP to it: 0 packets leave",
            commands=command("firewall-here", system),
            values=values,
        )
    if probe.outcome is Outcome.UNREACHABLE:
        number = probe.errno or errno.EHOSTUNREACH
        reason = os.strerror(number)
        is_ours = number in (errno.ENETUNREACH, errno.EAFNOSUPPORT) and not is_only
        return Finding(
            name=name,
            # Clients skip such an address at once, so it costs nothing.
            status=Status.OK if is_ours else bad,
            found=f"{host} cannot be reached from here: {reason}",
            why="" if is_ours else "the first packet brought this report, so every dial fails",
            commands=() if is_ours else command("route", system, host=str(host)),
            values=values,
        )
    return Finding(
        name=name,
        status=bad,
        found=f"{host} is silent: no answer to 3 packets in 2 s, and no ICMP message",
        why=(
            "a firewall drops UDP on the way, mostly at the server"
            if is_only
            else f"clients that try it first lose {_ATTEMPT_SECONDS:g} s (RFC 8305); a firewall "
            "drops UDP on the way"
        )
        + f"; a closed port answers in one round trip. Let UDP port {port} through",
        commands=command("firewall-there", system, port=port),
        values=values,
    )


def _check_versions(offered: Sequence[int]) -> Finding:
    # (Versions of the form 0x?a?a?a?a keep clients from relying on the list: RFC 9000 section 15.)
    real = [each for each in offered if each & 0x0F0F0F0F != 0x0A0A0A0A]
    shown = ", ".join(_VERSION_NAMES.get(each, f"0x{each:08x}") for each in real[:16])
    values: dict[str, Value] = {"versions": [f"0x{each:08x}" for each in real[:64]]}
    if any(each in _VERSION_NAMES for each in real):
        return Finding(name="versions-offered", status=Status.OK, found=shown, values=values)
    return Finding(
        name="versions-offered",
        status=Status.FAIL,
        found=shown or "none",
        why="phoenix_trio speaks versions 1 (RFC 9000) and 2 (RFC 9369): 0 are in common",
        values=values,
    )


# ------------------------------------------------------------------ a failed handshake


def check_failure(
    failure: Exception,
    offered: Sequence[str],
    probes: Sequence[Probe],
    where: str,
    system: str,
) -> Finding:
    """Why there is no connection.

    Args:
      failure: the error of the dialling call.
      offered: the protocols that were offered.
      probes: of all addresses.
      where: the target, ``HOST:PORT``.
      system: for the commands.
    """
    found = str(failure)
    values: dict[str, Value] = {"error": type(failure).__name__}
    if isinstance(failure, NoCommonProtocol):
        names = ", ".join(offered)
        return Finding(
            name="alpn",
            status=Status.FAIL,
            found=f"the server takes none of the {len(offered)} protocols offered: {names}",
            why="a server answers only to the name of its own protocol (RFC 9001 section 8.1); "
            "its documentation has it, or its argument alpn",
            commands=(f"phoenix-trio doctor {where} --alpn NAME",),
            values={"offered": list(offered)},
        )
    if isinstance(failure, ClientCertificateRequired):
        return Finding(
            name="handshake",
            status=Status.FAIL,
            found="the server requires a client certificate",
            why="it refuses 1 of 1 clients without one that its authority has signed",
            commands=(f"phoenix-trio doctor {where} --certificate FILE --key FILE",),
            values=values,
        )
    if isinstance(failure, HandshakeTimedOut):
        if any(probe.outcome is Outcome.ANSWERED for probe in probes):
            why = "it answers small packets; those of the handshake have 1,200 bytes each way, "
            why += "and one that is cut off at a smaller MTU is lost each time"
            commands = command("path-mtu", system, host=_host_of(probes))
        else:
            why = "a server that can be reached answers in 1 or 2 round trips; see above"
            commands = ()
        return Finding(
            name="handshake",
            status=Status.FAIL,
            found="no complete handshake within 5 s",
            why=why,
            commands=commands,
            values=values,
        )
    return Finding(name="handshake", status=Status.FAIL, found=found, values=values)


def _host_of(probes: Sequence[Probe]) -> str:
    return str(display_address(probes[0].address)[0])
