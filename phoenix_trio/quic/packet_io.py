"""Datagrams in and out: the interface to the network, and real UDP behind it.

Floor 1.  For the driver, which is handed sockets and asks nothing else of the
system.  :class:`Network` and :class:`DatagramSocket` are small on purpose, so
that a simulated network (:mod:`phoenix_trio.testing`) drops in.

Real sockets are raw and non-blocking, driven by ``trio.lowlevel``, which
measured about three times cheaper per datagram than ``trio.socket``.  They are
never connected: peers migrate, and a server's preferred address changes the
target (RFC 9000 section 9).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from typing import Protocol, TypeAlias, final

import attrs
import trio

__all__ = [
    "DatagramSocket",
    "Network",
    "SocketAddress",
    "SocketStatistics",
    "UdpNetwork",
    "UdpSocket",
    "display_address",
]

#: As the :mod:`socket` module gives it: IPv4 ``(host, port)``, IPv6 with flow info and scope.
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

#: The largest UDP payload there is.
_LARGEST_DATAGRAM = 65535

#: Errors which concern one datagram or one passing moment, not the socket: the datagram
#: counts as lost, which is what QUIC is made to repair.
_SOFT_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EADDRNOTAVAIL,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMSGSIZE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOBUFS,
        errno.EPERM,
    }
)

#: Sending: the system refuses this one address.  A peer can bring that about by sending
#: from port 0, which is received but cannot be answered; the others must not suffer.
_SOFT_SEND_ERRORS = _SOFT_ERRORS | {
    errno.EAFNOSUPPORT,
    errno.EINVAL,
    errno.ENOMEM,
    errno.ETIMEDOUT,
}

# Linux has these; the socket module of Python 3.11 does not name them.
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_IPV4_MAPPED = "::ffff:"


@attrs.frozen(kw_only=True)
class SocketStatistics:
    """One socket's counters at one moment."""

    bytes_sent: int
    bytes_received: int
    datagrams_sent: int
    datagrams_received: int
    send_blocked: int
    """Times the send buffer was full."""
    soft_errors: int
    """Datagrams refused for a passing reason (unreachable, too large, no buffers)."""
    receive_buffer_size: int
    """Bytes of the receive buffer which the system granted; on Linux without the equal
    amount which it adds for its own bookkeeping."""
    send_buffer_size: int
    """The same for the send buffer."""


class DatagramSocket(Protocol):
    """One bound, non-blocking datagram socket."""

    @property
    def address(self) -> SocketAddress:
        """The local address."""

    @property
    def statistics(self) -> SocketStatistics:
        """A snapshot of the counters."""

    def receive(self, limit: int) -> list[tuple[bytes, SocketAddress]]:
        """Up to `limit` datagrams with their sources; never blocks; empty when none waits."""

    def send(self, data: bytes, address: SocketAddress) -> bool:
        """Send one datagram without blocking.

        False: the buffer is full; call :meth:`wait_writable` and try again.  True:
        sent, or lost to a passing error, which is counted.
        """

    async def wait_readable(self) -> None:
        """Wait until :meth:`receive` has something; ClosedResourceError once closed."""

    async def wait_writable(self) -> None:
        """Wait until :meth:`send` has room; ClosedResourceError once closed."""

    def close(self) -> None:
        """Close; wakes those who wait with ClosedResourceError.  Idempotent."""

    def reachable(self, address: SocketAddress) -> SocketAddress | None:
        """`address` in the form which :meth:`send` takes; ``None``: not from this socket."""


class Network(Protocol):
    """Where sockets and addresses come from."""

    async def resolve(self, host: str, port: int) -> list[SocketAddress]:
        """The addresses of a name, the preferred one first; OSError if it is unknown."""

    async def open_socket(self, host: str | None, port: int, *, buffer_size: int) -> DatagramSocket:
        """A socket bound to a local address; ``None``: all of them, IPv4 and IPv6."""


def display_address(address: SocketAddress) -> SocketAddress:
    """An address as people write it: IPv4 addresses of a dual-stack socket unmapped."""
    host, port = address[0], address[1]
    if host.lower().startswith(_IPV4_MAPPED) and "." in host:
        return (host[len(_IPV4_MAPPED) :], port)
    return address


@final
class UdpSocket:
    """A real UDP socket.  Obtained from :meth:`UdpNetwork.open_socket`."""

    def __init__(self, raw: socket.socket, *, dual_stack: bool) -> None:
        self._raw = raw
        self._dual_stack = dual_stack
        self._family = raw.family
        address = raw.getsockname()
        self._address: SocketAddress = address
        self._closed = False
        self._bytes_sent = 0
        self._bytes_received = 0
        self._datagrams_sent = 0
        self._datagrams_received = 0
        self._send_blocked = 0
        self._soft_errors = 0
        self._receive_buffer_size = _granted_buffer(raw, socket.SO_RCVBUF)
        self._send_buffer_size = _granted_buffer(raw, socket.SO_SNDBUF)

    def __repr__(self) -> str:
        return f"<UdpSocket on {self._address}{' (closed)' if self._closed else ''}>"

    @property
    def address(self) -> SocketAddress:
        return self._address

    @property
    def statistics(self) -> SocketStatistics:
        return SocketStatistics(
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            datagrams_sent=self._datagrams_sent,
            datagrams_received=self._datagrams_received,
            send_blocked=self._send_blocked,
            soft_errors=self._soft_errors,
            receive_buffer_size=self._receive_buffer_size,
            send_buffer_size=self._send_buffer_size,
        )

    def receive(self, limit: int) -> list[tuple[bytes, SocketAddress]]:
        received: list[tuple[bytes, SocketAddress]] = []
        if self._closed:
            return received
        receive = self._raw.recvfrom
        # Soft errors count against the limit as well: a flood of them must not hold the loop.
        for _ in range(limit):
            try:
                data, address = receive(_LARGEST_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._note_error(error, _SOFT_ERRORS)
                continue
            self._bytes_received += len(data)
            self._datagrams_received += 1
            received.append((data, address))
        return received

    def send(self, data: bytes, address: SocketAddress) -> bool:
        if self._closed:
            return True
        try:
            self._raw.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            self._send_blocked += 1
            return False
        except OSError as error:
            self._note_error(error, _SOFT_SEND_ERRORS)
            return True
        self._bytes_sent += len(data)
        self._datagrams_sent += 1
        return True

    def _note_error(self, error: OSError, soft: frozenset[int]) -> None:
        if error.errno not in soft:
            raise error
        self._soft_errors += 1

    async def wait_readable(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this socket was closed")
        await trio.lowlevel.wait_readable(self._raw)

    async def wait_writable(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this socket was closed")
        await trio.lowlevel.wait_writable(self._raw)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._raw)
            self._raw.close()

    def reachable(self, address: SocketAddress) -> SocketAddress | None:
        plain = display_address(address)
        is_ipv6 = ":" in plain[0]
        if self._family == socket.AF_INET:
            return None if is_ipv6 else plain
        if is_ipv6:
            return plain
        return (_IPV4_MAPPED + plain[0], plain[1], 0, 0) if self._dual_stack else None


@final
class UdpNetwork:
    """Real UDP over IPv4 and IPv6."""

    async def resolve(self, host: str, port: int) -> list[SocketAddress]:
        """The addresses of a name in the system's order (RFC 6724).

        Numeric addresses need no thread.

        Raises:
          OSError: (``socket.gaierror``) the name is unknown; the text names it.
        """
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (socket.gaierror, UnicodeError) as error:
            number = error.errno if isinstance(error, socket.gaierror) else socket.EAI_NONAME
            raise socket.gaierror(number, f"{host!r} has no address: {error}") from error
        addresses: list[SocketAddress] = []
        for family, _, _, _, address in found:
            if family in (socket.AF_INET, socket.AF_INET6) and address not in addresses:
                addresses.append(address)  # type: ignore[arg-type] # these families have strings
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} has no IPv4 or IPv6 address")
        return addresses

    async def open_socket(self, host: str | None, port: int, *, buffer_size: int) -> UdpSocket:
        """A socket bound to `host`, or to every local address.

        ``None`` means IPv6 and IPv4 on one socket where the system allows, else
        IPv4; ``"::"`` means the same but fails where there is no IPv6.

        Raises:
          OSError: the address is unknown or not local, or the port is in use; the
            text names both.
          ValueError: the port is not between 0 and 65535.
        """
        if not 0 <= port <= 65535:
            # getaddrinfo would take it modulo 65536.
            raise ValueError(f"port must be between 0 and 65535, not {port}")
        if host is None:
            await trio.lowlevel.checkpoint()
            try:
                return _bind(("::", port, 0, 0), buffer_size)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
            return _bind(("0.0.0.0", port), buffer_size)  # noqa: S104 - all is what was asked for
        failure: OSError | None = None
        for address in await self.resolve(host, port):
            try:
                return _bind(address, buffer_size)
            except OSError as error:
                failure = failure or error
        assert failure is not None
        raise failure


def _bind(address: SocketAddress, buffer_size: int) -> UdpSocket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    dual_stack = address[0] == "::"
    try:
        raw = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise OSError(error.errno, f"no socket for {address[0]}: {error.strerror}") from error
    try:
        raw.setblocking(False)
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        _forbid_fragments(raw, family)
        _set_buffers(raw, buffer_size)
        raw.bind(address)
    except OSError as error:
        raw.close()
        raise OSError(
            error.errno, f"cannot bind UDP {address[0]} port {address[1]}: {error.strerror}"
        ) from error
    except BaseException:
        raw.close()
        raise
    return UdpSocket(raw, dual_stack=dual_stack)


def _forbid_fragments(raw: socket.socket, family: int) -> None:
    """RFC 9000 section 14: QUIC packets must not be fragmented on the way."""
    if sys.platform != "linux":
        return
    # Where a kernel lacks the option, packets are small enough by default.
    with contextlib.suppress(OSError):
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)


def _granted_buffer(raw: socket.socket, option: int) -> int:
    size = raw.getsockopt(socket.SOL_SOCKET, option)
    # Linux reports twice what was asked for, the double being room for its bookkeeping.
    return size // 2 if sys.platform == "linux" else size


def _set_buffers(raw: socket.socket, size: int) -> None:
    """Ask for buffers of `size` bytes; the system may grant less, which the statistics say."""
    for option, forced in (
        (socket.SO_RCVBUF, _SO_RCVBUFFORCE),
        (socket.SO_SNDBUF, _SO_SNDBUFFORCE),
    ):
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, option, size)
        if sys.platform == "linux" and _granted_buffer(raw, option) < size:
            # With CAP_NET_ADMIN the kernel's limit (net.core.rmem_max, wmem_max) does not count.
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, forced, size)
