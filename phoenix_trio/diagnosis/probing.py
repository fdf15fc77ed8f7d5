"""Asks an address whether a QUIC server is there, with one packet of a version that does not exist.

Floor 4.  A server answers it with the versions it speaks (RFC 9000 section 6, RFC 8999), and
keeps no state for it.  An answer counts if it quotes both connection IDs, drawn at random.
"""

from __future__ import annotations

import errno
import os
from enum import Enum

import attrs
import trio

from ..config import SMALLEST_UDP_PAYLOAD
from ..quic.datagram_socket import DatagramSocket, Network
from ..quic.handshake.packets import NEGOTIATION, parse_long, parse_versions
from ..quic.path_address import SocketAddress, display_address

__all__ = ["Outcome", "Probe", "probe_address"]

#: RFC 9000 section 15: a version of this form is reserved, and forces an answer.
_RESERVED_VERSION = 0x1A2A3A4A

#: Seconds until each repetition, and then until the address counts as silent.
_PAUSES = (0.3, 0.6, 1.1)

_CONNECTION_ID = 8


class Outcome(Enum):
    """The result of a probe in one word."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """The host says that no program listens (ICMP port unreachable)."""
    UNREACHABLE = "unreachable"
    """The network, or this host, says that there is no way."""
    BLOCKED_HERE = "blocked here"
    """This host refuses to send."""
    SILENT = "silent"


@attrs.frozen(kw_only=True)
class Probe:
    """The result for one address."""

    address: SocketAddress
    outcome: Outcome
    seconds: float | None = None
    """From the probe that was answered to its answer."""
    versions: tuple[int, ...] = ()
    """The QUIC versions that the server offers."""
    errno: int | None = None

    @property
    def is_ipv6(self) -> bool:
        """Whether the address is one of IPv6."""
        return ":" in display_address(self.address)[0]


def _packet(destination: bytes, source: bytes) -> bytes:
    header = (
        bytes((0xC0 | os.urandom(1)[0] & 0x3F,))
        + _RESERVED_VERSION.to_bytes(4, "big")
        + bytes((len(destination),))
        + destination
        + bytes((len(source),))
        + source
    )
    return header + bytes(SMALLEST_UDP_PAYLOAD - len(header))


async def probe_address(network: Network, address: SocketAddress) -> Probe:
    """Ask one address; takes two seconds if it is silent.

    Raises:
      OSError: no socket can be opened.
    """
    socket = await network.open_socket(None, 0, buffer_size=65536)
    try:
        target = socket.reachable(address)
        if target is None:
            return Probe(address=address, outcome=Outcome.UNREACHABLE, errno=errno.EAFNOSUPPORT)
        socket.report_failures(wanted=True)
        destination, source = os.urandom(_CONNECTION_ID), os.urandom(_CONNECTION_ID)
        packet = _packet(destination, source)
        for pause in _PAUSES:
            sent_at = trio.current_time()
            socket.send_run(packet, target)
            found = _failure(socket, address, packet)
            if found is None:
                with trio.move_on_after(pause):
                    found = await _wait_for_answer(
                        socket, address, packet, destination, source, sent_at
                    )
            if found is not None:
                return found
        statistics = socket.statistics
        if statistics.soft_errors and not statistics.datagrams_sent:
            return Probe(address=address, outcome=Outcome.BLOCKED_HERE)
        return Probe(address=address, outcome=Outcome.SILENT)
    finally:
        socket.close()


async def _wait_for_answer(
    socket: DatagramSocket,
    address: SocketAddress,
    packet: bytes,
    destination: bytes,
    source: bytes,
    sent_at: float,
) -> Probe:
    while True:
        await socket.wait_readable()
        for data, _, segment, _, size in socket.receive_runs(4):
            answer = bytes(data[: min(segment, size)])
            header = parse_long(answer, 0) if answer and answer[0] & 0x80 else None
            if (
                header is not None
                and header.kind == NEGOTIATION
                and header.destination_cid == source
                and header.source_cid == destination
            ):
                return Probe(
                    address=address,
                    outcome=Outcome.ANSWERED,
                    seconds=trio.current_time() - sent_at,
                    versions=tuple(parse_versions(answer, header.number_at)),
                )
        found = _failure(socket, address, packet)
        if found is not None:
            return found


def _failure(socket: DatagramSocket, address: SocketAddress, packet: bytes) -> Probe | None:
    """The report of the network about this packet, if there is one."""
    for failure in socket.take_failures():
        quoted = failure.start[:32]
        if not quoted or not packet.startswith(quoted):
            continue  # forged, or of another program
        refused = failure.number == errno.ECONNREFUSED
        return Probe(
            address=address,
            outcome=Outcome.REFUSED if refused else Outcome.UNREACHABLE,
            errno=failure.number,
        )
    return None
