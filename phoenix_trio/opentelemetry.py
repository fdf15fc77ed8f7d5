"""Gives a transport's statistics to OpenTelemetry: ``pip install "phoenix-trio[opentelemetry]"``.

Floor 5.  Observable instruments, read when the application's reader collects;
nothing is counted, or runs, in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from .scraping import Look
from .transport import PhoenixTransport

__all__ = ["observe"]

#: Name, unit, text, and the field of the transport's statistics.
_COUNTERS = (
    ("sent", "By", "Stream bytes which peers have acknowledged.", "total_bytes_sent"),
    ("received", "By", "Stream bytes which the application has read.", "total_bytes_received"),
    ("operations", "{operation}", "Completed calls of the application layer.", "operations"),
    ("connections.opened", "{connection}", "Dialled and accepted.", "connections_opened"),
    ("packets.lost", "{packet}", "Packets which were declared lost.", "packets_lost"),
    ("handlers.cancelled", "{handler}", "Not finished within their grace.", "handlers_cancelled"),
)
_GAUGES = (
    ("connections.active", "{connection}", "Open connections.", "active_connections"),
    ("latency", "ms", "Mean smoothed round-trip time.", "latency_ms"),
    ("transfers.incoming", "{transfer}", "Being received.", "incoming_transfers"),
    ("transfers.outgoing", "{transfer}", "Being sent.", "outgoing_transfers"),
)


def observe(transport: PhoenixTransport, meter: Meter) -> None:
    """Make instruments ``phoenix_trio.*`` of `meter` for `transport`.

    All have the attribute ``transport``, with the transport's name.  Call it in the Trio
    task that uses the transport; readers may collect in any thread, and ask the Trio loop
    for a snapshot then.
    """
    snapshot = Look(transport.stats)

    def callback(field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        get = attrgetter(field)

        def look(options: CallbackOptions) -> Iterable[Observation]:
            value = get(snapshot())
            return [] if value is None else [Observation(value, {"transport": transport.name})]

        return look

    for name, unit, text, field in _COUNTERS:
        meter.create_observable_counter(f"phoenix_trio.{name}", [callback(field)], unit, text)
    for name, unit, text, field in _GAUGES:
        meter.create_observable_gauge(f"phoenix_trio.{name}", [callback(field)], unit, text)
