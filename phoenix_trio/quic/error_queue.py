"""Reads the error queue of a UDP socket, which reports datagrams that did not arrive.

Floor 1, for :mod:`~phoenix_trio.quic.packet_io`.  Linux only: ``IP_RECVERR`` (``ip(7)``) and
``IPV6_RECVERR`` (``ipv6(7)``).  When a router or the peer's host answers a datagram with
"destination unreachable" (ICMP), the kernel keeps that answer and the first bytes of the
datagram in the socket's error queue.

Such an error has three effects, each with a remedy in this module:

- The next call on the socket fails, even if it concerns another datagram.
  :meth:`ErrorQueue.retry` repeats a call that failed because of another datagram.
- The socket seems readable and writable until the queue is empty (``EPOLLERR``).
  :meth:`ErrorQueue.drain` empties it, a bounded number of errors at a time.
- Any host can forge an ICMP message.  This module believes none: the first bytes of each report
  have to be judged (:mod:`~phoenix_trio.quic.dialling`).

The queue is switched on only while connections are being dialled.  Otherwise the kernel ignores
ICMP messages to an unconnected socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import Final

from .datagram_socket import DeliveryFailure
from .path_address import Address, remote_of

__all__ = ["PASSING_ERRORS", "ErrorQueue"]

#: The errors that Linux makes of ICMP messages (``icmp_err_convert``, ``icmpv6_err_convert``).
PASSING_ERRORS: Final = frozenset(
    {
        errno.EACCES,
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMSGSIZE,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        getattr(errno, "ENONET", errno.EHOSTUNREACH),  # the network is unknown
    }
)

#: Errors of the sender's own system if it has no route to the destination.
_NO_WAY: Final = frozenset({errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH})

# The socket module of Python 3.11 does not name these.
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_MESSAGES: Final = frozenset(
    {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
)
_MSG_ERRQUEUE: Final = getattr(socket, "MSG_ERRQUEUE", 0x2000)

#: The fields of ``struct sock_extended_err`` in use: number, origin, type, code.
_EXTENDED_ERROR: Final = struct.Struct("=IBBB")
_ICMP: Final = 2
_ICMP6: Final = 3

#: "Destination unreachable" by origin: RFC 792, RFC 4443 section 3.1.
_UNREACHABLE: Final = {_ICMP: 3, _ICMP6: 1}

#: RFC 792: the code for a datagram that was too large to go on in one piece.
_FRAGMENTATION_NEEDED: Final = 4

#: Bytes kept of a datagram: a long header with the longest connection IDs of RFC 9000 (1 + 4 + 1
#: + 20 + 1 + 20 bytes), and some more.
_START_BYTES: Final = 64

#: Room for the control message of an error, and for other messages with it (marks, local
#: addresses).
_CONTROL_BYTES: Final = 256

#: Errors read at once: a flood of them must not hold the loop.
_ERRORS_AT_ONCE: Final = 32

#: Failures kept until they are taken; the oldest one is dropped.
_KEPT: Final = 64

#: The most calls made in all while errors of other datagrams keep coming.
_TRIES: Final = 3


class ErrorQueue:
    """The error queue of one socket.

    Args:
      raw: an unconnected UDP socket.
    """

    __slots__ = ("_failures", "_raw", "is_asked", "was_asked")

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._failures: deque[DeliveryFailure] = deque(maxlen=_KEPT)
        self.is_asked: bool = False
        """Whether the system keeps errors for this socket at present."""
        self.was_asked: bool = False
        """Whether it has ever kept them; otherwise no call can fail because of another datagram."""

    def ask(self, *, wanted: bool) -> None:
        """Start or stop keeping errors; has an effect only on Linux."""
        if sys.platform != "linux" or wanted is self.is_asked:
            return
        # (A dual-stack socket needs both.  A kernel may lack one; the error is ignored.)
        with contextlib.suppress(OSError):
            self._raw.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, int(wanted))
        if self._raw.family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                self._raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, int(wanted))
        self.is_asked = wanted
        self.was_asked = self.was_asked or wanted
        if not wanted:
            self._failures.clear()

    def drain(self) -> bool:
        """Read the errors in the queue, up to a bound.

        Returns whether there was an ICMP message, because any call can fail after one.
        """
        had_message = False
        if not self.was_asked:
            return had_message
        for _ in range(_ERRORS_AT_ONCE):
            try:
                start, control, _, address = self._raw.recvmsg(
                    _START_BYTES, _CONTROL_BYTES, _MSG_ERRQUEUE
                )
            except OSError:
                break  # it is empty (EAGAIN); a failed socket raises in other calls
            for level, kind, value in control:
                if (level, kind) in _MESSAGES and len(value) >= _EXTENDED_ERROR.size:
                    had_message = self._keep(value, address, start) or had_message
        return had_message

    def _keep(self, value: bytes, address: Address, start: bytes) -> bool:
        """Keep the failure if it is one.  Returns whether the error comes from an ICMP message."""
        number, origin, kind, code = _EXTENDED_ERROR.unpack_from(value)
        if origin not in _UNREACHABLE:
            return False  # of our own system: the call concerned has raised it
        is_size = origin == _ICMP and code == _FRAGMENTATION_NEEDED
        if kind == _UNREACHABLE[origin] and not is_size and self.is_asked:
            self._failures.append(DeliveryFailure(remote_of(address), number, start))
        return True

    def retry(self, call: Callable[[], object]) -> None:
        """Repeat a call that has failed with one of :data:`PASSING_ERRORS`.

        Raises:
          OSError: the call's own error.
        """
        for _ in range(_TRIES - 1):
            had_errors = self.drain()
            try:
                call()
            except OSError as another:
                if not had_errors or another.errno not in PASSING_ERRORS:
                    raise
            else:
                return
        # The call behind the error is unknown.  The error must not look like the refusal of an
        # option.
        raise OSError(errno.ENOBUFS, "errors of other datagrams keep coming")

    def note(self, address: Address, error: OSError, data: bytes | memoryview) -> None:
        """Note a datagram that could not leave; kept if the system has no route for it."""
        if self.is_asked and error.errno in _NO_WAY:
            start = bytes(data[:_START_BYTES])
            self._failures.append(DeliveryFailure(remote_of(address), error.errno or 0, start))

    def take(self) -> list[DeliveryFailure]:
        """The failures kept since the last call."""
        if not self._failures:
            return []
        taken = list(self._failures)
        self._failures.clear()
        return taken
