"""Drives one UDP socket: reads datagrams, runs timers, delivers events, sends packets.

Floor 2.  The driver owns the socket, and only the driver calls engines with packets and
times.  It contains no protocol arithmetic, and does not deal with streams.  It delivers the
events of a connection to a :class:`~phoenix_trio.quic.route.Sink` of the floor above.

One turn: drain the socket up to a bound and hand each datagram to its engine
(:mod:`~phoenix_trio.quic.receiving`), run the timers that are due, deliver events, flush
every connection with something to send (:mod:`~phoenix_trio.quic.sending`), sleep until the
socket is readable or a deadline expires.

Two ways to run: :meth:`SocketDriver.run` in a nursery; or, where there is no
nursery (a listener opened by a plain function), the tasks that wait take turns at
driving (:meth:`SocketDriver.wait`, :mod:`~phoenix_trio.quic.hand_over`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from collections.abc import Awaitable, Callable

import trio

from ..config import TransportConfig
from ..errors import ApplicationErrorCode
from ..metrics import EndpointStatistics
from . import events
from .connection_id_format import ConnectionIdFormat
from .connection_timers import ConnectionTimers
from .datagram_socket import DatagramSocket, ReceivedRun
from .dialling import Dialling
from .endpoint_statistics import endpoint_statistics
from .engine import Engine
from .established.memory_budget import EndpointMemory
from .established.stalls import Arrivals
from .flushing import Flushing
from .groups import unwrap_lone
from .hand_over import HandOver
from .handshake.admission import Admission, Admit
from .incoming import Incoming
from .local_sockets import LocalSockets
from .logs import bounded_logger
from .path_address import SocketAddress, SocketPath
from .rebinding import Rebinding
from .receiving import Receiver
from .relay import Relay
from .route import NO_SINK, Route, Sink
from .routing_table import RESET_TOKEN_LENGTH, RoutingTable
from .sending import Sender
from .shared_keys import SharedKeys
from .turn_budget import Account, TurnBudget
from .waiter import Lot

__all__ = ["SocketDriver"]

logger: logging.Logger = bounded_logger("phoenix_trio.quic")

#: Events that the driver itself acts on; see :meth:`SocketDriver._act_on_event`.
_RARE_EVENTS = frozenset(
    {
        events.ConnectionIdIssued,
        events.ConnectionIdRetired,
        events.HandshakeCompleted,
        events.HandshakeConfirmed,
        events.Terminated,
    }
)


class SocketDriver(Flushing):
    """Drives the connections of one socket.

    Args:
      socket: bound and non-blocking; closed by :meth:`close`.
      config: limits of the endpoint.
      reset_key: secret for stateless reset tokens, at least 16 bytes.
      relay: passes datagrams on to other processes on the same port; ``None``: there are no
        others.  The caller closes it.

    Raises:
      ValueError: the server ID of the configuration is too long beside other processes.
    """

    def __init__(
        self,
        socket: DatagramSocket,
        config: TransportConfig,
        reset_key: bytes,
        relay: Relay | None = None,
    ) -> None:
        self.socket = socket
        self.config = config
        self.memory: EndpointMemory = EndpointMemory(config)
        """Shared by all connections of the socket."""
        # (Linux doubles the granted size, for its own records.)
        self._arrivals = Arrivals(2 * socket.statistics.receive_buffer_size)
        self._reset_key = reset_key
        self._ids = ConnectionIdFormat(
            config.connection_id_server_id or b"",
            config.connection_id_rotation,
            key=config.connection_id_key or b"",
            worker=0 if relay is None else relay.number,
            workers=1 if relay is None else relay.count,
            secret=b"" if relay is None else relay.secret,
        )
        self._relay = relay
        self._admission = Admission(config, self.reset_token, self.make_connection_id)
        self._table = RoutingTable()
        self._routes = self._table.routes
        self._dialling = Dialling(socket, self._table)
        self._incoming = Incoming(socket, config, self._admission, self._register)
        self._budget: TurnBudget[ReceivedRun] = TurnBudget(config.backlog_size)
        self._receiver = Receiver(
            socket, config, self._table, self._budget, self._incoming, relay, self._ids
        )
        self._sender = Sender(
            socket, on_transmitted=self._on_transmitted, on_blocked=self._end_or_schedule
        )
        self.sockets: LocalSockets = LocalSockets(socket)
        """The endpoint's socket, and further ones of moved client connections."""
        self.rebinding: Rebinding = Rebinding(
            self.sockets,
            sending=lambda: self._sender.sending,
            add_socket=self.add_socket,
            flush_soon=self.flush_soon,
        )
        self._was_idle = True  # whether there was nothing to do before the turn
        self._timers = ConnectionTimers(self._table)
        self._linger_lot = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self._hand_over = HandOver(
            self._drive, on_stop=self._flush_left_over, on_unattended=self.close_if_unused
        )
        self.failure: BaseException | None = None
        """The error that has stopped the driver for good."""
        self.has_own_tasks: bool = False
        """Whether :meth:`run` drives; otherwise, waiting tasks do."""
        self.close_when_unused = False
        """Close the socket as soon as there is neither a listener nor a connection."""
        self.on_close: Callable[[], None] | None = None
        """Called once, when the socket has been closed."""

    # ------------------------------------------------------------------ for the floors above

    def reset_token(self, connection_id: bytes) -> bytes:
        """The stateless reset token of one of our connection IDs (RFC 9000 section 10.3.2)."""
        digest = hmac.new(self._reset_key, b"stateless reset" + connection_id, hashlib.sha256)
        return digest.digest()[:RESET_TOKEN_LENGTH]

    def make_connection_id(self) -> bytes:
        """A new connection ID for a client to address us by."""
        while (made := self._ids.make()) in self._table.by_connection_id:
            pass  # (With a server ID it has fewer random bytes, and may be in use.)
        return made

    @property
    def shares_port(self) -> bool:
        """Whether other processes receive a part of the port's datagrams."""
        return self._relay is not None

    @property
    def worker_keys(self) -> SharedKeys | None:
        """The keys of the processes that share the port; ``None``: there are none."""
        return None if self._relay is None else self._relay.keys

    def share_keys(self, keys: SharedKeys | None) -> None:
        """From now on, take the address tokens of other endpoints with these keys."""
        self._admission.share(keys)

    @property
    def accept(self) -> Callable[[Admit, SocketAddress], tuple[Engine, Sink]] | None:
        """Set while the endpoint listens: makes the connection of an admitted client."""
        return self._incoming.accept

    @accept.setter
    def accept(self, accept: Callable[[Admit, SocketAddress], tuple[Engine, Sink]] | None) -> None:
        self._incoming.accept = accept
        self._incoming.refuses_all = False

    def refuse_clients(self) -> None:
        """From now on, refuse new clients with CONNECTION_REFUSED."""
        self.accept = None
        self._incoming.refuses_all = True

    def report_local_addresses(self) -> None:
        """From now on, answer each peer from the local address to which it sends.

        For listening.  Clients do not need it: the system chooses their address by the route
        to the server, and again when the network changes.
        """
        self.socket.report_local_addresses()

    def set_reset_key(self, key: bytes) -> None:
        """From now on, derive stateless reset tokens from this key."""
        self._reset_key = key

    def add(self, engine: Engine, sink: Sink) -> Route:
        """Take over a client connection; :meth:`flush_soon` sends its first packets."""
        route = Route(engine, sink)
        route.handshake_deadline = trio.current_time() + engine.config.handshake_timeout
        if engine.config.leave_lost_address:
            self.rebinding.add(route, self.socket)
        self._dialling.add(route)
        self._register(route, engine)
        sink.bind(route)
        return route

    def add_socket(
        self, socket: DatagramSocket, route: Route, remote: SocketAddress
    ) -> SocketPath | None:
        """Drive another socket, for one client connection; see :meth:`LocalSockets.add`.

        :meth:`LocalSockets.close` ends that; so do the ends of the connection and the endpoint.
        """
        address = self.sockets.add(socket, route, remote)
        if address is not None:
            self._sender.use(self.sockets)
            self._receiver.use(self.sockets)
            if self.rebinding.nursery is not None:
                self.rebinding.nursery.start_soon(self._watch_socket, socket)
            if self.rebinding.watches(route):
                self.rebinding.add(route, socket)
        return address

    async def wait(self, lot: Lot) -> None:
        """Park in `lot` until unparked, perhaps early; drive meanwhile if no other task does.

        Raises:
          trio.BrokenResourceError: the socket has failed before.
          OSError: the socket failed while this task drove it.
        """
        if self.failure is not None:
            raise trio.BrokenResourceError("the endpoint's socket has failed") from self.failure
        await self._hand_over.wait(lot)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive until cancelled.

        Raises:
          trio.BusyResourceError: another task drives.
          OSError: the socket failed for good; the connections have ended with this error.
        """
        if self._hand_over.is_running:
            raise trio.BusyResourceError("the endpoint is being driven by another task")
        self.has_own_tasks = True
        task_status.started()
        try:
            await self._hand_over.run()
        finally:
            self.has_own_tasks = False

    async def _drive(self) -> None:
        try:
            with unwrap_lone():
                async with trio.open_nursery() as nursery:
                    self.rebinding.nursery = nursery
                    for each in self.sockets.more.values():
                        nursery.start_soon(self._watch_socket, each.socket)
                    nursery.start_soon(
                        self._run_until_closed, self._sender.run, nursery.cancel_scope
                    )
                    nursery.start_soon(self._watch_timers)
                    if self._relay is not None:
                        nursery.start_soon(self._watch_relay, self._relay)
                    await self._run_until_closed(self._receive_forever, nursery.cancel_scope)
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self.rebinding.nursery = None

    def _flush_left_over(self) -> None:
        """Send the packets left by cancelled tasks: it can take long until another drives."""
        if self._sender.dirty and not self._is_closed:
            self._flush_without_driver()

    async def _run_until_closed(
        self, task: Callable[[], Awaitable[None]], scope: trio.CancelScope
    ) -> None:
        try:
            await task()
        except trio.ClosedResourceError:
            if not self._is_closed:
                raise
            scope.cancel()

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed."""
        return self._is_closed

    @property
    def sinks(self) -> list[Sink]:
        """The connections at present."""
        return [route.sink for route in self._routes]

    def close(self) -> None:
        """Send pending packets once, close the socket, drop every connection.  Idempotent."""
        if self._is_closed:
            return
        now = trio.current_time()
        for route in list(self._routes):
            route.engine.close_application(
                ApplicationErrorCode.SHUTTING_DOWN, "the endpoint was closed"
            )
            self._sender.dirty[route] = None
            self._on_transmitted(route, now)
        self.flush_now()
        # A last copy of CONNECTION_CLOSE to peers that have not answered.
        for route in list(self._routes):
            route.engine.repeat_close()
            self._sender.dirty[route] = None
        self.flush_now()
        self._is_closed = True
        self.accept = None
        for route in list(self._routes):
            self._forget(route, now)
        self._close_socket()

    async def linger(self) -> None:
        """Wait until the peers of closed connections have answered, or all copies were sent.

        This includes clients in the handshake: they get CONNECTION_CLOSE when it is complete.
        The wait takes a round trip if no packet is lost, and `close_linger` seconds at most.
        Call it while the driver runs.

        Cancellation: CONNECTION_CLOSE is not sent again.
        """
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self.config.close_linger):
            while any(route.is_pending or route.engine.has_close_to_send for route in self._routes):
                await self._linger_lot.park()

    def close_if_unused(self) -> None:
        """Close now if :attr:`close_when_unused` is set and nothing needs the socket.

        Closing periods count only while a task drives: otherwise they would never end.
        """
        if not self.close_when_unused or self.accept is not None:
            return
        if not self._routes or (
            not self._hand_over.is_running and all(route.engine.is_ending for route in self._routes)
        ):
            self.close()

    def _close_socket(self) -> None:
        self.socket.close()
        self.sockets.close_all()
        self._hand_over.close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def statistics(self) -> EndpointStatistics:
        """A snapshot of the endpoint's counters."""
        return endpoint_statistics(
            self.sockets.statistics,
            self._incoming,
            self._admission,
            self.memory,
            connections=len(self._routes),
            receives_dropped=self._budget.dropped,
            resets_received=self._receiver.resets_received,
            relay=self._relay,
        )

    def note_refused(self) -> None:
        """An established connection was closed because the accept backlog is full."""
        self._incoming.connections_refused += 1

    # ------------------------------------------------------------------ the three tasks

    async def _receive_forever(self) -> None:
        while True:
            if self._turn():
                await trio.lowlevel.checkpoint()
            else:
                self._was_idle = True
                await self.socket.wait_readable()

    async def _watch_socket(self, socket: DatagramSocket) -> None:
        """Run a turn whenever a further socket is readable, until it is closed."""
        while True:
            try:
                await socket.wait_readable()
            except trio.ClosedResourceError:
                return
            self._was_idle = True
            while self._turn():
                await trio.lowlevel.checkpoint()

    async def _watch_timers(self) -> None:
        # A task of its own: a cancel scope for each wait of the receiving task costs a
        # tenth of an exchange of small packets.
        while True:
            await self._timers.sleep()
            # (A whole turn: what has arrived meanwhile is read before timers are run.)
            self._was_idle = True
            self._turn()

    async def _watch_relay(self, relay: Relay) -> None:
        while True:
            await relay.wait_readable()
            self._turn()

    def _turn(self) -> bool:
        """Read waiting datagrams, run the timers that are due, send answers.

        Returns whether another turn is needed at once.
        """
        now = trio.current_time()
        touched: dict[Route, None] = {}
        budget, sender, timers = self._budget, self._sender, self._timers
        size = self._receiver.read(now, touched, was_idle=self._was_idle)
        self._was_idle = False
        if self._dialling.routes:
            touched.update(dict.fromkeys(self._dialling.end_unreachable()))
        drained = size is None
        if drained or not self._arrivals.is_behind(now, drained=drained):
            timers.run_due(now, touched)
        self._arrivals.on_read(now, size or 0, drained=drained)
        # (Connections on which applications are writing just now are flushed soon.)
        answering = []
        for route in touched:
            if route not in sender.dirty and not timers.only_delayed_ack_pending(route, now):
                answering.append(route)
            account = route.account
            if account is not None and account.is_expensive:
                budget.begin()
                self._deliver_events(route, now)
                budget.charge_events(account)
            else:
                self._deliver_events(route, now)
        sender.flush(now, answering)
        if sender.dirty or sender.unsent:
            sender.wake()
        if budget.has_held or timers.held_work_at != math.inf:
            timers.held_work_at = budget.next_work_at()
            timers.set_alarm()
        return not drained or timers.held_work_at <= now

    # ------------------------------------------------------------------ events

    def _on_transmitted(self, route: Route, now: float) -> None:
        """Deliver events, then end the connection or set its timer."""
        self._deliver_events(route, now)
        self._end_or_schedule(route, now)
        if self._dialling.routes:
            # (The system may report a packet that cannot leave this host at once.)
            for ended in self._dialling.end_unreachable():
                self._deliver_events(ended, now)
                self._end_or_schedule(ended, now)

    def _deliver_events(self, route: Route, now: float) -> None:
        """Deliver events to the sink; keep routing and counters up to date."""
        engine = route.engine
        while batch := engine.take_events():
            for event in batch:
                if type(event) in _RARE_EVENTS:
                    self._act_on_event(route, event, now)
            try:
                route.sink.handle_events(batch)
            except Exception:  # a bug above must not stop other connections
                logger.exception("internal error while delivering events")
                engine.close_application(ApplicationErrorCode.HANDLER_CRASHED, "internal error")

    def _act_on_event(self, route: Route, event: events.Event, now: float) -> None:
        if isinstance(event, events.ConnectionIdIssued):
            self._table.add_connection_id(route, event.connection_id)
        elif isinstance(event, events.ConnectionIdRetired):
            self._table.retire(route, event.connection_id, now)
        elif isinstance(event, events.HandshakeCompleted):
            route.account = Account()
            self._end_dialling(route)
            self._incoming.on_handshake_completed(route)
        elif isinstance(event, events.HandshakeConfirmed):
            if route.initial_connection_id is not None:
                self._table.retire(route, route.initial_connection_id, now)
                route.initial_connection_id = None
        elif isinstance(event, events.Terminated):
            self._end_dialling(route)
            self._incoming.on_terminated(route, now)

    def _end_dialling(self, route: Route) -> None:
        if route.place is None:
            route.handshake_deadline = math.inf
            self._dialling.discard(route)

    def _end_or_schedule(self, route: Route, now: float) -> None:
        """Free a connection that is over, else set its timer."""
        engine = route.engine
        if engine.reset_tokens_changed:
            self._table.set_reset_tokens(route, engine.take_reset_tokens())
        if engine.is_over:
            self._release(route, now)
            engine = route.engine
            if self._linger_lot and not engine.has_close_to_send:
                self._linger_lot.unpark_all()
            if engine.is_terminated:
                self._forget(route, now)
                return
        self._timers.update(route, now, is_blocked=bool(self._sender.unsent))

    # ------------------------------------------------------------------ begin and end

    def _register(self, route: Route, engine: Engine) -> None:
        engine.path_ceiling = self.sockets.largest_payload
        engine.set_arrivals(self._arrivals)
        self._table.add(route, engine.connection_ids)
        if route.initial_connection_id is not None:
            self._table.add_connection_id(route, route.initial_connection_id)
        if route.handshake_deadline < math.inf:
            self._timers.schedule(route, route.handshake_deadline)

    def _release(self, route: Route, now: float) -> None:
        """Free the engine of a connection that is over; keep its answer to late packets."""
        self._deliver_events(route, now)
        released = route.engine.release()
        if released is None:
            return
        route.engine, remains = released
        sink, route.sink = route.sink, NO_SINK
        route.writers.clear()
        self._table.set_reset_tokens(route, ())
        sink.on_released(remains)

    def _forget(self, route: Route, now: float) -> None:
        """Remove all records of a connection whose closing period is over."""
        if route not in self._routes:
            return
        del self._routes[route]  # (First, because the sink's callback may lead here again.)
        self._end_dialling(route)
        self._release(route, now)
        if route.place is not None:
            route.place.leave()
        self._table.remove(route)
        self._timers.cancel(route)
        self._sender.dirty.pop(route, None)
        if route.account is not None:
            self._budget.forget(route.account)
        self.sockets.close_of(route)
        self.rebinding.discard(route)
        if self._sender.sending is route:
            self._sender.sending = None
        if not self._routes:
            self.close_if_unused()

    def _fail(self, error: BaseException) -> None:
        """End all connections, because the socket has failed."""
        self.failure = error
        for route in list(self._routes):
            route.engine.close_application(
                ApplicationErrorCode.SHUTTING_DOWN, "the socket has failed"
            )
            route.sink.handle_events(
                [events.Terminated(trio.BrokenResourceError("the endpoint's socket has failed"))]
            )
        self._is_closed = True
        self.accept = None
        now = trio.current_time()
        for route in list(self._routes):
            self._forget(route, now)
        self._close_socket()
