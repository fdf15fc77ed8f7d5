"""Sets options of a real UDP socket: fragmentation, buffers, GSO, GRO, ECN; and reads its MTU.

Floor 1.  If the system lacks an option, the functions return false or do nothing.  Runs and
marks are supported on Linux only (``udp(7)``, ``ip(7)``, ``ipv6(7)``).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys

from .logs import bounded_logger
from .path_address import SocketAddress, local_socket_address

__all__ = [
    "SOL_UDP",
    "UDP_GRO",
    "UDP_SEGMENT",
    "can_gso",
    "enable_ecn",
    "enable_gro",
    "forbid_fragments",
    "granted_buffer",
    "has_lost_address",
    "interface_mtu",
    "reuse_port",
    "set_buffer",
    "set_buffers",
]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

# Linux has these; the socket module of Python 3.11 does not name them.
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3
_IP_MTU = 14
_IPV6_MTU = 24
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_IP_RECVTOS = 13
_IPV6_RECVTCLASS = 66
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

#: By the option of a buffer: the option that needs CAP_NET_ADMIN, and the kernel's setting.
_BUFFERS = {
    socket.SO_RCVBUF: (_SO_RCVBUFFORCE, "net.core.rmem_max"),
    socket.SO_SNDBUF: (_SO_SNDBUFFORCE, "net.core.wmem_max"),
}

#: Kernel settings already warned about, with the requested size.
_warned: set[tuple[str, int]] = set()


def forbid_fragments(raw: socket.socket, family: int) -> None:
    """Forbid fragmentation of QUIC packets on the way (RFC 9000 section 14)."""
    if sys.platform != "linux":
        return
    # If a kernel lacks the option, packets are small enough by default.
    with contextlib.suppress(OSError):
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)


def can_gso(raw: socket.socket) -> bool:
    """Whether the kernel knows UDP GSO; an interface may still refuse it later."""
    if sys.platform != "linux":
        return False
    try:
        raw.getsockopt(SOL_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def enable_gro(raw: socket.socket) -> bool:
    """Ask for received datagrams in runs."""
    if sys.platform != "linux":
        return False
    try:
        raw.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        return False
    return True


def enable_ecn(raw: socket.socket) -> bool:
    """Ask for the marks of received datagrams; whether marks can be used both ways."""
    if sys.platform != "linux":
        return False
    try:
        # (On a dual-stack socket both are needed.)
        raw.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        if raw.family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
    except OSError:
        return False
    return True


def granted_buffer(raw: socket.socket, option: int) -> int:
    """The granted size of a buffer, ``SO_RCVBUF`` or ``SO_SNDBUF``."""
    size = raw.getsockopt(socket.SOL_SOCKET, option)
    # Linux reports twice the requested size; the double is room for its bookkeeping.
    return size // 2 if sys.platform == "linux" else size


def set_buffers(raw: socket.socket, size: int) -> None:
    """Ask for buffers of `size` bytes; if the system grants less, warn and say how to get more."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        set_buffer(raw, option, size)


def set_buffer(raw: socket.socket, option: int, size: int) -> None:
    """Ask for one buffer of `size` bytes, ``SO_RCVBUF`` or ``SO_SNDBUF``."""
    forced, setting = _BUFFERS[option]
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, option, size)
    if sys.platform == "linux" and granted_buffer(raw, option) < size:
        # With CAP_NET_ADMIN the kernel's limit (net.core.rmem_max, wmem_max) does not count.
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, forced, size)
    granted = granted_buffer(raw, option)
    if granted < size and (setting, size) not in _warned:
        _warned.add((setting, size))
        hint = f"; allow more: sysctl -w {setting}={size}" if sys.platform == "linux" else ""
        logger.warning(
            "asked for a UDP %s buffer of %d bytes, the system granted %d%s",
            "receive" if option == socket.SO_RCVBUF else "send",
            size,
            granted,
            hint,
        )


def reuse_port(raw: socket.socket) -> None:
    """Let other sockets bind to the same address and share its datagrams.

    Raises:
      OSError: the system does not support it.
    """
    option = getattr(socket, "SO_REUSEPORT", None)
    if option is None:
        raise OSError(errno.EOPNOTSUPP, "this system has no SO_REUSEPORT")
    raw.setsockopt(socket.SOL_SOCKET, option, 1)


def interface_mtu(address: SocketAddress, local: str | None) -> int | None:
    """The MTU of the interface towards `address`, in bytes; ``None``: unknown.

    Args:
      address: the destination; IPv4 addresses unmapped.
      local: our own address, because routes can depend on it; ``None``: the system's choice.
    """
    if sys.platform != "linux":
        return None
    is_ipv6 = ":" in address[0]
    # A temporary socket is used: connecting the real one would tie it to one peer.
    try:
        with socket.socket(
            socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM
        ) as scout:
            if local is not None:
                scout.bind(local_socket_address(local, 0))
            scout.connect(address)
            if is_ipv6:
                return scout.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
            return scout.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:
        return None


def has_lost_address(raw: socket.socket) -> bool:
    """Whether the socket is bound to an address that the host has lost."""
    address = raw.getsockname()
    try:
        with socket.socket(raw.family, socket.SOCK_DGRAM) as other:
            other.bind((address[0], 0, *address[2:]))
    except OSError as error:
        return error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV)
    return False
