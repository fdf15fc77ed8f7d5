"""Counts the connections and handshakes of an endpoint, in all and for each client address.

Floor 0, sans-IO.  For admission.  An endpoint has a limited number of places, and no
client address may take them all:

* an address whose Initial packets carry a valid Retry token, or that has completed a
  handshake, is *validated* (RFC 9000 section 8.1).  Each has a share of the places;
* an address which proved nothing may be forged.  Such handshakes are counted apart, so
  that they never use up the share of the address which they claim to come from, and
  they get half of all places at most.

The table of addresses holds only those with a place, so the number of places bounds
it as well.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from ...config import TransportConfig
from ..rate_limit import RateLimit

__all__ = ["Place", "Places", "peer_of"]

#: RFC 4291 section 2.5.5.2.
_IPV4_MAPPED = bytes(10) + b"\xff\xff"


def peer_of(address: tuple[Any, ...]) -> str:
    """The unit of fair shares: the host of an IPv4 address, or the /64 network of an IPv6
    address, as one host usually has all of it.
    """
    host = str(address[0]).partition("%")[0]
    if not host:
        return ""
    if ":" not in host:
        return host  # (IPv4 as sockets give it, in the one form which they use)
    packed = inet_pton(AF_INET6, host)
    if packed.startswith(_IPV4_MAPPED):
        return inet_ntop(AF_INET, packed[len(_IPV4_MAPPED) :])
    return f"{packed[:8].hex(':', 2)}::/64"


#: What part of all places one address may have when more than half of them are taken.
SHARE_UNDER_PRESSURE = 64


def _share(configured: int | None, limit: int, taken: int) -> int:
    """How many places one address may have, where so many of `limit` are taken by all."""
    if configured is not None:
        return configured
    if 2 * taken < limit:
        return limit
    return max(1, limit // SHARE_UNDER_PRESSURE)


class _Peer:
    """What one client address has at present."""

    __slots__ = ("connections", "failures", "handshakes", "unvalidated")

    def __init__(self) -> None:
        self.connections = 0
        """Of a validated address, unfinished handshakes included."""
        self.handshakes = 0
        """Unfinished ones of a validated address."""
        self.unvalidated = 0
        """Handshakes which claim this address and have not proved it."""
        self.failures: RateLimit | None = None
        """Of handshakes, from the first failure on."""


class Place:
    """One incoming connection's place, until :meth:`leave`."""

    __slots__ = ("_is_handshake", "_is_left", "_is_validated", "_peer", "_places")

    def __init__(self, places: Places, peer: str, *, is_validated: bool) -> None:
        self._places = places
        self._peer = peer
        self._is_validated = is_validated
        self._is_handshake = True
        self._is_left = False

    @property
    def is_validated(self) -> bool:
        """Whether the client has proved that it receives at its address."""
        return self._is_validated

    def on_handshake_completed(self, *, proves_address: bool = True) -> None:
        """The handshake is complete, which proves the address, too (RFC 9000 section 8.1).

        Unless some of it came from another address: then the first one stays unproved, and
        the connection counts as such until it ends.
        """
        if self._is_left or not self._is_handshake:
            return
        places, peer = self._places, self._places._peers[self._peer]
        self._is_handshake = False
        places.handshakes -= 1
        if self._is_validated:
            peer.handshakes -= 1
        elif proves_address:
            self._is_validated = True
            places.unvalidated -= 1
            peer.unvalidated -= 1
            peer.connections += 1

    def count_failure(self, now: float) -> None:
        """The handshake has failed, and its address answers for it."""
        if self._is_left:
            return
        peer = self._places._peers[self._peer]
        if peer.failures is None:
            rate = self._places._config.max_failure_rate_per_address
            peer.failures = RateLimit(rate, rate)
        peer.failures.count(now)

    def leave(self) -> None:
        """Give the place back; idempotent."""
        if self._is_left:
            return
        self._is_left = True
        places, peer = self._places, self._places._peers[self._peer]
        places.connections -= 1
        if self._is_handshake:
            places.handshakes -= 1
        if not self._is_validated:
            places.unvalidated -= 1
            peer.unvalidated -= 1
        else:
            peer.connections -= 1
            if self._is_handshake:
                peer.handshakes -= 1
        if not peer.connections and not peer.unvalidated:
            del places._peers[self._peer]


class Places:
    """The places of one endpoint.

    Args:
      config: `max_connections`, `max_handshakes`, and the shares of one address.
    """

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._peers: dict[str, _Peer] = {}
        self.connections: int = 0
        """Incoming connections, unfinished handshakes included."""
        self.handshakes: int = 0
        """Unfinished handshakes."""
        self.unvalidated: int = 0
        """Those of them whose address is not validated."""
        # Half, so that forged addresses leave room for clients which prove theirs.
        self._most_unvalidated = max(1, min(config.max_connections, config.max_handshakes) // 2)

    def __len__(self) -> int:
        """How many addresses have a place."""
        return len(self._peers)

    @property
    def is_full(self) -> bool:
        """Whether there is no place for any client."""
        config = self._config
        return (
            self.connections >= config.max_connections or self.handshakes >= config.max_handshakes
        )

    def has_share_left(self, address: tuple[Any, ...], now: float) -> bool:
        """Whether a client with the proved address `address` may have one more place."""
        peer = self._peers.get(peer_of(address))
        return peer is None or self._may_have_more(peer, peer.handshakes, peer.connections, now)

    def has_unvalidated_left(self, address: tuple[Any, ...], now: float) -> bool:
        """Whether a client may have one more place which claims `address`, but can prove it."""
        return self.unvalidated < self._most_unvalidated and self.has_unverifiable_left(
            address, now
        )

    def has_unverifiable_left(self, address: tuple[Any, ...], now: float) -> bool:
        """Whether a client may have one more place where clients need not prove an address."""
        peer = self._peers.get(peer_of(address))
        return peer is None or self._may_have_more(
            peer, peer.handshakes + peer.unvalidated, peer.connections + peer.unvalidated, now
        )

    def _may_have_more(self, peer: _Peer, handshakes: int, connections: int, now: float) -> bool:
        config = self._config
        if peer.failures is not None and peer.failures.is_reached(now):
            return False
        return handshakes < _share(
            config.max_handshakes_per_address, config.max_handshakes, self.handshakes
        ) and connections < _share(
            config.max_connections_per_address, config.max_connections, self.connections
        )

    def enter(self, address: tuple[Any, ...], *, is_validated: bool) -> Place:
        """Take a place for a new handshake; the caller has asked whether there is one."""
        name = peer_of(address)
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = _Peer()
        self.connections += 1
        self.handshakes += 1
        if is_validated:
            peer.connections += 1
            peer.handshakes += 1
        else:
            self.unvalidated += 1
            peer.unvalidated += 1
        return Place(self, name, is_validated=is_validated)
