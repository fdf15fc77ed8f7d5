"""Real UDP sockets on loopback."""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import partial
from typing import Any

import pytest
import trio

import phoenix_trio
from phoenix_trio.quic.packet_io import UdpNetwork, UdpSocket, display_address
from tests.support import ALPN, client_tls, server_tls


async def open_socket(host: str | None, port: int = 0) -> UdpSocket:
    try:
        return await UdpNetwork().open_socket(host, port, buffer_size=256 * 1024)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip(f"{host} is not available here")
        raise


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_datagrams_go_both_ways(host: str) -> None:
    one, two = await open_socket(host), await open_socket(host)
    assert one.send_run(b"hello", two.address)
    with trio.fail_after(5):
        await two.wait_readable()
    ((data, source, _, _, _),) = two.receive_runs(10)
    assert data == b"hello"
    assert source[1] == one.address[1]
    assert two.receive_runs(10) == []
    assert two.statistics.datagrams_received == 1
    assert two.statistics.bytes_received == 5
    assert one.statistics.datagrams_sent == 1
    assert one.statistics.receive_buffer_size >= 4096
    one.close()
    two.close()


async def test_a_dual_stack_socket_reaches_both_families() -> None:
    both, four = await open_socket(None), await open_socket("127.0.0.1")
    if ":" not in both.address[0]:
        pytest.skip("no IPv6 here")
    target = both.reachable(four.address)
    assert target is not None
    assert target[0] == "::ffff:127.0.0.1"
    both.send_run(b"x", target)
    with trio.fail_after(5):
        await four.wait_readable()
    ((_, source, _, _, _),) = four.receive_runs(1)
    four.send_run(b"y", source)
    with trio.fail_after(5):
        await both.wait_readable()
    ((_, back, _, _, _),) = both.receive_runs(1)
    assert display_address(back) == four.address
    assert display_address(("2001:db8::1", 5, 0, 0)) == ("2001:db8::1", 5, 0, 0)
    assert four.reachable(("::1", 1, 0, 0)) is None
    six = await open_socket("::1")
    assert six.reachable(("127.0.0.1", 1)) is None
    for each in (both, four, six):
        each.close()


async def test_a_port_in_use_is_named() -> None:
    taken = await open_socket("127.0.0.1")
    with pytest.raises(OSError, match=rf"127\.0\.0\.1 port {taken.address[1]}") as caught:
        await open_socket("127.0.0.1", taken.address[1])
    assert caught.value.errno == errno.EADDRINUSE
    taken.close()


async def test_unknown_and_foreign_hosts_are_named() -> None:
    with pytest.raises(OSError, match="no-such-host"):
        await UdpNetwork().resolve("no-such-host.invalid", 1)
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        await UdpNetwork().open_socket("192.0.2.1", 0, buffer_size=4096)
    with pytest.raises(OSError, match="no address"):
        await UdpNetwork().resolve("x" * 300, 1)


async def test_passing_errors_are_counted_and_hard_ones_raised() -> None:
    one = await open_socket("127.0.0.1")
    assert one.send_run(bytes(65_535), ("127.0.0.1", 9)), "too large: lost, not blocked"
    assert one.statistics.soft_errors == 1
    assert one.statistics.datagrams_sent == 0

    class Broken:
        def __getattr__(self, name: str) -> Any:
            def fail(*arguments: Any) -> Any:
                raise OSError(errno.EBADF, "gone")

            return fail

    raw = one._raw
    one._raw = Broken()  # type: ignore[assignment]
    with pytest.raises(OSError, match="gone"):
        one.send_run(b"x", ("127.0.0.1", 9))
    with pytest.raises(OSError, match="gone"):
        one.receive_runs(1)
    one._raw = raw
    one.close()


async def test_a_full_send_buffer_is_told_apart() -> None:
    one = await open_socket("127.0.0.1")

    class Full:
        def sendto(self, *arguments: Any) -> int:
            raise BlockingIOError(errno.EAGAIN, "full")

    raw, one._raw = one._raw, Full()  # type: ignore[assignment]
    assert one.send_run(b"x", ("127.0.0.1", 9)) == 0
    one._raw = raw
    assert one.statistics.send_blocked == 1
    with trio.fail_after(5):
        await one.wait_writable()
    one.close()


async def test_closing_wakes_whoever_waits_and_is_idempotent() -> None:
    one = await open_socket("127.0.0.1")

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await one.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await trio.testing.wait_all_tasks_blocked()
        one.close()
    one.close()
    await expect_closed()
    with pytest.raises(trio.ClosedResourceError):
        await one.wait_writable()
    assert one.receive_runs(5) == []
    assert one.send_run(b"x", ("127.0.0.1", 9))
    assert isinstance(one.address[1], int)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", one.address[1]))


class FailingSocket:
    """A raw socket that fails every send and receive in one way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0

    def _fail(self, *arguments: Any) -> Any:
        self.calls += 1
        raise OSError(self.number, os.strerror(self.number))

    sendto = sendmsg = recvmsg = _fail


@pytest.mark.parametrize(
    "name", ["EACCES", "ECONNREFUSED", "EHOSTUNREACH", "EMSGSIZE", "ENETUNREACH", "ENOBUFS"]
)
async def test_passing_errors_are_counted_each_way(name: str) -> None:
    one = await open_socket("127.0.0.1")
    raw = one._raw
    failing = FailingSocket(getattr(errno, name))
    one._raw = failing  # type: ignore[assignment]
    try:
        assert one.send_run(b"x", ("127.0.0.1", 9))
        assert one.receive_runs(5) == []
        assert failing.calls == 6, "a flood of errors does not hold the loop"
        assert one.statistics.soft_errors == 6
    finally:
        one._raw = raw
        one.close()


async def test_sending_to_what_does_not_listen_or_cannot_be_sent_to_is_no_failure() -> None:
    one, other = await open_socket("127.0.0.1"), await open_socket("127.0.0.1")
    other.close()
    for _ in range(3):
        assert one.send_run(b"x", other.address)
        await trio.sleep(0.01)
        assert one.receive_runs(5) == []
    # Refused by the kernel as an invalid argument.
    assert one.send_run(b"x", ("127.0.0.1", 0))
    assert one.send_run(b"x", ("240.0.0.1", 9))
    assert one.statistics.soft_errors >= 1
    one.close()


async def test_a_datagram_from_port_0_does_not_stop_a_server() -> None:
    """An answer would fail (port 0 cannot be a destination), so the server does nothing for it."""
    try:
        forger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("forging datagrams needs CAP_NET_RAW")
    with forger:
        async with phoenix_trio.Endpoint.open("127.0.0.1") as endpoint:
            endpoint.listen(tls=server_tls(), alpn=ALPN)
            payload = b"\x40" + os.urandom(99)
            header = struct.pack("!HHHH", 0, endpoint.port, 8 + len(payload), 0)
            forger.sendto(header + payload, ("127.0.0.1", 0))
            with trio.fail_after(5):
                while endpoint.statistics().datagrams_received == 0:
                    await trio.sleep(0.01)
            assert endpoint.statistics().datagrams_unroutable == 1
            assert endpoint.statistics().stateless_resets_sent == 0
            assert endpoint.statistics().soft_errors == 0
            async with phoenix_trio.open_connection(
                "127.0.0.1", endpoint.port, tls=client_tls(), alpn=ALPN
            ) as connection:
                assert not connection.is_closed


async def test_dialling_an_impossible_address_leaves_the_other_connections_alone() -> None:
    async with phoenix_trio.Endpoint.open("127.0.0.1") as endpoint:
        endpoint.listen(tls=server_tls(), alpn=ALPN)
        dial = partial(endpoint.connect, tls=client_tls(), alpn=ALPN)
        async with dial("127.0.0.1", endpoint.port) as connection:
            with trio.move_on_after(0.1) as scope:
                async with dial("240.0.0.1", 4433):
                    pass
            assert scope.cancelled_caught
            await connection.ping()


@pytest.mark.parametrize("host", [None, "127.0.0.1", "::1"])
@pytest.mark.parametrize("port", [-1, 65_536, 70_000])
async def test_an_impossible_port_is_refused(host: str | None, port: int) -> None:
    with pytest.raises(ValueError, match=str(port)):
        await UdpNetwork().open_socket(host, port, buffer_size=4096)


async def test_mapped_addresses_are_taken_apart_for_sockets_of_one_family() -> None:
    four = await open_socket("127.0.0.1")
    assert four.reachable(("::ffff:127.0.0.1", 9, 0, 0)) == ("127.0.0.1", 9)
    four.close()
    six = await open_socket("::1")
    assert six.reachable(("::ffff:127.0.0.1", 9, 0, 0)) is None
    assert six.reachable(("::1", 9, 0, 0)) == ("::1", 9, 0, 0)
    six.close()
    every = await open_socket("::")
    assert every.reachable(("::ffff:127.0.0.1", 9, 0, 0)) == ("::ffff:127.0.0.1", 9, 0, 0)
    every.close()


async def test_without_ipv6_all_addresses_are_those_of_ipv4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = socket.socket

    def only_ipv4(family: int, *arguments: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments)

    monkeypatch.setattr("phoenix_trio.quic.packet_io.socket.socket", only_ipv4)
    opened = await UdpNetwork().open_socket(None, 0, buffer_size=4096)
    assert opened.address[0] == "0.0.0.0"
    opened.close()
    with pytest.raises(OSError, match="::1"):
        await UdpNetwork().open_socket("::1", 0, buffer_size=4096)


async def test_a_port_in_use_does_not_turn_a_dual_stack_into_half_of_it() -> None:
    try:
        taken = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
        taken.bind(("::", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port}") as caught:
            await UdpNetwork().open_socket(None, port, buffer_size=4096)
        assert caught.value.errno == errno.EADDRINUSE
        # The port was free for IPv4 alone, so the refusal was deliberate.
        (await open_socket("0.0.0.0", port)).close()


async def test_numeric_addresses_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_threads(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr("trio.to_thread.run_sync", no_threads)
    assert await UdpNetwork().resolve("127.0.0.1", 5) == [("127.0.0.1", 5)]
    assert await UdpNetwork().resolve("::1", 5) == [("::1", 5, 0, 0)]


async def test_the_statistics_say_which_buffers_were_granted() -> None:
    small = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=64 * 1024)
    assert small.statistics.receive_buffer_size == 64 * 1024
    assert small.statistics.send_buffer_size == 64 * 1024
    small.close()
    large = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=2**29)
    assert 64 * 1024 < large.statistics.receive_buffer_size <= 2**29
    large.close()


async def test_a_cancelled_wait_on_a_real_socket_loses_nothing() -> None:
    one, two = await open_socket("127.0.0.1"), await open_socket("127.0.0.1")
    with trio.move_on_after(0.01):
        await two.wait_readable()
    for number in range(20):
        one.send_run(bytes([number]), two.address)
    with trio.move_on_after(0):
        await two.wait_readable()
    received: list[int] = []
    with trio.fail_after(5):
        while len(received) < 20:
            await two.wait_readable()
            received += [byte for data, _, _, _, _ in two.receive_runs(7) for byte in data]
    assert received == list(range(20))
    assert two.statistics.datagrams_received == 20
    assert two.statistics.bytes_received == 20
    one.close()
    two.close()
