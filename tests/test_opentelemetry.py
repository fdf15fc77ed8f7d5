"""A transport's figures as observable instruments."""

from __future__ import annotations

from typing import Any

import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from phoenix_trio import PhoenixConnection
from phoenix_trio.opentelemetry import observe
from tests.test_transport import TARGET, two_transports


async def receive(connection: PhoenixConnection) -> None:
    async for _ in connection.messages():
        pass


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: [(point.value, dict(point.attributes)) for point in metric.data.data_points]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_figures_are_those_of_the_moment_of_the_collection() -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider(metric_readers=[reader]).get_meter("test")
    async with two_transports(receive) as (client, _):
        observe(client, meter)
        found = collected(reader)
        who = {"transport": "client"}
        assert found["phoenix_trio.connections.active"] == [(0, who)]
        assert "phoenix_trio.latency" not in found or not found["phoenix_trio.latency"]
        async with client.connect(TARGET) as connection:
            await connection.send_data(bytes(50_000))
            found = await trio.to_thread.run_sync(collected, reader)
        assert found["phoenix_trio.connections.active"] == [(1, who)]
        ((sent, _),) = found["phoenix_trio.sent"]
        assert sent >= 50_000
        ((latency, _),) = found["phoenix_trio.latency"]
        assert latency > 0
