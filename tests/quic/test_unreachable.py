"""Servers which cannot be reached: dialling them ends soon, and nothing else is harmed by it."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.error_queue import ErrorQueue
from phoenix_trio.quic.packet_io import UdpNetwork, UdpSocket
from phoenix_trio.testing import Datagram, SimulatedNetwork
from tests.engine_access import connection_id_in_use, is_handshake_confirmed
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    EnginePair,
    client_tls,
    connected_pair,
    ending,
    server_tls,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="the error queue is Linux's")

# ------------------------------------------------------------------ what an engine believes


def test_a_client_ends_when_its_first_packet_cannot_arrive() -> None:
    pair = EnginePair()
    engine = pair.client.engine
    assert engine.on_unreachable(
        (SERVER, PORT), connection_id_in_use(engine)[1], errno.ECONNREFUSED
    )
    pair.client.gather(pair.now)
    assert engine.is_terminated
    error = pair.client.of(phoenix_trio.quic.events.Terminated)[0].error
    assert type(error) is phoenix_trio.ServerUnreachable
    assert str(error) == f"connection refused: nothing listens on {SERVER} port {PORT}/udp"
    assert (error.errno, error.error_code, error.alert) == (errno.ECONNREFUSED, None, None)


def test_a_client_ignores_what_is_not_of_its_packets() -> None:
    pair = EnginePair()
    engine = pair.client.engine
    cid = connection_id_in_use(engine)[1]
    for address, destination in [
        ((SERVER, PORT + 1), cid),
        ((CLIENT, PORT), cid),
        ((SERVER, PORT), cid[:-1] + bytes([cid[-1] ^ 1])),
        ((SERVER, PORT), b""),
    ]:
        assert not engine.on_unreachable(address, destination, errno.ECONNREFUSED)
    assert not engine.is_ending
    # The form in which a dual-stack socket has the address makes no difference.
    assert engine.on_unreachable((f"::ffff:{SERVER}", PORT, 0, 0), cid, errno.EHOSTUNREACH)


def test_a_client_ignores_it_once_the_server_has_answered() -> None:
    pair = EnginePair()
    engine = pair.client.engine
    first = connection_id_in_use(engine)[1]
    while not engine.has_peer:
        pair.step()
    for cid in (first, connection_id_in_use(engine)[1]):
        assert not engine.on_unreachable((SERVER, PORT), cid, errno.ECONNREFUSED)
    while not is_handshake_confirmed(engine):
        pair.step()
    assert not engine.on_unreachable((SERVER, PORT), connection_id_in_use(engine)[1], 111)
    assert pair.server is not None
    assert not pair.server.engine.on_unreachable(
        (CLIENT, 5000), connection_id_in_use(pair.server.engine)[1], errno.ECONNREFUSED
    )
    assert ending(pair.client) is None


# ------------------------------------------------------------------ over the simulated network


async def refused(
    network: SimulatedNetwork, host: str, **arguments: Any
) -> tuple[phoenix_trio.HandshakeFailed, float]:
    """How dialling ends, and after how many seconds."""
    started = trio.current_time()
    with pytest.raises(phoenix_trio.HandshakeFailed) as caught:
        async with phoenix_trio.open_connection(
            host, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT), **arguments
        ):
            raise AssertionError("nothing listens there")
    return caught.value, trio.current_time() - started


async def test_dialling_a_port_without_a_server_ends_after_a_round_trip(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.05, port_unreachable=True)
    network.host(SERVER)
    error, seconds = await refused(network, SERVER)
    assert type(error) is phoenix_trio.ServerUnreachable
    assert f"nothing listens on {SERVER} port {PORT}/udp" in str(error)
    assert seconds == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TransportConfig(), 10.0),
        (TransportConfig(handshake_timeout=2.5), 2.5),
        (TransportConfig(handshake_timeout=60.0, max_idle_timeout=5.0), 5.0),
    ],
    ids=["by default", "configured", "idle timeout"],
)
async def test_dialling_a_silent_host_ends_after_the_handshake_timeout(
    config: TransportConfig, expected: float, autojump_clock: MockClock
) -> None:
    network = SimulatedNetwork()
    error, seconds = await refused(network, SERVER, config=config)
    assert type(error) is phoenix_trio.HandshakeTimedOut
    assert "is the address right" in str(error)
    assert seconds == pytest.approx(expected, abs=0.2)


async def test_the_handshake_timeout_ends_no_established_connection(
    autojump_clock: MockClock,
) -> None:
    config = TransportConfig(handshake_timeout=1.0, keep_alive=5.0)
    async with connected_pair(SimulatedNetwork(), config=config) as (client, server):
        await trio.sleep(100)
        await client.ping()
        assert not server.is_closed


async def test_a_refused_address_lets_the_next_attempt_start_at_once(
    autojump_clock: MockClock,
) -> None:
    """RFC 8305 section 5: within 250 ms, as the attempt before has failed."""
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host("10.0.0.9")
    network.add_name("two.example", "10.0.0.9", SERVER)
    async with phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as endpoint:
        endpoint.listen(tls=server_tls(), alpn=ALPN)
        started = trio.current_time()
        async with phoenix_trio.open_connection(
            "two.example",
            PORT,
            tls=client_tls(server_name=SERVER),
            alpn=ALPN,
            network=network.host(CLIENT),
        ) as connection:
            assert connection.peer_address == (SERVER, PORT)
            assert trio.current_time() - started < 0.1


async def test_a_server_which_goes_away_ends_no_connection_by_its_unreachable_port(
    autojump_clock: MockClock,
) -> None:
    """After the handshake anybody could forge it, and the path may come back."""
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host("10.0.0.9")
    async with connected_pair(network) as (client, server):
        await client.wait_confirmed()
        network.host(SERVER).rebind()  # what the client sends finds no socket any more
        endpoint_dials = client._driver._dialling
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping)
            # Failures are told to the socket while it dials: the established one ignores them.
            route = client._route
            assert route is not None
            endpoint_dials.add(route)
            await trio.sleep(5)
            assert network.statistics().no_listener > 2
            assert not client.is_closed
            endpoint_dials.discard(route)
            nursery.cancel_scope.cancel()
        server.abort()
        client.abort()


async def test_a_refused_attempt_leaves_the_other_connections_of_the_socket_alone(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host("10.0.0.9")
    async with phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as server:
        server.listen(tls=server_tls(), alpn=ALPN)
        async with phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint:
            dial = partial(endpoint.connect, tls=client_tls(), alpn=ALPN)
            async with dial(SERVER, PORT) as connection:
                for _ in range(3):
                    with pytest.raises(phoenix_trio.ServerUnreachable):
                        async with dial("10.0.0.9", PORT):
                            pass
                await connection.ping()
            assert not endpoint._driver._dialling.routes
            assert not endpoint._driver.sinks or connection.is_closed


async def test_a_retry_counts_as_an_answer(autojump_clock: MockClock) -> None:
    """Its integrity tag proves that the first packet has arrived (RFC 9001 section 5.8)."""
    network = SimulatedNetwork(delay=0.01)
    seen: list[Datagram] = []

    def pass_two(datagram: Datagram) -> Datagram | None:
        seen.append(datagram)
        return datagram if len(seen) <= 2 else None

    network.tap = pass_two
    config = TransportConfig(retry="always")
    async with phoenix_trio.Endpoint.open(
        SERVER, PORT, network=network.host(SERVER), config=config
    ) as endpoint:
        endpoint.listen(tls=server_tls(), alpn=ALPN)

        def forge() -> None:
            assert seen[1].source == (SERVER, PORT)
            assert seen[1].data[0] >> 4 == 0xF, "a Retry packet"
            assert seen[2].source[0] == CLIENT
            for answer in seen[:1] + seen[2:]:
                network._say_unreachable(answer, trio.current_time())

        async with trio.open_nursery() as nursery:

            async def forge_later() -> None:
                await trio.sleep(1)
                forge()

            nursery.start_soon(forge_later)
            error, seconds = await refused(network, SERVER)
    assert type(error) is phoenix_trio.HandshakeTimedOut
    assert seconds > 5


async def test_early_data_for_a_port_without_a_server_ends_the_same_way(
    autojump_clock: MockClock,
) -> None:
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    tls = client_tls(session_store=phoenix_trio.SessionStore(), early_data=True)
    dial = partial(
        phoenix_trio.open_connection,
        SERVER,
        PORT,
        tls=tls,
        alpn=ALPN,
        network=network.host(CLIENT),
    )
    async with phoenix_trio.Endpoint.open(SERVER, PORT, network=network.host(SERVER)) as endpoint:
        endpoint.listen(tls=server_tls(early_data=True), alpn=ALPN)
        async with dial() as connection:
            await connection.ping()
            await connection.ping()
    async with dial() as connection:
        assert connection.early_data_accepted is None
        with pytest.raises(phoenix_trio.ServerUnreachable):
            await connection.request(b"early")


async def test_forged_reports_in_a_flood_are_bounded_and_ignored(autojump_clock: MockClock) -> None:
    network = SimulatedNetwork(delay=0.01)
    seen: list[Datagram] = []

    def swallow(datagram: Datagram) -> None:
        seen.append(datagram)

    network.tap = swallow
    async with phoenix_trio.Endpoint.open(network=network.host(CLIENT)) as endpoint:
        with trio.move_on_after(3) as scope:
            async with trio.open_nursery() as nursery:

                async def dial() -> None:
                    async with endpoint.connect(SERVER, PORT, tls=client_tls(), alpn=ALPN):
                        pass

                nursery.start_soon(dial)
                await trio.sleep(0.5)
                network.port_unreachable = True
                (opened,) = set(network._sockets.values())
                first = seen[0].data
                for forged in (b"", first[:6], bytes(64), b"\xff" * 64, first[:20] + bytes(44)):
                    for _ in range(50):
                        network._say_unreachable(
                            Datagram((CLIENT, endpoint.port), (SERVER, PORT), forged), 0.0
                        )
                await trio.sleep(1)
                assert opened.take_failures() == [], "they have all been read"
        assert scope.cancelled_caught, "it goes on dialling"


# ------------------------------------------------------------------ real sockets


async def open_socket(host: str | None) -> UdpSocket:
    try:
        return await UdpNetwork().open_socket(host, 0, buffer_size=256 * 1024)
    except OSError as error:
        pytest.skip(f"{host} is not available here: {error}")


def closed_port(host: str) -> int:
    """A port on which nothing listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as taken:
            taken.bind((host, 0))
            port: int = taken.getsockname()[1]
            return port
    except OSError as error:
        pytest.skip(f"{host} is not available here: {error}")


async def settle(one: UdpSocket) -> None:
    """Wait until the socket is readable, and take what makes it so."""
    with trio.fail_after(5):
        await one.wait_readable()
    assert one.receive_runs(16) == []


async def is_quiet(one: UdpSocket) -> bool:
    with trio.move_on_after(0.05) as scope:
        await one.wait_readable()
    return scope.cancelled_caught


@linux
@pytest.mark.parametrize("bound_to", ["127.0.0.1", "::1", None])
async def test_dialling_a_closed_port_on_this_host_ends_at_once(bound_to: str | None) -> None:
    hosts = [bound_to] if bound_to else ["127.0.0.1", "::1"]
    async with phoenix_trio.Endpoint.open(bound_to) as endpoint:
        for host in hosts:
            port = closed_port(host)
            with trio.fail_after(1), pytest.raises(phoenix_trio.ServerUnreachable) as caught:
                async with endpoint.connect(host, port, tls=client_tls(), alpn=ALPN):
                    pass
            assert str(caught.value) == (
                f"connection refused: nothing listens on {host} port {port}/udp"
            )
            assert caught.value.errno == errno.ECONNREFUSED


@linux
async def test_an_error_costs_no_other_datagram_and_wakes_no_more_once_read() -> None:
    one, other = await open_socket("127.0.0.1"), await open_socket("127.0.0.1")
    closed = ("127.0.0.1", closed_port("127.0.0.1"))
    one.report_failures(wanted=True)
    one.send_run(b"lost" * 40, closed)
    await trio.sleep(0.01)
    assert one.send_run(b"kept", other.address) == 4
    with trio.fail_after(5):
        await other.wait_readable()
    assert [run[0] for run in other.receive_runs(9)] == [b"kept"]
    assert one.statistics.soft_errors == 0
    (failure,) = one.take_failures()
    assert (failure.address, failure.number) == (closed, errno.ECONNREFUSED)
    assert failure.start == (b"lost" * 40)[:64]
    assert await is_quiet(one)
    # Read instead of sent: the same.
    one.send_run(b"lost", closed)
    await settle(one)
    assert [failure.start for failure in one.take_failures()] == [b"lost"]
    assert await is_quiet(one)
    one.close()
    other.close()


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
async def test_a_datagram_that_is_too_large_does_not_wake_for_ever(host: str | None) -> None:
    """Its error stands in the queue, though no call fails for it."""
    one = await open_socket(host)
    one.report_failures(wanted=True)
    target = one.reachable(("127.0.0.1", 9) if host != "::1" else ("::1", 9, 0, 0))
    assert target is not None
    assert one.send_run(bytes(65_535), target) == 65_535
    await trio.sleep(0.01)
    for _ in range(3):
        if not await is_quiet(one):
            one.receive_runs(16)
    assert await is_quiet(one)
    assert one.take_failures() == []
    one.close()


@linux
async def test_errors_stop_with_the_dialling_and_leave_nothing_behind() -> None:
    one, other = await open_socket("127.0.0.1"), await open_socket("127.0.0.1")
    closed = ("127.0.0.1", closed_port("127.0.0.1"))
    one.report_failures(wanted=True)
    one.send_run(b"lost", closed)
    await settle(one)
    one.report_failures(wanted=False)
    assert one.take_failures() == []
    one.report_failures(wanted=True)
    one.send_run(b"lost", closed)
    await trio.sleep(0.01)
    soft_errors = one.statistics.soft_errors
    one.report_failures(wanted=False)  # the error that it leaves fails the next call
    assert one.send_run(b"kept", other.address) == 4
    assert other.receive_runs(9)[0][0] == b"kept"
    for _ in range(3):
        one.send_run(b"lost", closed)
    await trio.sleep(0.01)
    assert await is_quiet(one)
    assert one.take_failures() == []
    assert one.statistics.soft_errors == soft_errors
    one.close()
    one.report_failures(wanted=True)  # closed: nothing happens
    other.close()


@linux
async def test_a_flood_of_errors_is_read_in_portions_and_switches_nothing_off() -> None:
    one, other = await open_socket("127.0.0.1"), await open_socket("127.0.0.1")
    one.report_failures(wanted=True)
    before = one.statistics
    for port in range(2000, 2400):
        one.send_run(b"x" * 30, ("127.0.0.1", port))
    assert one.send_run(bytes(3000), other.address, 1000) == 3000
    with trio.fail_after(5):
        while not await is_quiet(one):
            one.receive_runs(16)
            assert len(one.take_failures()) <= 64
    after = one.statistics
    assert (after.gso, after.ecn) == (before.gso, before.ecn)
    one.close()
    other.close()


@pytest.mark.parametrize(
    "name", ["EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "EHOSTUNREACH", "EMSGSIZE"]
)
async def test_no_icmp_error_fails_the_socket_or_switches_an_option_off(name: str) -> None:
    """A parameter problem, for instance, which anybody can send, is EPROTO."""
    one, other = await open_socket("127.0.0.1"), await open_socket("127.0.0.1")
    one._errors.was_asked = True
    raw, failures = one._raw, [1]

    class Failing:
        def __getattr__(self, attribute: str) -> Any:
            def call(*arguments: Any) -> Any:
                if failures and attribute in ("sendto", "sendmsg", "recvmsg"):
                    failures.pop()
                    raise OSError(getattr(errno, name), "of another datagram")
                return getattr(raw, attribute)(*arguments)

            return call

    one._raw = Failing()  # type: ignore[assignment]
    gso = one.statistics.gso
    assert one.send_run(bytes(3000), other.address, 1000, 2) == 3000
    failures.append(1)
    assert one.send_run(b"one", other.address) == 3
    failures.append(1)
    assert one.receive_runs(16) == []
    assert one.statistics.gso is gso
    assert one.statistics.datagrams_sent == 4
    one._raw = raw
    one.close()
    other.close()


@linux
async def test_a_host_without_a_way_to_the_server_says_so_at_once() -> None:
    async with phoenix_trio.Endpoint.open("127.0.0.1") as endpoint:
        opened = endpoint._driver.socket
        assert isinstance(opened, UdpSocket)
        raw = opened._raw

        class NoRoute:
            def __getattr__(self, attribute: str) -> Any:
                return getattr(raw, attribute)

            def sendto(self, *arguments: Any) -> int:
                raise OSError(errno.ENETUNREACH, "Network is unreachable")

            sendmsg = sendto

        opened._raw = NoRoute()  # type: ignore[assignment]
        # (The first probe would leave after 15 seconds.)
        config = TransportConfig(initial_rtt=5.0, handshake_timeout=60.0, max_idle_timeout=60.0)
        dial = partial(endpoint.connect, tls=client_tls(), alpn=ALPN, config=config)
        with trio.fail_after(5), pytest.raises(phoenix_trio.ServerUnreachable) as caught:
            async with dial("192.0.2.1", PORT):
                pass
        assert caught.value.errno == errno.ENETUNREACH
        assert "192.0.2.1 port 4433/udp cannot be reached: Network is unreachable" in str(
            caught.value
        )
        opened._raw = raw


async def test_established_connections_never_look_at_the_error_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with phoenix_trio.Endpoint.open("127.0.0.1") as server:
        server.listen(tls=server_tls(), alpn=ALPN)
        async with phoenix_trio.open_connection(
            "127.0.0.1", server.port, tls=client_tls(), alpn=ALPN
        ) as connection:
            opened = connection._driver.socket
            assert isinstance(opened, UdpSocket)
            assert not opened._errors.is_asked, "the system does not even keep errors any more"
            looks: list[str] = []
            monkeypatch.setattr(ErrorQueue, "drain", lambda self: looks.append("drain"))
            monkeypatch.setattr(ErrorQueue, "retry", lambda self, call: looks.append("retry"))
            for _ in range(50):
                await connection.ping()
            assert looks == []


# ------------------------------------------------------------------ forged ICMP messages


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def port_unreachable(source_port: int, port: int, quoted: bytes) -> bytes:
    """ICMP "port unreachable" for a datagram from one port of 127.0.0.1 to another."""
    here = socket.inet_aton("127.0.0.1")
    size = 28 + len(quoted)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 1, 0, 64, socket.IPPROTO_UDP, 0, here, here)
    udp = struct.pack("!HHHH", source_port, port, 8 + len(quoted), 0)
    body = ip + udp + quoted
    return struct.pack("!BBHI", 3, 3, checksum(struct.pack("!BBHI", 3, 3, 0, 0) + body), 0) + body


@pytest.fixture
def forger() -> Iterator[socket.socket]:
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        pytest.skip("forging ICMP messages needs CAP_NET_RAW")
    with raw:
        yield raw


@linux
async def test_a_forged_icmp_message_ends_nothing_unless_it_quotes_what_was_sent(
    forger: socket.socket,
) -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        port = silent.getsockname()[1]
        outcome: list[phoenix_trio.ServerUnreachable] = []
        async with phoenix_trio.Endpoint.open("127.0.0.1") as endpoint:

            async def dial() -> None:
                with pytest.raises(phoenix_trio.ServerUnreachable) as caught:
                    async with endpoint.connect("127.0.0.1", port, tls=client_tls(), alpn=ALPN):
                        pass
                outcome.append(caught.value)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                with trio.fail_after(5):
                    await trio.lowlevel.wait_readable(silent)
                sent = silent.recv(2000)

                async def forge(target: int, quoted: bytes) -> None:
                    forger.sendto(port_unreachable(endpoint.port, target, quoted), ("127.0.0.1", 0))
                    await trio.sleep(0.05)

                end = 6 + sent[5]
                for forged in (
                    b"",  # a router which quotes no more than the headers
                    sent[:20],
                    bytes(100),
                    sent[:6] + bytes(sent[5]) + sent[end:100],
                    sent[: end + 1] + bytes(sent[end]) + sent[end + 9 : 100],
                ):
                    await forge(port, forged)
                await forge(port + 1 if port < 65_535 else port - 1, sent[:100])
                assert not outcome, "it goes on dialling"
                await forge(port, sent[:100])
                with trio.fail_after(1):
                    while not outcome:
                        await trio.sleep(0.01)
