"""Who turns the crank? One UDP socket, its connections' engines, their timers.

Floor 2.  The driver owns the socket and is the only one who calls the engines
with packets and times.  It holds no protocol arithmetic, and knows nothing of
streams: above it, a connection is a :class:`Sink` which takes events.

One turn: drain the socket up to a bound, hand each datagram to its engine, run
the timers which are due, deliver events, flush every connection which has
something to say, sleep until the socket is readable or a deadline comes.
Applications which write mark their connection dirty, and a second task flushes
all dirty ones together in its next turn.  Sending never blocks: a cancelled
``await send`` would lose packets already counted in flight.

Two ways to run: :meth:`SocketDriver.run` in a nursery; or, where there is no
nursery (a listener opened by a plain function), the tasks that wait take turns at
driving (:meth:`SocketDriver.wait`, :mod:`~phoenix_trio.quic.hand_over`).
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import itertools
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import trio

from ..config import TransportConfig
from ..errors import ApplicationErrorCode
from ..metrics import EndpointStatistics
from . import events
from .admission import (
    CONNECTION_ID_LENGTH,
    Admission,
    Admit,
    Answer,
    destination_connection_id,
)
from .closing import ClosingConnection
from .engine import Engine, Run
from .fast_path import BUILD_BYTES
from .groups import unwrap_lone
from .hand_over import HandOver
from .memory_budget import EndpointMemory
from .packet_io import DatagramSocket, ReceivedRun
from .path_address import Address, PathAddress, SocketAddress, remote_of
from .places import Place
from .receive_pool import receive_pool
from .remains import ConnectionRemains
from .stalls import Arrivals
from .turn_budget import Account, TurnBudget
from .waiter import Lot

__all__ = ["Route", "Sink", "SocketDriver"]

logger = logging.getLogger("phoenix_trio.quic")

#: Runs of datagrams read in one turn before anything is sent: enough to share the cost of a
#: turn, few enough that acknowledgements are not kept waiting.
RUNS_PER_TURN = 16

#: Times that the socket is read in one turn at most, while what comes is held back.
BATCHES_PER_TURN = 8

#: Builds which a connection sends in one turn before the others have theirs.
BUILDS_PER_CONNECTION = 4

#: Turns for which small packets wait for more to say while applications go on writing, besides
#: the first; an exchange of messages takes about six turns at each end.
TURNS_FOR_COMPANY = 5

#: Connections with something to say above which there is company enough.
ROUTES_WITH_COMPANY = 16

#: Seconds for which a connection ID that is no longer used is still recognised, so that
#: late packets get no stateless reset: three probe timeouts of a slow path.
RETIRED_ID_SECONDS = 3.0

#: A timer due within so many seconds is put off when its cause is gone; later ones are
#: left to find nothing to do, so that superseded entries stay few.
PUT_OFF_SECONDS = 0.005

#: Timers which are superseded or of connections which are over, besides four a connection,
#: which are left in the heap until their time comes.
STALE_TIMERS = 64

#: Seconds after which a timer is looked at again that is due but has nothing to do (RFC 9002
#: section 6.1.2: kGranularity).
TIMER_GRANULARITY = 0.001

_RESET_TOKEN_LENGTH = 16

#: What the driver itself has to know of; see :meth:`SocketDriver._note_event`.
_RARE_EVENTS = frozenset(
    {
        events.ConnectionIdIssued,
        events.ConnectionIdRetired,
        events.HandshakeCompleted,
        events.HandshakeConfirmed,
        events.Terminated,
    }
)

_thread = threading.local()


def _slab() -> bytearray:
    """Room to build packets in, one for all endpoints of a thread.

    What is built there is sent, or copied, before anything else can run.
    """
    slab: bytearray | None = getattr(_thread, "slab", None)
    if slab is None:
        slab = _thread.slab = bytearray(BUILD_BYTES)
    return slab


class Sink(Protocol):
    """What takes a connection's events: the connection of the floor above."""

    def bind(self, route: Route) -> None:
        """Learn the route; called once, before any event."""

    def handle_events(self, batch: list[events.Event]) -> None:
        """Take events, in order.  Must not block and must not raise."""

    def on_released(self, remains: ConnectionRemains) -> None:
        """The connection is over, and its engine freed; the last call."""


class _NoSink:
    """In the place of the sink of a connection which is over."""

    def bind(self, route: Route) -> None: ...

    def handle_events(self, batch: list[events.Event]) -> None: ...

    def on_released(self, remains: ConnectionRemains) -> None: ...


_NO_SINK = _NoSink()


class Route:
    """One connection as the driver sees it."""

    __slots__ = (
        "_token_keys",
        "account",
        "connection_ids",
        "engine",
        "handshake_deadline",
        "initial_connection_id",
        "is_pending",
        "place",
        "scheduled_at",
        "sink",
        "writers",
    )

    def __init__(self, engine: Engine, sink: Sink, *, place: Place | None = None) -> None:
        self.engine: Engine | ClosingConnection = engine
        self.sink = sink
        self.place = place
        """An incoming connection's place among those which the endpoint keeps."""
        self.is_pending = place is not None
        """Whether this is an incoming handshake which has not been completed."""
        self.account: Account | None = None
        """What it has cost of late; ``None`` during the handshake."""
        self.handshake_deadline = math.inf
        self.connection_ids: set[bytes] = set()
        self.initial_connection_id: bytes | None = None
        self.scheduled_at = math.inf
        self.writers: set[trio.lowlevel.Task] = set()
        """Who has written since the last packets were built, and may go on."""
        self._token_keys: set[bytes] = set()


def _path_of(route: Route, address: Address) -> Address:
    """The path on which a connection's datagram has come.

    A server has to answer from the address to which the client sends, for clients
    discard packets of an unknown server address (RFC 9000 section 9).  A client must not
    tie itself to its own address: the system chooses it by the route to the server, and
    when the device goes from Wi-Fi to a mobile network, the next packet leaves from the
    new address, and the server takes that for a migration.  From a socket which dials
    and listens come both kinds.
    """
    if type(address) is PathAddress and route.place is None:
        return address.remote
    return address


def _may_not_know(route: Route) -> bool:
    """Whether a connection was closed here, and its peer is still to be told (again)."""
    engine = route.engine
    if isinstance(engine, ClosingConnection):
        return engine.awaits_answer
    return engine.is_ending


class SocketDriver:
    """Drives the connections of one socket.

    Args:
      socket: bound and non-blocking; closed by :meth:`close`.
      config: limits of the endpoint.
      reset_key: secret for stateless reset tokens, at least 16 bytes.
    """

    def __init__(self, socket: DatagramSocket, config: TransportConfig, reset_key: bytes) -> None:
        self.socket = socket
        self.config = config
        self.memory = EndpointMemory(config)
        """Shared by all connections of the socket."""
        self._pool = receive_pool(config.memory_pool_size) if config.enable_memory_pool else None
        # (Linux reserves twice what it grants, for its own bookkeeping.)
        self._arrivals = Arrivals(2 * socket.statistics.receive_buffer_size)
        self._reset_key = reset_key
        self._admission = Admission(config, self.reset_token)
        self.accept: Callable[[Admit, SocketAddress], tuple[Engine, Sink]] | None = None
        """Set while the endpoint listens: makes the connection for an admitted client."""

        self._budget: TurnBudget[ReceivedRun] = TurnBudget(config.backlog_size)
        self._held_at = math.inf  # when to take what it has held back
        self._rested = True  # whether there was nothing to do before this turn
        self._routes: dict[bytes, Route] = {}
        self._all: dict[Route, None] = {}
        self._retired: deque[tuple[float, bytes, Route]] = deque()
        # Tokens are secrets: looked up under a keyed hash, so that the time a look-up
        # takes says nothing of them (RFC 9000 section 10.3.1).
        self._token_key = os.urandom(32)
        self._reset_routes: dict[bytes, Route] = {}

        self._timers: list[tuple[float, int, Route]] = []
        self._sequence = itertools.count()
        self._dirty: dict[Route, None] = {}
        self._unsent: deque[Run] = deque()
        self._flush_lot = trio.lowlevel.ParkingLot()
        self._linger_lot = trio.lowlevel.ParkingLot()
        self._is_quiet = False
        """Whether nobody has touched a connection since this was set."""
        self._send_error: OSError | None = None
        self._sleep: trio.CancelScope | None = None
        self._is_closed = False
        self._hand_over = HandOver(
            self._drive, on_stop=self._flush_left_over, on_unattended=self.close_if_unused
        )
        self.failure: BaseException | None = None
        """What has stopped the driver for good."""
        self.has_own_tasks = False
        """Whether :meth:`run` drives; otherwise it is whoever waits."""
        self.close_when_unused = False
        """Close the socket as soon as there is neither a listener nor a connection."""
        self.on_close: Callable[[], None] | None = None
        """Called once, when the socket has been closed."""

        self._datagrams_unroutable = 0
        self._connections_accepted = 0
        self._connections_refused = 0
        self._handshakes_failed = 0
        self._answers: dict[str, int] = {}
        self._resets_received = 0

    # ------------------------------------------------------------------ for the floors above

    def reset_token(self, connection_id: bytes) -> bytes:
        """The stateless reset token of one of our connection IDs (RFC 9000 section 10.3.2)."""
        digest = hmac.new(self._reset_key, b"stateless reset" + connection_id, hashlib.sha256)
        return digest.digest()[:_RESET_TOKEN_LENGTH]

    def report_local_addresses(self) -> None:
        """From now on, answer each peer from the local address to which it sends.

        For listening.  Clients do without: the system chooses their address by the route
        to the server, and chooses anew when the network changes.
        """
        self.socket.report_local_addresses()

    def set_reset_key(self, key: bytes) -> None:
        """From now on, derive stateless reset tokens from this key."""
        self._reset_key = key

    def add(self, engine: Engine, sink: Sink) -> Route:
        """Take over a client connection; :meth:`touch` sends its first packets."""
        route = Route(engine, sink)
        self._register(route, engine)
        sink.bind(route)
        return route

    def touch(self, route: Route) -> None:
        """The connection may have something to send, or events to deliver; done soon, at once
        for all that are touched now."""
        if self._is_closed:
            return
        self._is_quiet = False
        if not self._hand_over.is_running:
            self._dirty[route] = None
            self._flush_alone()
            self.close_if_unused()
            return
        if route not in self._dirty:
            if not self._dirty:
                self._wake_flusher()
            self._dirty[route] = None

    def _flush_alone(self) -> None:
        """Nobody turns the crank just now, so whoever is here does it.

        Twice: what the first pass holds back because there may be more to say
        (:meth:`Engine.begin_pass`) would wait for somebody who may not come.
        """
        now = trio.current_time()
        try:
            for _ in range(2):
                dirty, self._dirty = self._dirty, {}
                self._flush(now, dirty)
                if self._unsent or not self._dirty:
                    break
        except OSError as error:
            self._fail(error)

    def on_rest(self, route: Route) -> None:
        """The running task has nothing more to write on this connection for now.

        When that is true of all who have written, nobody is worth waiting for, and what
        there is leaves at once.  No events are delivered here: the task is about to wait
        for one, and would miss it.
        """
        writers = route.writers
        writers.discard(trio.lowlevel.current_task())
        if writers or route not in self._dirty or self._unsent or not self._hand_over.is_running:
            return
        now = trio.current_time()
        try:
            self._transmit(route, now)
        except OSError as error:
            self._send_error = error  # for the task to which the socket belongs
            return
        engine = route.engine
        if engine.has_events or engine.is_ending or engine.has_more_to_send(now):
            return  # it stays dirty, and that task goes on
        del self._dirty[route]
        self._settle(route, now)

    def _wake_flusher(self) -> None:
        if self._flush_lot:
            self._flush_lot.unpark_all()

    def flush_now(self) -> None:
        """Send what can be sent without waiting; for the last packets before the socket closes."""
        if not self._is_closed:
            now = trio.current_time()
            try:
                for _ in range(100):
                    dirty, self._dirty = self._dirty, {}
                    self._flush(now, dirty)
                    if self._unsent or not self._dirty:
                        break
            except OSError:
                logger.exception("the last packets could not be sent")

    async def wait(self, lot: Lot) -> None:
        """Park in `lot` until unparked, perhaps early; drive meanwhile if no other task does.

        Raises:
          trio.BrokenResourceError: the socket has failed before.
          OSError: it failed while this task drove it.
        """
        if self.failure is not None:
            raise trio.BrokenResourceError("the endpoint's socket has failed") from self.failure
        await self._hand_over.wait(lot)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive until cancelled.

        Raises:
          trio.BusyResourceError: another task drives.
          OSError: the socket failed for good; every connection has been told before.
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
                    nursery.start_soon(
                        self._until_closed, self._flush_forever, nursery.cancel_scope
                    )
                    nursery.start_soon(self._watch_timers)
                    await self._until_closed(self._receive_forever, nursery.cancel_scope)
        except Exception as error:
            self._fail(error)
            raise

    def _flush_left_over(self) -> None:
        """Send what the cancelled tasks would have sent: for long, no task may drive."""
        if self._dirty and not self._is_closed:
            self._flush_alone()

    async def _until_closed(
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
        return [route.sink for route in self._all]

    def close(self) -> None:
        """Send what can be sent, close the socket, forget every connection.  Idempotent."""
        if self._is_closed:
            return
        now = trio.current_time()
        for route in list(self._all):
            route.engine.close_application(
                ApplicationErrorCode.SHUTTING_DOWN, "the endpoint was closed"
            )
            self._dirty[route] = None
            self._deliver(route, now)
        self.flush_now()
        # One more copy for those which may not know yet: there is no later occasion.
        for route in list(self._all):
            if isinstance(route.engine, ClosingConnection):
                route.engine.say_again()
                self._dirty[route] = None
        self.flush_now()
        self._is_closed = True
        self.accept = None
        for route in list(self._all):
            self._forget(route, now)
        self._close_socket()

    async def linger(self) -> None:
        """Wait until the peers of closed connections know, or were told often enough.

        `close_linger` seconds at most.  Without a lost packet that is a round trip.  To be
        called while the driver runs.

        Cancellation: what was sent is all that is sent.
        """
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self.config.close_linger):
            while any(map(_may_not_know, self._all)):
                await self._linger_lot.park()

    def close_if_unused(self) -> None:
        """Close now if :attr:`close_when_unused` is set and nothing needs the socket.

        Closing periods are kept only while somebody drives: without a driver nobody
        would ever see their end.
        """
        if not self.close_when_unused or self.accept is not None:
            return
        if not self._all or (
            not self._hand_over.is_running and all(route.engine.is_ending for route in self._all)
        ):
            self.close()

    def _close_socket(self) -> None:
        self.socket.close()
        self._hand_over.close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def statistics(self) -> EndpointStatistics:
        """A snapshot of the endpoint's counters."""
        counters = self.socket.statistics
        return EndpointStatistics(
            bytes_sent=counters.bytes_sent,
            bytes_received=counters.bytes_received,
            datagrams_sent=counters.datagrams_sent,
            datagrams_received=counters.datagrams_received,
            send_blocked=counters.send_blocked,
            send_calls=counters.send_calls,
            receive_calls=counters.receive_calls,
            pooled_receives=counters.pooled_receives,
            soft_errors=counters.soft_errors,
            datagrams_unroutable=self._datagrams_unroutable,
            receives_dropped=self._budget.dropped,
            connections=len(self._all),
            handshakes=self._admission.places.handshakes,
            connections_accepted=self._connections_accepted,
            connections_refused=self._connections_refused + self._answers.get("refusal", 0),
            handshakes_failed=self._handshakes_failed,
            retries_sent=self._answers.get("retry", 0),
            version_negotiations_sent=self._answers.get("version negotiation", 0),
            stateless_resets_sent=self._answers.get("stateless reset", 0),
            stateless_resets_received=self._resets_received,
            receive_memory_used=self.memory.receive.used,
            receive_memory_limit=self.memory.receive.limit,
            send_memory_used=self.memory.send.used,
            send_memory_limit=self.memory.send.limit,
        )

    def note_refused(self) -> None:
        """An established connection was closed because the accept backlog is full."""
        self._connections_refused += 1

    # ------------------------------------------------------------------ the three tasks

    async def _receive_forever(self) -> None:
        while True:
            if self._turn():
                await trio.lowlevel.checkpoint()
            else:
                self._rested = True
                await self.socket.wait_readable()

    async def _watch_timers(self) -> None:
        # A task of its own: a cancel scope for each wait of the receiving task costs a
        # tenth of an exchange of small packets.
        while True:
            with trio.CancelScope(deadline=self._next_deadline()) as self._sleep:
                await trio.sleep_forever()
            self._sleep = None
            # What has arrived meanwhile comes before what it is late for.
            self._rested = True
            self._turn()

    def _turn(self) -> bool:
        """Read what has arrived, run the timers which are due, answer; whether more may wait."""
        now = trio.current_time()
        touched: dict[Route, None] = {}
        budget = self._budget
        size = 0
        drained = False
        for batch in range(BATCHES_PER_TURN):
            runs = self.socket.receive_runs(RUNS_PER_TURN, self._pool)
            if not batch:
                # (Not before: the time for reading belongs to no connection.)
                budget.begin_turn(now, rested=self._rested)
                self._rested = False
            was_dear = False
            for run in runs:
                was_dear = self._dispatch_run(run, now, touched) or was_dear
            drained = len(runs) < RUNS_PER_TURN
            if not drained:
                size += sum(run[4] for run in runs)
            if drained or not was_dear:
                break  # (Behind a flood, others wait in the socket's buffer.)
        if budget.has_held:
            while (held := budget.take_held()) is not None:
                self._dispatch_run(held, now, touched, was_held=True)
        if drained or not self._arrivals.is_behind(now, drained=drained):
            self._run_timers(now, touched)
        self._arrivals.on_read(now, 0 if drained else size, drained=drained)
        # Those to whom applications are writing just now have their turn of sending soon.
        answering = []
        for route in touched:
            if route not in self._dirty and not self._can_wait(route, now):
                answering.append(route)
            account = route.account
            if account is not None and account.is_dear:
                budget.begin()
                self._hand_up(route, now)
                budget.charge_events(account)
            else:
                self._hand_up(route, now)
        self._flush(now, answering)
        if self._dirty or self._unsent:
            self._wake_flusher()
        if budget.has_held or self._held_at < math.inf:
            self._held_at = budget.next_work_at()
            if self._sleep is not None:
                self._sleep.deadline = self._next_deadline()
        return not drained or self._held_at <= now

    def _can_wait(self, route: Route, now: float) -> bool:
        """Whether there is nothing to send but an acknowledgement which waits for company."""
        deadline = route.engine.only_acknowledgement_due()
        if deadline is None or route.engine.reset_tokens_changed:
            return False
        if deadline < route.scheduled_at:
            self._schedule(route, deadline)
        return True

    async def _flush_forever(self) -> None:
        while True:
            if self._unsent:
                await self.socket.wait_writable()
            elif self._dirty:
                await trio.lowlevel.checkpoint()
            else:
                await self._flush_lot.park()
                await self._wait_for_company()
            if self._send_error is not None:
                raise self._send_error
            dirty, self._dirty = self._dirty, {}
            self._flush(trio.current_time(), dirty)

    async def _wait_for_company(self) -> None:
        """A few turns for those who write, before their packets are built.

        What belongs together (the answer, then, after a look for more to read, the end of
        the stream) should leave together, and so should what other streams say at the same
        time: a packet costs far more than a frame.  Nobody waits for long, and who has a
        full packet does not wait for others.
        """
        if not self._dirty:
            return  # (All has left with those who came to rest.)
        await trio.lowlevel.checkpoint()
        for _ in range(TURNS_FOR_COMPANY):
            if not self._dirty:
                break
            self._is_quiet = True
            await trio.lowlevel.checkpoint()
            if self._is_quiet or len(self._dirty) > ROUTES_WITH_COMPANY:
                break
            if any(route.engine.has_full_packet for route in self._dirty):
                break

    # ------------------------------------------------------------------ sending

    def _flush(self, now: float, routes: Iterable[Route]) -> None:
        """One bounded run of packets of every connection; those with more become dirty again."""
        unsent = self._unsent
        while unsent:
            data, address, size, mark = unsent[0]
            taken = self.socket.send_run(data, address, size, mark)
            if taken < len(data):
                unsent[0] = (data[taken:], address, size, mark)
                break
            unsent.popleft()
        for route in routes:
            if unsent:
                self._dirty[route] = None
                self._settle(route, now)
                continue
            self._transmit(route, now)
            self._deliver(route, now)
            if route.engine.has_more_to_send(now):
                self._dirty[route] = None  # its turn comes again after the others'

    def _transmit(self, route: Route, now: float) -> None:
        """One bounded run of packets of a connection."""
        route.writers.clear()
        engine, slab = route.engine, _slab()
        engine.begin_pass()
        for _ in range(BUILDS_PER_CONNECTION):
            runs = engine.transmit(now, slab)
            for run in runs:
                self._send(run)
            if not runs or self._unsent or not engine.has_more_to_send(now):
                break

    def _send(self, run: Run) -> None:
        data, address, size, mark = run
        taken = 0 if self._unsent else self.socket.send_run(data, address, size, mark)
        if taken < len(data):
            # Counted in flight already: kept, and nothing else is built before.
            self._unsent.append((bytes(data[taken:]), address, size, mark))

    # ------------------------------------------------------------------ receiving

    def _dispatch_run(
        self, run: ReceivedRun, now: float, touched: dict[Route, None], *, was_held: bool = False
    ) -> bool:
        """Hand the datagrams of a run to their connections.

        Returns whether some of them have to wait, or were dropped, because their connection
        is dear (:mod:`~phoenix_trio.quic.turn_budget`).
        """
        data, address, size, mark, stop = run
        if not address[1]:
            # Nothing can be sent to port 0, so such a datagram is worth no work.
            self._datagrams_unroutable += -(-stop // size) if size else 1
            return False
        budget = self._budget
        start = 0
        while start < stop:
            route = None
            if not data[start] & 0x80:
                end = min(start + 1 + CONNECTION_ID_LENGTH, stop)
                route = self._routes.get(bytes(data[start + 1 : end]))
            if route is not None:
                account = route.account
                begin, end = start, stop
                if account is not None and account.watched:
                    if not was_held and budget.must_wait(account):
                        self._hold(account, run, start)
                        return True
                    end = min(stop, start + budget.portion(account) * size)
                    budget.begin()
                path = _path_of(route, address) if type(address) is PathAddress else address
                start = route.engine.receive_run(data, start, size, path, now, mark, end)
                if account is not None:
                    spent = budget.charge if account.watched else budget.note
                    spent(account, -(-(start - begin) // size), start - begin)
            else:
                end = min(start + size, stop)
                route = self._dispatch(bytes(data[start:end]), address, now, mark)
                start = end
            if route is not None:
                touched[route] = None
        return False

    def _hold(self, account: Account, run: ReceivedRun, start: int) -> None:
        """Put the datagrams of a run from `start` on in line, in small portions."""
        data, address, size, mark, stop = run
        step = self._budget.portion(account) * size
        for at in range(start, stop, step):
            piece = bytes(data[at : min(at + step, stop)])
            if not self._budget.hold(account, (piece, address, size, mark, len(piece)), len(piece)):
                break  # (Nor is there room for those behind it.)

    def _dispatch(self, data: bytes, address: Address, now: float, mark: int) -> Route | None:
        connection_id = destination_connection_id(data)
        route = self._routes.get(connection_id) if connection_id is not None else None
        if route is not None:
            route.engine.receive(data, _path_of(route, address), now, mark)
            return route
        if connection_id is None:
            self._datagrams_unroutable += 1
            return None
        if not data[0] & 0x80:
            return self._dispatch_short(data, address, now)
        verdict = self._admission.judge_long(
            data,
            remote_of(address),
            now,
            listening=self.accept is not None,
        )
        if isinstance(verdict, Admit):
            return self._admit(verdict, data, address, now, mark)
        self._datagrams_unroutable += 1
        if isinstance(verdict, Answer):
            self._answer(verdict, address)
        return None

    def _dispatch_short(self, data: bytes, address: Address, now: float) -> Route | None:
        if len(data) > _RESET_TOKEN_LENGTH:
            route = self._reset_routes.get(self._token_hash(data[-_RESET_TOKEN_LENGTH:]))
            if route is not None:
                self._resets_received += 1
                route.engine.on_stateless_reset(now)
                return route
        self._datagrams_unroutable += 1
        verdict = self._admission.judge_short(data, now)
        if isinstance(verdict, Answer):
            self._answer(verdict, address)
        return None

    def _answer(self, answer: Answer, address: Address) -> None:
        self._answers[answer.kind] = self._answers.get(answer.kind, 0) + 1
        # No state behind it: if the socket is full, the answer is dropped.
        self.socket.send_run(answer.data, address)

    def _admit(
        self, verdict: Admit, data: bytes, address: Address, now: float, mark: int
    ) -> Route | None:
        assert self.accept is not None
        client = remote_of(address)
        try:
            engine, sink = self.accept(verdict, client)
        except Exception:
            # A trace file which cannot be made, for instance: one client less, not all.
            logger.exception("a connection from %s could not be made", client)
            return None
        engine.receive(data, address, now, mark)
        if not engine.has_peer and not engine.is_ending:
            # No packet was taken: no state for that.
            self._datagrams_unroutable += 1
            sink.on_released(engine.release()[1])
            return None
        route = Route(engine, sink, place=self._admission.enter(verdict, client, now))
        route.handshake_deadline = now + self.config.handshake_timeout
        route.initial_connection_id = verdict.destination_cid
        self._register(route, engine)
        self._add_connection_id(route, verdict.destination_cid)
        self._schedule(route, route.handshake_deadline)
        sink.bind(route)
        return route

    # ------------------------------------------------------------------ events

    def _deliver(self, route: Route, now: float) -> None:
        """Hand events up, and keep timers true."""
        self._hand_up(route, now)
        self._settle(route, now)

    def _hand_up(self, route: Route, now: float) -> None:
        """Hand events up, and keep routing and counters true."""
        engine = route.engine
        while batch := engine.take_events():
            for event in batch:
                if type(event) in _RARE_EVENTS:
                    self._note_event(route, event, now)
            try:
                route.sink.handle_events(batch)
            except Exception:  # a bug above must not stop the other connections
                logger.exception("internal error while delivering events")
                engine.close_application(ApplicationErrorCode.HANDLER_CRASHED, "internal error")

    def _note_event(self, route: Route, event: events.Event, now: float) -> None:
        if isinstance(event, events.ConnectionIdIssued):
            self._add_connection_id(route, event.connection_id)
        elif isinstance(event, events.ConnectionIdRetired):
            self._retire(route, event.connection_id, now)
        elif isinstance(event, events.HandshakeCompleted):
            route.account = Account()
            self._on_handshake_done(route, now, succeeded=True)
        elif isinstance(event, events.HandshakeConfirmed):
            if route.initial_connection_id is not None:
                self._retire(route, route.initial_connection_id, now)
                route.initial_connection_id = None
        elif isinstance(event, events.Terminated):
            self._on_handshake_done(route, now, succeeded=False)

    def _settle(self, route: Route, now: float) -> None:
        """Forget a connection which is over, else look at its timers."""
        engine = route.engine
        if engine.reset_tokens_changed:
            engine.reset_tokens_changed = False
            self._update_reset_tokens(route)
        if engine.is_over:
            if not isinstance(engine, ClosingConnection):
                self._release(route, now)
                engine = route.engine
            if self._linger_lot and not _may_not_know(route):
                self._linger_lot.unpark_all()
            if engine.is_terminated:
                self._forget(route, now)
                return
        deadline = engine.next_deadline()
        if deadline is not None and deadline <= now and self._unsent:
            # Packets are due, but the socket is full: the flush which waits for it looks
            # here again.  Only the end of the connection must not wait for that.
            deadline = engine.end_deadline
        if deadline is None:
            return
        if deadline <= now and not engine.has_more_to_send(now):
            # All was sent that may be sent, and still something is due.  Looking again at
            # once would find the same, and keep the processor busy with it.
            deadline = now + TIMER_GRANULARITY
        if route.is_pending:
            deadline = min(deadline, route.handshake_deadline)
        # Entries may be early; but the acknowledgement which left with an answer should
        # not wake everybody a millisecond later, so the nearest ones are put off.
        scheduled = route.scheduled_at
        if deadline < scheduled or (deadline > scheduled and scheduled - now < PUT_OFF_SECONDS):
            self._schedule(route, deadline)

    def _on_handshake_done(self, route: Route, now: float, *, succeeded: bool) -> None:
        if not route.is_pending or route.place is None:
            return
        route.is_pending = False
        route.handshake_deadline = math.inf
        if succeeded:
            engine = route.engine
            route.place.on_handshake_completed(
                proves_address=isinstance(engine, Engine) and engine.came_from_one_address
            )
            self._connections_accepted += 1
        else:
            # (It keeps its place until it is forgotten.)
            self._admission.note_failure(route.place, now)
            self._handshakes_failed += 1

    # ------------------------------------------------------------------ timers

    def _schedule(self, route: Route, deadline: float) -> None:
        """Look at the route again at `deadline`.  Entries may be early, never late."""
        route.scheduled_at = deadline
        heapq.heappush(self._timers, (deadline, next(self._sequence), route))
        self._drop_stale_timers()
        if self._sleep is not None:
            # (Also later: the entry which was next may be superseded by this one.)
            self._sleep.deadline = self._next_deadline()

    def _drop_stale_timers(self) -> None:
        """Forget superseded entries once most are.

        Each acknowledgement which waits for its time leaves an entry for the idle timeout.
        """
        if len(self._timers) > STALE_TIMERS + 4 * len(self._all):
            self._timers = [
                entry
                for entry in self._timers
                if entry[2] in self._all and entry[0] == entry[2].scheduled_at
            ]
            heapq.heapify(self._timers)

    def _next_deadline(self) -> float:
        timers = self._timers
        while timers and (timers[0][0] != timers[0][2].scheduled_at):
            heapq.heappop(timers)
        deadline = min(timers[0][0] if timers else math.inf, self._held_at)
        # (An ID leaves on time although nothing else happens: a table is empty once its
        # connections are gone, not when the next datagram comes.)
        return min(deadline, self._retired[0][0]) if self._retired else deadline

    def _run_timers(self, now: float, touched: dict[Route, None]) -> None:
        while self._timers and self._timers[0][0] <= now:
            at, _, route = heapq.heappop(self._timers)
            if at != route.scheduled_at or route not in self._all:
                continue  # superseded by an earlier entry, or gone
            route.scheduled_at = math.inf
            engine = route.engine
            if route.is_pending and route.handshake_deadline <= now:
                engine.on_handshake_timeout()
                touched[route] = None
                continue
            deadline = engine.next_deadline()
            if deadline is not None and deadline <= now:
                engine.on_timer(now)
                touched[route] = None
                deadline = engine.next_deadline()
            if route.is_pending and route.handshake_deadline < (deadline or math.inf):
                deadline = route.handshake_deadline
            if deadline is not None and deadline > now:
                # (A deadline which has passed means "flush", and that follows at once.)
                self._schedule(route, deadline)
        while self._retired and self._retired[0][0] <= now:
            _, connection_id, route = self._retired.popleft()
            if self._routes.get(connection_id) is route:  # (not another connection's by now)
                del self._routes[connection_id]
                route.connection_ids.discard(connection_id)

    # ------------------------------------------------------------------ routing tables

    def _register(self, route: Route, engine: Engine) -> None:
        self._all[route] = None
        engine.path_ceiling = self.socket.largest_payload
        engine.set_arrivals(self._arrivals)
        for connection_id in engine.connection_ids:
            self._add_connection_id(route, connection_id)

    def _add_connection_id(self, route: Route, connection_id: bytes) -> None:
        self._routes[connection_id] = route
        route.connection_ids.add(connection_id)

    def _retire(self, route: Route, connection_id: bytes, now: float) -> None:
        self._retired.append((now + RETIRED_ID_SECONDS, connection_id, route))

    def _token_hash(self, token: bytes) -> bytes:
        return hashlib.blake2b(token, key=self._token_key, digest_size=16).digest()

    def _update_reset_tokens(self, route: Route) -> None:
        current = {self._token_hash(token) for token in route.engine.peer_reset_tokens()}
        for stale in route._token_keys - current:
            if self._reset_routes.get(stale) is route:
                del self._reset_routes[stale]
        for key in current:
            self._reset_routes[key] = route
        route._token_keys = current

    def _release(self, route: Route, now: float) -> None:
        """The connection is over: free its engine, and keep what answers late packets."""
        self._hand_up(route, now)
        engine = route.engine
        if isinstance(engine, ClosingConnection):
            return
        route.engine, remains = engine.release()
        sink, route.sink = route.sink, _NO_SINK
        route.writers.clear()
        self._update_reset_tokens(route)
        sink.on_released(remains)

    def _forget(self, route: Route, now: float) -> None:
        """The connection is over, its closing period too: free all that is known of it."""
        if self._all.pop(route, 0) == 0:
            return
        self._release(route, now)
        if route.place is not None:
            route.place.leave()
        for connection_id in route.connection_ids:
            if self._routes.get(connection_id) is route:
                del self._routes[connection_id]
        route.connection_ids.clear()
        self._dirty.pop(route, None)
        self._drop_stale_timers()
        if route.account is not None:
            self._budget.forget(route.account)
        if not self._all:
            self.close_if_unused()

    def _fail(self, error: BaseException) -> None:
        """The socket is gone: nobody may wait for it any longer."""
        self.failure = error
        for route in list(self._all):
            route.engine.close_application(
                ApplicationErrorCode.SHUTTING_DOWN, "the socket has failed"
            )
            route.sink.handle_events(
                [events.Terminated(trio.BrokenResourceError("the endpoint's socket has failed"))]
            )
        self._is_closed = True
        self.accept = None
        now = trio.current_time()
        for route in list(self._all):
            self._forget(route, now)
        self._close_socket()
