"""Ends dialled connections early when the network reports that the server is unreachable.

Floor 2, sans-IO.  Such a report (ICMP) is not authenticated.  A host on the way to the server
could forge it, but such a host could also drop all packets.  Other hosts must not be able to end
a connection by it.  So it counts only under these conditions:

- The connection was dialled from here, and nothing authentic has come from its server yet.
- The destination of the datagram was that server.  (The kernel has already checked that it left
  from this socket's port.)
- The reported bytes of the datagram have both connection IDs of the connection's first packets.
  Each ID was drawn at random, with at least 64 bits (RFC 9000 section 7.2).

All other reports are ignored, at the cost of one table lookup.
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
    """The connections of one socket that are being dialled.

    Args:
      socket: reports failures while there are such connections.
      table: finds connections by our connection IDs.
    """

    __slots__ = ("_socket", "_table", "routes")

    def __init__(self, socket: DatagramSocket, table: RoutingTable) -> None:
        self._socket = socket
        self._table = table
        self.routes: set[Route] = set()
        """The connections whose handshake is neither complete nor over."""

    def add(self, route: Route) -> None:
        """Add a connection that is being dialled."""
        if not self.routes:
            self._socket.report_failures(wanted=True)
        self.routes.add(route)

    def discard(self, route: Route) -> None:
        """Remove an established or ended connection; does nothing if it is not in the table."""
        if route in self.routes:
            self.routes.discard(route)
            if not self.routes:
                self._socket.report_failures(wanted=False)

    def end_unreachable(self) -> list[Route]:
        """End connections whose packets do not arrive, according to credible reports.

        Returns the ended connections; they have events.
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
