"""The cases as a table: for each case the request, the network's faults, and the proof.

The list is that of the public QUIC interop runner, and post-quantum key exchange.  Every
cell compares each received file with the original.  Beyond that, `proof` examines the wire's
record and our own program's facts, so that no cell is good because a fault or a feature did
not happen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from .peers import Role
from .relay import LARGEST, Faults
from .wire import VERSION_2, Wire

MEGABIT = 1_000_000.0
_CHACHA20_POLY1305 = 0x1303


@attrs.frozen(kw_only=True)
class Evidence:
    """The facts about a cell whose files arrived whole."""

    wire: Wire
    ours: list[dict[str, Any]]
    """One for each connection of our program, in the order in which they ended."""
    role: Role
    """The peer's."""
    files: int
    bytes_received: int
    rebindings: int


#: Returns the missing evidence, or ``None``.
Proof = Callable[[Evidence], str | None]


@attrs.frozen(kw_only=True)
class Case:
    """One column of the public runner."""

    name: str
    sizes: list[int]
    quick_sizes: list[int] | None = None
    """For CI: fewer or smaller files."""
    flags: frozenset[str] = frozenset()
    """For the client; flags that only a server's settings decide go to it, see runner."""
    server_flags: frozenset[str] = frozenset()
    faults: Faults = attrs.field(factory=Faults)
    host: str = "127.0.0.1"
    large_certificate: bool = False
    timeout: float = 30.0
    proof: Proof
    quick: bool = False
    """Whether CI runs it."""
    ours_cannot: dict[Role, str] = attrs.field(factory=dict)
    """Our role: why our side cannot."""


def _one_connection(evidence: Evidence) -> str | None:
    found = evidence.wire.connections
    return None if found == 1 else f"{found} connections instead of one"


def _retry(evidence: Evidence) -> str | None:
    retries = evidence.wire.of("retry", to_server=False)
    if not retries:
        return "no Retry packet was sent"
    answers = [p for p in evidence.wire.of("initial", to_server=True) if p.token]
    return None if answers else "no Initial packet carried a token"


def _resumption(evidence: Evidence) -> str | None:
    hellos = evidence.wire.server_hellos
    if len(hellos) < 2:
        return f"{len(hellos)} handshakes instead of two"
    if hellos[0].resumed:
        return "the first handshake was resumed already"
    return None if hellos[-1].resumed else "the server did not accept the ticket"


def _zero_rtt(evidence: Evidence) -> str | None:
    missing = _resumption(evidence)
    if missing:
        return missing
    if not evidence.wire.of("0-rtt", to_server=True):
        return "no 0-RTT packet was sent"
    accepted = any(facts["early_data_accepted"] for facts in evidence.ours)
    return None if accepted else "the server did not accept the early data"


def _key_update(evidence: Evidence) -> str | None:
    to_server, to_client = evidence.wire.key_phases()
    if to_server == to_client == {0, 1}:
        return None
    return f"key phases to the server: {sorted(to_server)}, to the client: {sorted(to_client)}"


def _chacha20(evidence: Evidence) -> str | None:
    suites = {hello.cipher_suite for hello in evidence.wire.server_hellos}
    return None if suites == {_CHACHA20_POLY1305} else f"cipher suites: {sorted(suites)}"


def _version_2(evidence: Evidence) -> str | None:
    both = [evidence.wire.of("handshake", to_server=way) for way in (True, False)]
    versions = {packet.version for packets in both for packet in packets}
    return None if versions == {VERSION_2} else f"Handshake packets of versions {sorted(versions)}"


def _amplification(evidence: Evidence) -> str | None:
    ratio, flight = evidence.wire.most_amplified, evidence.wire.server_flight
    if ratio > 3:
        return f"the server sent {ratio:.2f} times what it had received"
    # A smaller flight would need no limit, and nothing would be shown.
    return None if flight > 4 else f"the server's flight was {flight:.1f} client datagrams only"


def _handshakes(evidence: Evidence) -> str | None:
    """One for each file."""
    found = evidence.wire.connections
    return None if found >= evidence.files else f"{found} of {evidence.files} handshakes were seen"


def _lost(evidence: Evidence) -> str | None:
    lost = sum(not r.passed and r.size <= LARGEST for r in evidence.wire.records)
    return None if lost else "nothing was lost"


def _corrupted(evidence: Evidence) -> str | None:
    corrupted = any(r.corrupted for r in evidence.wire.records)
    return None if corrupted else "nothing was corrupted"


def _both(first: Proof, second: Proof) -> Proof:
    return lambda evidence: first(evidence) or second(evidence)


def _long_round_trip(evidence: Evidence) -> str | None:
    first = next(r.time for r in evidence.wire.records if not r.to_server)
    return None if first >= 0.75 else f"the server answered after {first:.2f} s"


def _http3(evidence: Evidence) -> str | None:
    protocols = {facts["alpn"] for facts in evidence.ours}
    return None if protocols == {"h3"} else f"application protocols: {sorted(protocols)}"


def _post_quantum(evidence: Evidence) -> str | None:
    groups = {str(facts["key_exchange"]) for facts in evidence.ours}
    return None if groups == {"x25519mlkem768"} else f"groups: {sorted(groups)}"


def _blackout(evidence: Evidence) -> str | None:
    records = evidence.wire.records
    lost = sum(not record.passed for record in records)
    end = max(record.time for record in records if record.passed and not record.to_server)
    return None if lost and end > 2.8 else "the transfer was over before the blackout"


def _goodput(evidence: Evidence) -> str | None:
    data = [r for r in evidence.wire.records if not r.to_server and r.passed]
    seconds = data[-1].time - data[0].time
    rate = evidence.bytes_received * 8 / seconds
    return None if rate > 5 * MEGABIT else f"{rate / MEGABIT:.1f} of 10 Mbit/s"


def _rebinding(evidence: Evidence) -> str | None:
    paths = {r.path for r in evidence.wire.records if not r.to_server and r.size > 1000}
    if not evidence.rebindings:
        return "the transfer was over before the rebinding"
    return None if len(paths) > 1 else "the server sent no data to the new address"


def _migration(evidence: Evidence) -> str | None:
    wire = evidence.wire
    length = len(wire.of("handshake", to_server=False)[-1].source)
    short = [r for r in wire.records if r.to_server and r.head and not r.head[0] & 0x80]
    names: dict[int, set[bytes]] = {}
    for record in short:
        names.setdefault(record.client, set()).add(record.head[1 : 1 + length])
    if len(names) < 2:
        return "the client did not move"
    if not any(r.client == 1 and not r.to_server and r.size > 1000 for r in wire.records):
        return "the server sent no data to the new address"
    # RFC 9000 section 9.5.
    shared = names[0] & names[1]
    return "a connection ID was used from both addresses" if length and shared else None


def _ecn(evidence: Evidence) -> str | None:
    for to_server, name in ((True, "client"), (False, "server")):
        share = evidence.wire.marks(to_server=to_server)
        if share < 0.2:  # small packets of a handshake, and before the path is validated
            return f"the {name} marked {share:.0%} of its datagrams"
    validated = any(facts["ecn_validated"] for facts in evidence.ours)
    return None if validated else "the peer did not report our marks"


CASES = {
    case.name: case
    for case in (
        Case(name="handshake", sizes=[1024], proof=_one_connection, quick=True),
        Case(
            name="transfer",
            sizes=[2_000_000, 3_000_000, 5_000_000],
            quick_sizes=[1_000_000, 2_000_000],
            proof=_one_connection,
            quick=True,
        ),
        Case(
            name="multiplexing",
            sizes=list(range(32, 2032)),
            quick_sizes=list(range(32, 332)),
            timeout=60,
            proof=_one_connection,
            quick=True,
        ),
        Case(
            name="retry",
            sizes=[1024],
            server_flags=frozenset({"retry"}),
            proof=_retry,
            quick=True,
        ),
        Case(
            name="resumption",
            sizes=[1024, 20_000],
            flags=frozenset({"resume"}),
            proof=_resumption,
            quick=True,
        ),
        Case(
            name="0-RTT",
            sizes=[1024, 20_000],
            flags=frozenset({"early-data"}),
            server_flags=frozenset({"early-data"}),
            faults=Faults(delay=0.01),  # else the server's answer overtakes the application
            proof=_zero_rtt,
            quick=True,
        ),
        Case(
            name="key update",
            sizes=[3_000_000],
            quick_sizes=[1_000_000],
            flags=frozenset({"update-keys"}),
            faults=Faults(bandwidth=20 * MEGABIT, delay=0.005),
            proof=_key_update,
            quick=True,
        ),
        Case(
            name="ChaCha20",
            sizes=[1_000_000],
            flags=frozenset({"chacha20"}),
            proof=_chacha20,
            quick=True,
        ),
        Case(name="v2", sizes=[1_000_000], flags=frozenset({"v2"}), proof=_version_2, quick=True),
        Case(
            name="amplification limit",
            sizes=[5_000],
            faults=Faults(delay=0.01),
            large_certificate=True,
            proof=_amplification,
            quick=True,
        ),
        Case(
            name="handshake loss",
            sizes=list(range(1024, 1034)),
            quick_sizes=list(range(1024, 1026)),
            flags=frozenset({"each"}),
            faults=Faults(loss=0.3, delay=0.015),
            timeout=90,
            proof=_both(_handshakes, _lost),
            quick=True,
        ),
        Case(
            name="handshake corruption",
            sizes=list(range(1024, 1034)),
            flags=frozenset({"each"}),
            faults=Faults(corrupt=0.3, delay=0.015),
            timeout=90,
            proof=_both(_handshakes, _corrupted),
        ),
        Case(
            name="transfer loss",
            sizes=[2_000_000],
            quick_sizes=[500_000],
            faults=Faults(loss=0.02, delay=0.015, bandwidth=10 * MEGABIT),
            timeout=60,
            proof=_both(_one_connection, _lost),
            quick=True,
        ),
        Case(
            name="transfer corruption",
            sizes=[2_000_000],
            faults=Faults(corrupt=0.02, delay=0.015, bandwidth=10 * MEGABIT),
            timeout=60,
            proof=_both(_one_connection, _corrupted),
        ),
        Case(
            name="blackhole",
            sizes=[3_000_000],
            faults=Faults(bandwidth=10 * MEGABIT, delay=0.015, blackout=(0.8, 2.8)),
            timeout=40,
            proof=_blackout,
        ),
        Case(
            name="long RTT",
            sizes=[1024],
            faults=Faults(delay=0.75),
            timeout=40,
            proof=_long_round_trip,
        ),
        Case(
            name="goodput",
            sizes=[4_000_000],
            faults=Faults(bandwidth=10 * MEGABIT, delay=0.015),
            timeout=40,
            proof=_goodput,
        ),
        Case(
            name="rebind port",
            sizes=[3_000_000],
            faults=Faults(bandwidth=10 * MEGABIT, delay=0.015, rebind_every=0.9),
            timeout=40,
            proof=_rebinding,
            quick=True,
        ),
        Case(
            name="rebind address",
            sizes=[3_000_000],
            faults=Faults(
                bandwidth=10 * MEGABIT, delay=0.015, rebind_every=0.9, rebind_address=True
            ),
            timeout=40,
            proof=_rebinding,
        ),
        Case(
            name="migration",
            sizes=[3_000_000],
            flags=frozenset({"migrate"}),
            faults=Faults(bandwidth=10 * MEGABIT, delay=0.015),
            timeout=40,
            proof=_migration,
        ),
        Case(name="IPv6", sizes=[1_000_000], host="::1", proof=_one_connection, quick=True),
        Case(name="ECN", sizes=[1_000_000], proof=_ecn, quick=True),
        Case(
            name="HTTP/3",
            sizes=[1_000_000, 5_000],
            flags=frozenset({"h3"}),
            server_flags=frozenset({"h3"}),
            proof=_http3,
            quick=True,
        ),
        Case(
            name="post-quantum",
            sizes=[1024],
            proof=_both(_one_connection, _post_quantum),
            quick=True,
        ),
    )
}
