"""The interface to the network: a datagram socket, and where sockets and addresses come from.

Floor 1, types only.  For the driver, which is handed sockets and asks nothing else of the
system.  :class:`Network` and :class:`DatagramSocket` are small on purpose, so that a
simulated network (:mod:`phoenix_trio.testing`) drops in.

Datagrams travel in *runs*: any number of the same size (the last one may be shorter) in
one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs

from .established.ecn import NOT_ECT
from .path_address import Address, SocketAddress
from .receive_pool import ReceivePool

__all__ = [
    "DatagramSocket",
    "DeliveryFailure",
    "Network",
    "ReceivedRun",
    "RunReceiver",
    "RunSender",
    "SocketStatistics",
]


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
    send_calls: int
    """System calls which sent something; with GSO one call sends many datagrams."""
    receive_calls: int
    """The same for receiving, with GRO."""
    ecn: bool
    """Whether ECN marks are set and read."""
    pooled_receives: int
    """Calls which received into a buffer that had been used before, rather than new memory."""
    gso: bool
    """Whether runs of datagrams are handed to the kernel in one call."""
    gro: bool
    """Whether the kernel may hand up runs of datagrams."""
    receive_buffer_size: int
    """Bytes of the receive buffer which the system granted; on Linux without the equal
    amount which it adds for its own bookkeeping."""
    send_buffer_size: int
    """The same for the send buffer."""


@attrs.frozen
class DeliveryFailure:
    """The network's word that a datagram did not arrive.  Anybody can forge it."""

    address: SocketAddress
    """Where the datagram was to go."""
    number: int
    """Why it did not, as one of :mod:`errno`: ``ECONNREFUSED``, if nothing listens there."""
    start: bytes
    """The first bytes of the datagram as the network tells them; perhaps none."""


#: Datagrams of one size (the last may be shorter) in one piece, their source (with our own
#: address where there are several, see :meth:`DatagramSocket.report_local_addresses`), that
#: size, their ECN codepoint (RFC 3168 section 5), and where they end: a buffer can be longer.
ReceivedRun = tuple[bytes | bytearray, Address, int, int, int]


class RunReceiver(Protocol):
    """Where runs of datagrams come from."""

    def receive_runs(self, limit: int, pool: ReceivePool | None = None) -> list[ReceivedRun]:
        """Up to `limit` runs of datagrams.

        With a `pool` they may lie in its buffers, where the next call puts others; those
        beyond its size get new memory.

        Never blocks; empty when none waits.
        """


class RunSender(Protocol):
    """Where runs of datagrams go to."""

    def send_run(
        self,
        data: bytes | memoryview,
        address: Address,
        segment_size: int | None = None,
        mark: int = NOT_ECT,
    ) -> int:
        """Send a run of datagrams of `segment_size` bytes (``None``: one datagram).

        They are marked with the ECN codepoint `mark` if the system can.  They leave from
        the local address of a :class:`~.path_address.PathAddress`, or from the system's choice if
        `address` says nothing of it, or if that address is not ours any more.

        Never blocks.  Returns how many bytes were taken: sent, or lost to a passing
        error, which is counted.  Fewer than all, in whole datagrams: the buffer is
        full; call :meth:`wait_writable` and offer the rest again.
        """

    async def wait_writable(self) -> None:
        """Wait until :meth:`send_run` has room; ClosedResourceError once closed."""


class DatagramSocket(RunReceiver, RunSender, Protocol):
    """One bound, non-blocking datagram socket."""

    @property
    def address(self) -> SocketAddress:
        """The local address."""

    @property
    def statistics(self) -> SocketStatistics:
        """A snapshot of the counters."""

    def report_local_addresses(self) -> None:
        """From now on, say of each run received at which local address it has arrived.

        Sources are :class:`~.path_address.PathAddress` then, if the socket is bound to several
        addresses and the system tells; else nothing changes.  Idempotent.
        """

    def report_lost_address(self, callback: Callable[[], None]) -> None:
        """From now on, call `callback` when a datagram cannot leave, as our address has gone.

        That is: the socket is bound to one address, which is none of this host any more.  It
        is called within :meth:`send_run`, and must not send.
        """

    def report_failures(self, *, wanted: bool) -> None:
        """From now on, keep what the network says of datagrams that did not arrive; or no more.

        Where the system does not tell, nothing changes.  Idempotent.
        """

    def take_failures(self) -> list[DeliveryFailure]:
        """What was kept since the last call; bounded.  Never blocks, and costs no system call."""

    async def wait_readable(self) -> None:
        """Wait until there is something to receive; ClosedResourceError once closed.

        That is: :meth:`receive_runs` has something, or :meth:`take_failures` has after a call of
        :meth:`receive_runs`.
        """

    def close(self) -> None:
        """Close; tasks which wait are woken with ClosedResourceError.  Idempotent."""

    def reachable(self, address: SocketAddress) -> SocketAddress | None:
        """`address` in the form which :meth:`send_run` takes; ``None``: not from this socket."""

    def largest_payload(self, address: Address) -> int | None:
        """The largest UDP payload which the interface towards `address` takes; ``None``: unknown.

        The path may take less, which only trying it shows.
        """


class Network(Protocol):
    """Where sockets and addresses come from."""

    async def resolve(self, host: str, port: int) -> list[SocketAddress]:
        """The addresses of a name, the preferred one first; OSError if it is unknown."""

    async def open_socket(
        self, host: str | None, port: int, *, buffer_size: int, reuse_port: bool = False
    ) -> DatagramSocket:
        """A socket bound to a local address; ``None``: all of them, IPv4 and IPv6.

        With `reuse_port`, others may be bound to it as well; OSError where that is not possible.
        """
