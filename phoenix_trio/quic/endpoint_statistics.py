"""Gathers the counters of one endpoint into a snapshot.

Floor 2.  The socket, the admission of clients and the memory budget count; the driver owns
them.
"""

from __future__ import annotations

from ..metrics import EndpointStatistics
from .datagram_socket import SocketStatistics
from .established.memory_budget import EndpointMemory
from .handshake.admission import Admission
from .incoming import Incoming
from .relay import Relay

__all__ = ["endpoint_statistics"]


def endpoint_statistics(
    counters: SocketStatistics,
    incoming: Incoming,
    admission: Admission,
    memory: EndpointMemory,
    *,
    connections: int,
    receives_dropped: int,
    resets_received: int,
    relay: Relay | None,
) -> EndpointStatistics:
    """A snapshot of an endpoint's counters; the rest is counted by the driver's parts."""
    answers = incoming.answers
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
        datagrams_unroutable=incoming.datagrams_unroutable,
        receives_dropped=receives_dropped,
        connections=connections,
        handshakes=admission.places.handshakes,
        connections_accepted=incoming.connections_accepted,
        connections_refused=incoming.connections_refused + answers.get("refusal", 0),
        handshakes_failed=incoming.handshakes_failed,
        retries_sent=answers.get("retry", 0),
        version_negotiations_sent=answers.get("version negotiation", 0),
        stateless_resets_sent=answers.get("stateless reset", 0),
        stateless_resets_received=resets_received,
        datagrams_passed_on=0 if relay is None else relay.passed_on,
        datagrams_not_passed_on=0 if relay is None else relay.dropped,
        receive_memory_used=memory.receive.used,
        receive_memory_limit=memory.receive.limit,
        send_memory_used=memory.send.used,
        send_memory_limit=memory.send.limit,
    )
