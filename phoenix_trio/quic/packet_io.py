"""Datagrams in and out over real UDP.

Floor 1.  Sockets are raw and non-blocking, driven by ``trio.lowlevel``, which measured about
three times cheaper per datagram than ``trio.socket``.  They are never connected: peers
migrate, and a server's preferred address changes the target (RFC 9000 section 9).

On Linux one system call sends or receives a run of datagrams (UDP GSO and GRO, ``udp(7)``).
Without it, or when the kernel refuses a run, this module sends the datagrams one by one.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import final

import trio

from ..config import LARGEST_UDP_PAYLOAD, MAX_RUN_BYTES, MAX_RUN_SEGMENTS
from . import packet_info, socket_options
from .datagram_socket import DeliveryFailure, ReceivedRun, SocketStatistics
from .error_queue import PASSING_ERRORS, ErrorQueue
from .established.ecn import NOT_ECT
from .logs import bounded_logger
from .path_address import (
    IPV4_MAPPED,
    Address,
    PathAddress,
    SocketAddress,
    display_address,
    local_of,
)
from .receive_pool import LARGEST_DATAGRAM, ReceivePool
from .socket_options import SOL_UDP, UDP_GRO, UDP_SEGMENT

__all__ = ["UdpNetwork", "UdpSocket", "bind_raw"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: Errors of one datagram or one passing moment, not of the socket.  The datagram counts as
#: lost, and QUIC's loss recovery repairs that.
_SOFT_ERRORS = PASSING_ERRORS | {
    errno.EADDRNOTAVAIL,
    errno.ECONNRESET,
    errno.ENETDOWN,
    errno.ENOBUFS,
    errno.EPERM,
}

#: Sending: the system refuses this one address.  A peer can cause that by sending from port 0,
#: which cannot be answered.  Other connections must not be affected.
_SOFT_SEND_ERRORS = _SOFT_ERRORS | {
    errno.EAFNOSUPPORT,
    errno.EINVAL,
    errno.ENOMEM,
    errno.ETIMEDOUT,
}

_IPV4_AND_UDP_HEADERS = 20 + 8
_IPV6_AND_UDP_HEADERS = 40 + 8

#: Errors of the kernel where an interface or an old kernel cannot do GSO.
_GSO_REFUSED = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT})

#: Refusals in a row after which GSO is not tried any more.  A single one can have another
#: cause: a run for an interface whose MTU is smaller than its segments.
_GSO_PATIENCE = 3

#: The control messages with an ECN mark.
_IPV4_MARK = (socket.IPPROTO_IP, socket.IP_TOS)
_IPV6_MARK = (socket.IPPROTO_IPV6, getattr(socket, "IPV6_TCLASS", 67))
_MARK_MESSAGES = frozenset({_IPV4_MARK, _IPV6_MARK})

#: Errors of a system without marks for single datagrams, and how often they are tolerated.
_MARK_REFUSED = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
_MARK_PATIENCE = 8

#: Errors when the system refuses our own address for a datagram, for example because the
#: address was removed from its interface.
_SOURCE_REFUSED = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.EHOSTUNREACH,
        errno.EINVAL,
        errno.ENETUNREACH,
        errno.ENODEV,
        errno.EOPNOTSUPP,
    }
)

#: Sizes of segments, marks and local addresses for which control messages are kept.
_CONTROL_CACHE = 256

#: Local addresses of which the text is kept.
_LOCAL_CACHE = 256

#: Room for the enabled control messages (the size of a run's segments, its ECN codepoint in
#: the IPv4 and the IPv6 form, our own address).
_CONTROL_BYTES = 96 + packet_info.SPACE

_ECN_MASK = 0b11


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
        self._on_lost_address: Callable[[], None] | None = None
        self._errors = ErrorQueue(raw)
        self._was_woken = False  # whether it was said to be readable, and not looked at since
        self._bytes_sent = 0
        self._bytes_received = 0
        self._datagrams_sent = 0
        self._datagrams_received = 0
        self._send_blocked = 0
        self._soft_errors = 0
        self._send_calls = 0
        self._receive_calls = 0
        self._pooled_receives = 0
        self._gso = socket_options.can_gso(raw)
        self._gso_refusals = 0
        self._mark_refusals = 0
        self._gro = socket_options.enable_gro(raw)
        self._ecn = socket_options.enable_ecn(raw)
        self._control: dict[tuple[int, int, bool, str | None], list[tuple[int, int, bytes]]] = {}
        self._locals: dict[bytes, str | None] = {}
        self._receive_buffer_size = socket_options.granted_buffer(raw, socket.SO_RCVBUF)
        self._send_buffer_size = socket_options.granted_buffer(raw, socket.SO_SNDBUF)

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
            send_calls=self._send_calls,
            receive_calls=self._receive_calls,
            pooled_receives=self._pooled_receives,
            ecn=self._ecn,
            gso=self._gso,
            gro=self._gro,
            receive_buffer_size=self._receive_buffer_size,
            send_buffer_size=self._send_buffer_size,
        )

    def report_local_addresses(self) -> None:
        if not self._closed:
            packet_info.ask(self._raw)

    def report_lost_address(self, callback: Callable[[], None]) -> None:
        self._on_lost_address = callback

    def report_failures(self, *, wanted: bool) -> None:
        if not self._closed:
            self._errors.ask(wanted=wanted)

    def take_failures(self) -> list[DeliveryFailure]:
        return self._errors.take()

    def receive_runs(self, limit: int, pool: ReceivePool | None = None) -> list[ReceivedRun]:
        received: list[ReceivedRun] = []
        if self._closed:
            return received
        was_woken, self._was_woken = self._was_woken, False
        data: bytes | bytearray
        buffer: bytearray | None = None
        known = 0 if pool is None else len(pool)
        # Soft errors count against the limit as well: a flood of them must not block the loop.
        for _ in range(limit):
            try:
                if pool is not None:
                    buffer = pool.buffer(len(received))
                if buffer is not None:
                    data = buffer
                    size, control, _, address = self._raw.recvmsg_into([data], _CONTROL_BYTES)
                else:
                    data, control, _, address = self._raw.recvmsg(LARGEST_DATAGRAM, _CONTROL_BYTES)
                    size = len(data)
            except (BlockingIOError, InterruptedError):
                if was_woken and not received and self._errors.is_asked:
                    self._errors.drain()  # (An unread error queue keeps the socket readable.)
                break
            except OSError as error:
                self._note_error(error, _SOFT_ERRORS)
                continue
            segment = size
            mark = NOT_ECT
            for level, kind, value in control:
                if level == SOL_UDP:
                    if kind == UDP_GRO:
                        segment = min(size, int.from_bytes(value[:4], sys.byteorder)) or size
                elif (level, kind) in _MARK_MESSAGES:
                    mark = int.from_bytes(value[:4], sys.byteorder) & _ECN_MASK
                elif (level, kind) in packet_info.MESSAGES:
                    local = self._locals.get(value) or self._learn_local(level, value)
                    if local is not None:
                        address = PathAddress((*address, local))
            self._receive_calls += 1
            if len(received) < known:
                self._pooled_receives += 1
            self._bytes_received += size
            self._datagrams_received += -(-size // segment) if size else 1
            received.append((data, address, segment, mark, size))
        return received

    def _learn_local(self, level: int, value: bytes) -> str | None:
        """The local address in a control message; its text is cached."""
        if len(self._locals) >= _LOCAL_CACHE:
            self._locals.clear()
        local = self._locals[value] = packet_info.local_address(level, value)
        return local

    def send_run(
        self,
        data: bytes | memoryview,
        address: Address,
        segment_size: int | None = None,
        mark: int = NOT_ECT,
    ) -> int:
        size = len(data)
        if self._closed:
            return size
        if not self._ecn:
            mark = NOT_ECT
        if segment_size is None or segment_size >= size:
            return size if self._send_one(data, address, mark) else 0
        if self._gso and size <= MAX_RUN_BYTES and size <= MAX_RUN_SEGMENTS * segment_size:
            try:
                self._submit(data, address, segment_size, mark)
            except (BlockingIOError, InterruptedError):
                self._send_blocked += 1
                return 0
            except OSError as error:
                if error.errno in _GSO_REFUSED:
                    before = self._datagrams_sent
                    taken = self._send_each(data, address, segment_size, mark)
                    if error.errno != errno.EINVAL or self._datagrams_sent > before:
                        # (Otherwise the cause is the address or the size, not GSO.)
                        self._on_gso_refused(error)
                    return taken
                # (Single datagrams may pass where the run was too large.)
                self._note_error(error, _SOFT_SEND_ERRORS)
            else:
                self._gso_refusals = 0
                self._note_sent(size, -(-size // segment_size))
                return size
        return self._send_each(data, address, segment_size, mark)

    def _send_each(
        self, data: bytes | memoryview, address: Address, segment_size: int, mark: int
    ) -> int:
        """Send the datagrams of a run one by one; the number of bytes sent."""
        size = len(data)
        for start in range(0, size, segment_size):
            if not self._send_one(data[start : start + segment_size], address, mark):
                return start
        return size

    def _submit(
        self, data: bytes | memoryview, address: Address, segment_size: int, mark: int
    ) -> None:
        """Hand one datagram (`segment_size` 0) or one run to the kernel.

        Raises:
          OSError: as ``sendmsg`` does; never for our own address alone.
        """
        local: str | None = None
        if type(address) is PathAddress:
            local = address[-1]
            address = address[:-1]
        is_ipv4 = len(address) == 2 or address[0].startswith(IPV4_MAPPED)
        key = (segment_size, mark, is_ipv4, local)
        control = self._control.get(key)
        if control is None:
            control = self._make_control(*key)
        try:
            try:
                if control:
                    self._raw.sendmsg([data], control, 0, address)
                else:
                    self._raw.sendto(data, address)
            except OSError as error:
                if not self._errors.was_asked or error.errno not in PASSING_ERRORS:
                    raise
                # The error may belong to a datagram of another connection.
                if control:
                    self._errors.retry(partial(self._raw.sendmsg, [data], control, 0, address))
                else:
                    self._errors.retry(partial(self._raw.sendto, data, address))
        except OSError as error:
            if local is None or error.errno not in _SOURCE_REFUSED:
                raise
            # Our address may be gone from its interface, or may not be one to send from
            # (broadcast).  If sending without it works, then neither runs nor marks are the
            # cause, and they stay enabled for other peers.
            self._submit(data, address, segment_size, mark)

    def _make_control(
        self, segment_size: int, mark: int, is_ipv4: bool, local: str | None
    ) -> list[tuple[int, int, bytes]]:
        """The control messages for the size of segments, the mark, and our address."""
        control: list[tuple[int, int, bytes]] = []
        if segment_size:
            value = segment_size.to_bytes(2, sys.byteorder)
            control.append((SOL_UDP, UDP_SEGMENT, value))
        if mark:
            level, kind = _IPV4_MARK if is_ipv4 else _IPV6_MARK
            control.append((level, kind, mark.to_bytes(4, sys.byteorder)))
        if local is not None:
            control.append(packet_info.source_message(self._family, local))
        if len(self._control) >= _CONTROL_CACHE:
            self._control.clear()
        self._control[segment_size, mark, is_ipv4, local] = control
        return control

    def _send_one(self, data: bytes | memoryview, address: Address, mark: int) -> bool:
        try:
            self._submit(data, address, 0, mark)
        except (BlockingIOError, InterruptedError):
            self._send_blocked += 1
            return False
        except OSError as error:
            if mark and error.errno in _MARK_REFUSED:
                # The mark may be the cause: try once more without it.
                before = self._datagrams_sent
                if not self._send_one(data, address, NOT_ECT):
                    return False
                if self._datagrams_sent > before:
                    # (Otherwise the cause is the address, for example port 0.)
                    self._on_mark_refused(error)
                return True
            self._note_error(error, _SOFT_SEND_ERRORS)
            self._errors.note(address, error, data)
            if (
                self._on_lost_address is not None
                and error.errno in _SOURCE_REFUSED
                and socket_options.has_lost_address(self._raw)
            ):
                self._on_lost_address()
            return True
        if mark:
            self._mark_refusals = 0
        self._note_sent(len(data), 1)
        return True

    def _note_sent(self, size: int, datagrams: int) -> None:
        self._send_calls += 1
        self._bytes_sent += size
        self._datagrams_sent += datagrams

    def _on_mark_refused(self, error: OSError) -> None:
        self._mark_refusals += 1
        if self._mark_refusals >= _MARK_PATIENCE:
            self._ecn = False
            logger.info("datagrams are not marked (ECN) from now on: %s", error)

    def _on_gso_refused(self, error: OSError) -> None:
        self._gso_refusals += 1
        if error.errno != errno.EINVAL or self._gso_refusals >= _GSO_PATIENCE:
            self._gso = False
            logger.info("datagrams are sent one by one from now on: GSO failed (%s)", error)

    def _note_error(self, error: OSError, soft: frozenset[int]) -> None:
        if error.errno not in soft:
            raise error
        self._soft_errors += 1

    async def wait_readable(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("this socket was closed")
        await trio.lowlevel.wait_readable(self._raw)
        self._was_woken = True

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
        return (IPV4_MAPPED + plain[0], plain[1], 0, 0) if self._dual_stack else None

    def largest_payload(self, address: Address) -> int | None:
        plain = display_address(address)
        mtu = socket_options.interface_mtu(plain, local_of(address))
        if mtu is None:
            return None
        headers = _IPV6_AND_UDP_HEADERS if ":" in plain[0] else _IPV4_AND_UDP_HEADERS
        return min(mtu - headers, LARGEST_UDP_PAYLOAD)


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

    async def open_socket(
        self, host: str | None, port: int, *, buffer_size: int, reuse_port: bool = False
    ) -> UdpSocket:
        """A socket bound to `host`, or to every local address.

        ``None`` means IPv6 and IPv4 on one socket where the system allows, else
        IPv4; ``"::"`` means the same but fails where there is no IPv6.

        Raises:
          OSError: the address is unknown or not local, or the port is in use, the text names
            both; or the system has no ``SO_REUSEPORT``, and `reuse_port` is set.
          ValueError: the port is not between 0 and 65535.
        """
        if not 0 <= port <= 65535:
            # getaddrinfo would take it modulo 65536.
            raise ValueError(f"port must be between 0 and 65535, not {port}")
        if host is None:
            await trio.lowlevel.checkpoint()
            try:
                return _bind(("::", port, 0, 0), buffer_size, reuse_port)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
            return _bind(("0.0.0.0", port), buffer_size, reuse_port)  # noqa: S104 - all is what was asked for
        failure: OSError | None = None
        for address in await self.resolve(host, port):
            try:
                return _bind(address, buffer_size, reuse_port)
            except OSError as error:
                failure = failure or error
        assert failure is not None
        raise failure


def _bind(address: SocketAddress, buffer_size: int, reuse_port: bool) -> UdpSocket:
    raw = bind_raw(address, buffer_size, reuse_port=reuse_port)
    return UdpSocket(raw, dual_stack=address[0] == "::")


def bind_raw(address: SocketAddress, buffer_size: int | None, *, reuse_port: bool) -> socket.socket:
    """A non-blocking UDP socket bound to `address`.

    Args:
      address: ``::`` means IPv4 as well.
      buffer_size: requested from the system for both buffers; ``None``: its default.
      reuse_port: let other sockets bind to the same address.

    Raises:
      OSError: the address is not local, or the port is in use; the text names both.
    """
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
        socket_options.forbid_fragments(raw, family)
        if buffer_size is not None:
            socket_options.set_buffers(raw, buffer_size)
        if reuse_port:
            socket_options.reuse_port(raw)
        raw.bind(address)
    except OSError as error:
        raw.close()
        raise OSError(
            error.errno, f"cannot bind UDP {address[0]} port {address[1]}: {error.strerror}"
        ) from error
    except BaseException:
        raw.close()
        raise
    return raw
