"""A datagram socket of a simulated network.

Floor 3.  A datagram on its way is an entry in the queue of its receiver, in the order of
arrival; a task that waits for the socket sleeps until the first entry is due.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, final

import trio

from ..quic.datagram_socket import DeliveryFailure, ReceivedRun, SocketStatistics
from ..quic.path_address import Address, PathAddress, SocketAddress, local_of
from ..quic.receive_pool import ReceivePool
from .conditions import Datagram

if TYPE_CHECKING:
    from .network import SimulatedNetwork

__all__ = ["SimulatedSocket"]

#: As with real sockets: the most bytes of a received run, and the most datagrams in one.
_LARGEST_RUN = 65_535
_RUN_SEGMENTS = 64


@final
class SimulatedSocket:
    """A datagram socket in memory.  Obtained from :meth:`SimulatedHost.open_socket`.

    Tests of the transport itself use it directly; other tests leave it to the endpoint.
    """

    def __init__(
        self,
        network: SimulatedNetwork,
        hosts: tuple[str, ...],
        port: int,
        buffer_size: int,
        *,
        order: list[str],
        is_wildcard: bool,
    ) -> None:
        self._network = network
        self._order = order
        self._hosts = hosts
        self._port = port
        # Each local address as other hosts see it.
        self._outside = {host: (host, port) for host in hosts}
        self._is_wildcard = is_wildcard
        self._reports_local = False
        # Reports on datagrams that did not arrive: on their way here, and here.
        self._failing: list[tuple[float, int, DeliveryFailure]] = []
        self._failures: list[DeliveryFailure] | None = None  # None: they are ignored
        self._on_lost_address: Callable[[], None] | None = None
        self._buffer_size = buffer_size
        # A heap of the datagrams on their way, by arrival; and the receive buffer.
        self._coming: list[tuple[float, int, bytes, tuple[str, int], str, int]] = []
        self._arrived: deque[tuple[bytes, tuple[str, int], str, int]] = deque()
        self._arrived_bytes = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False
        self._bytes_sent = 0
        self._bytes_received = 0
        self._datagrams_sent = 0
        self._datagrams_received = 0
        self._send_blocked = 0
        self.block_sending: bool = False
        """Set it to let the send buffer seem full, until :meth:`unblock_sending`."""

    def __repr__(self) -> str:
        return f"<SimulatedSocket on {self.address} ({'closed' if self._closed else 'open'})>"

    @property
    def address(self) -> SocketAddress:
        """The local address, as the host itself sees it; the first one of several."""
        return self._hosts[0], self._port

    @property
    def statistics(self) -> SocketStatistics:
        """A snapshot of the counters."""
        return SocketStatistics(
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            datagrams_sent=self._datagrams_sent,
            datagrams_received=self._datagrams_received,
            send_blocked=self._send_blocked,
            soft_errors=0,
            send_calls=self._datagrams_sent,
            receive_calls=self._datagrams_received,
            pooled_receives=0,
            ecn=True,
            gso=False,
            gro=True,
            receive_buffer_size=self._buffer_size,
            send_buffer_size=self._buffer_size,
        )

    def report_local_addresses(self) -> None:
        """From now on, report for each run the address at which it arrived, if there are several.

        As real sockets do, only if the socket is bound to all addresses of its host.
        """
        self._reports_local = self._is_wildcard

    def _enqueue(
        self,
        arrival: float,
        sequence: int,
        data: bytes,
        source: tuple[str, int],
        local: str,
        mark: int,
    ) -> None:
        earliest = self._coming[0][0] if self._coming else math.inf
        heapq.heappush(self._coming, (arrival, sequence, data, source, local, mark))
        # Settled here as well as on reading, so that unread datagrams do not pile up.
        self._settle(trio.current_time())
        if arrival < earliest:
            self._lot.unpark_all()

    def report_lost_address(self, callback: Callable[[], None]) -> None:
        """From now on, call `callback` when a datagram cannot leave, as our address has gone."""
        self._on_lost_address = callback

    def report_failures(self, *, wanted: bool) -> None:
        """From now on, keep reports on datagrams that did not arrive, or stop keeping them."""
        if not wanted:
            self._failures = None
        elif self._failures is None:
            self._failures = []

    def take_failures(self) -> list[DeliveryFailure]:
        """The reports kept since the last call."""
        taken = self._failures or []
        if taken:
            self._failures = []
        return taken

    def _enqueue_failure(self, arrival: float, sequence: int, failure: DeliveryFailure) -> None:
        heapq.heappush(self._failing, (arrival, sequence, failure))
        self._lot.unpark_all()

    def _earliest(self) -> float:
        """When the next datagram, or the next report on a lost one, arrives."""
        coming = self._coming[0][0] if self._coming else math.inf
        return min(coming, self._failing[0][0]) if self._failing else coming

    def _settle(self, now: float) -> None:
        """Move arrived datagrams into the receive buffer; if it is full, they are lost."""
        while self._failing and self._failing[0][0] <= now:
            failure = heapq.heappop(self._failing)[2]
            if self._failures is not None:
                self._failures.append(failure)
        coming = self._coming
        while coming and coming[0][0] <= now:
            _, _, data, source, local, mark = heapq.heappop(coming)
            if self._arrived_bytes + len(data) > self._buffer_size:
                self._network._count("receive_buffer_full")
                self._network._count("under_way", -1)
            else:
                self._arrived.append((data, source, local, mark))
                self._arrived_bytes += len(data)

    def receive(self, limit: int) -> list[tuple[bytes, SocketAddress]]:
        """Up to `limit` datagrams that have arrived by now, with their sources."""
        self._settle(trio.current_time())
        received: list[tuple[bytes, SocketAddress]] = []
        while self._arrived and len(received) < limit:
            data, source, _, _ = self._arrived.popleft()
            received.append((data, source))
            self._arrived_bytes -= len(data)
            self._bytes_received += len(data)
        self._datagrams_received += len(received)
        self._network._count("delivered", len(received))
        self._network._count("under_way", -len(received))
        return received

    def send(self, data: bytes, address: Address, mark: int = 0) -> bool:
        """Send a datagram with an ECN codepoint; False only while :attr:`block_sending` is set."""
        if self._closed:
            return True
        if self.block_sending:
            self._send_blocked += 1
            return False
        local = self._source_for(address)
        if local is None:
            if self._on_lost_address is not None and not self._is_wildcard:
                self._on_lost_address()
            return True
        self._bytes_sent += len(data)
        self._datagrams_sent += 1
        destination = (address[0], address[1])
        source = self._outside[local]
        self._network._send(Datagram(source, destination, bytes(data), mark))
        return True

    def _source_for(self, address: Address) -> str | None:
        """The local address from which a datagram leaves; ``None``: the host has lost it."""
        local = local_of(address)
        if local in self._outside and local in self._order:
            return local
        is_ipv6 = ":" in address[0]
        bound = [host for host in self._order if host in self._outside]
        if not bound:
            return None
        return next((host for host in bound if (":" in host) is is_ipv6), bound[0])

    def receive_runs(self, limit: int, pool: ReceivePool | None = None) -> list[ReceivedRun]:
        """The arrived datagrams as a kernel with GRO gives them: in runs of one size and source."""
        runs: list[ReceivedRun] = []
        self._settle(trio.current_time())
        while self._arrived and len(runs) < limit:
            first, source, local, mark = self._arrived[0]
            size, room, count = len(first), _LARGEST_RUN, 0
            for data, sender, here, common in self._arrived:
                if sender != source or common != mark or len(data) > min(size, room):
                    break
                if self._reports_local and here != local:
                    break
                if count == _RUN_SEGMENTS or (count and not data):
                    break
                count += 1
                room -= len(data)
                if len(data) < size or not data:
                    break
            address = PathAddress.join(source, local) if self._reports_local else source
            datagrams = [data for data, _ in self.receive(count)]
            runs.append(_as_run(datagrams, address, size, mark))
        return runs

    def send_run(
        self,
        data: bytes | memoryview,
        address: Address,
        segment_size: int | None = None,
        mark: int = 0,
    ) -> int:
        """Send a run of datagrams; returns how many bytes were taken."""
        step = segment_size or len(data) or 1
        for start in range(0, len(data), step):
            if not self.send(bytes(data[start : start + step]), address, mark):
                return start
        return len(data)

    async def wait_readable(self) -> None:
        """Wait until a datagram has arrived; ClosedResourceError once closed."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this socket was closed")
            self._settle(trio.current_time())
            if self._arrived or self._failures:
                return
            with trio.CancelScope(deadline=self._earliest()):
                await self._lot.park()

    async def wait_writable(self) -> None:
        """Wait until sending is not blocked; ClosedResourceError once closed."""
        await trio.lowlevel.checkpoint()
        while self.block_sending and not self._closed:
            await self._lot.park()
        if self._closed:
            raise trio.ClosedResourceError("this socket was closed")

    def unblock_sending(self) -> None:
        """Let the send buffer have room again."""
        self.block_sending = False
        self._lot.unpark_all()

    def close(self) -> None:
        """Close; datagrams on their way here are lost.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        for local, outside in self._outside.items():
            del self._network._sockets[local, self._port]
            self._network._aliases.pop(outside, None)
        unread = len(self._coming) + len(self._arrived)
        self._network._count("no_listener", unread)
        self._network._count("under_way", -unread)
        self._coming.clear()
        self._failing.clear()
        self._arrived.clear()
        self._arrived_bytes = 0
        self._lot.unpark_all()

    def reachable(self, address: SocketAddress) -> SocketAddress | None:
        """The address itself: every host can be reached."""
        # A link joins any two addresses, as a dual stack would.
        return address

    def largest_payload(self, address: Address) -> int | None:
        """``None``: a simulated host has no interface; the link may take less than Ethernet."""
        return None


def _as_run(datagrams: list[bytes], source: Address, size: int, mark: int) -> ReceivedRun:
    data = b"".join(datagrams)
    return data, source, size, mark, len(data)
