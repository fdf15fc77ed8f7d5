"""Defines the interface to the network: datagram sockets, and the source of sockets and addresses.

Floor 1, types only.  The driver gets its sockets from outside and uses nothing else of the
system.  :class:`Network` and :class:`DatagramSocket` are small on purpose, so that a simulated
network (:mod:`phoenix_trio.testing`) can replace them.

Datagrams travel in *runs*: any number of the same size (the last one may be shorter) in one
piece of memory.
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
    """System calls that sent something; with GSO one call sends many datagrams."""
    receive_calls: int
    """The same for receiving, with GRO."""
    ecn: bool
    """Whether ECN marks are set and read."""
    pooled_receives: int
    """Receiving calls that reused a buffer instead of new memory."""
    gso: bool
    """Whether runs of datagrams are handed to the kernel in one call."""
    gro: bool
    """Whether the kernel may hand up runs of datagrams."""
    receive_buffer_size: int
    """Bytes of the receive buffer granted by the system; on Linux without the equal amount that
    it adds for its own bookkeeping."""
    send_buffer_size: int
    """The same for the send buffer."""


@attrs.frozen
class DeliveryFailure:
    """A report by the network that a datagram did not arrive.  Any host can forge it."""

    address: SocketAddress
    """The destination of the datagram."""
    number: int
    """The reason, as one of :mod:`errno`: ``ECONNREFUSED`` if no program listens there."""
    start: bytes
    """The first bytes of the datagram, as far as the network reports them; possibly none."""


#: Datagrams of one size (the last may be shorter) in one piece, their source (with our own
#: address if there are several, see :meth:`DatagramSocket.report_local_addresses`), that size,
#: their ECN codepoint (RFC 3168 section 5), and their end: a buffer can be longer.
ReceivedRun = tuple[bytes | bytearray, Address, int, int, int]


class RunReceiver(Protocol):
    """Where runs of datagrams come from."""

    def receive_runs(self, limit: int, pool: ReceivePool | None = None) -> list[ReceivedRun]:
        """Receive up to `limit` runs of datagrams.

        With a `pool`, the runs may be in its buffers, and the next call overwrites them.  Runs
        beyond the pool's size get new memory.

        Never blocks; returns an empty list if no datagram waits.
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

        They are marked with the ECN codepoint `mark` if the system can.  They leave from the
        local address of a :class:`~.path_address.PathAddress`.  The system chooses the local
        address if `address` has none, or if it is not ours any more.

        Never blocks.  Returns the number of bytes taken: sent, or lost to a passing error, which
        is counted.  If these are fewer than all, in whole datagrams, the buffer is full; call
        :meth:`wait_writable` and offer the rest again.
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
        """Start or stop keeping the network's reports of datagrams that did not arrive.

        On systems without such reports, nothing changes.  Idempotent.
        """

    def take_failures(self) -> list[DeliveryFailure]:
        """The bounded reports since the last call.  Never blocks, and costs no system call."""

    async def wait_readable(self) -> None:
        """Wait until there is something to receive; ClosedResourceError once closed.

        Then :meth:`receive_runs` has datagrams, or :meth:`take_failures` has reports after a
        call of :meth:`receive_runs`.
        """

    def close(self) -> None:
        """Close; waiting tasks are woken with ClosedResourceError.  Idempotent."""

    def reachable(self, address: SocketAddress) -> SocketAddress | None:
        """`address` in the form for :meth:`send_run`; ``None``: not reachable from this socket."""

    def largest_payload(self, address: Address) -> int | None:
        """The largest UDP payload of the interface towards `address`; ``None``: unknown.

        The path may take less; only probes show its limit.
        """


class Network(Protocol):
    """Makes sockets, and resolves addresses."""

    async def resolve(self, host: str, port: int) -> list[SocketAddress]:
        """The addresses of a name, the preferred one first; OSError if it is unknown."""

    async def open_socket(
        self, host: str | None, port: int, *, buffer_size: int, reuse_port: bool = False
    ) -> DatagramSocket:
        """A socket bound to a local address; ``None``: to all of them, IPv4 and IPv6.

        With `reuse_port`, other sockets may be bound to it as well; OSError if that is not
        possible.
        """
