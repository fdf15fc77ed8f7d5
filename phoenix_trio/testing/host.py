"""Hosts of a simulated network: their addresses, their sockets, their place behind a NAT.

Floor 3.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, final

import trio

from ..quic.path_address import SocketAddress
from .udp_socket import SimulatedSocket

if TYPE_CHECKING:
    from .network import SimulatedNetwork

__all__ = ["SimulatedHost", "numeric"]


@final
class SimulatedHost:
    """One host of a simulated network.  Obtained from :meth:`SimulatedNetwork.host`.

    Pass it as ``network=`` to :func:`phoenix_trio.serve`,
    :func:`phoenix_trio.open_connection` or :meth:`phoenix_trio.Endpoint.open`.
    """

    def __init__(self, network: SimulatedNetwork, addresses: list[str]) -> None:
        self._network = network
        self._own = tuple(addresses)
        # Datagrams leave from the first usable one; shared with the sockets.
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
        self, host: str | None, port: int, *, buffer_size: int, reuse_port: bool = False
    ) -> SimulatedSocket:
        """Open a socket on this host.

        `host` is one of its addresses; ``None``, ``"0.0.0.0"`` and ``"::"`` are all of
        them.  As with real sockets, a datagram from a socket bound to all addresses leaves from
        the first one (of the receiver's family if there is one), unless the sender says
        otherwise.

        Raises:
          OSError: the address is unknown or not this host's, the port is in use, or sharing it
            is asked for (`reuse_port`), which is not simulated.
          ValueError: the port is not between 0 and 65535.
        """
        await trio.lowlevel.checkpoint()
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, not {port}")
        if reuse_port:
            raise OSError(errno.EOPNOTSUPP, "a simulated host has no SO_REUSEPORT")
        network = self._network
        own: tuple[str, ...] = self._own
        is_wildcard = host in (None, "0.0.0.0", "::")  # noqa: S104 - not a real one
        if not is_wildcard:
            named = self._addresses(host or "")
            own = tuple(each for each in named if each in self._order)[:1]
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
            return [numeric(host)]
        except ValueError:
            raise socket.gaierror(
                socket.EAI_NONAME, f"{host!r} has no address in {self._network!r}"
            ) from None

    def prefer(self, address: str) -> None:
        """Change the host's routes: datagrams free to choose leave from `address` from now on.

        This happens when a device goes from Wi-Fi to a mobile network.  The other addresses stay.

        Raises:
          ValueError: it is not an address of this host.
        """
        chosen = numeric(address)
        if chosen not in self._own:
            raise ValueError(f"{address} is not an address of {self!r}")
        self._order.remove(chosen)
        self._order.insert(0, chosen)

    def lose(self, address: str) -> None:
        """The host loses one of its addresses, as when a network interface is taken away.

        No datagram leaves from it or arrives there any more.  A socket bound to all addresses
        goes on with the others.

        Raises:
          ValueError: it is not an address of this host, or is lost already.
        """
        gone = numeric(address)
        if gone not in self._order:
            raise ValueError(f"{address} is not an address of {self!r}")
        self._order.remove(gone)
        self._network._lost.add(gone)

    def rebind(self, new_address: str | None = None) -> None:
        """Let a NAT forget its mapping: all present sockets of this host seem to move.

        From now on their datagrams come from another port (and from `new_address`, if given),
        replies to that reach them, and datagrams to the old address are lost.  Datagrams
        already under way still arrive.

        Raises:
          ValueError: the address is not numeric.
        """
        network = self._network
        moved_to = None if new_address is None else numeric(new_address)
        for (local, _), opened in list(network._sockets.items()):
            if local in self._own:
                before = opened._outside[local]
                outside_host = before[0] if moved_to is None else moved_to
                network._aliases.pop(before, None)
                after = (outside_host, network._free_port(outside_host))
                opened._outside[local] = after
                network._aliases[after] = opened, local


def numeric(address: str) -> str:
    """The one way to write a numeric address, so that every spelling means the same host."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, address))
    except OSError:
        raise ValueError(f"{address!r} is not a numeric IPv4 or IPv6 address") from None
