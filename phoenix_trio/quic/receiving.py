"""Reads a socket and hands each datagram to the connection to which it belongs.

Floor 2.  The common case is short: a run of datagrams with short headers, all of one
connection, goes to its engine in one call.  Datagrams that cost much more than ordinary
ones are held back while other connections are active
(:mod:`~phoenix_trio.quic.turn_budget`).  Where processes share the port, those of a connection of
another process are passed on to it (:mod:`~phoenix_trio.quic.relay`).
"""

from __future__ import annotations

from ..config import TransportConfig
from .connection_id_format import CONNECTION_ID_LENGTH, ConnectionIdFormat
from .datagram_socket import ReceivedRun, RunReceiver
from .handshake.admission import destination_connection_id
from .handshake.packets import HANDSHAKE, parse_long
from .incoming import Incoming
from .path_address import Address, PathAddress, SocketPath
from .receive_pool import receive_pool
from .relay import Relay
from .route import Route
from .routing_table import RoutingTable
from .turn_budget import Account, TurnBudget

__all__ = ["Receiver"]


#: Runs of datagrams read in one turn before the driver sends: enough to share the cost of a
#: turn, and few enough to send acknowledgements in time.
RUNS_PER_TURN = 16

#: The most times that the socket is read in one turn, while arriving datagrams are held back.
BATCHES_PER_TURN = 8


class Receiver:
    """Reads one socket, and dispatches what it has received.

    Args:
      socket: bound and non-blocking.
      config: whether to read into pooled memory, and how much of it.
      table: finds connections.
      budget: bounds the time that expensive datagrams take.
      incoming: takes datagrams that belong to no connection.
      relay: passes datagrams on to other processes; ``None``: there are no others.
      ids: finds the process in a connection ID; needed with a `relay`.
    """

    __slots__ = ("_budget", "_by_connection_id", "_ids", "_incoming", "_pool", "_relay", "_socket",
                 "_table", "resets_received")  # fmt: skip

    def __init__(
        self,
        socket: RunReceiver,
        config: TransportConfig,
        table: RoutingTable,
        budget: TurnBudget[ReceivedRun],
        incoming: Incoming,
        relay: Relay | None = None,
        ids: ConnectionIdFormat | None = None,
    ) -> None:
        self._socket = socket
        self._table = table
        self._by_connection_id = table.by_connection_id
        self._budget = budget
        self._incoming = incoming
        self._relay = relay
        self._ids = ids
        self._pool = receive_pool(config.memory_pool_size) if config.enable_memory_pool else None
        self.resets_received: int = 0

    def use(self, socket: RunReceiver) -> None:
        """Read `socket` from now on."""
        self._socket = socket

    def read(self, now: float, touched: dict[Route, None], *, was_idle: bool) -> int | None:
        """Read a bounded number of datagrams, and hand them to their connections.

        Args:
          now: when the turn began.
          touched: the connections are added to it.
          was_idle: whether there was nothing to do before this turn.

        Returns how many bytes were read if more may wait; ``None``: none does.
        """
        budget = self._budget
        size, drained = 0, False
        for batch in range(BATCHES_PER_TURN):
            runs = self._socket.receive_runs(RUNS_PER_TURN, self._pool)
            if not batch:
                # (Not before: the time for reading belongs to no connection.)
                budget.begin_turn(now, rested=was_idle)
            was_expensive = False
            for run in runs:
                was_expensive = self.dispatch_run(run, now, touched) or was_expensive
            if len(runs) < RUNS_PER_TURN:
                drained = True
                break
            size += sum(run[4] for run in runs)
            if not was_expensive:
                break  # (Behind a flood, datagrams of other connections wait in the socket.)
        if budget.has_held:
            while (held := budget.take_held()) is not None:
                self.dispatch_run(held, now, touched, was_held=True)
        if self._relay is not None:
            for run in self._relay.take(RUNS_PER_TURN):
                self.dispatch_run(run, now, touched, was_passed_on=True)
        return None if drained else size

    def dispatch_run(
        self,
        run: ReceivedRun,
        now: float,
        touched: dict[Route, None],
        *,
        was_held: bool = False,
        was_passed_on: bool = False,
    ) -> bool:
        """Hand the datagrams of a run to their connections, and add these to `touched`.

        Datagrams from another process (`was_passed_on`) are not passed on again.

        Returns whether some of them have to wait, or were dropped, because their
        connection's datagrams are expensive.
        """
        data, address, size, mark, stop = run
        if not address[1]:
            # A datagram from port 0 cannot be answered, so it is dropped.
            self._incoming.datagrams_unroutable += -(-stop // size) if size else 1
            return False
        budget = self._budget
        start = 0
        while start < stop:
            route = None
            if not data[start] & 0x80:
                end = min(start + 1 + CONNECTION_ID_LENGTH, stop)
                route = self._by_connection_id.get(bytes(data[start + 1 : end]))
            if route is not None:
                account = route.account
                begin, end = start, stop
                if account is not None and account.watched:
                    if not was_held and budget.must_wait(account):
                        self._hold(account, run, start)
                        return True
                    end = min(stop, start + budget.portion(account) * size)
                    budget.begin()
                path = route.path(address) if type(address) is PathAddress else address
                start = route.engine.receive_run(data, start, size, path, now, mark, end)
                if account is not None:
                    spent = budget.charge if account.watched else budget.note
                    spent(account, -(-(start - begin) // size), start - begin)
            else:
                if self._relay is not None and not was_passed_on:
                    end = self._pass_on(self._relay, run, start)
                    if end > start:
                        start = end
                        continue
                end = min(start + size, stop)
                route = self.dispatch(bytes(data[start:end]), address, now, mark)
                start = end
            if route is not None:
                touched[route] = None
        return False

    def dispatch(self, data: bytes, address: Address, now: float, mark: int) -> Route | None:
        """Hand one datagram to its connection.  Returns the connection, if there is one."""
        connection_id = destination_connection_id(data)
        if connection_id is None:
            self._incoming.datagrams_unroutable += 1
            return None
        route = self._by_connection_id.get(connection_id)
        if route is not None:
            route.engine.receive(data, route.path(address), now, mark)
            return route
        if data[0] & 0x80:
            if type(address) is SocketPath:
                # The endpoint's own socket alone listens.
                self._incoming.datagrams_unroutable += 1
                return None
            return self._incoming.take_long(data, address, now, mark)
        route = self._table.find_reset(data)
        if route is not None:
            self.resets_received += 1
            route.engine.on_stateless_reset(now)
            return route
        if type(address) is SocketPath:
            self._incoming.datagrams_unroutable += 1
            return None
        self._incoming.take_short(data, address, now)
        return None

    def _pass_on(self, relay: Relay, run: ReceivedRun, start: int) -> int:
        """Give the datagrams of a run, from `start` on, to the process of their connection.

        Their connection ID is unknown here, and names another process.  This process never
        answers them: a stateless reset would end a connection of the other process
        (RFC 9000 section 10.3.2).

        Returns the end of the datagrams passed on; `start`: the first one is not for another
        process.
        """
        data, address, size, mark, stop = run
        end = min(start + size, stop)
        first = bytes(data[start:end])
        connection_id = destination_connection_id(first)
        if connection_id is None or connection_id in self._by_connection_id:
            return start
        assert self._ids is not None
        worker = self._ids.worker_of(connection_id)
        if worker in (relay.number, -1):
            return start
        if first[0] & 0x80:
            # Clients choose the connection IDs of their first packets, but not of these.
            header = parse_long(first, 0)
            if header is None or header.kind != HANDSHAKE:
                return start
        elif self._table.find_reset(first) is not None:
            return start
        else:
            head = 1 + CONNECTION_ID_LENGTH
            while (
                end + head <= stop
                and not data[end] & 0x80
                and data[end + 1 : end + head] == connection_id
            ):
                end = min(end + size, stop)
        relay.pass_on(worker, memoryview(data)[start:end], address, size, mark)
        return end

    def _hold(self, account: Account, run: ReceivedRun, start: int) -> None:
        """Put the datagrams of a run from `start` on in line, in small portions."""
        data, address, size, mark, stop = run
        step = self._budget.portion(account) * size
        for at in range(start, stop, step):
            piece = bytes(data[at : min(at + step, stop)])
            if not self._budget.hold(account, (piece, address, size, mark, len(piece)), len(piece)):
                break  # (No room for the rest, either.)
