"""Finds the connection to which a datagram belongs.

Floor 2, sans-IO.  By connection ID, retired IDs included for a while; and, for a datagram
with an unknown one, by stateless reset token (RFC 9000 sections 5.2 and 10.3.1).
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable

from .route import Route

__all__ = ["RESET_TOKEN_LENGTH", "RETIRED_ID_SECONDS", "RoutingTable"]

#: Seconds for which a retired connection ID is still recognised, so that late packets get
#: no stateless reset: three probe timeouts of a slow path.
RETIRED_ID_SECONDS = 3.0

RESET_TOKEN_LENGTH = 16


class RoutingTable:
    """The connections of one socket, by connection ID and by stateless reset token."""

    __slots__ = ("_key", "by_connection_id", "by_reset_key", "retired", "routes")

    def __init__(self) -> None:
        self.routes: dict[Route, None] = {}
        """All connections, the oldest first."""
        self.by_connection_id: dict[bytes, Route] = {}
        self.by_reset_key: dict[bytes, Route] = {}
        self.retired: deque[tuple[float, bytes, Route]] = deque()
        """Connection IDs to remove, and when; the next one first."""
        # Tokens are secrets.  A keyed hash is looked up, so that the time of a look-up
        # reveals nothing of them (RFC 9000 section 10.3.1).
        self._key = os.urandom(32)

    def add(self, route: Route, connection_ids: Iterable[bytes]) -> None:
        """Take up a connection."""
        self.routes[route] = None
        for connection_id in connection_ids:
            self.add_connection_id(route, connection_id)

    def add_connection_id(self, route: Route, connection_id: bytes) -> None:
        """From now on, this connection ID leads to `route`."""
        self.by_connection_id[connection_id] = route
        route.connection_ids.add(connection_id)

    def retire(self, route: Route, connection_id: bytes, now: float) -> None:
        """Remove a connection ID :data:`RETIRED_ID_SECONDS` from now."""
        self.retired.append((now + RETIRED_ID_SECONDS, connection_id, route))

    def remove_retired(self, now: float) -> None:
        """Remove the retired connection IDs whose time has come."""
        retired = self.retired
        while retired and retired[0][0] <= now:
            _, connection_id, route = retired.popleft()
            # (By now it may lead to another connection.)
            if self.by_connection_id.get(connection_id) is route:
                del self.by_connection_id[connection_id]
                route.connection_ids.discard(connection_id)

    def set_reset_tokens(self, route: Route, tokens: Iterable[bytes]) -> None:
        """From now on, these are all the stateless reset tokens of the route's peer."""
        current = {self._hash(token) for token in tokens}
        for stale in route.reset_keys - current:
            if self.by_reset_key.get(stale) is route:
                del self.by_reset_key[stale]
        for key in current:
            self.by_reset_key[key] = route
        route.reset_keys = current

    def find_reset(self, data: bytes) -> Route | None:
        """The connection that a datagram resets; ``None``: it is no stateless reset."""
        if len(data) <= RESET_TOKEN_LENGTH:
            return None
        return self.by_reset_key.get(self._hash(data[-RESET_TOKEN_LENGTH:]))

    def remove(self, route: Route) -> None:
        """Remove a connection and all its entries, except for those of the retired list."""
        self.routes.pop(route, None)
        for connection_id in route.connection_ids:
            if self.by_connection_id.get(connection_id) is route:
                del self.by_connection_id[connection_id]
        route.connection_ids.clear()
        self.set_reset_tokens(route, ())

    def _hash(self, token: bytes) -> bytes:
        return hashlib.blake2b(token, key=self._key, digest_size=16).digest()
