"""Judges the path to a server: handshake, round trip, loss, size of packets, marks.

Floor 4, pure functions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..quic.handshake.tls_failures import quote
from .commands import command
from .results import Finding, Status, Value
from .text import format_seconds

if TYPE_CHECKING:
    from .target import PathFacts

__all__ = ["check_path"]

#: Lost packets above this share hold the congestion window down noticeably.
_LOSS_TO_WARN = 0.01
_LOSS_TO_FAIL = 0.2

#: An Ethernet path carries packets of this payload.
_ETHERNET_PAYLOAD = 1452

#: Many NATs and firewalls forget a silent UDP flow after so long (RFC 4787 allows no less than
#: 120 s, and many do not care).
_NAT_SECONDS = 30.0


def check_path(path: PathFacts, host: str, system: str) -> list[Finding]:
    """Handshake, protocol, round trip, loss, size of packets, marks, and the idle timeout."""
    findings = [
        _check_handshake(path),
        Finding(
            name="alpn",
            status=Status.OK,
            found=quote(path.alpn or "none", 80),
            values={"protocol": path.alpn},
        ),
        _check_rtt(path),
        _check_loss(path),
        _check_path_mtu(path, host, system),
    ]
    findings.append(
        Finding(
            name="path-ecn",
            status=Status.OK if path.ecn_validated else Status.WARN,
            found=(
                "marks go to the server and its reports come back"
                if path.ecn_validated
                else "marks are lost on the way, or the server does not report them"
            ),
            why=""
            if path.ecn_validated
            else "a full queue shows by lost packets alone: each costs "
            f"{format_seconds(path.rtt_min)} or more until it is repeated",
            values={"works": path.ecn_validated},
        )
    )
    findings.append(_check_idle_timeout(path))
    return findings


def _check_handshake(path: PathFacts) -> Finding:
    found = f"{format_seconds(path.handshake_seconds)}, QUIC version {path.version}"
    found += f", {path.cipher}" if path.cipher else ""
    values: dict[str, Value] = {
        "seconds": round(path.handshake_seconds, 6),
        "version": path.version,
        "cipher": path.cipher,
        "streams": path.streams,
    }
    # A round trip, perhaps another one for Retry or another group; and the work of both ends.
    usual = 3 * path.rtt_min + 0.05
    if path.handshake_seconds <= usual:
        return Finding(name="handshake", status=Status.OK, found=found, values=values)
    return Finding(
        name="handshake",
        status=Status.WARN,
        found=found,
        why=f"a round trip takes {format_seconds(path.rtt_min)}, so {format_seconds(usual)} would "
        "be slow already: a packet was lost, or the server is busy",
        values=values,
    )


def _check_rtt(path: PathFacts) -> Finding:
    median = path.ping_median
    found = (
        f"smallest {format_seconds(path.rtt_min)}, smoothed {format_seconds(path.rtt_smoothed)}, "
        f"median of {len(path.pings)} pings {format_seconds(median)}"
    )
    values: dict[str, Value] = {
        "smallest_seconds": round(path.rtt_min, 6),
        "smoothed_seconds": round(path.rtt_smoothed, 6),
        "ping_median_seconds": round(median, 6),
        "pings": len(path.pings),
    }
    # (A server may delay its acknowledgement of a lone PING by 25 ms: RFC 9000 section 18.2.)
    if median <= 2 * path.rtt_min + 0.03:
        return Finding(name="rtt", status=Status.OK, found=found, values=values)
    return Finding(
        name="rtt",
        status=Status.WARN,
        found=found,
        why=f"half of the packets wait {format_seconds(median - path.rtt_min)} longer than the "
        "way takes: in a queue, or for a busy server",
        values=values,
    )


def _check_loss(path: PathFacts) -> Finding:
    sent, lost = path.packets_sent, path.packets_lost
    # (The rule of three: none of n lost is a rate below 3/n in 95 of 100 cases.)
    hint = "" if lost else f" (so most likely below {300 / max(1, sent):.2g} %)"
    found = f"{lost} of {sent} packets{hint}"
    values: dict[str, Value] = {
        "sent_packets": sent,
        "lost_packets": lost,
        "lost_percent": round(100 * path.loss, 3),
    }
    # One packet in a hundred can be chance.
    if path.loss <= _LOSS_TO_WARN or lost < 2:
        return Finding(name="loss", status=Status.OK, found=found, values=values)
    return Finding(
        name="loss",
        status=Status.FAIL if path.loss >= _LOSS_TO_FAIL else Status.WARN,
        found=found,
        why=f"{100 * path.loss:.2g} % lost; one connection then reaches about "
        f"{8e-6 * 1.2 * path.path_mtu / path.rtt_min / math.sqrt(path.loss):.3g} Mbit/s "
        "(RFC 3448), several share the loss (pool, striping)",
        values=values,
    )


def _check_path_mtu(path: PathFacts, host: str, system: str) -> Finding:
    found = f"packets of {path.path_mtu:,} bytes"
    values: dict[str, Value] = {"payload_bytes": path.path_mtu}
    if path.path_mtu >= 1350:
        return Finding(name="path-mtu", status=Status.OK, found=found, values=values)
    return Finding(
        name="path-mtu",
        status=Status.WARN,
        found=found,
        why=f"Ethernet carries {_ETHERNET_PAYLOAD:,}: the same data takes "
        f"{100 * (_ETHERNET_PAYLOAD / path.path_mtu - 1):.0f} % more packets, which cost 4.2 us "
        "of processor time each; a tunnel (VPN, PPPoE) on the way is the usual cause",
        commands=command("path-mtu", system, host=host),
        values=values,
    )


def _check_idle_timeout(path: PathFacts) -> Finding:
    seconds = path.idle_timeout
    found = "none" if seconds == math.inf else f"{seconds:g} s of silence end a connection"
    values: dict[str, Value] = {"seconds": None if seconds == math.inf else seconds}
    if seconds == math.inf or seconds >= 5:
        return Finding(name="idle-timeout", status=Status.OK, found=found, values=values)
    return Finding(
        name="idle-timeout",
        status=Status.WARN,
        found=found,
        why=f"a pause of {seconds:g} s costs a new handshake; set keep_alive to {seconds / 2:g} s "
        f"(many firewalls need {_NAT_SECONDS:g} s or less anyway)",
        values=values,
    )
