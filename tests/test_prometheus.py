"""The collector for the official Prometheus client."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry, generate_latest
from trio.testing import MockClock

from phoenix_trio import PhoenixConnection
from phoenix_trio.prometheus import PhoenixCollector
from tests.test_transport import TARGET, two_transports


async def receive(connection: PhoenixConnection) -> None:
    async for _ in connection.messages():
        pass


def value(registry: CollectorRegistry, name: str, transport: str) -> float | None:
    return registry.get_sample_value(f"phoenix_trio_{name}", {"transport": transport})


async def test_figures_are_those_of_the_moment_of_the_scrape(autojump_clock: MockClock) -> None:
    async with two_transports(receive) as (client, server):
        registry = CollectorRegistry()
        registry.register(PhoenixCollector(client, server))
        assert value(registry, "active_connections", "client") == 0
        assert value(registry, "latency_seconds", "client") is None
        async with client.connect(TARGET) as connection:
            await connection.send_data(bytes(100_000))
            await trio.sleep(1)
            assert value(registry, "active_connections", "client") == 1
            assert value(registry, "pool_leases", "client") == 1
            sent = value(registry, "bytes_sent_total", "client")
            assert sent is not None
            assert sent >= 100_000
            received = value(registry, "bytes_received_total", "server")
            assert received is not None
            assert received >= 100_000
            latency = value(registry, "latency_seconds", "client")
            assert latency == pytest.approx(0.02, abs=0.02)
        assert value(registry, "pool_leases", "client") == 0
        text = generate_latest(registry).decode()
        assert text.count("# TYPE phoenix_trio_") == 18


async def test_a_scrape_from_another_thread_asks_the_loop() -> None:
    async with two_transports(receive) as (client, _):
        registry = CollectorRegistry()
        registry.register(PhoenixCollector(client))
        async with client.connect(TARGET):
            found = await trio.to_thread.run_sync(value, registry, "active_connections", "client")
            assert found == 1


async def test_transports_need_different_names(autojump_clock: MockClock) -> None:
    async with two_transports(receive) as (client, _):
        with pytest.raises(ValueError, match="different names"):
            PhoenixCollector(client, client)
        with pytest.raises(ValueError, match="different names"):
            PhoenixCollector()


def test_after_the_loop_has_ended_the_last_figures_stay() -> None:
    registry = CollectorRegistry()

    async def main() -> None:
        async with two_transports(receive) as (client, _):
            registry.register(PhoenixCollector(client))
            async with client.connect(TARGET):
                assert value(registry, "active_connections", "client") == 1

    trio.run(main, clock=MockClock(autojump_threshold=0))
    import threading

    results: list[float | None] = []
    thread = threading.Thread(
        target=lambda: results.append(value(registry, "active_connections", "client"))
    )
    thread.start()
    thread.join(10)
    assert results == [1]
