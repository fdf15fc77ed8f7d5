"""The examination of a server: over the simulated network, and over loopback for real errors."""

from __future__ import annotations

import datetime as dt
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import attrs
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio.diagnosis.certificate_checks import check_certificate, check_migration
from phoenix_trio.diagnosis.path_checks import check_path
from phoenix_trio.diagnosis.probing import Outcome, Probe, _failure, probe_address
from phoenix_trio.diagnosis.reachability import check_failure, check_reachability
from phoenix_trio.diagnosis.results import Finding, Status
from phoenix_trio.diagnosis.target import TargetServer, examine_target
from phoenix_trio.quic.datagram_socket import DeliveryFailure
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.diagnosis.facts import PATH
from tests.support import CLIENT, PORT, SERVER, authority_pem, server_tls

ALPN = ("test/1",)


@cache
def certificate(days_left: float) -> tuple[bytes, bytes]:
    """A self-signed certificate of the server that ends in so many days, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days_left)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - dt.timedelta(days=90))
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("example.org"), x509.DNSName("localhost")]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@asynccontextmanager
async def serving(
    network: SimulatedNetwork,
    tls: phoenix_trio.ServerTLS | None = None,
    config: phoenix_trio.TransportConfig | None = None,
) -> AsyncIterator[None]:
    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_closed()

    serve = partial(
        phoenix_trio.serve,
        handler,
        PORT,
        tls=tls or server_tls(early_data=True),
        alpn=ALPN,
        config=config,
        network=network.host(SERVER),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield
        nursery.cancel_scope.cancel()


async def examine(network: SimulatedNetwork, **changes: Any) -> dict[str, Finding]:
    arguments: dict[str, Any] = {"host": SERVER, "port": PORT, "alpn": ALPN, "ca": authority_pem()}
    target = TargetServer(**{**arguments, **changes})
    done = await examine_target(target, "linux", network.host(CLIENT))
    return {finding.name: finding for finding in done.findings}


async def test_a_good_server_is_fine_in_every_respect(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.02)
    async with serving(network):
        found = await examine(network)
    assert list(found) == [
        "name",
        "udp-ipv4",
        "versions-offered",
        "handshake",
        "alpn",
        "rtt",
        "loss",
        "path-mtu",
        "path-ecn",
        "idle-timeout",
        "certificate",
        "resumption",
        "migration",
    ]
    assert {name for name, each in found.items() if each.status is not Status.OK} == set()
    assert found["versions-offered"].found == "1, 2"
    assert found["rtt"].values["smallest_seconds"] == pytest.approx(0.04, rel=0.01)
    assert found["path-mtu"].values["payload_bytes"] == 1452
    assert found["resumption"].values["early_data"] is True
    assert found["alpn"].values["protocol"] == "test/1"


async def test_nothing_reaches_a_server_of_the_application(autojump_clock: MockClock) -> None:
    """No stream is opened, so no program there sees data of the examination."""
    network = SimulatedNetwork(delay=0.01)
    streams = 0

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        nonlocal streams
        async for stream in connection.incoming_streams():
            streams += 1
            await stream.aclose()

    serve = partial(
        phoenix_trio.serve,
        handler,
        PORT,
        tls=server_tls(),
        alpn=ALPN,
        network=network.host(SERVER),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        found = await examine(network)
        nursery.cancel_scope.cancel()
    assert found["handshake"].status is Status.OK
    assert streams == 0


async def test_a_closed_port_is_told_from_a_silent_one(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host(SERVER)
    closed = await examine(network)
    assert list(closed) == ["name", "udp-ipv4"]
    assert closed["udp-ipv4"].status is Status.FAIL
    assert "nothing listens on port 4433/udp" in closed["udp-ipv4"].found
    assert closed["udp-ipv4"].commands == ("ss -ulnp 'sport = :4433'   # on the server",)
    network.port_unreachable = False
    silent = await examine(network)
    assert silent["udp-ipv4"].status is Status.FAIL
    assert "silent" in silent["udp-ipv4"].found
    assert "nft add rule" in silent["udp-ipv4"].commands[0]
    assert silent["handshake"].found == "no complete handshake within 5 s"


async def test_a_closed_port_is_found_over_real_sockets() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with trio.fail_after(5):
        done = await examine_target(TargetServer(host="127.0.0.1", port=port), "linux")
    assert [each.status for each in done.findings] == [Status.OK, Status.FAIL]
    assert "ICMP port unreachable" in done.findings[1].found


async def probe_answered_by(answer: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Probe:
    """A probe whose answer has the connection IDs that `answer` makes of its own ones."""
    network = SimulatedNetwork(delay=0.01)
    server = await network.host(SERVER).open_socket(SERVER, PORT, buffer_size=65536)

    async def serve() -> None:
        while True:
            await server.wait_readable()
            for data, source, _, _, _ in server.receive_runs(4):
                first, second = answer(bytes(data[6:14]), bytes(data[15:23]))
                cids = b"\x08" + first + b"\x08" + second
                server.send_run(b"\xc0" + bytes(4) + cids + b"\0\0\0\1", source)
                server.send_run(b"\xc0\0", source)
                server.send_run(b"", source)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        probe = await probe_address(network.host(CLIENT), (SERVER, PORT))
        nursery.cancel_scope.cancel()
    server.close()
    return probe


async def test_a_forged_answer_to_a_probe_does_not_count(autojump_clock: MockClock) -> None:
    right = await probe_answered_by(lambda destination, source: (source, destination))
    assert (right.outcome, right.versions) == (Outcome.ANSWERED, (1,))
    for forge in (
        lambda destination, source: (bytes(8), destination),
        lambda destination, source: (source, bytes(8)),
        lambda destination, source: (destination, source),
    ):
        assert (await probe_answered_by(forge)).outcome is Outcome.SILENT


def test_a_report_of_the_network_has_to_quote_the_packet() -> None:
    class Reports:
        def __init__(self, *starts: bytes) -> None:
            self.failures = [
                DeliveryFailure((SERVER, PORT), errno.ECONNREFUSED, start) for start in starts
            ]

        def take_failures(self) -> list[DeliveryFailure]:
            return self.failures

    def found(*starts: bytes) -> Any:
        return _failure(Reports(*starts), (SERVER, PORT), b"packet of this probe")  # type: ignore[arg-type]

    assert found(b"", b"another packet") is None
    assert found(b"another packet", b"packet of").outcome is Outcome.REFUSED


async def test_an_expired_certificate_is_shown_and_the_rest_measured(
    autojump_clock: MockClock,
) -> None:
    pem, key = certificate(-3.5)
    network = SimulatedNetwork(delay=0.01)
    network.add_name("example.org", SERVER)
    async with serving(network, phoenix_trio.ServerTLS(pem, key)):
        found = await examine(network, host="example.org", ca=pem)
    assert found["rtt"].status is Status.OK
    assert found["migration"].status is Status.OK
    expired = found["certificate"]
    assert expired.status is Status.FAIL
    assert expired.values["error"] == "CertificateExpired"
    assert expired.values["days_left"] == pytest.approx(-3.5, abs=0.01)
    assert "expired on" in expired.found
    assert "1 sent, for 'example.org', 'localhost', expired on" in expired.found
    assert "for 4 days now" in expired.why
    assert "certbot renew" in expired.commands[0]
    assert expired.commands[1] == "timedatectl set-ntp true"


async def test_a_certificate_with_few_days_left_warns(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.add_name("example.org", SERVER)
    for days, status in ((13.5, Status.WARN), (14.5, Status.OK)):
        pem, key = certificate(days)
        async with serving(network, phoenix_trio.ServerTLS(pem, key)):
            found = await examine(network, host="example.org", ca=pem)
        assert found["certificate"].status is status
        assert found["certificate"].values["days_left"] == pytest.approx(days, abs=0.01)


def test_the_issuer_counts_unless_another_one_is_trusted() -> None:
    good, soon, old = (
        x509.load_pem_x509_certificates(certificate(days)[0])[0] for days in (50.0, 5.0, -5.0)
    )
    # (These have one name, so the second one of a chain counts as the issuer of the first.)
    assert check_certificate([good, soon], None, "host:1", "linux").status is Status.WARN
    assert check_certificate([good, old], None, "host:1", "linux").status is Status.OK


async def test_an_untrusted_certificate_comes_with_its_fingerprint(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    other, _ = certificate(50)
    async with serving(network):
        found = await examine(network, ca=other)
        assert found["certificate"].status is Status.FAIL
        assert found["certificate"].values["error"] == "CertificateUntrusted"
        pin = found["certificate"].values["sha256"]
        assert f"phoenix-trio doctor {SERVER}:{PORT} --pin {pin}" in found["certificate"].commands
        pinned = await examine(network, ca=None, pinned_sha256=pin)
        assert pinned["certificate"].status is Status.OK


async def test_a_foreign_name_asks_for_the_right_one(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with serving(network):
        found = await examine(network, server_name="other.example")
        assert found["certificate"].values["error"] == "CertificateNameMismatch"
        found = await examine(network, server_name="example.org")
        assert found["certificate"].status is Status.OK


async def test_no_common_protocol_lists_those_offered(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with serving(network):
        found = await examine(network, alpn=("a/1", "b/1"))
    assert found["udp-ipv4"].status is Status.OK
    assert found["alpn"].status is Status.FAIL
    assert found["alpn"].found == "the server takes none of the 2 protocols offered: a/1, b/1"
    assert found["alpn"].commands == (f"phoenix-trio doctor {SERVER}:{PORT} --alpn NAME",)


async def test_a_server_that_wants_a_client_certificate_says_so(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with serving(network, server_tls(client_ca=authority_pem())):
        found = await examine(network)
    assert found["handshake"].status is Status.FAIL
    assert found["handshake"].found == "the server requires a client certificate"


async def test_a_full_server_is_reached_and_refuses(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    config = phoenix_trio.TransportConfig(max_connections=1)
    async with serving(network, config=config):
        async with phoenix_trio.open_connection(
            SERVER,
            PORT,
            tls=phoenix_trio.ClientTLS(ca=authority_pem()),
            alpn=ALPN,
            network=network.host("10.0.0.3"),
        ):
            found = await examine(network)
    assert found["udp-ipv4"].status is Status.OK
    assert found["handshake"].status is Status.FAIL
    assert found["handshake"].values["error"] == "ConnectionRefused"


async def test_a_small_path_mtu_is_named_with_its_cost(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01, mtu=1300)
    async with serving(network):
        found = await examine(network)
    assert found["path-mtu"].status is Status.WARN
    assert found["path-mtu"].values["payload_bytes"] == 1232
    assert "18 % more packets" in found["path-mtu"].why
    assert found["path-mtu"].commands == (f"tracepath -n {SERVER}",)


async def test_a_path_that_loses_packets_is_named(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(seed=5, delay=0.01, loss=0.15)
    async with serving(network):
        found = await examine(network)
    assert found["loss"].status in (Status.WARN, Status.FAIL)
    assert "several share the loss" in found["loss"].why


async def test_a_path_that_drops_handshakes_is_told_from_a_silent_host(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01)

    def drop_version_1(datagram: Datagram) -> Datagram | None:
        return None if datagram.data[1:5] == b"\0\0\0\1" else datagram

    network.tap = drop_version_1
    async with serving(network):
        found = await examine(network)
    assert found["udp-ipv4"].status is Status.OK
    assert found["handshake"].status is Status.FAIL
    assert "smaller MTU" in found["handshake"].why


async def test_a_path_without_marks_is_named(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.tap = lambda datagram: attrs.evolve(datagram, ecn=0)
    async with serving(network):
        found = await examine(network)
    assert found["path-ecn"].status is Status.WARN


async def test_a_path_that_follows_no_move_is_named(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    first: list[Any] = []

    def one_port_only(datagram: Datagram) -> Datagram | None:
        if datagram.source[0] == CLIENT and datagram.data and not datagram.data[0] & 0x80:
            first.append(datagram.source)
            return datagram if datagram.source == first[0] else None
        return datagram

    network.tap = one_port_only
    async with serving(network):
        found = await examine(network)
    assert found["migration"].status is Status.WARN
    assert "load balancer" in found["migration"].found


async def test_an_unknown_name_ends_the_examination(autojump_clock: MockClock) -> None:
    found = await examine(SimulatedNetwork(), host="no.example")
    assert list(found) == ["name"]
    assert found["name"].status is Status.FAIL
    assert found["name"].commands == ("getent ahosts no.example",)


async def test_a_silent_address_beside_one_that_works_warns(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    network.host(CLIENT, "2001:db8::2")
    network.add_name("example.org", "2001:db8::1", SERVER)
    async with serving(network):
        found = await examine(network, host="example.org")
    assert found["udp-ipv4"].status is Status.OK
    assert found["udp-ipv6"].status is Status.WARN
    assert "0.25 s" in found["udp-ipv6"].why
    assert found["handshake"].status is Status.OK


# ------------------------------------------------------------------ judgements alone


@pytest.mark.parametrize(
    ("name", "changes", "status"),
    [
        ("handshake", {"handshake_seconds": 0.2}, Status.WARN),
        ("rtt", {"pings": (0.2,) * 10}, Status.WARN),
        ("loss", {"packets_lost": 1}, Status.OK),
        ("loss", {"packets_lost": 2}, Status.WARN),
        ("loss", {"packets_lost": 25}, Status.FAIL),
        ("path-mtu", {"path_mtu": 1350}, Status.OK),
        ("path-mtu", {"path_mtu": 1349}, Status.WARN),
        ("path-ecn", {"ecn_validated": False}, Status.WARN),
        ("idle-timeout", {"idle_timeout": 4.0}, Status.WARN),
        ("idle-timeout", {"idle_timeout": float("inf")}, Status.OK),
        ("alpn", {"alpn": "\x1b[31m"}, Status.OK),
    ],
)
def test_a_path_is_judged(name: str, changes: dict[str, Any], status: Status) -> None:
    path = attrs.evolve(PATH, **changes)
    found = {each.name: each for each in check_path(path, "host", "linux")}
    assert found[name].status is status
    assert "\x1b" not in found[name].found
    if status is not Status.OK:
        assert any(character.isdigit() for character in found[name].why)


def test_a_server_without_tickets_or_moves_warns() -> None:
    forbidden = check_migration(phoenix_trio.MigrationForbidden("no"))
    assert "disable_active_migration" in forbidden.found
    assert check_migration(phoenix_trio.NoConnectionIdLeft("none left")).found == "none left"


def test_a_failure_without_a_certificate_is_judged_too() -> None:
    found = check_certificate([], phoenix_trio.HandshakeFailed("gone"), "host:1", "linux")
    assert (found.status, found.found) == (Status.FAIL, "gone")


def test_a_malformed_certificate_is_a_finding_and_no_crash() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "\x1b[2J")])
    now = dt.datetime.now(dt.UTC)
    alternative_names = x509.ObjectIdentifier("2.5.29.17")
    bad = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.UnrecognizedExtension(alternative_names, b"\xff\xff"), critical=False)
        .sign(key, hashes.SHA256())
    )
    error = phoenix_trio.CertificateUntrusted("malformed")
    found = check_certificate([bad], error, "host:1", "linux")
    assert found.status is Status.FAIL
    assert "1 sent, malformed" in found.found
    assert found.values["sha256"]
    assert "\x1b" not in found.found


def test_a_server_without_a_version_in_common_fails() -> None:
    probe = Probe(
        address=("10.0.0.1", 1),
        outcome=Outcome.ANSWERED,
        seconds=0.01,
        versions=(0xFF00001D, 0x4A5A6A7A),
    )
    found = check_reachability([probe], None, 1, "linux")[-1]
    assert (found.name, found.status) == ("versions-offered", Status.FAIL)
    assert found.found == "0xff00001d", "a reserved version is no offer"


def test_a_family_without_a_route_matters_if_it_is_the_only_one() -> None:
    lost = Probe(
        address=("2001:db8::1", 1, 0, 0), outcome=Outcome.UNREACHABLE, errno=errno.ENETUNREACH
    )
    works = Probe(address=("10.0.0.1", 1), outcome=Outcome.ANSWERED, seconds=0.01, versions=(1,))
    both = check_reachability([lost, works], None, 1, "linux")
    assert [each.status for each in both] == [Status.OK] * 3
    (alone,) = check_reachability([lost], None, 1, "linux")
    assert (alone.name, alone.status) == ("udp-ipv6", Status.FAIL)
    assert alone.commands == ("ip route get 2001:db8::1",)
    blocked = attrs.evolve(lost, outcome=Outcome.BLOCKED_HERE)
    (alone,) = check_reachability([blocked], None, 1, "linux")
    assert "refuses to send" in alone.found


def test_other_failures_of_a_handshake_keep_their_text() -> None:
    error = phoenix_trio.ConnectionRefused("the server is full")
    assert check_failure(error, ("a",), [], "[::1]:1", "linux").found == "the server is full"
