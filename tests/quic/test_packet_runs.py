"""Runs of datagrams on real sockets: GSO, GRO, marks, and systems without them."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import phoenix_trio
from phoenix_trio.quic import packet_io, socket_options
from phoenix_trio.quic.established.pacer import Pacer
from phoenix_trio.quic.packet_io import UdpNetwork, UdpSocket
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair, stream_pair


@asynccontextmanager
async def two_sockets(host: str | None = "127.0.0.1") -> AsyncIterator[tuple[UdpSocket, UdpSocket]]:
    try:
        one = await UdpNetwork().open_socket(host, 0, buffer_size=1024 * 1024)
        two = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=1024 * 1024)
    except OSError as error:
        pytest.skip(f"no such socket here: {error}")
    try:
        yield one, two
    finally:
        one.close()
        two.close()


async def read(receiver: UdpSocket, count: int) -> list[tuple[bytes, int]]:
    """Receive `count` single datagrams, with their marks."""
    found: list[tuple[bytes, int]] = []
    with trio.fail_after(5):
        while len(found) < count:
            await receiver.wait_readable()
            for data, _, size, mark, _ in receiver.receive_runs(16):
                if size:  # (not an empty datagram)
                    found += [(data[at : at + size], mark) for at in range(0, len(data), size)]
    return found


class Refusing:
    """A raw socket whose ``sendmsg`` fails, perhaps for runs only; ``sendto`` works."""

    def __init__(
        self, raw: Any, number: int, times: int = 1_000_000, *, runs_only: bool = False
    ) -> None:
        self.raw, self.number, self.times = raw, number, times
        self.runs_only = runs_only
        self.refused = 0

    def sendmsg(self, *arguments: Any) -> Any:
        is_run = any(level == socket_options.SOL_UDP for level, _, _ in arguments[1])
        if self.refused < self.times and (is_run or not self.runs_only):
            self.refused += 1
            raise OSError(self.number, os.strerror(self.number))
        return self.raw.sendmsg(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def pieces(count: int, size: int, last: int) -> list[bytes]:
    return [bytes([n]) * size for n in range(count - 1)] + [bytes([count - 1]) * last]


@pytest.mark.parametrize(("count", "size", "last"), [(10, 1200, 1200), (64, 100, 7), (2, 9000, 1)])
async def test_a_run_arrives_as_the_datagrams_it_consists_of(
    count: int, size: int, last: int
) -> None:
    async with two_sockets() as (one, two):
        parts = pieces(count, size, last)
        whole = b"".join(parts)
        assert one.send_run(whole, two.address, size) == len(whole)
        assert [data for data, _ in await read(two, count)] == parts
        sent, received = one.statistics, two.statistics
        assert sent.datagrams_sent == received.datagrams_received == count
        assert sent.bytes_sent == received.bytes_received == len(whole)
        if sent.gso:
            assert sent.send_calls == 1


async def test_what_the_kernel_does_not_take_as_one_run_leaves_in_several() -> None:
    async with two_sockets() as (one, two):
        parts = pieces(packet_io.MAX_RUN_SEGMENTS + 5, 50, 50)
        whole = b"".join(parts)
        assert one.send_run(whole, two.address, 50) == len(whole)
        assert [data for data, _ in await read(two, len(parts))] == parts


@pytest.mark.parametrize("name", ["EIO", "EOPNOTSUPP"])
async def test_an_interface_without_gso_gets_datagrams_one_by_one_from_then_on(name: str) -> None:
    async with two_sockets() as (one, two):
        if not one.statistics.gso:
            pytest.skip("no GSO here")
        refusing = Refusing(one._raw, getattr(errno, name))
        one._raw = refusing  # type: ignore[assignment]
        parts = pieces(5, 1000, 10)
        for _ in range(2):
            assert one.send_run(b"".join(parts), two.address, 1000) == 4010
            assert [data for data, _ in await read(two, 5)] == parts
        assert refusing.refused == 1, "it is not tried again"
        assert not one.statistics.gso
        one._raw = refusing.raw


async def test_an_invalid_argument_may_be_a_passing_matter() -> None:
    async with two_sockets() as (one, two):
        if not one.statistics.gso:
            pytest.skip("no GSO here")
        parts = pieces(3, 1000, 1000)
        whole = b"".join(parts)
        refusing = Refusing(one._raw, errno.EINVAL, times=2)
        one._raw = refusing  # type: ignore[assignment]
        for _ in range(3):
            assert one.send_run(whole, two.address, 1000) == len(whole)
            assert [data for data, _ in await read(two, 3)] == parts
        assert one.statistics.gso, "two refusals, then it worked"
        refusing.refused, refusing.times = 0, 100
        for _ in range(5):
            assert one.send_run(whole, two.address, 1000) == len(whole)
        assert refusing.refused == 3
        assert not one.statistics.gso
        one._raw = refusing.raw


async def test_a_full_buffer_in_the_middle_of_a_run_says_how_much_was_taken() -> None:
    async with two_sockets() as (one, two):
        one._gso = False

        class Filling(Refusing):
            left = 3

            def sendto(self, *arguments: Any) -> Any:
                if not self.left:
                    raise BlockingIOError(errno.EAGAIN, "full")
                self.left -= 1
                return self.raw.sendto(*arguments)

        raw = one._raw
        one._raw = Filling(raw, 0)  # type: ignore[assignment]
        parts = pieces(6, 100, 40)
        whole = b"".join(parts)
        assert one.send_run(whole, two.address, 100) == 300
        one._raw = raw
        assert one.send_run(whole[300:], two.address, 100) == 240
        assert [data for data, _ in await read(two, 6)] == parts
        assert one.statistics.send_blocked == 1


@pytest.mark.parametrize("host", ["127.0.0.1", None])
@pytest.mark.parametrize("gso", [True, False])
async def test_marks_are_set_and_read(host: str | None, gso: bool) -> None:
    async with two_sockets(host) as (one, two):
        if not (one.statistics.ecn and two.statistics.ecn):
            pytest.skip("no ECN here")
        one._gso = one._gso and gso
        target = one.reachable(two.address)
        assert target is not None
        for mark in (2, 0, 3, 1):
            one.send_run(b"single", target, None, mark)
            one.send_run(bytes(2500), target, 1000, mark)
            assert [seen for _, seen in await read(two, 4)] == [mark] * 4
        # And back, to a socket with IPv4 addresses in their IPv6 form.
        two.send_run(b"back", ("127.0.0.1", one.address[1]), None, 2)
        assert await read(one, 1) == [(b"back", 2)]


async def test_marks_are_set_and_read_over_ipv6() -> None:
    try:
        one = await UdpNetwork().open_socket("::1", 0, buffer_size=65536)
    except OSError:
        pytest.skip("no IPv6 here")
    one.send_run(b"x" * 30, one.address, 10, 2)
    assert await read(one, 3) == [(b"x" * 10, 2)] * 3
    one.close()


async def test_a_system_which_takes_no_marks_still_sends() -> None:
    async with two_sockets() as (one, two):
        if not one.statistics.ecn:
            pytest.skip("no ECN here")
        refusing = Refusing(one._raw, errno.EINVAL)
        one._raw = refusing  # type: ignore[assignment]
        for _ in range(packet_io._MARK_PATIENCE + 3):
            assert one.send_run(b"x", two.address, None, 2) == 1
        assert refusing.refused == packet_io._MARK_PATIENCE
        assert not one.statistics.ecn
        assert len(await read(two, packet_io._MARK_PATIENCE + 3)) == packet_io._MARK_PATIENCE + 3
        assert one.statistics.soft_errors == 0
        one._raw = refusing.raw


async def test_sockets_without_any_of_it_work_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for feature in ("can_gso", "enable_gro", "enable_ecn"):
        monkeypatch.setattr(socket_options, feature, lambda raw: False)
    async with connected_pair(real=True) as (client, server):
        statistics = client._driver.socket.statistics
        assert not any((statistics.gso, statistics.gro, statistics.ecn))
        ours, theirs = await stream_pair(client, server)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send_all, bytes(300_000))
                received = 0
                while received < 300_000:
                    received += len(await theirs.receive_some())


async def test_gso_which_fails_in_mid_transfer_loses_no_connection() -> None:
    # (Small packets to the end: the largest ones leave one by one, and need no GSO.)
    config = phoenix_trio.TransportConfig(max_udp_payload_size=1400)
    async with connected_pair(real=True, config=config) as (client, server):
        sock = client._driver.socket
        assert isinstance(sock, UdpSocket)
        raw = sock._raw
        ours, theirs = await stream_pair(client, server)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send_all, bytes(2_000_000))
                received = 0
                while received < 2_000_000:
                    received += len(await theirs.receive_some())
                    if received > 500_000 and sock._raw is raw:
                        sock._raw = Refusing(raw, errno.EIO, runs_only=True)  # type: ignore[assignment]
        assert not sock.statistics.gso
        sock._raw = raw


async def test_small_buffers_are_complained_of_once_with_the_setting_to_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket_options, "_warned", set())
    monkeypatch.setattr(socket_options, "granted_buffer", lambda raw, option: 1000)
    with caplog.at_level(logging.WARNING, "phoenix_trio.quic"):
        for _ in range(2):
            (await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=123_456)).close()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, "one for each direction"
    assert "net.core.rmem_max=123456" in messages[0]
    assert "net.core.wmem_max=123456" in messages[1]
    assert all("1000" in message for message in messages)


async def test_the_interface_says_how_large_a_payload_may_be() -> None:
    async with two_sockets() as (one, _):
        size = one.largest_payload(("127.0.0.1", 9))
        assert size is None or 1200 <= size <= 65_507
        assert one.largest_payload(("not an address", 9)) is None


async def test_runs_of_the_simulated_network_keep_datagrams_and_marks_apart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = SimulatedNetwork(mtu=None)
    one = await network.host("192.0.2.1").open_socket(None, 1000, buffer_size=1 << 20)
    two = await network.host("192.0.2.2").open_socket(None, 2000, buffer_size=1 << 20)
    one.send_run(b"aabbc", two.address, 2, 2)
    one.send_run(b"dd", two.address, None, 0)
    one.send_run(b"eeff", two.address, 2, 0)
    one.send_run(b"longer than those", two.address)
    await two.wait_readable()
    assert [(data, size, mark) for data, _, size, mark, _ in two.receive_runs(10)] == [
        (b"aabbc", 2, 2),
        (b"ddeeff", 2, 0),
        (b"longer than those", 17, 0),
    ]


# ------------------------------------------------------------------ the pacer, in runs


def test_the_pacer_gives_runs_at_the_same_rate() -> None:
    pacer = Pacer(1000)
    assert pacer.packets_available(0.0) == 64, "no estimate yet"
    pacer.update_rate(congestion_window=100_000, smoothed_rtt=0.1)  # 1.25 MB a second
    sent, now = 0, 0.0
    while now < 2.0:
        count = pacer.packets_available(now)
        pacer.update_after_run(count)
        sent += count
        now += 0.001
    assert sent == pytest.approx(1250 * 2.0, rel=0.03)


def test_sockets_are_described_by_their_address() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        raw.bind(("127.0.0.1", 0))
        assert "127.0.0.1" in repr(UdpSocket(raw, dual_stack=False))


def test_ecn_can_be_switched_off() -> None:
    assert not phoenix_trio.TransportConfig(enable_ecn=False).enable_ecn
    with pytest.raises(TypeError):
        phoenix_trio.TransportConfig(enable_ecn="no")  # type: ignore[arg-type]


# ------------------------------------------------------------------ causes of a refusal


class NarrowPath(Refusing):
    """An interface with a reduced MTU: it refuses runs and single datagrams alike."""

    def __init__(self, raw: Any, number: int, single: int) -> None:
        super().__init__(raw, number)
        self.single = single

    def sendto(self, *arguments: Any) -> Any:
        raise OSError(self.single, os.strerror(self.single))


@pytest.mark.parametrize("single", ["EMSGSIZE", "EINVAL", "ENETUNREACH"])
@pytest.mark.parametrize("mark", [0, 2])
async def test_what_fails_one_by_one_as_well_says_nothing_of_runs_or_marks(
    single: str, mark: int
) -> None:
    """A server must not lose GSO and ECN for all because of one unreachable address."""
    async with two_sockets() as (one, two):
        before = one.statistics
        raw = one._raw
        one._raw = NarrowPath(raw, errno.EINVAL, getattr(errno, single))  # type: ignore[assignment]
        for _ in range(20):
            assert one.send_run(bytes(3000), two.address, 1000, mark) == 3000
            assert one.send_run(b"x", two.address, None, mark) == 1
        assert one.statistics.gso == before.gso
        assert one.statistics.ecn == before.ecn
        assert one.statistics.soft_errors >= 80
        one._raw = raw
        assert one.send_run(b"y", two.address, None, mark) == 1
        assert await read(two, 1) == [(b"y", mark if before.ecn else 0)]


async def test_refusals_of_marks_far_apart_do_not_add_up() -> None:
    async with two_sockets() as (one, two):
        if not one.statistics.ecn:
            pytest.skip("no ECN here")
        raw = one._raw
        for _ in range(3 * packet_io._MARK_PATIENCE):
            one._raw = Refusing(raw, errno.EINVAL, times=1)  # type: ignore[assignment]
            assert one.send_run(b"x", two.address, None, 2) == 1
            assert one.send_run(b"y", two.address, None, 2) == 1
            one._raw = raw
            await read(two, 2)
        assert one.statistics.ecn


async def test_empty_datagrams_are_no_trouble() -> None:
    async with two_sockets() as (one, two):
        for _ in range(3):
            one._raw.sendto(b"", two.address)
        one.send_run(b"x", two.address)
        await read(two, 1)
    async with connected_pair(real=True) as (client, server):
        address = client.peer_address[:2]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
            for _ in range(50):
                raw.sendto(b"", address)
        ours, theirs = await stream_pair(client, server)
        with trio.fail_after(5):
            await ours.send_all(b"still here")
            assert await theirs.receive_some() == b"still here"
