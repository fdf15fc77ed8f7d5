"""Connections of a pool whose peer has a shorter idle timeout than the pool's own settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import PoolConfig, TransportConfig, open_pool
from phoenix_trio.pool.targets import Target
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, server_tls

TARGET = f"{SERVER}:{PORT}"


@asynccontextmanager
async def pool_of_one_server(
    ended: list[Exception | None], config: TransportConfig, **settings: Any
) -> AsyncIterator[phoenix_trio.ConnectionPool]:
    """A pool, and a server with an idle timeout of 6 s that notes how connections end."""
    network = SimulatedNetwork(delay=0.01)

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_closed()
        ended.append(connection.close_reason)

    def dial(target: Target) -> Any:
        return phoenix_trio.open_connection(
            SERVER,
            PORT,
            tls=client_tls(),
            alpn=ALPN,
            config=config,
            network=network.host(CLIENT),
        )

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
            await phoenix_trio.serve(
                handler,
                PORT,
                tls=server_tls(),
                alpn=ALPN,
                config=TransportConfig(max_idle_timeout=6.0),
                network=network.host(SERVER),
                task_status=task_status,
            )

        await nursery.start(serve)
        async with open_pool(dial, PoolConfig(**settings)) as pool:
            yield pool
        nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed_in_good_order_before_it_is_lost(
    autojump_clock: MockClock,
) -> None:
    ended: list[Exception | None] = []
    async with pool_of_one_server(ended, TransportConfig()) as pool:
        async with pool.lease(TARGET) as connection:
            assert connection.idle_timeout == 6.0
            assert connection.keep_alive is None
        await trio.sleep(3.9)
        assert not connection.is_closed
        await trio.sleep(1)
        assert pool.statistics().evicted_idle == 1
        assert pool.statistics().lost == 0
        (reason,) = ended
        assert isinstance(reason, phoenix_trio.ConnectionClosedByPeer)
        assert reason.is_clean


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (TransportConfig(), {"health_check_interval": 20.0}),
        (TransportConfig(keep_alive=20.0), {}),
    ],
    ids=["health checks", "keep-alive"],
)
async def test_warm_connections_are_kept_although_the_interval_is_longer(
    config: TransportConfig, settings: dict[str, Any], autojump_clock: MockClock
) -> None:
    ended: list[Exception | None] = []
    async with pool_of_one_server(ended, config, **settings) as pool:
        pool.keep_warm(TARGET, 2)
        await trio.sleep(100)
        assert pool.statistics().lost == 0
        assert pool.statistics().connections == 2
        assert not ended


async def test_a_pool_without_eviction_keeps_connections_which_keep_themselves_alive(
    autojump_clock: MockClock,
) -> None:
    ended: list[Exception | None] = []
    config = TransportConfig(keep_alive=5.0)
    async with pool_of_one_server(ended, config, idle_timeout=15.0) as pool:
        async with pool.lease(TARGET) as connection:
            assert connection.keep_alive == 3.0
        await trio.sleep(14)
        assert not connection.is_closed
        await trio.sleep(2)
        assert connection.is_closed
