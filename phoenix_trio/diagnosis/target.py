"""Examines a server: reachability, handshake, certificate, and the path to it.

Floor 4.  Three connections at most are made one after the other.  The first accepts any
certificate, so that the rest can be measured although the certificate is at fault, and sends no
application data.  The second one applies the user's trust; the third one resumes its session.
The results are judged in :mod:`.reachability`, :mod:`.path_checks` and
:mod:`.certificate_checks`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs
import trio
from cryptography import x509

from ..config import TransportConfig
from ..errors import HandshakeFailed, MigrationFailed
from ..quic.connection import QuicConnection
from ..quic.datagram_socket import Network
from ..quic.endpoint import DEFAULT_ALPN, Endpoint
from ..quic.handshake.pem import PEMSource
from ..quic.handshake.tls import ClientTLS, SessionStore
from ..quic.packet_io import UdpNetwork
from ..quic.path_address import SocketAddress, display_address
from .certificate_checks import check_certificate, check_migration, check_resumption
from .path_checks import check_path
from .probing import Outcome, Probe, probe_address
from .reachability import check_failure, check_name, check_reachability, name_unknown
from .results import Finding
from .running import in_parallel, run_check

__all__ = [
    "BENCH_ALPN",
    "OFFERED_ALPN",
    "Examination",
    "PathFacts",
    "TargetServer",
    "examine_target",
]

#: The protocol of ``phoenix-trio serve-bench``.
BENCH_ALPN: Final = "phoenix-bench/1"

#: The protocols that are offered unless the user names others.
OFFERED_ALPN: Final = (*DEFAULT_ALPN, "phoenix-files/1", BENCH_ALPN, "h3")

_HANDSHAKE_SECONDS = 5.0

#: A stage takes no longer than this, whatever the server does.
_STAGE_SECONDS = 8.0
_TRUST_SECONDS = 12.0
_WHOLE_SECONDS = 25.0
_MIGRATION_SECONDS = 3.0

#: Enough for the search of the path MTU, for a verdict on ECN, and to see a loss of 8 %.
_PINGS = 40
_PING_SECONDS = 3.0


@attrs.frozen(kw_only=True)
class TargetServer:
    """A server, and which certificate is expected of it."""

    host: str
    port: int
    alpn: tuple[str, ...] = OFFERED_ALPN
    ca: PEMSource | None = None
    pinned_sha256: str | None = None
    server_name: str | None = None
    certificate: PEMSource | None = None
    private_key: PEMSource | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        """Read the files.

        Raises:
          OSError, ValueError: as of :class:`~phoenix_trio.ClientTLS`.
        """
        self.trusting()

    @property
    def where(self) -> str:
        """``HOST:PORT``; an IPv6 address has brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def trusting(
        self, sessions: SessionStore | None = None, *, early_data: bool = False
    ) -> ClientTLS:
        """The settings that apply the user's trust."""
        return ClientTLS(
            ca=self.ca,
            pinned_sha256=self.pinned_sha256,
            server_name=self.server_name or self.host,
            certificate=self.certificate,
            private_key=self.private_key,
            session_store=sessions,
            early_data=early_data,
        )

    def accepting(self, see: Callable[[list[x509.Certificate]], None] | None = None) -> ClientTLS:
        """The settings that accept any certificate, and show it to `see`."""

        def verify(chain: list[x509.Certificate], server_name: str | None) -> None:
            if see is not None:
                see(chain)

        return ClientTLS(
            verify=verify,
            server_name=self.server_name or self.host,
            certificate=self.certificate,
            private_key=self.private_key,
        )


@attrs.frozen(kw_only=True)
class PathFacts:
    """The measured values of a connection; times are in seconds."""

    handshake_seconds: float
    alpn: str | None
    version: int
    cipher: str | None
    pings: tuple[float, ...]
    rtt_min: float
    rtt_smoothed: float
    packets_sent: int
    packets_lost: int
    path_mtu: int
    ecn_validated: bool
    idle_timeout: float
    streams: int
    """Bidirectional streams that the server permits at once."""

    @property
    def ping_median(self) -> float:
        """The median of the pings; it includes the delay of the server's acknowledgements."""
        return statistics.median(self.pings)

    @property
    def loss(self) -> float:
        """The share of lost packets."""
        return self.packets_lost / max(1, self.packets_sent)


@attrs.define
class Examination:
    """The results for one target."""

    target: TargetServer
    network: Network
    findings: list[Finding] = attrs.field(factory=list)
    address: SocketAddress | None = None
    """The address that is dialled; ``None``: the name has none."""
    path: PathFacts | None = None
    """``None``: there was no connection."""


async def examine_target(
    target: TargetServer, system: str, network: Network | None = None
) -> Examination:
    """Examine a server.  Takes a few seconds, and at most about 35.

    Args:
      target: the server.
      system: for the commands, as ``sys.platform``.
      network: where sockets come from; ``None``: the real UDP.
    """
    done = Examination(target, UdpNetwork() if network is None else network)
    add = done.findings.extend
    probes: list[Probe] = []
    add(await run_check(("name", partial(_resolve, done, probes, system)), _STAGE_SECONDS))
    if not probes:
        return done
    add(await run_check(("connection", partial(_connect, done, probes, system)), _WHOLE_SECONDS))
    return done


async def _resolve(done: Examination, probes: list[Probe], system: str) -> list[Finding]:
    """Find the addresses, and probe them all at once."""
    target = done.target
    start = trio.current_time()
    try:
        addresses = await done.network.resolve(target.host, target.port)
    except OSError as error:
        return [name_unknown(target.host, str(error), system)]
    seconds = trio.current_time() - start
    shown = [str(display_address(each)[0]) for each in addresses]
    findings = [check_name(target.host, shown, seconds)]

    async def probe(address: SocketAddress) -> list[Finding]:
        probes.append(await probe_address(done.network, address))
        return []

    failed = await in_parallel(
        [("udp", partial(probe, address)) for address in addresses[:8]], _STAGE_SECONDS / 2
    )
    probes.sort(
        key=lambda each: (each.outcome is not Outcome.ANSWERED, addresses.index(each.address))
    )
    return findings + failed


async def _connect(done: Examination, probes: list[Probe], system: str) -> list[Finding]:
    target = done.target
    answered = [each for each in probes if each.outcome in (Outcome.ANSWERED, Outcome.SILENT)]
    findings: list[Finding] = []
    chain: list[x509.Certificate] = []
    failure: trio.BrokenResourceError | OSError | None = None
    if answered:
        done.address = answered[0].address
        host = str(done.address[0])
        config = TransportConfig(handshake_timeout=_HANDSHAKE_SECONDS, close_linger=0.2)
        async with Endpoint.open(config=config, network=done.network) as endpoint:
            dial = partial(endpoint.connect, host, target.port, alpn=target.alpn)
            start = trio.current_time()
            try:
                async with dial(tls=target.accepting(chain.extend)) as connection:
                    seconds = trio.current_time() - start
                    migration = await _measure(done, connection, seconds)
            except (trio.BrokenResourceError, OSError) as error:
                failure = error
            else:
                assert done.path is not None
                findings += check_path(done.path, target.host, system)
                trust = partial(_trust, done, endpoint, chain, system)
                findings += await run_check(("certificate", trust), _TRUST_SECONDS)
                findings.append(check_migration(migration))
    reached = done.path is not None
    before = check_reachability(probes, done.address if reached else None, target.port, system)
    if failure is not None:
        findings.append(check_failure(failure, target.alpn, probes, target.where, system))
    return before + findings


async def _measure(
    done: Examination, connection: QuicConnection, handshake_seconds: float
) -> MigrationFailed | bool | None:
    """Measure the path, then move; the error of the move, or whether it ended in time."""
    pings: list[float] = []
    await connection.wait_confirmed()
    with trio.move_on_after(_PING_SECONDS):
        for _ in range(_PINGS):
            pings.append(await connection.ping())  # noqa: PERF401 - those before the end count
    if not pings:
        raise trio.BrokenResourceError(
            f"the server completed the handshake and acknowledged no PING for {_PING_SECONDS:g} s"
        )
    now = connection.statistics()
    done.path = PathFacts(
        handshake_seconds=handshake_seconds,
        alpn=connection.alpn_protocol,
        version=connection.version,
        cipher=connection.cipher,
        pings=tuple(pings),
        rtt_min=min(pings) if now.rtt_min is None else now.rtt_min,
        rtt_smoothed=pings[-1] if now.rtt_smoothed is None else now.rtt_smoothed,
        packets_sent=now.packets_sent,
        packets_lost=now.packets_lost,
        path_mtu=now.path_mtu,
        ecn_validated=now.ecn_validated,
        idle_timeout=connection.idle_timeout,
        streams=connection.available_streams,
    )
    with trio.move_on_after(_MIGRATION_SECONDS):
        try:
            await connection.migrate()
        except MigrationFailed as error:
            return error
        return True
    return None


async def _trust(
    done: Examination, endpoint: Endpoint, chain: list[x509.Certificate], system: str
) -> list[Finding]:
    """Apply the user's trust, then resume the session."""
    target = done.target
    assert done.address is not None
    dial = partial(endpoint.connect, str(done.address[0]), target.port, alpn=target.alpn)
    sessions = SessionStore()
    try:
        async with dial(tls=target.trusting(sessions)) as connection:
            await connection.wait_confirmed()
            await connection.ping()  # (Tickets come with the confirmation, or just after it.)
    except HandshakeFailed as error:
        return [check_certificate(chain, error, target.where, system)]
    findings = [check_certificate(chain, None, target.where, system)]
    if not len(sessions):
        return [*findings, check_resumption(None, None)]
    start = trio.current_time()
    async with dial(tls=target.trusting(sessions, early_data=True)) as connection:
        await connection.wait_confirmed()
        resumed, early = connection.session_resumed, connection.early_data_accepted
    took = trio.current_time() - start
    return [*findings, check_resumption(resumed, early, took)]
