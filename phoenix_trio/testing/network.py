"""Simulates UDP in memory: hosts, links, and the faults on them.

Floor 3.  For tests.  All random values are drawn from one generator at the time of
sending, in the order of sending, so a seed and a program give one outcome on the network's
side.  No task runs behind it (:mod:`.udp_socket`), so it works under
:class:`trio.testing.MockClock`, where hours pass in a moment, as well as on the real clock.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
from typing import final

import attrs
import trio

from ..quic.datagram_socket import DeliveryFailure
from .conditions import Conditions, Datagram, NetworkStatistics, Tap
from .host import SimulatedHost, numeric
from .link import SimulatedLink
from .udp_socket import SimulatedSocket

__all__ = ["SimulatedNetwork"]

_EPHEMERAL_PORTS = range(49152, 65536)


@final
class SimulatedNetwork:
    """A network in memory.

    Args:
      seed: of all random values; ``None`` draws one, see :attr:`seed`.
      loss, delay, jitter, batching, reorder, duplicate, corrupt, mark, bandwidth, queue_bytes, mtu:
        see :class:`Conditions`; of all links, in each direction.
      port_unreachable: hosts answer a datagram to a port without a socket with "port
        unreachable" (ICMP), as real hosts do unless a firewall prevents it; see
        :attr:`port_unreachable`.

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
        port_unreachable: bool = False,
    ) -> None:
        self.seed: int = int.from_bytes(os.urandom(4), "big") if seed is None else seed
        """The seed in use; print it when a test fails."""
        self.conditions: Conditions = Conditions(
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
        """The conditions of links without conditions of their own."""
        self.tap: Tap | None = None
        """Called with every :class:`Datagram` that is sent: returns it, another one, a
        list of them, or ``None`` to swallow it (counted as lost)."""
        self.port_unreachable = port_unreachable
        """Whether hosts answer a datagram to a port without a socket with "port unreachable".

        The answer takes the time of a datagram's way back, and gets lost as a datagram does."""
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        self._hosts: dict[str, SimulatedHost] = {}
        self._links: dict[tuple[str, str], SimulatedLink] = {}
        self._names: dict[str, list[str]] = {}
        self._sockets: dict[tuple[str, int], SimulatedSocket] = {}
        # Source addresses that a rebinding has put in the place of a socket's own, each with
        # the local address behind it.
        self._aliases: dict[tuple[str, int], tuple[SimulatedSocket, str]] = {}
        self._lost: set[str] = set()  # addresses lost by their hosts
        self._sequence = itertools.count()
        self._ports = itertools.cycle(_EPHEMERAL_PORTS)
        self._counts = dict.fromkeys((f.name for f in attrs.fields(NetworkStatistics)), 0)

    def __repr__(self) -> str:
        return f"<SimulatedNetwork with seed {self.seed}>"

    def host(self, address: str, *others: str) -> SimulatedHost:
        """The host with these numeric addresses (IPv4 or IPv6); the same object every time.

        Name all addresses of a host with several addresses before a socket is opened on it.
        Later, each of them alone finds the host.

        Raises:
          ValueError: an address is not numeric, or belongs to another host.
        """
        addresses = list(dict.fromkeys(numeric(each) for each in (address, *others)))
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
        self._names[name] = [numeric(address) for address in addresses]

    def link(self, source: str, destination: str) -> SimulatedLink:
        """The direction from one host to another, both by their numeric addresses.

        After a :meth:`SimulatedHost.rebind` to another address, a host uses the links of that
        address.

        Raises:
          ValueError: an address is not numeric.
        """
        return self._link(numeric(source), numeric(destination))

    def set_conditions(self, **changes: float | None) -> None:
        """Change some conditions of all links without conditions of their own.

        Datagrams already on their way are not affected.

        Raises:
          TypeError: no such condition.
          ValueError: a value is out of range.
        """
        self.conditions = attrs.evolve(self.conditions, **changes)  # type: ignore[arg-type]

    def partition(self, first: str, second: str) -> None:
        """Lose all datagrams between these hosts, either way, until :meth:`heal`.

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
        # Always the same draws for a datagram, so that a change of one condition does not
        # change the effect of the others.
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
            if self.port_unreachable and datagram.destination[0] in self._hosts:
                self._report_unreachable(datagram, arrival)
            return
        receiver, local = found
        self._count("under_way")
        receiver._enqueue(
            arrival, next(self._sequence), datagram.data, datagram.source, local, datagram.ecn
        )

    def _report_unreachable(self, datagram: Datagram, arrival: float) -> None:
        """Tell the sender that a datagram has come to a port without a socket."""
        back = self._link(datagram.destination[0], datagram.source[0])
        sender = self._find(datagram.source)
        if sender is None or back._cut or self._random.random() < back.conditions.loss:
            return
        failure = DeliveryFailure(datagram.destination, errno.ECONNREFUSED, datagram.data[:64])
        sender[0]._enqueue_failure(arrival + back.conditions.delay, next(self._sequence), failure)

    def _find(self, destination: tuple[str, int]) -> tuple[SimulatedSocket, str] | None:
        """The socket to which a datagram goes, and at which of its host's addresses."""
        if destination[0] in self._lost:
            return None
        if destination in self._aliases:
            return self._aliases[destination]
        found = self._sockets.get(destination)
        host = destination[0]
        # After a rebinding, the old outside address leads nowhere.
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
