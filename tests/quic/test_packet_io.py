"""Real UDP sockets on loopback."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio

from phoenix_trio.quic.packet_io import UdpNetwork, UdpSocket, display_address


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
    assert one.send(b"hello", two.address)
    with trio.fail_after(5):
        await two.wait_readable()
    ((data, source),) = two.receive(10)
    assert data == b"hello"
    assert source[1] == one.address[1]
    assert two.receive(10) == []
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
    both.send(b"x", target)
    with trio.fail_after(5):
        await four.wait_readable()
    ((_, source),) = four.receive(1)
    four.send(b"y", source)
    with trio.fail_after(5):
        await both.wait_readable()
    ((_, back),) = both.receive(1)
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
    assert one.send(bytes(65_535), ("127.0.0.1", 9)), "too large: lost, not blocked"
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
        one.send(b"x", ("127.0.0.1", 9))
    with pytest.raises(OSError, match="gone"):
        one.receive(1)
    one._raw = raw
    one.close()


async def test_a_full_send_buffer_is_told_apart() -> None:
    one = await open_socket("127.0.0.1")

    class Full:
        def sendto(self, *arguments: Any) -> int:
            raise BlockingIOError(errno.EAGAIN, "full")

    raw, one._raw = one._raw, Full()  # type: ignore[assignment]
    assert one.send(b"x", ("127.0.0.1", 9)) is False
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
    assert one.receive(5) == []
    assert one.send(b"x", ("127.0.0.1", 9))
    assert isinstance(one.address[1], int)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", one.address[1]))
