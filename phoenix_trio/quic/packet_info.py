"""Reads and builds control messages with the local address of a datagram.

Floor 1, for :mod:`~phoenix_trio.quic.packet_io`.  Linux only: ``IP_PKTINFO`` (``ip(7)``) on IPv4
sockets; ``IPV6_PKTINFO`` (RFC 3542 section 6) on IPv6 sockets, for IPv4-mapped addresses as
well.  Other systems choose the source address themselves.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import Final

__all__ = ["MESSAGES", "SPACE", "ask", "local_address", "source_message"]

# The socket module of Python 3.11 does not name the first one.
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50

_IPV4 = (socket.IPPROTO_IP, _IP_PKTINFO)
_IPV6 = (socket.IPPROTO_IPV6, _IPV6_PKTINFO)

#: Level and type of the messages.
MESSAGES: Final = frozenset({_IPV4, _IPV6})

#: ``struct in_pktinfo``: interface, local address, destination address of the header.
_IN_PKTINFO = struct.Struct("=i4s4s")
#: ``struct in6_pktinfo``: address, interface.
_IN6_PKTINFO = struct.Struct("=16si")

#: The most bytes that one of them takes in a control buffer, with its header.
SPACE: Final = 16 + 24

_NO_ADDRESS = bytes(4)
_BROADCAST = bytes([255] * 4)
_MAPPED = bytes(10) + bytes([255] * 2)


def ask(raw: socket.socket) -> bool:
    """Ask the kernel for the local address of each datagram; whether it will report it.

    ``False`` as well for a socket bound to one address, since there is no choice.
    """
    if sys.platform != "linux" or raw.getsockname()[0] not in ("::", "0.0.0.0"):  # noqa: S104
        return False
    try:
        if raw.family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            raw.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    except OSError:
        return False
    return True


def local_address(level: int, value: bytes) -> str | None:
    """The local address of arrival, from one of the :data:`MESSAGES`.

    ``None``: not an address to send from (multicast, broadcast), so that the kernel's choice is
    better.
    """
    if level == socket.IPPROTO_IP:
        if len(value) < _IN_PKTINFO.size:
            return None
        # The kernel puts the interface's address in place of a broadcast address.  For datagrams
        # queued before it was asked, there is only the destination in the header.
        interface, local, destination = _IN_PKTINFO.unpack_from(value)
        return _ipv4_text(destination if local == _NO_ADDRESS else local, interface)
    if len(value) < _IN6_PKTINFO.size:
        return None
    address, interface = _IN6_PKTINFO.unpack_from(value)
    if address.startswith(_MAPPED):
        text = _ipv4_text(address[12:], interface)
        return None if text is None else "::ffff:" + text
    ip = ipaddress.IPv6Address(address)
    if ip.is_multicast or ip.is_unspecified:
        return None
    return f"{ip}%{interface}" if ip.is_link_local and interface else str(ip)


def _ipv4_text(address: bytes, interface: int) -> str | None:
    ip = ipaddress.IPv4Address(address)
    if ip.is_multicast or ip.is_unspecified or address == _BROADCAST:
        return None
    return f"{ip}%{interface}" if ip.is_link_local and interface else str(ip)


def source_message(family: int, local: str) -> tuple[int, int, bytes]:
    """The message that sends a datagram from `local`, a :func:`local_address`.

    It names the interface only for link-local addresses, which mean nothing without it.  Packets
    from other addresses follow the routing table.
    """
    host, _, scope = local.partition("%")
    interface = int(scope or 0)
    if family == socket.AF_INET:
        packed = socket.inet_pton(socket.AF_INET, host)
        return (*_IPV4, _IN_PKTINFO.pack(interface, packed, _NO_ADDRESS))
    return (*_IPV6, _IN6_PKTINFO.pack(socket.inet_pton(socket.AF_INET6, host), interface))
