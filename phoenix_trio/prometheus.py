"""Gives a transport's statistics to Prometheus: ``pip install "phoenix-trio[prometheus]"``.

Floor 5.  A collector for the official client.  It makes the figures when they are scraped;
nothing is counted, or runs, in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .metrics import TransportStatistics
from .pool.statistics import PoolStatistics
from .scraping import Look
from .transport import PhoenixTransport

__all__ = ["PhoenixCollector"]

#: Name, text, and the field of the transport's statistics.
_COUNTERS = (
    ("bytes_sent", "Stream bytes which peers have acknowledged.", "total_bytes_sent"),
    ("bytes_received", "Stream bytes which the application has read.", "total_bytes_received"),
    ("operations", "Calls of the application layer which were completed.", "operations"),
    ("connections_opened", "Connections, dialled and accepted.", "connections_opened"),
    ("packets_lost", "Packets which were declared lost.", "packets_lost"),
    ("zero_copy_operations", "Writes kept without a copy.", "zero_copy_operations"),
    ("handlers_cancelled", "Handlers not finished within their grace.", "handlers_cancelled"),
)
_GAUGES = (
    ("active_connections", "Open connections.", "active_connections"),
    ("incoming_transfers", "Striped transfers being received.", "incoming_transfers"),
    ("outgoing_transfers", "Striped transfers being sent.", "outgoing_transfers"),
)
_POOL_GAUGES = (
    ("pool_connections", "Open connections of the pool.", "connections"),
    ("pool_idle_connections", "Those of them which nobody leases.", "idle"),
    ("pool_leases", "Leases which are held.", "leases"),
    ("pool_waiting", "Leases which wait.", "waiting"),
)
_POOL_COUNTERS = (
    ("pool_evicted", "Connections closed after their idle timeout.", "evicted_idle"),
    ("pool_lost", "Connections which the pool did not close.", "lost"),
    ("pool_health_failures", "Health checks without an answer.", "health_failures"),
)


class PhoenixCollector(Collector):
    """Gives the statistics of transports to a registry of ``prometheus_client``.

    ``REGISTRY.register(PhoenixCollector(phoenix))``, in the Trio task that uses the
    transport; ``prometheus_client.start_http_server()`` then serves them from a thread,
    and each scrape asks the Trio loop for a snapshot.  Series have the label ``transport``,
    with the transport's name.

    Args:
      transports: one or more; their names have to differ.
      timeout: the most seconds for which a scrape from another thread waits for the loop;
        after that, as when the loop has ended, the last figures are given again.

    Raises:
      ValueError: two transports have the same name, or there is none.
    """

    def __init__(self, *transports: PhoenixTransport, timeout: float = 5.0) -> None:
        if not transports or len({each.name for each in transports}) < len(transports):
            raise ValueError("a collector needs transports with different names")
        self._look = Look(
            lambda: [(each.stats(), each.pool.statistics()) for each in transports],
            timeout=timeout,
        )

    def collect(self) -> Iterator[Metric]:
        """Make the figures; the registry calls this in any thread."""
        found = self._look()
        latency = GaugeMetricFamily(
            "phoenix_trio_latency_seconds", "Mean smoothed round-trip time.", labels=["transport"]
        )
        for stats, _ in found:
            if stats.latency_ms is not None:
                latency.add_metric([stats.name], stats.latency_ms / 1e3)
        yield latency
        for name, text, field in _COUNTERS:
            yield _family(CounterMetricFamily, name, text, field, [(s, s.name) for s, _ in found])
        for name, text, field in _GAUGES:
            yield _family(GaugeMetricFamily, name, text, field, [(s, s.name) for s, _ in found])
        for name, text, field in _POOL_COUNTERS:
            yield _family(CounterMetricFamily, name, text, field, [(p, s.name) for s, p in found])
        for name, text, field in _POOL_GAUGES:
            yield _family(GaugeMetricFamily, name, text, field, [(p, s.name) for s, p in found])


def _family(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    text: str,
    field: str,
    snapshots: list[tuple[TransportStatistics, str]] | list[tuple[PoolStatistics, str]],
) -> Metric:
    family = kind(f"phoenix_trio_{name}", text, labels=["transport"])
    for snapshot, label in snapshots:
        family.add_metric([label], float(getattr(snapshot, field)))
    return family
