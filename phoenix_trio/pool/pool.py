"""Opens, leases and closes the pool's connections: the pool's Trio half.

Floor 4.  :func:`~phoenix_trio.pool.policy.decide` decides what to do; the tasks here do it,
all in the pool's own nursery.  There is one task for each connection, from dialling to its
end, one for each connection being closed or checked, and one that waits for the time at
which the policy has to be asked again.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Collection, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias, final

import trio

from ..errors import ApplicationErrorCode, ConnectionBroken, ShuttingDown
from ..quic.connection import QuicConnection
from ..quic.construction import NoPublicConstructor
from ..quic.groups import unwrap_lone
from .accounts import Demand, Entry, Pooled, Waiting, again
from .collecting import collect, collect_idle
from .config import IDLE_SHARE, Backoff, PoolConfig
from .lease import Lease
from .policy import PoolState, Reason, Waiter, choose, decide
from .statistics import PoolStatistics, TargetStatistics
from .targets import Target, TargetLike, parse_target

__all__ = ["ConnectionPool", "Dial", "Lease", "open_pool"]

#: In seconds: a connection lost sooner counts as a failed dial.
_SHORT_LIFE = 1.0

_DEFAULT_BACKOFF = Backoff()

logger: logging.Logger = logging.getLogger("phoenix_trio.pool")

#: Opens a connection to a target for the length of a block, as ``Endpoint.connect`` does.
Dial: TypeAlias = Callable[[Target], AbstractAsyncContextManager[QuicConnection]]


@final
class ConnectionPool(metaclass=NoPublicConstructor):
    """Connections to any number of targets, shared among leases.

    Obtained from :func:`open_pool`.
    """

    def __init__(self, dial: Dial, config: PoolConfig, nursery: trio.Nursery) -> None:
        self._dial = dial
        self._config = config
        self._nursery = nursery
        self._entries: dict[Hashable, Entry] = {}  # by target
        self._pooled: dict[int, Pooled] = {}
        self._numbers = itertools.count(1)
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._closed = False
        self._finishing = False
        self._finish_lot = trio.lowlevel.ParkingLot()
        self._wake_at = math.inf
        self._lot = trio.lowlevel.ParkingLot()
        self._counts = dict.fromkeys(Reason, 0)
        self._lost = 0
        self._health_failures = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        leases = sum(each.leases for each in self._pooled.values())
        return (
            f"<ConnectionPool with {len(self._pooled)} connections to {len(self._entries)} targets,"
            f" {leases} leases ({state})>"
        )

    @property
    def config(self) -> PoolConfig:
        """The settings."""
        return self._config

    # ------------------------------------------------------------------ leases

    def lease(self, target: TargetLike, *, exclusive: bool = False) -> Lease:
        """A connection to `target`: ``async with pool.lease("example.org:4433") as connection:``.

        Other leases may use the same connection.  The connection is handed back when the block
        is left in any way; streams still open then go on.  Entering the block waits for a
        connection if there is none, or none with a stream to spare; leases are served in the
        order in which they were asked for.

        Args:
          exclusive: lease the connection alone: no other lease shares it meanwhile, and no
            earlier lease is left on it.  If all connections are leased and no further one is
            permitted, the one with the fewest leases takes no later leases, and this call waits
            for it.

        Cancellation: while waiting, nothing is held, and no other caller loses its turn.

        Raises (the call itself):
          TypeError, ValueError: `target` is not a valid target.

        Raises (entering the block):
          OSError: the name is unknown, or the target cannot be reached.
          HandshakeFailed, ConnectionBroken: the connection could not be established.
          trio.ClosedResourceError: the pool was closed.
        """
        return Lease(self, parse_target(target), exclusive=exclusive)

    @asynccontextmanager
    async def lease_several(
        self,
        target: TargetLike,
        count: int,
        *,
        besides: Collection[QuicConnection] = (),
    ) -> AsyncIterator[list[QuicConnection]]:
        """Lease `count` different connections to `target`, all at once.

        Waits until there are so many, and dials them one after the other.

        Args:
          besides: connections that do not count, because they are in use already.

        Cancellation: while waiting, nothing is held.

        Raises:
          TypeError: `target` is not a valid target, or `count` is no integer.
          ValueError: `count` is below 1, or above what the settings permit for a target.
          And whatever ``lease`` raises, if one of them cannot be established.
        """
        parsed = parse_target(target)
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"count must be an integer, not {count!r}")
        if not 1 <= count <= self._config.per_target:
            raise ValueError(
                f"count must be between 1 and {self._config.per_target}, the limit of"
                f" connections to one target, not {count}"
            )
        await trio.lowlevel.checkpoint()
        # Not before the checkpoint: an entry with nothing to remember may be removed.
        entry = self._entry(parsed)
        leased: list[Pooled] = []
        demand, ticket = self._demand(entry, count)
        try:
            for pooled in await collect(self, entry, demand, count, ticket, besides):
                self._grant(pooled)
                leased.append(pooled)
            demand.waiter = None
            yield [pooled.quic for pooled in leased]
        finally:
            entry.demands.remove(demand)
            for pooled in leased:
                self._release(pooled)
            if not self._closed:
                self._turn()

    def _demand(self, entry: Entry, count: int) -> tuple[Demand, int]:
        """Note that a call waits for so many connections; return the note and its ticket."""
        if self._config.reconnect_backoff is None:
            entry.may_grow_at = entry.failed_until
        ticket = next(self._numbers)
        demand = Demand(count, Waiter(ticket, trio.current_time()))
        entry.demands.append(demand)
        return demand, ticket

    async def _wait_for_more(self, entry: Entry) -> None:
        """Wait until there may be another connection, or one with fewer leases.

        Raises:
          Exception: a connection could not be established, and is not dialled again by itself.
        """
        failures = entry.dial_failures
        self._turn()
        await entry.lot.park()
        if (
            entry.dial_failures > failures
            and entry.error is not None
            and self._config.reconnect_backoff is None
        ):
            raise again(entry.error)

    async def _acquire_alone(self, target: Target) -> Pooled:
        await trio.lowlevel.checkpoint()
        entry = self._entry(target)
        demand, ticket = self._demand(entry, 1)
        try:
            pooled = await collect_idle(self, entry, demand, ticket)
            self._grant(pooled)
            pooled.closed_from = 0  # lower than every ticket
        finally:
            entry.demands.remove(demand)
            if not self._closed:
                self._turn()
        return pooled

    async def _acquire(self, target: Target) -> Pooled:
        await trio.lowlevel.checkpoint()
        entry = self._entry(target)
        pooled = self._take_at_once(entry)
        if pooled is not None:
            return pooled
        now = trio.current_time()
        if entry.error is not None and now < entry.failed_until and not entry.usable:
            raise again(entry.error)
        waiting = Waiting(Waiter(next(self._numbers), now))
        entry.waiting.append(waiting)
        self._turn()
        try:
            await waiting.event.wait()
        except BaseException:
            if waiting.granted is not None:
                self._release(waiting.granted)  # to the next waiter
            elif waiting.error is None:
                entry.waiting.remove(waiting)
                self._turn()  # a dial may not be needed any more
            raise
        if waiting.error is not None:
            raise waiting.error
        assert waiting.granted is not None
        return waiting.granted

    def _take_at_once(self, entry: Entry) -> Pooled | None:
        """The connection :func:`decide` would grant to a newcomer, without a picture of everything.

        If no lease waits for the target, only rule 1 applies, over the connections that do not
        yield: the newcomer's ticket is the latest of all.
        """
        if entry.waiting:
            return None
        open_ones = [
            each
            for each in entry.connections
            if each.yields_to is None and each.closed_from is None and each.is_usable
        ]
        pooled: Pooled | None
        if len(open_ones) == 1 and open_ones[0].available_streams > open_ones[0].leases:
            pooled = open_ones[0]  # (there cannot be more reserved leases than leases)
            if pooled.leases >= self._config.seats:
                return None
        else:
            pooled = choose(open_ones, self._config.seats)
            if pooled is None:
                return None
        self._grant(pooled)
        if pooled.is_congested and entry.dial_scope is None:
            entry.wants_more = True
            self._turn()
        return pooled

    def _grant(self, pooled: Pooled) -> None:
        if not pooled.leases:
            pooled.promised = 0
            pooled.opened_before = pooled.quic.streams_opened
        pooled.leases += 1
        pooled.promised += 1
        pooled.entry.leases_granted += 1

    def _release(self, pooled: Pooled) -> None:
        pooled.leases -= 1
        if self._finish_lot:
            self._finish_lot.unpark_all()
        if self._closed:
            return
        if pooled.quic.peer_refuses_streams:
            pooled.is_draining = True
        config = self._config
        if pooled.entry.demands:
            pooled.entry.lot.unpark_all()  # a waiting call may need this connection
        if not pooled.leases:
            now = pooled.idle_since = trio.current_time()
            patience = config.idle_for(pooled.idle_limit)
            if config.health_check_interval is not None:
                share = pooled.idle_limit * IDLE_SHARE
                patience = min(patience, config.health_check_interval, share)
            due = now + patience
            if pooled.is_draining or pooled.yields_to is not None or due < self._wake_at:
                self._turn()
                return
        if any(entry.waiting or entry.demands for entry in self._entries.values()):
            self._turn()

    def _entry(self, target: Target) -> Entry:
        self._check_open()
        if self._finishing:
            raise ShuttingDown("this pool gives out no further leases")
        entry = self._entries.get(target)
        if entry is None:
            entry = self._entries[target] = Entry(target)
        return entry

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this pool was closed")

    # ------------------------------------------------------------------ other calls

    def keep_warm(self, target: TargetLike, count: int) -> None:
        """Keep at least `count` connections to `target` open from now on; 0: none.

        They are dialled in the background, one after the other, with a back-off after
        failures, and replaced when they are lost.  Without ``TransportConfig.keep_alive`` or a
        `health_check_interval`, unused connections are lost to the idle timeout again and
        again.  They do not yield to other targets: if they take all of `max_connections`,
        leases of other targets wait.

        Raises:
          TypeError, ValueError: `target` is not a valid target, or `count` is out of range.
          trio.ClosedResourceError: the pool was closed.
        """
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"count must be an integer, not {count!r}")
        if not 0 <= count <= self._config.per_target:
            raise ValueError(
                f"count must be between 0 and {self._config.per_target}, the limit of"
                f" connections to one target, not {count}"
            )
        self._entry(parse_target(target)).kept_warm = count
        self._turn()

    def drain(self, connection: QuicConnection) -> None:
        """Give out no further leases on `connection`, and close it after the last one.

        For a peer that has announced its end.  Without effect on a connection that does not
        belong, or no longer belongs, to this pool.
        """
        for pooled in self._pooled.values():
            if pooled.quic is connection:
                pooled.is_draining = True
                if not self._closed:
                    self._turn()

    def statistics(self) -> PoolStatistics:
        """A frozen snapshot."""
        targets = {
            str(entry.target): TargetStatistics(
                connections=len(entry.usable),
                idle=sum(1 for each in entry.usable if not each.leases),
                dialling=int(entry.dial_scope is not None),
                closing=len(entry.connections) - len(entry.usable),
                leases=sum(each.leases for each in entry.connections),
                waiting=len(entry.waiting),
                leases_granted=entry.leases_granted,
                dials=entry.dials,
                dial_failures=entry.dial_failures,
            )
            for entry in self._entries.values()
        }
        return PoolStatistics(
            targets=targets,
            evicted_idle=self._counts[Reason.IDLE],
            evicted_for_others=self._counts[Reason.EVICTED],
            drained=self._counts[Reason.DRAINED],
            lost=self._lost,
            health_failures=self._health_failures,
        )

    # ------------------------------------------------------------------ carrying out decisions

    def _turn(self) -> None:
        """Ask the policy what to do now, and do it.  Never waits."""
        now = trio.current_time()
        decision = decide(
            PoolState(now, [entry.state() for entry in self._entries.values()]), self._config
        )
        yielding = dict(decision.yielding)
        for pooled in self._pooled.values():
            before, pooled.yields_to = pooled.yields_to, yielding.get(pooled.id)
            if before is not None and pooled.yields_to != before and pooled.entry.demands:
                pooled.entry.lot.unpark_all()  # a waiting call may use it again
        for target, number in decision.grants:
            waiting = self._entries[target].waiting.popleft()
            waiting.granted = self._pooled[number]
            self._grant(waiting.granted)
            waiting.event.set()
        for target in decision.abandoned:
            entry = self._entries[target]
            assert entry.dial_scope is not None
            entry.is_abandoned = True
            entry.dial_scope.cancel()
        for target in decision.dials:
            entry = self._entries[target]
            entry.dial_scope = trio.CancelScope()
            entry.dials += 1
            self._nursery.start_soon(self._hold, entry, entry.dial_scope)
        for number, reason in decision.closures:
            pooled = self._pooled[number]
            pooled.is_closing = True
            pooled.closing_since = now
            self._counts[reason] += 1
            self._nursery.start_soon(self._close, pooled)
        for number in decision.checks:
            pooled = self._pooled[number]
            pooled.is_checking = True
            pooled.checked_at = now
            self._nursery.start_soon(self._check_health, pooled)
        for entry in list(self._entries.values()):
            entry.wants_more = False
            if entry.is_over(now):
                del self._entries[entry.target]
        if self._finish_lot:
            self._finish_lot.unpark_all()
        if decision.wake_at != self._wake_at:
            self._wake_at = decision.wake_at
            self._lot.unpark_all()

    async def _watch_time(self) -> None:
        while True:
            with trio.move_on_at(self._wake_at) as scope:
                await self._lot.park()
            if scope.cancelled_caught:
                self._wake_at = math.inf
                self._turn()

    async def _hold(self, entry: Entry, scope: trio.CancelScope) -> None:
        """Hold one connection, from dialling to its end."""
        pooled: Pooled | None = None
        try:
            with scope:
                async with self._dial(entry.target) as quic:
                    await trio.lowlevel.checkpoint_if_cancelled()  # given up just now
                    pooled = self._add(entry, quic)
                    await quic.wait_closed()
        except Exception as error:
            if pooled is None:
                self._on_failed_dial(entry, error)
            else:
                # The code that served the connection has failed, and with it this connection alone.
                logger.error("a connection to %s has crashed", entry.target, exc_info=error)
        finally:
            if pooled is None:
                entry.dial_scope = None
                entry.is_abandoned = False
            else:
                self._remove(pooled)
            if not self._closed:
                self._turn()
            entry.lot.unpark_all()

    def _add(self, entry: Entry, quic: QuicConnection) -> Pooled:
        pooled = Pooled(next(self._numbers), entry, quic, trio.current_time())
        self._pooled[pooled.id] = pooled
        entry.connections.append(pooled)
        entry.dial_scope = None
        entry.error = None
        entry.may_dial_at = entry.may_grow_at = entry.failed_until = -math.inf
        if not self._closed:
            self._turn()
        entry.lot.unpark_all()
        return pooled

    def _remove(self, pooled: Pooled) -> None:
        entry = pooled.entry
        del self._pooled[pooled.id]
        entry.connections.remove(pooled)
        if pooled.is_closing or self._closed:
            entry.failures = 0
            return
        self._lost += 1
        now = trio.current_time()
        if now - pooled.opened_at > _SHORT_LIFE:
            entry.failures = 0
        else:
            # A peer that drops every connection at once must not be dialled in a loop.
            self._delay_growth(entry, now)

    def _delay_growth(self, entry: Entry, now: float) -> float:
        """Count a failure; return for how many seconds only needed connections are dialled."""
        entry.failures += 1
        backoff = self._config.reconnect_backoff or _DEFAULT_BACKOFF
        delay = backoff.delay(entry.failures, self._random)
        entry.may_grow_at = now + delay
        return delay

    def _on_failed_dial(self, entry: Entry, error: Exception) -> None:
        now = trio.current_time()
        delay = self._delay_growth(entry, now)
        entry.dial_failures += 1
        if isinstance(error, ConnectionBroken):
            error.processed = False  # the waiting leases cannot have sent anything
        entry.error = error
        if self._config.reconnect_backoff is not None:
            entry.may_dial_at = now + delay
            entry.failed_until = -math.inf
        else:
            entry.may_dial_at = entry.failed_until = now + self._config.failure_memory
            if not entry.usable:
                while entry.waiting:
                    waiting = entry.waiting.popleft()
                    waiting.error = again(error)
                    waiting.event.set()
                return
        logger.info("dialling %s failed: %r", entry.target, error)

    async def _close(self, pooled: Pooled) -> None:
        with trio.move_on_after(self._config.close_timeout):
            await pooled.quic.aclose()

    async def _check_health(self, pooled: Pooled) -> None:
        try:
            with trio.move_on_after(self._config.health_check_timeout) as scope:
                await pooled.quic.ping()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the connection has ended; its own task handles that
        else:
            if scope.cancelled_caught:
                self._health_failures += 1
                pooled.quic.abort(ApplicationErrorCode.NO_ERROR, "no answer to a health check")
        finally:
            pooled.is_checking = False
            if not self._closed:
                self._turn()

    # ------------------------------------------------------------------ the end

    def _stop(self) -> None:
        """Tell all waiting and later callers that the pool was closed."""
        self._closed = True
        for entry in self._entries.values():
            while entry.waiting:
                waiting = entry.waiting.popleft()
                waiting.error = trio.ClosedResourceError("this pool was closed")
                waiting.event.set()
            if entry.dial_scope is not None:
                entry.dial_scope.cancel()
            entry.lot.unpark_all()

    async def finish(self) -> None:
        """Take no new leases, and wait until all there are have been handed back.

        Waiting leases still get a connection; further ones raise
        :class:`ShuttingDown`.

        Cancellation: without effect on leases; no new ones are taken all the same.
        """
        self._finishing = True
        await trio.lowlevel.checkpoint()
        while self._is_in_use():
            await self._finish_lot.park()

    def _is_in_use(self) -> bool:
        return any(each.leases for each in self._pooled.values()) or any(
            entry.waiting or entry.demands for entry in self._entries.values()
        )

    async def aclose(self) -> None:
        """Close all connections in good order, leased ones included; idempotent.

        Waiting and later calls for a lease raise :class:`trio.ClosedResourceError`.

        Cancellation: connections not closed by then are aborted.
        """
        self._stop()
        try:
            await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                for pooled in list(self._pooled.values()):
                    nursery.start_soon(pooled.quic.aclose)
        except BaseException:
            for pooled in self._pooled.values():
                pooled.quic.abort(ApplicationErrorCode.SHUTTING_DOWN)
            raise


@asynccontextmanager
async def open_pool(dial: Dial, config: PoolConfig | None = None) -> AsyncIterator[ConnectionPool]:
    """Run a pool for the length of the block.

    When the block is left normally, all connections are closed in good order, leased ones
    included: calls on them raise :class:`trio.ClosedResourceError`.  The caller's cancel scope
    bounds how long that takes.  When the block is left by an exception, they are aborted.

    Args:
      dial: opens a connection to a :class:`Target` for the length of a block, for instance
        ``lambda target: endpoint.connect(target.host, target.port)``.  The leases that wait
        for the connection raise whatever it raises.
      config: limits, timeouts and back-off.
    """
    config = PoolConfig() if config is None else config
    with unwrap_lone():
        async with trio.open_nursery() as nursery:
            pool: ConnectionPool = ConnectionPool._create(dial, config, nursery)
            nursery.start_soon(pool._watch_time)
            try:
                yield pool
                await pool.aclose()
            finally:
                pool._stop()
                nursery.cancel_scope.cancel()
