"""Ends dialled connections whose server cannot be reached, as soon as the network says so.

Floor 2, sans-IO.  Nothing authenticates that word (ICMP): a host on the way to the server
could forge it as well as drop all packets, but other hosts must not end a connection by it.  So
it counts under these conditions alone:

- The connection was dialled from here, and nothing authentic has come from its server yet.
- The datagram was to go to that server.  (That it left from this socket's port, the kernel
  has checked before.)
- What the network tells of the datagram has both connection IDs of the connection's first
  packets.  Each was drawn at random, with 64 bits at least (RFC 9000 section 7.2).

Everything else is ignored, and costs a look into a table.
"""

from __future__ import annotations

from .datagram_socket import DatagramSocket
from .route import Route
from .routing_table import RoutingTable

__all__ = ["Dialling"]


def _connection_ids(start: bytes) -> tuple[bytes, bytes] | None:
    """Destination and source of a packet with a long header (RFC 8999 section 5.1)."""
    if len(start) < 7 or not start[0] & 0x80:
        return None
    end = 6 + start[5]
    if len(start) <= end:
        return None
    begin, stop = end + 1, end + 1 + start[end]
    if len(start) < stop:
        return None
    return start[6:end], start[begin:stop]


class Dialling:
    """The connections of one socket which are being dialled.

    Args:
      socket: reports failures as long as there are such connections.
      table: finds connections by our connection IDs.
    """

    __slots__ = ("_socket", "_table", "routes")

    def __init__(self, socket: DatagramSocket, table: RoutingTable) -> None:
        self._socket = socket
        self._table = table
        self.routes: set[Route] = set()
        """The connections whose handshake is not complete, and not over."""

    def add(self, route: Route) -> None:
        """A connection is dialled."""
        if not self.routes:
            self._socket.report_failures(wanted=True)
        self.routes.add(route)

    def discard(self, route: Route) -> None:
        """It is established, or over; does nothing if it is known already."""
        if route in self.routes:
            self.routes.discard(route)
            if not self.routes:
                self._socket.report_failures(wanted=False)

    def end_unreachable(self) -> list[Route]:
        """End the connections of which the network says, believably, that nothing arrives.

        Returns those which have ended; they have events.
        """
        ended: list[Route] = []
        for failure in self._socket.take_failures():
            found = _connection_ids(failure.start)
            if found is None:
                continue
            destination_cid, source_cid = found
            route = self._table.by_connection_id.get(source_cid)
            if route not in self.routes or route is None or route in ended:
                continue
            if route.engine.on_unreachable(failure.address, destination_cid, failure.number):
                ended.append(route)
        return ended
