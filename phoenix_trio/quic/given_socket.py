"""Checks and takes over UDP sockets that the application hands in.

Floor 1.  For sockets bound by another program, as by systemd for a service, and for options that
must be set before a socket is bound.
"""

from __future__ import annotations

import socket
import sys

from . import socket_options
from .packet_io import UdpSocket

__all__ = ["adopt_socket", "check_socket"]

#: Missing from the socket module; it tells a UDP socket from one for pings, for instance.
_SO_PROTOCOL = 38


def check_socket(given: object) -> socket.socket:
    """The argument, if it is a bound UDP socket; it is not changed in any way.

    Raises:
      TypeError: it is not a :class:`socket.socket`.
      ValueError: it is closed, not a UDP socket over IPv4 or IPv6, not bound, or connected.
    """
    if not isinstance(given, socket.socket):
        raise TypeError(f"socket must be a socket.socket, not {given!r}")
    if given.fileno() < 0:
        raise ValueError("the socket is closed")
    if given.family not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"the socket must be one of IPv4 or IPv6, not {given.family!r}")
    # (The caller may have set the type of the object freely, so ask the system.)
    kind = given.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    if kind != socket.SOCK_DGRAM:
        raise ValueError(f"the socket must be a datagram socket (SOCK_DGRAM), not of type {kind}")
    if sys.platform == "linux":
        protocol = given.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL)
        if protocol != socket.IPPROTO_UDP:
            raise ValueError(f"the socket must be of UDP, not of IP protocol {protocol}")
    address = given.getsockname()
    if not address[1]:
        raise ValueError("the socket is not bound; bind it to an address first")
    try:
        peer = given.getpeername()
    except OSError:
        return given
    raise ValueError(f"the socket is connected to {peer[0]} port {peer[1]}; QUIC peers may move")


def adopt_socket(given: socket.socket, buffer_size: int) -> UdpSocket:
    """Take over a socket that :func:`check_socket` has accepted.

    It becomes non-blocking, and its datagrams are not fragmented.  Buffers of a chosen size are
    left as they are; buffers of the system's default size become `buffer_size`.
    """
    given.setblocking(False)
    socket_options.forbid_fragments(given, given.family)
    with socket.socket(given.family, socket.SOCK_DGRAM) as ordinary:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            default = socket_options.granted_buffer(ordinary, option)
            if socket_options.granted_buffer(given, option) == default:
                socket_options.set_buffer(given, option, buffer_size)
    host = given.getsockname()[0]
    dual_stack = (
        given.family == socket.AF_INET6
        and host == "::"
        and not given.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return UdpSocket(given, dual_stack=dual_stack)
