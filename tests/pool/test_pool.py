"""The pool with made-up connections, and with real ones over a simulated network."""

from __future__ import annotations

import gc
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.pool.accounts import Pooled
from phoenix_trio.pool.config import Backoff, PoolConfig
from phoenix_trio.pool.policy import PoolState, Waiter, decide, has_spare_stream
from phoenix_trio.pool.pool import ConnectionPool, open_pool
from phoenix_trio.pool.targets import Target
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, examples, server_tls

TARGET = "peer:1"


class FakeConnection:
    """The part of a connection that the pool uses."""

    def __init__(self, streams: int) -> None:
        self.available_streams = streams
        self.streams_opened = 0
        self.is_congested = False
        self.is_closed = False
        self.peer_refuses_streams = False
        self.answers_pings = True
        self.idle_timeout = 30.0
        self.keep_alive: float | None = None
        self._ended = trio.Event()

    def end(self) -> None:
        self.is_closed = True
        self.available_streams = 0
        self._ended.set()

    def abort(self, code: int = 0, reason: str = "") -> None:
        self.end()

    async def aclose(self) -> None:
        await trio.sleep(0.01)
        self.end()

    async def wait_closed(self) -> None:
        await self._ended.wait()

    async def ping(self) -> float:
        if not self.answers_pings:
            await trio.sleep_forever()
        await trio.sleep(0.01)
        return 0.01


class Peers:
    """Dials made-up peers, and counts open connections."""

    def __init__(self, *, streams: int = 100, seconds: float = 0.05) -> None:
        self.streams = streams
        self.seconds = seconds
        self.error: Exception | None = None
        self.open: list[FakeConnection] = []
        self.dialling = 0
        self.dials = 0
        self.most = 0

    @asynccontextmanager
    async def dial(self, target: Target) -> AsyncIterator[Any]:
        self.dials += 1
        self.dialling += 1
        self.most = max(self.most, self.dialling + len(self.open))
        try:
            await trio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        finally:
            self.dialling -= 1
        connection = FakeConnection(self.streams)
        self.open.append(connection)
        try:
            yield connection
        finally:
            self.open.remove(connection)
            connection.end()


@asynccontextmanager
async def pool_of(peers: Peers, **settings: Any) -> AsyncIterator[ConnectionPool]:
    async with open_pool(peers.dial, PoolConfig(**settings)) as pool:
        yield pool
    assert not peers.open
    assert not peers.dialling


async def hold(pool: ConnectionPool, seconds: float, target: str = TARGET) -> None:
    async with pool.lease(target):
        await trio.sleep(seconds)


async def hold_alone(pool: ConnectionPool, seconds: float) -> None:
    async with pool.lease(TARGET, exclusive=True):
        await trio.sleep(seconds)


# ------------------------------------------------------------------ leases


async def test_a_lease_dials_once_and_later_ones_share(autojump_clock: MockClock) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        async with pool.lease(TARGET) as one, pool.lease(("peer", 1)) as two:
            assert one is two
            assert pool.statistics().leases == 2
        assert peers.dials == 1
        figures = pool.statistics()
        assert (figures.connections, figures.idle, figures.leases) == (1, 1, 0)
        assert figures.targets[TARGET].leases_granted == 2


async def test_a_pooled_lease_waits_for_nothing(autojump_clock: MockClock) -> None:
    async with pool_of(Peers()) as pool:
        await hold(pool, 0)
        before = trio.current_time()
        with trio.testing.assert_checkpoints():
            async with pool.lease(TARGET):
                pass
        assert trio.current_time() == before


async def test_a_lease_is_handed_back_however_its_block_is_left(
    autojump_clock: MockClock,
) -> None:
    async with pool_of(Peers()) as pool:
        with pytest.raises(KeyError, match="mine"):
            async with pool.lease(TARGET):
                raise KeyError("mine")
        with trio.move_on_after(1):
            await hold(pool, math.inf)
        assert pool.statistics().leases == 0
        assert pool.statistics().idle == 1


async def test_a_lease_can_be_entered_once(autojump_clock: MockClock) -> None:
    async with pool_of(Peers()) as pool:
        lease = pool.lease(TARGET)
        async with lease:
            pass
        with pytest.raises(RuntimeError, match="once"):
            async with lease:
                pass


@pytest.mark.parametrize("target", ["peer", "peer:0", "http://peer:1", 5, ("peer",)])
async def test_what_is_no_target_is_refused_at_once(target: Any, autojump_clock: MockClock) -> None:
    async with pool_of(Peers()) as pool:
        with pytest.raises((ValueError, TypeError), match=r"target|port"):
            pool.lease(target)


async def test_another_connection_is_opened_only_when_streams_say_so(
    autojump_clock: MockClock,
) -> None:
    peers = Peers(streams=2)
    async with pool_of(peers) as pool, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(hold, pool, 1)
        await trio.sleep(0.5)
        assert peers.dials == 1
        nursery.start_soon(hold, pool, 1)
        await trio.sleep(0.2)
        assert peers.dials == 2
        assert sorted(each.leases for each in pool._pooled.values()) == [1, 2]


async def test_another_connection_is_opened_when_the_first_is_congested(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        await hold(pool, 0)
        peers.open[0].is_congested = True
        async with pool.lease(TARGET) as first:
            await trio.sleep(0.2)
            assert peers.dials == 2
            async with pool.lease(TARGET) as second:
                assert second is not first


async def test_a_stream_which_was_opened_is_not_reserved_any_more(
    autojump_clock: MockClock,
) -> None:
    peers = Peers(streams=3)
    async with pool_of(peers, max_connections=1) as pool:
        async with pool.lease(TARGET):
            (pooled,) = pool._pooled.values()
            assert pooled.reserved == 1
            peers.open[0].streams_opened += 1
            peers.open[0].available_streams -= 1
            assert pooled.reserved == 0
            async with pool.lease(TARGET):
                assert pooled.reserved == 1
        async with pool.lease(TARGET):
            assert pooled.reserved == 1


# ------------------------------------------------------------------ limits and waiting


async def test_limits_hold_and_those_who_wait_are_served_in_turn(
    autojump_clock: MockClock,
) -> None:
    peers = Peers(streams=1)
    order: list[int] = []
    async with (
        pool_of(peers, max_connections=2, max_leases_per_connection=1) as pool,
        trio.open_nursery() as nursery,
    ):

        async def work(number: int) -> None:
            async with pool.lease(TARGET):
                order.append(number)
                await trio.sleep(1)

        for number in range(10):
            nursery.start_soon(work, number)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.5)
        assert pool.statistics().waiting == 8
    assert order == sorted(order)
    assert peers.most == 2


async def test_a_waiter_which_is_cancelled_leaves_its_place_to_the_next(
    autojump_clock: MockClock,
) -> None:
    peers = Peers(streams=1)
    async with pool_of(peers, max_connections=1, max_leases_per_connection=1) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 1)
            await trio.sleep(0.2)
            with trio.CancelScope() as scope:
                nursery.start_soon(partial(_hold_within, scope), pool)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(hold, pool, 1)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            with trio.fail_after(5):
                while pool.statistics().leases or pool.statistics().waiting:
                    await trio.sleep(0.1)
        assert pool.statistics().targets[TARGET].leases_granted == 2


async def _hold_within(scope: trio.CancelScope, pool: ConnectionPool) -> None:
    with trio.CancelScope() as own:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while not scope.cancel_called:
                    await trio.sleep(0.01)
                own.cancel()

            nursery.start_soon(watch)
            await hold(pool, 100)


async def test_an_idle_connection_of_another_target_makes_room(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(peers, max_connections=1) as pool:
        await hold(pool, 0, "a:1")
        await hold(pool, 0, "b:1")
        figures = pool.statistics()
        assert figures.evicted_for_others == 1
        assert set(figures.targets) == {"b:1"}
    assert peers.most == 1


async def test_a_thousand_requests_share_four_connections_over_a_network(
    autojump_clock: MockClock,
) -> None:
    config = phoenix_trio.TransportConfig(max_bidirectional_streams=20)
    network = SimulatedNetwork(delay=0.005, seed=3, loss=0.01)
    answered = 0
    most = 0

    async def answer(connection: phoenix_trio.QuicConnection) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in connection.incoming_streams():
                nursery.start_soon(echo, stream)

    async def echo(stream: phoenix_trio.QuicStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async with (
        trio.open_nursery() as nursery,
        phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint,
    ):
        await nursery.start(
            partial(
                phoenix_trio.serve,
                answer,
                PORT,
                host=SERVER,
                tls=server_tls(),
                alpn=ALPN,
                config=config,
                network=network.host(SERVER),
            )
        )

        def dial(target: Target) -> Any:
            return endpoint.connect(target.host, target.port, tls=client_tls(), alpn=ALPN)

        async with open_pool(dial, PoolConfig(max_connections=4)) as pool:

            async def ask(number: int) -> None:
                nonlocal answered, most
                async with pool.lease((SERVER, PORT)) as connection:
                    most = max(most, endpoint.statistics().connections)
                    async with await connection.open_stream() as stream:
                        await stream.send_all(b"%d" % number)
                        await stream.send_eof()
                        got = b"".join([bytes(chunk) async for chunk in stream])
                        assert got == b"%d" % number
                        answered += 1

            with trio.fail_after(600):
                async with trio.open_nursery() as requests:
                    for number in range(1000):
                        requests.start_soon(ask, number)
            figures = pool.statistics()
            assert (figures.leases, figures.waiting) == (0, 0)
            assert 1 <= figures.connections <= 4
        nursery.cancel_scope.cancel()
    assert answered == 1000
    assert most <= 4


# ------------------------------------------------------------------ failures


async def test_those_who_wait_for_a_dead_peer_share_one_dial_and_its_error(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    peers.error = ConnectionRefusedError(111, "nobody there")
    errors: list[BaseException] = []
    async with pool_of(peers) as pool:

        async def fail() -> None:
            with pytest.raises(ConnectionRefusedError, match="nobody there") as caught:
                await hold(pool, 0)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(fail)
        await fail()  # within the time that the failure is remembered
        assert peers.dials == 1
        assert len({id(error) for error in errors}) == 101
        await trio.sleep(1)
        await fail()
        assert peers.dials == 2
        peers.error = None
        await trio.sleep(1)
        await hold(pool, 0)
        assert pool.statistics().targets[TARGET].dial_failures == 2


async def test_a_target_with_nothing_open_is_forgotten(autojump_clock: MockClock) -> None:
    peers = Peers()
    peers.error = OSError("no")
    async with pool_of(peers) as pool:
        for number in range(50):
            with pytest.raises(OSError, match="no"):
                await hold(pool, 0, f"peer{number}:1")
            await trio.sleep(1)
        assert len(pool._entries) <= 2


async def test_where_asked_for_leases_wait_until_the_peer_is_back(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    peers.error = OSError("away")
    backoff = Backoff(initial=1.0, maximum=4.0, jitter=0.0)
    async with pool_of(peers, reconnect_backoff=backoff) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(hold, pool, 0)
            await trio.sleep(20)
            # 0.05 s each, and 1, 2, 4, 4, 4, 4 s between them.
            assert peers.dials == 7
            peers.error = None
        assert peers.dials == 8


async def test_a_lost_connection_is_not_given_out_again(autojump_clock: MockClock) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        async with pool.lease(TARGET) as first:
            peers.open[0].end()
            async with pool.lease(TARGET) as second:
                assert second is not first
        figures = pool.statistics()
        assert (figures.lost, figures.connections, figures.leases) == (1, 1, 0)


async def test_warm_connections_are_dialled_before_they_are_needed_and_replaced(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(peers, idle_timeout=1.0) as pool:
        pool.keep_warm(TARGET, 3)
        await trio.sleep(5)
        assert len(peers.open) == 3
        peers.open[0].end()
        await trio.sleep(5)
        assert len(peers.open) == 3
        pool.keep_warm(TARGET, 0)
        await trio.sleep(5)
        assert not peers.open
        with pytest.raises(ValueError, match="between 0 and"):
            pool.keep_warm(TARGET, 1000)


async def test_a_peer_which_drops_every_connection_is_not_dialled_in_a_loop(
    autojump_clock: MockClock,
) -> None:
    peers = Peers(seconds=0.001)
    async with pool_of(peers) as pool:
        pool.keep_warm(TARGET, 1)
        for _ in range(100):
            for connection in list(peers.open):
                connection.end()
            await trio.sleep(0.1)
        assert peers.dials < 15


async def test_a_peer_which_does_not_answer_a_health_check_is_given_up(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(
        peers, health_check_interval=1.0, health_check_timeout=0.5, idle_timeout=math.inf
    ) as pool:
        await hold(pool, 0)
        await trio.sleep(5)
        assert pool.statistics().connections == 1
        peers.open[0].answers_pings = False
        await trio.sleep(2)
        figures = pool.statistics()
        assert (figures.connections, figures.health_failures, figures.lost) == (0, 1, 1)


# ------------------------------------------------------------------ idle, drained, closed


async def test_an_idle_connection_is_closed_in_time_and_not_before(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(peers, idle_timeout=10.0) as pool:
        for _ in range(5):
            await hold(pool, 1)
            await trio.sleep(9)
        assert peers.dials == 1
        await trio.sleep(2)
        assert not peers.open
        assert pool.statistics().evicted_idle == 1
        assert pool.statistics().connections == 0


async def test_a_drained_connection_takes_no_new_leases_and_goes_with_the_last_one(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        async with pool.lease(TARGET) as first:
            pool.drain(first)
            async with pool.lease(TARGET) as second:
                assert second is not first
            await trio.sleep(1)
            assert not first.is_closed
        await trio.sleep(1)
        assert first.is_closed
        assert pool.statistics().drained == 1
        pool.drain(first)  # without effect


async def test_several_leases_are_of_different_connections(autojump_clock: MockClock) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        async with pool.lease_several(TARGET, 4) as connections:
            assert len({id(each) for each in connections}) == 4
            assert pool.statistics().leases == 4
        assert pool.statistics().leases == 0
        with pytest.raises(ValueError, match="between 1 and"):
            async with pool.lease_several(TARGET, 17):
                pass
        peers.error = OSError("no")
        with pytest.raises(OSError, match="no"):
            async with pool.lease_several(TARGET, 5):
                pass
        assert pool.statistics().leases == 0


async def test_whoever_needs_several_is_not_forgotten_with_a_target_of_which_nothing_is_open(
    autojump_clock: MockClock,
) -> None:
    async with pool_of(Peers()) as pool, trio.open_nursery() as nursery:

        async def several() -> None:
            with trio.fail_after(10):
                async with pool.lease_several(TARGET, 2):
                    pass

        nursery.start_soon(several)

        async def ask_the_policy() -> None:
            for _ in range(5):
                pool.keep_warm("other:1", 0)
                await trio.lowlevel.checkpoint()

        for _ in range(3):
            nursery.start_soon(ask_the_policy)


async def test_whoever_needs_several_gets_a_slot_as_soon_as_there_is_one(
    autojump_clock: MockClock,
) -> None:
    async with (
        pool_of(Peers(), max_connections=1, idle_timeout=math.inf) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(hold, pool, 2.0, "other:1")
        await trio.sleep(0.5)
        with trio.fail_after(2):
            async with pool.lease_several(TARGET, 1):
                pass


async def test_whoever_needs_several_waits_no_longer_than_others_for_a_busy_pool(
    autojump_clock: MockClock,
) -> None:
    async with (
        pool_of(Peers(), max_connections=2, patience=1.0) as pool,
        trio.open_nursery() as nursery,
    ):

        async def keep_busy(delay: float) -> None:
            await trio.sleep(delay)
            while True:
                await hold(pool, 1.0, "other:1")

        nursery.start_soon(keep_busy, 0.0)
        nursery.start_soon(keep_busy, 0.6)
        await trio.sleep(2)
        with trio.fail_after(10):
            async with pool.lease_several(TARGET, 2) as leased:
                assert len(leased) == 2
            async with pool.lease("other:1"):
                pass
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("limit", [2, 3])
async def test_two_who_need_several_do_not_wait_for_each_other(
    limit: int, autojump_clock: MockClock
) -> None:
    served: list[str] = []
    async with pool_of(Peers(), max_connections=limit) as pool:

        async def several(target: str) -> None:
            async with pool.lease_several(target, limit):
                served.append(target)
                await trio.sleep(1)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for target in ("one:1", "two:1", "three:1"):
                    nursery.start_soon(several, target)
    assert sorted(served) == ["one:1", "three:1", "two:1"]


async def test_whoever_needs_several_shares_no_connection_beyond_the_limit_of_its_leases(
    autojump_clock: MockClock,
) -> None:
    settings = {"max_connections_per_target": 2, "max_leases_per_connection": 1}
    async with pool_of(Peers(), **settings) as pool, trio.open_nursery() as nursery:
        async with pool.lease(TARGET) as one, pool.lease_several(TARGET, 1) as (two,):
            assert one is not two
        nursery.start_soon(hold, pool, 3.0)
        await trio.sleep(1)
        with trio.fail_after(3):
            async with pool.lease_several(TARGET, 2):
                assert pool.statistics().leases == 2
                assert trio.current_time() >= 3


async def test_an_exclusive_lease_is_of_a_connection_which_no_other_lease_shares(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        async with pool.lease(TARGET) as shared:
            async with pool.lease(TARGET, exclusive=True) as alone:
                assert alone is not shared
                async with pool.lease(TARGET) as third, pool.lease(TARGET) as fourth:
                    assert third is fourth is shared
        # Handed back, it is an ordinary connection; with an idle one, none is dialled.
        async with pool.lease(TARGET, exclusive=True) as again:
            assert again in (shared, alone)
        assert pool.statistics().targets[TARGET].dials == 2
        async with pool.lease_several(TARGET, 2) as two:
            assert set(two) == {shared, alone}


async def test_an_exclusive_lease_waits_for_those_before_it_and_not_for_later_ones(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    served: list[str] = []

    async def use(name: str, *, exclusive: bool, seconds: float) -> None:
        async with pool.lease(TARGET, exclusive=exclusive):
            served.append(name)
            await trio.sleep(seconds)

    async with (
        pool_of(peers, max_connections_per_target=1) as pool,
        trio.open_nursery() as nursery,
    ):
        for name in ("first", "second"):
            nursery.start_soon(partial(use, name, exclusive=False, seconds=2))
        await trio.sleep(1)
        nursery.start_soon(partial(use, "alone", exclusive=True, seconds=2))
        for _ in range(5):
            await trio.sleep(0.1)
            nursery.start_soon(partial(use, "later", exclusive=False, seconds=0.5))
        await trio.sleep(1)
        assert served[2:] == ["alone"]
        await trio.sleep(2)
        assert served[2:] == ["alone"] + 5 * ["later"]
    assert peers.most == 1


async def test_a_cancelled_wait_for_an_exclusive_lease_keeps_nothing_back(
    autojump_clock: MockClock,
) -> None:
    async with pool_of(Peers(), max_connections_per_target=1) as pool:
        async with pool.lease(TARGET):
            with trio.move_on_after(1) as scope:
                async with pool.lease(TARGET, exclusive=True):
                    raise AssertionError
            assert scope.cancelled_caught
            with trio.fail_after(0.1):
                async with pool.lease(TARGET):
                    pass


async def test_an_exclusive_lease_of_a_dead_peer_raises_its_error(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    peers.error = OSError("away")
    async with pool_of(peers) as pool:
        with pytest.raises(OSError, match="away"):
            async with pool.lease(TARGET, exclusive=True):
                raise AssertionError
        with pytest.raises(OSError, match="away"):
            async with pool.lease(TARGET, exclusive=True):
                raise AssertionError


async def test_a_connection_whose_peer_refuses_streams_is_left_after_its_last_lease(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        async with pool.lease(TARGET) as first:
            fake: Any = first
            fake.peer_refuses_streams = True
            async with pool.lease(TARGET) as second:
                assert second is not first
            assert not first.is_closed
        await trio.sleep(0.1)
        assert first.is_closed
        assert pool.statistics().drained == 1


async def test_a_pool_which_finishes_waits_for_leases_and_gives_out_no_more(
    autojump_clock: MockClock,
) -> None:
    async with pool_of(Peers(), max_connections_per_target=1) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 2)
            nursery.start_soon(partial(hold_alone, pool, 3))
            await trio.sleep(1)
            nursery.start_soon(hold, pool, 1)  # waits for the one before
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.5) as scope:
                await pool.finish()
            assert scope.cancelled_caught
            with pytest.raises(phoenix_trio.ShuttingDown):
                async with pool.lease(TARGET):
                    raise AssertionError
            await pool.finish()
            assert 6.0 < trio.current_time() < 6.2
        await pool.finish()


async def test_leaving_the_pool_ends_everything_in_it(autojump_clock: MockClock) -> None:
    peers = Peers(streams=1)
    outcomes: list[str] = []
    async with trio.open_nursery() as nursery:
        async with pool_of(peers, max_connections=1, max_leases_per_connection=1) as pool:

            async def work(target: str) -> None:
                try:
                    async with pool.lease(target) as connection:
                        await connection.wait_closed()
                        outcomes.append("closed")
                except trio.ClosedResourceError:
                    outcomes.append("refused")

            nursery.start_soon(work, TARGET)
            await trio.sleep(1)
            nursery.start_soon(work, TARGET)
            nursery.start_soon(work, "other:1")
            await trio.sleep(0.5)
    assert sorted(outcomes) == ["closed", "refused", "refused"]
    with pytest.raises(trio.ClosedResourceError):
        await hold(pool, 0)


async def test_a_cancelled_close_aborts_what_is_still_open(autojump_clock: MockClock) -> None:
    peers = Peers()
    async with pool_of(peers) as pool:
        async with pool.lease(TARGET) as connection:
            with trio.CancelScope() as scope:
                scope.cancel()
                await pool.aclose()
            assert scope.cancelled_caught
            assert connection.is_closed


async def test_an_exception_in_the_block_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with pool_of(Peers()) as pool:
            await hold(pool, 0)
            raise KeyError("mine")


async def test_nothing_is_left_of_a_pool(autojump_clock: MockClock) -> None:
    async with pool_of(Peers()) as pool:
        await hold(pool, 0)
    gc.collect()
    assert not pool._pooled


# ------------------------------------------------------------------ anything, in any order


@examples(200)
@given(
    seats=st.lists(
        st.tuples(
            st.integers(0, 4),  # leases
            st.integers(0, 4),  # leases that have opened their stream
            st.integers(0, 4),  # streams available
            st.booleans(),  # congested
            st.sampled_from(["", "", "", "draining", "closing", "yielding", "alone", "refusing"]),
        ),
        min_size=1,
        max_size=4,
    ),
    limit=st.sampled_from([None, 1, 3]),
)
def test_a_lease_which_need_not_wait_is_what_the_policy_would_grant(
    seats: list[tuple[int, int, int, bool, str]], limit: int | None
) -> None:
    config = PoolConfig(max_leases_per_connection=limit, max_connections=50)

    async def main() -> None:
        async with open_pool(Peers().dial, config) as pool:
            target = Target("peer", 1)
            entry = pool._entry(target)
            for number, (leases, opened, available, congested, state) in enumerate(seats, 1):
                fake: Any = FakeConnection(available)
                pooled = Pooled(number, entry, fake, 0.0)
                pooled.most_streams = 4
                pooled.leases = pooled.promised = leases
                fake.streams_opened = min(opened, leases)
                fake.is_congested = congested
                pooled.is_draining = state == "draining"
                pooled.is_closing = state == "closing"
                # (A ticket below the newcomer's: it came earlier, for another target.)
                pooled.yields_to = 1 if state == "yielding" else None
                pooled.closed_from = 0 if state == "alone" else None
                fake.peer_refuses_streams = state == "refusing"
                entry.connections.append(pooled)
                pool._pooled[number] = pooled
            entry.dial_scope = trio.CancelScope()  # so that nothing is dialled
            picture = attrs.evolve(entry.state(), waiters=[Waiter(1000, trio.current_time())])
            now = trio.current_time()
            # Connections yield for another target's waiter, which is in the picture, too.
            decision = decide(PoolState(now, [picture]), config)
            yielding = {each.id for each in entry.connections if each.yields_to is not None}
            granted = [number for _, number in decision.grants if number not in yielding]
            found = pool._take_at_once(entry)
            if found is not None and not yielding:
                assert granted[:1] == [found.id]
            elif found is None and not yielding:
                # Leases beyond spare streams (rule 4) are not granted to newcomers.
                assert not granted or not any(
                    has_spare_stream(each)
                    for each in entry.connections
                    if each.id == granted[0] and each.leases < config.seats
                )
            else:
                assert found is None or found.id not in yielding
            entry.connections.clear()
            pool._pooled.clear()
            entry.dial_scope = None

    trio.run(main, clock=MockClock(autojump_threshold=0))


@examples(60)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 4),
    streams=st.integers(0, 4),
    script=st.lists(
        st.tuples(
            st.sampled_from(
                ["lease", "lease", "lease", "several", "alone"]
                + ["lose", "drain", "fail", "work", "warm", "wait"]
            ),
            st.integers(0, 2),
            st.floats(0.0, 3.0),
        ),
        max_size=40,
    ),
)
def test_limits_hold_and_no_waiter_is_lost_whatever_happens(
    seed: int, slots: int, streams: int, script: list[tuple[str, int, float]]
) -> None:
    peers = Peers(streams=streams)
    served = failed = cancelled = asked = 0
    alone: set[Any] = set()

    async def main() -> None:
        nonlocal asked
        config = PoolConfig(
            max_connections=slots, max_connections_per_target=2, idle_timeout=5.0, patience=0.3
        )
        async with open_pool(peers.dial, config) as pool:

            async def lease(target: str, seconds: float, patience: float) -> None:
                nonlocal served, failed, cancelled
                got = False
                with trio.move_on_after(patience) as scope:
                    try:
                        async with pool.lease(target) as connection:
                            assert connection not in alone
                            fake: Any = connection
                            if fake.available_streams:
                                fake.available_streams -= 1
                                fake.streams_opened += 1
                            with trio.CancelScope(shield=True):
                                await trio.sleep(seconds)
                            if not fake.is_closed:
                                fake.available_streams = min(streams, fake.available_streams + 1)
                            got = True
                            served += 1
                    except OSError:
                        failed += 1
                if scope.cancelled_caught and not got:
                    cancelled += 1

            async def several(target: str, seconds: float) -> None:
                nonlocal served, failed
                count = min(2, slots)
                try:
                    with trio.fail_after(500):  # all others have ended by then
                        async with pool.lease_several(target, count) as connections:
                            assert len(set(connections)) == count
                            await trio.sleep(seconds)
                            served += 1
                except OSError:
                    failed += 1

            async def have_alone(target: str, seconds: float) -> None:
                nonlocal served, failed
                try:
                    with trio.fail_after(500):
                        async with pool.lease(target, exclusive=True) as connection:
                            (pooled,) = (p for p in pool._pooled.values() if p.quic is connection)
                            alone.add(connection)
                            assert pooled.leases == 1
                            await trio.sleep(seconds)
                            assert pooled.leases == 1
                            alone.remove(connection)
                            served += 1
                except OSError:
                    failed += 1

            async with trio.open_nursery() as nursery:
                for what, which, seconds in script:
                    target = f"peer{which}:1"
                    if what == "lease":
                        asked += 1
                        nursery.start_soon(lease, target, seconds, 50 if which else seconds / 2)
                    elif what == "several":
                        asked += 1
                        nursery.start_soon(several, target, seconds)
                    elif what == "alone":
                        asked += 1
                        nursery.start_soon(have_alone, target, seconds)
                    elif what == "lose" and peers.open:
                        peers.open[which % len(peers.open)].end()
                    elif what == "drain" and peers.open:
                        drained: Any = peers.open[which % len(peers.open)]
                        pool.drain(drained)
                    elif what in ("fail", "work"):
                        peers.error = OSError("away") if what == "fail" else None
                    elif what == "warm":
                        pool.keep_warm(target, min(which, slots))
                    else:
                        await trio.sleep(seconds)
                    await trio.sleep(0.01)
                peers.error = None
                for which in range(3):
                    pool.keep_warm(f"peer{which}:1", 0)
            figures = pool.statistics()
            assert (figures.leases, figures.waiting) == (0, 0)
            assert figures.connections <= slots

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert served + failed + cancelled == asked
    assert peers.most <= slots
    assert not peers.open


async def test_what_crashes_with_one_connection_costs_that_connection_only(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    peers = Peers()
    crash = trio.Event()

    @asynccontextmanager
    async def dial(target: Target) -> AsyncIterator[Any]:
        async with peers.dial(target) as connection, trio.open_nursery() as nursery:

            async def serve() -> None:
                if peers.dials == 1:
                    await crash.wait()
                    raise KeyError("a bug in what serves it")

            nursery.start_soon(serve)
            yield connection

    async with open_pool(dial) as pool:
        async with pool.lease(TARGET) as first:
            crash.set()
            await trio.sleep(1)
            assert first.is_closed
        async with pool.lease(TARGET) as second:
            assert second is not first
        assert pool.statistics().lost == 1
    assert "has crashed" in caplog.text
