"""ICMP errors of real sockets end dialling and harm nothing else; forged ones do nothing."""

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

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.error_queue import ErrorQueue
from phoenix_trio.quic.packet_io import UdpNetwork, UdpSocket
from tests.support import (
    ALPN,
    PORT,
    client_tls,
    server_tls,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="the error queue is Linux's")


async def open_socket(host: str | None) -> UdpSocket:
    try:
        return await UdpNetwork().open_socket(host, 0, buffer_size=256 * 1024)
    except OSError as error:
        pytest.skip(f"{host} is not available here: {error}")


def closed_port(host: str) -> int:
    """A port where no program listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as taken:
            taken.bind((host, 0))
            port: int = taken.getsockname()[1]
            return port
    except OSError as error:
        pytest.skip(f"{host} is not available here: {error}")


async def settle(one: UdpSocket) -> None:
    """Wait until the socket is readable, and take the datagrams or errors."""
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
    """Its error is in the queue, though no call fails for it."""
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
    one.report_failures(wanted=False)  # the remaining error fails the next call
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


@linux
@pytest.mark.parametrize(
    "name", ["EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "EHOSTUNREACH", "EMSGSIZE"]
)
async def test_no_icmp_error_fails_the_socket_or_switches_an_option_off(name: str) -> None:
    """A parameter problem, for instance, is EPROTO, and any host can send it."""
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


def port_unreachable(host: str, source_port: int, port: int, quoted: bytes) -> bytes:
    """ICMP "port unreachable" for a datagram from one port of a host to another of its ports."""
    udp = struct.pack("!HHHH", source_port, port, 8 + len(quoted), 0) + quoted
    if ":" in host:
        here = socket.inet_pton(socket.AF_INET6, host)
        ip = struct.pack("!IHBB16s16s", 6 << 28, len(udp), socket.IPPROTO_UDP, 64, here, here)
        return struct.pack("!BBHI", 1, 4, 0, 0) + ip + udp  # (The kernel adds the checksum.)
    here = socket.inet_aton(host)
    size = 20 + len(udp)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 1, 0, 64, socket.IPPROTO_UDP, 0, here, here)
    body = ip + udp
    return struct.pack("!BBHI", 3, 3, checksum(struct.pack("!BBHI", 3, 3, 0, 0) + body), 0) + body


@contextlib.contextmanager
def forger_and_silent_server(host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket that sends ICMP messages, and a bound one that answers nothing."""
    is_ipv6 = ":" in host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if is_ipv6 else socket.IPPROTO_ICMP
    try:
        forger = socket.socket(family, socket.SOCK_RAW, protocol)
    except PermissionError:
        pytest.skip("forging ICMP messages needs CAP_NET_RAW")
    with forger, socket.socket(family, socket.SOCK_DGRAM) as silent:
        try:
            silent.bind((host, 0))
        except OSError as error:
            pytest.skip(f"{host} is not available here: {error}")
        silent.setblocking(False)
        yield forger, silent


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_forged_icmp_message_ends_nothing_unless_it_quotes_what_was_sent(
    host: str,
) -> None:
    outcome: list[phoenix_trio.ServerUnreachable] = []
    with forger_and_silent_server(host) as (forger, silent):
        port = silent.getsockname()[1]
        async with phoenix_trio.Endpoint.open(host) as endpoint, trio.open_nursery() as nursery:

            async def dial() -> None:
                with pytest.raises(phoenix_trio.ServerUnreachable) as caught:
                    async with endpoint.connect(host, port, tls=client_tls(), alpn=ALPN):
                        pass
                outcome.append(caught.value)

            async def forge(target: int, quoted: bytes) -> None:
                message = port_unreachable(host, endpoint.port, target, quoted)
                forger.sendto(message, (host, 0))
                await trio.sleep(0.05)

            nursery.start_soon(dial)
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(silent)
            sent = silent.recv(2000)
            end = 6 + sent[5]  # of the destination connection ID
            for forged in (
                b"",  # a router that quotes only the headers
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
