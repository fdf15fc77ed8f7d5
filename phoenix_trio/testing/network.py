"""UDP in memory: hosts, links, and what can go wrong on them.

Floor 3.  For tests.  Everything random is drawn from one generator at the time
of sending, in the order of sending, so a seed and a program give one outcome
on the network's side.  There are no tasks behind it: a datagram on its way is
an entry in its receiver's queue, and whoever waits for that socket sleeps until
the entry is due.  So it works under :class:`trio.testing.MockClock`, where hours
pass in a moment, as on the real clock.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import math
import os
import random
import socket
from collections import deque
from collections.abc import Callable
from typing import final

import attrs
import trio

from ..quic.datagram_socket import ReceivedRun, SocketStatistics
from ..quic.path_address import Address, PathAddress, SocketAddress, local_of
from ..quic.receive_pool import ReceivePool

__all__ = [
    "Conditions",
    "Datagram",
    "NetworkStatistics",
    "SimulatedHost",
    "SimulatedLink",
    "SimulatedNetwork",
    "SimulatedSocket",
]

_EPHEMERAL_PORTS = range(49152, 65536)

#: As with real sockets: bytes of a received run at most, and datagrams in one.
_LARGEST_RUN = 65_535
_RUN_SEGMENTS = 64

#: A tap may let a datagram pass, change it, multiply it, or swallow it.
Tap = Callable[["Datagram"], "Datagram | list[Datagram] | None"]


@attrs.frozen
class Datagram:
    """One datagram as a tap sees it, before any fault."""

    source: tuple[str, int]
    destination: tuple[str, int]
    data: bytes
    ecn: int = 0
    """The ECN codepoint in the IP header (RFC 3168 section 5): 2 is ECT(0), 3 is CE."""


def _probability(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be a probability from 0 to 1, not {value!r}")


def _not_negative(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{attribute.name} must be zero or more seconds, not {value!r}")


def _positive(instance: object, attribute: attrs.Attribute[int], value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{attribute.name} must be more than zero, or None, not {value!r}")


@attrs.frozen(kw_only=True)
class Conditions:
    """What a link does to the datagrams which cross it in one direction.

    Raises:
      ValueError: a value is out of range; the text names the field.
    """

    loss: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams which vanish, 0 to 1."""
    delay: float = attrs.field(default=0.0, validator=_not_negative)
    """Seconds on the way, in this direction."""
    jitter: float = attrs.field(default=0.0, validator=_not_negative)
    """Up to so many seconds more, evenly distributed; later datagrams may overtake."""
    batching: float = attrs.field(default=0.0, validator=_not_negative)
    """Datagrams arrive at multiples of so many seconds, as from a network card which
    collects them for one interrupt: receivers see long runs.  0: each for itself."""
    reorder: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams which are held back for one more `delay` (at least 1 ms)."""
    duplicate: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams which arrive twice."""
    corrupt: float = attrs.field(default=0.0, validator=_probability)
    """The share of datagrams in which one bit is flipped."""
    mark: float = attrs.field(default=0.0, validator=_probability)
    """The share of ECN-capable datagrams which are marked "congestion experienced"."""
    bandwidth: float | None = attrs.field(default=None, validator=_positive)
    """Bits a second; ``None``: no limit."""
    queue_bytes: int = attrs.field(default=256 * 1024, validator=_positive)
    """Bytes which wait for a link with limited bandwidth; what comes on top is dropped.

    What finds nothing before it passes in any case."""
    mtu: int | None = attrs.field(default=1500, validator=_positive)
    """The largest UDP payload in bytes; larger ones vanish without a word; ``None``: any."""


@attrs.frozen(kw_only=True)
class NetworkStatistics:
    """What has become of all datagrams so far.

    ``sent + duplicated`` is the sum of all the others but ``corrupted``.
    """

    sent: int
    duplicated: int
    corrupted: int
    delivered: int
    """Read by a socket."""
    under_way: int
    """On a link, or waiting in a socket to be read."""
    lost: int
    queue_full: int
    """Dropped before a slow link."""
    too_large: int
    partitioned: int
    no_listener: int
    receive_buffer_full: int


@final
class SimulatedLink:
    """One direction between two hosts.  Obtained from :meth:`SimulatedNetwork.link`."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self._own: Conditions | None = None
        self._cut = False
        self._free_at = -math.inf
        # What waits for a slow link or is on its way into it: when it is through, and its size.
        self._queue: deque[tuple[float, int]] = deque()
        self._queued_bytes = 0

    def __repr__(self) -> str:
        state = "cut" if self._cut else f"{self._queued_bytes} bytes queued"
        return f"<SimulatedLink ({state})>"

    @property
    def conditions(self) -> Conditions:
        """What this direction does at present."""
        return self._network.conditions if self._own is None else self._own

    def set_conditions(self, **changes: float | None) -> None:
        """Change some conditions of this direction only; it keeps its own from now on.

        Raises:
          TypeError: no such condition.
          ValueError: a value is out of range.
        """
        self._own = attrs.evolve(self.conditions, **changes)  # type: ignore[arg-type]

    def _departure(self, size: int, now: float) -> float | None:
        """When a datagram is through the bottleneck; ``None``: the queue is full.

        First in, first out, also where the bandwidth has changed meanwhile.
        """
        conditions = self.conditions
        queue = self._queue
        while queue and queue[0][0] <= now:
            self._queued_bytes -= queue.popleft()[1]
        if conditions.bandwidth is None:
            return max(now, self._free_at)
        if queue and self._queued_bytes + size > conditions.queue_bytes:
            return None
        self._free_at = max(now, self._free_at) + size * 8 / conditions.bandwidth
        queue.append((self._free_at, size))
        self._queued_bytes += size
        return self._free_at


@final
class SimulatedNetwork:
    """A network in memory.

    Args:
      seed: of everything random; ``None`` draws one, see :attr:`seed`.
      loss, delay, jitter, batching, reorder, duplicate, corrupt, mark, bandwidth, queue_bytes, mtu:
        see :class:`Conditions`; of all links, in each direction.

    Raises:
      ValueError: a condition is out of range.
    """

    def __init__(
        self,
        seed: int | None = 0,
        *,
        loss: float = 0.0,
        delay: float = 0.0,
        jitter: float = 0.0,
        batching: float = 0.0,
        reorder: float = 0.0,
        duplicate: float = 0.0,
        corrupt: float = 0.0,
        mark: float = 0.0,
        bandwidth: float | None = None,
        queue_bytes: int = 256 * 1024,
        mtu: int | None = 1500,
    ) -> None:
        self.seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
        """The seed in use; print it where a test fails."""
        self.conditions = Conditions(
            loss=loss,
            delay=delay,
            jitter=jitter,
            batching=batching,
            reorder=reorder,
            duplicate=duplicate,
            corrupt=corrupt,
            mark=mark,
            bandwidth=bandwidth,
            queue_bytes=queue_bytes,
            mtu=mtu,
        )
        """What links without conditions of their own do."""
        self.tap: Tap | None = None
        """Called with every :class:`Datagram` that is sent: returns it, another one, a
        list of them, or ``None`` to swallow it (counted as lost)."""
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        self._hosts: dict[str, SimulatedHost] = {}
        self._links: dict[tuple[str, str], SimulatedLink] = {}
        self._names: dict[str, list[str]] = {}
        self._sockets: dict[tuple[str, int], SimulatedSocket] = {}
        # Source addresses which a rebinding has put in the place of a socket's own; with the
        # local address behind each.
        self._aliases: dict[tuple[str, int], tuple[SimulatedSocket, str]] = {}
        self._sequence = itertools.count()
        self._ports = itertools.cycle(_EPHEMERAL_PORTS)
        self._counts = dict.fromkeys((f.name for f in attrs.fields(NetworkStatistics)), 0)

    def __repr__(self) -> str:
        return f"<SimulatedNetwork with seed {self.seed}>"

    def host(self, address: str, *others: str) -> SimulatedHost:
        """The host with these numeric addresses (IPv4 or IPv6); the same object every time.

        Name several addresses for a host which has several, before a socket is opened on
        it.  Later, each of them alone finds it.

        Raises:
          ValueError: an address is not numeric, or belongs to another host.
        """
        addresses = list(dict.fromkeys(_numeric(each) for each in (address, *others)))
        found = self._hosts.get(addresses[0])
        if found is None:
            for each in addresses:
                if each in self._hosts:
                    raise ValueError(f"{each} belongs to {self._hosts[each]!r}")
            found = SimulatedHost(self, addresses)
            self._hosts.update(dict.fromkeys(addresses, found))
        elif not set(addresses) <= set(found.addresses):
            raise ValueError(f"{', '.join(addresses)} are not all addresses of {found!r}")
        return found

    def add_name(self, name: str, *addresses: str) -> None:
        """Let `name` resolve to these addresses, in this order.

        Raises:
          ValueError: there is no address, or one is not numeric.
        """
        if not addresses:
            raise ValueError(f"{name!r} needs at least one address")
        self._names[name] = [_numeric(address) for address in addresses]

    def link(self, source: str, destination: str) -> SimulatedLink:
        """The direction from one host to another, both by their numeric addresses.

        A host which a :meth:`SimulatedHost.rebind` has given another address uses the
        links of that address.

        Raises:
          ValueError: an address is not numeric.
        """
        return self._link(_numeric(source), _numeric(destination))

    def set_conditions(self, **changes: float | None) -> None:
        """Change some conditions of all links which have none of their own.

        Datagrams which are on their way already keep their fate.

        Raises:
          TypeError: no such condition.
          ValueError: a value is out of range.
        """
        self.conditions = attrs.evolve(self.conditions, **changes)  # type: ignore[arg-type]

    def partition(self, first: str, second: str) -> None:
        """Nothing that is sent between these hosts gets through, either way, until :meth:`heal`.

        Raises:
          ValueError: an address is not numeric.
        """
        self.link(first, second)._cut = self.link(second, first)._cut = True

    def heal(self, first: str, second: str) -> None:
        """End a :meth:`partition`."""
        self.link(first, second)._cut = self.link(second, first)._cut = False

    def statistics(self) -> NetworkStatistics:
        """A snapshot of the counters."""
        return NetworkStatistics(**self._counts)

    # ------------------------------------------------------------------ inside

    def _link(self, source: str, destination: str) -> SimulatedLink:
        link = self._links.get((source, destination))
        if link is None:
            link = self._links[source, destination] = SimulatedLink(self)
        return link

    def _count(self, what: str, amount: int = 1) -> None:
        self._counts[what] += amount

    def _send(self, datagram: Datagram) -> None:
        self._count("sent")
        if self.tap is None:
            self._transfer(datagram)
            return
        outcome = self.tap(datagram)
        if outcome is None:
            self._count("lost")
            return
        passed = outcome if isinstance(outcome, list) else [outcome]
        if not passed:
            self._count("lost")
        for extra, each in enumerate(passed):
            if extra:
                self._count("duplicated")
            self._transfer(each)

    def _transfer(self, datagram: Datagram) -> None:
        link = self._link(datagram.source[0], datagram.destination[0])
        conditions = link.conditions
        # Always the same draws for a datagram, so that a change of one condition does
        # not change the fate which the others have in store.
        draws = [self._random.random() for _ in range(6)]
        if link._cut:
            self._count("partitioned")
            return
        if conditions.mtu is not None and len(datagram.data) > conditions.mtu:
            self._count("too_large")
            return
        departure = link._departure(len(datagram.data), trio.current_time())
        if departure is None:
            self._count("queue_full")
            return
        if draws[0] < conditions.loss:
            self._count("lost")
            return
        data = datagram.data
        if data and draws[1] < conditions.corrupt:
            self._count("corrupted")
            bit = int(draws[2] * len(data) * 8)
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            data = bytes(changed)
        mark = datagram.ecn
        if conditions.mark and mark in (1, 2) and self._random.random() < conditions.mark:
            mark = 3
        datagram = attrs.evolve(datagram, data=data, ecn=mark)
        arrival = departure + conditions.delay + draws[3] * conditions.jitter
        if draws[4] < conditions.reorder:
            arrival += max(conditions.delay, 0.001)
        if conditions.batching:
            arrival = math.ceil(arrival / conditions.batching) * conditions.batching
        self._put(datagram, arrival)
        if draws[5] < conditions.duplicate:
            self._count("duplicated")
            self._put(datagram, arrival + max(conditions.delay, 0.001))

    def _put(self, datagram: Datagram, arrival: float) -> None:
        found = self._find(datagram.destination)
        if found is None:
            self._count("no_listener")
            return
        receiver, local = found
        self._count("under_way")
        receiver._enqueue(
            arrival, next(self._sequence), datagram.data, datagram.source, local, datagram.ecn
        )

    def _find(self, destination: tuple[str, int]) -> tuple[SimulatedSocket, str] | None:
        """The socket to which a datagram goes, and at which of its host's addresses."""
        if destination in self._aliases:
            return self._aliases[destination]
        found = self._sockets.get(destination)
        host = destination[0]
        # Behind a rebinding, the old outside address leads nowhere.
        if found is None or found._outside[host] != destination:
            return None
        return found, host

    def _free_port(self, *hosts: str) -> int:
        for _ in _EPHEMERAL_PORTS:
            port = next(self._ports)
            if all(
                (host, port) not in self._sockets and (host, port) not in self._aliases
                for host in hosts
            ):
                return port
        raise OSError(errno.EADDRINUSE, f"no free port is left on {', '.join(hosts)}")


@final
class SimulatedHost:
    """One host of a simulated network.  Obtained from :meth:`SimulatedNetwork.host`.

    Pass it as ``network=`` to :func:`phoenix_trio.serve`,
    :func:`phoenix_trio.open_connection` or :meth:`phoenix_trio.Endpoint.open`.
    """

    def __init__(self, network: SimulatedNetwork, addresses: list[str]) -> None:
        self._network = network
        self._own = tuple(addresses)
        # The first ones are those from which is sent; shared with the sockets.
        self._order = list(addresses)

    def __repr__(self) -> str:
        return f"<SimulatedHost {', '.join(self._own)}>"

    @property
    def address(self) -> str:
        """The host's numeric address, the first one if it has several."""
        return self._own[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """All numeric addresses of the host."""
        return self._own

    async def resolve(self, host: str, port: int) -> list[SocketAddress]:
        """Numeric addresses, and names given to :meth:`SimulatedNetwork.add_name`.

        Raises:
          OSError: (``socket.gaierror``) the name is unknown.
        """
        await trio.lowlevel.checkpoint()
        return [(address, port) for address in self._addresses(host)]

    async def open_socket(
        self, host: str | None, port: int, *, buffer_size: int
    ) -> SimulatedSocket:
        """A socket on this host.

        `host` is one of its addresses; ``None``, ``"0.0.0.0"`` and ``"::"`` are all of
        them.  As with real sockets, what is sent from a socket bound to all addresses
        leaves from the first one (of the receiver's family if there is one), unless the
        sender says otherwise.

        Raises:
          OSError: the address is unknown or not this host's, or the port is in use.
          ValueError: the port is not between 0 and 65535.
        """
        await trio.lowlevel.checkpoint()
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, not {port}")
        network = self._network
        own: tuple[str, ...] = self._own
        is_wildcard = host in (None, "0.0.0.0", "::")  # noqa: S104 - not a real one
        if not is_wildcard:
            named = self._addresses(host or "")
            own = tuple(each for each in named if each in self._own)[:1]
            if not own:
                raise OSError(errno.EADDRNOTAVAIL, f"{host} is not an address of {self!r}")
        port = port or network._free_port(*own)
        for each in own:
            if (each, port) in network._sockets or (each, port) in network._aliases:
                raise OSError(errno.EADDRINUSE, f"port {port} of {each} is in use")
        opened = SimulatedSocket(
            network, own, port, buffer_size, order=self._order, is_wildcard=is_wildcard
        )
        network._sockets.update(dict.fromkeys(((each, port) for each in own), opened))
        return opened

    def _addresses(self, host: str) -> list[str]:
        known = self._network._names.get(host)
        if known is not None:
            return known
        try:
            return [_numeric(host)]
        except ValueError:
            raise socket.gaierror(
                socket.EAI_NONAME, f"{host!r} has no address in {self._network!r}"
            ) from None

    def prefer(self, address: str) -> None:
        """The host's routes change: from now on, what is free to choose leaves from `address`.

        As when a device goes from Wi-Fi to a mobile network.  The other addresses stay.

        Raises:
          ValueError: it is not an address of this host.
        """
        chosen = _numeric(address)
        if chosen not in self._own:
            raise ValueError(f"{address} is not an address of {self!r}")
        self._order.remove(chosen)
        self._order.insert(0, chosen)

    def rebind(self, new_address: str | None = None) -> None:
        """A NAT forgets its mapping: all sockets which this host has now seem to move.

        From now on their datagrams come from another port (and from `new_address`,
        if given), replies to that reach them, and what is sent to the old address
        reaches nobody.  What was under way before still arrives.

        Raises:
          ValueError: the address is not numeric.
        """
        network = self._network
        moved_to = None if new_address is None else _numeric(new_address)
        for (local, _), opened in list(network._sockets.items()):
            if local in self._own:
                before = opened._outside[local]
                outside_host = before[0] if moved_to is None else moved_to
                network._aliases.pop(before, None)
                after = (outside_host, network._free_port(outside_host))
                opened._outside[local] = after
                network._aliases[after] = opened, local


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
        # Each local address as the others see it.
        self._outside = {host: (host, port) for host in hosts}
        self._is_wildcard = is_wildcard
        self._reports_local = False
        self._buffer_size = buffer_size
        # A heap of what is on its way, by arrival; and the receive buffer.
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
        self.block_sending = False
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
        """From now on, say of each run at which address it has arrived, if there are several.

        As with real sockets: of those which are bound to all addresses of their host.
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
        # Here as well as where it is read: what nobody reads must not pile up.
        self._settle(trio.current_time())
        if arrival < earliest:
            self._lot.unpark_all()

    def _settle(self, now: float) -> None:
        """Move what has arrived into the receive buffer; what finds it full is lost."""
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
        """Up to `limit` datagrams which have arrived by now, with their sources."""
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
        self._bytes_sent += len(data)
        self._datagrams_sent += 1
        destination = (address[0], address[1])
        source = self._outside[self._source_for(address)]
        self._network._send(Datagram(source, destination, bytes(data), mark))
        return True

    def _source_for(self, address: Address) -> str:
        """The local address from which a datagram leaves."""
        local = local_of(address)
        if local in self._outside:
            return local
        is_ipv6 = ":" in address[0]
        bound = [host for host in self._order if host in self._outside]
        return next((host for host in bound if (":" in host) is is_ipv6), bound[0])

    def receive_runs(self, limit: int, pool: ReceivePool | None = None) -> list[ReceivedRun]:
        """What has arrived, as a kernel with GRO gives it: in runs of one size from one source."""
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
            if self._arrived:
                return
            earliest = self._coming[0][0] if self._coming else math.inf
            with trio.CancelScope(deadline=earliest):
                await self._lot.park()

    async def wait_writable(self) -> None:
        """Wait until sending is not blocked; ClosedResourceError once closed."""
        await trio.lowlevel.checkpoint()
        while self.block_sending and not self._closed:
            await self._lot.park()
        if self._closed:
            raise trio.ClosedResourceError("this socket was closed")

    def unblock_sending(self) -> None:
        """The send buffer has room again."""
        self.block_sending = False
        self._lot.unpark_all()

    def close(self) -> None:
        """Close; what was on its way here is lost.  Idempotent."""
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
        self._arrived.clear()
        self._arrived_bytes = 0
        self._lot.unpark_all()

    def reachable(self, address: SocketAddress) -> SocketAddress | None:
        """The address itself: every host can be reached."""
        # A link joins any two addresses, as a dual stack would.
        return address

    def largest_payload(self, address: Address) -> int | None:
        """Not known: a simulated host has no interface; the link may take less than Ethernet."""
        return None


def _as_run(datagrams: list[bytes], source: Address, size: int, mark: int) -> ReceivedRun:
    data = b"".join(datagrams)
    return data, source, size, mark, len(data)


def _numeric(address: str) -> str:
    """The one way to write a numeric address, so that every spelling means the same host."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, address))
    except OSError:
        raise ValueError(f"{address!r} is not a numeric IPv4 or IPv6 address") from None
