"""Memory is reused for receiving, and not copied for sending, if the settings say so."""

from __future__ import annotations

import os
from functools import partial

import attrs
import pytest
import trio
import trio.testing

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic.packet_io import ReceivedRun, UdpNetwork, UdpSocket
from phoenix_trio.quic.receive_pool import LARGEST_DATAGRAM, ReceivePool, receive_pool
from phoenix_trio.quic.receiving import RUNS_PER_TURN
from tests.support import ALPN, client_tls, connected_pair, server_tls, stream_pair

MEBIBYTE = 1024 * 1024


async def test_a_pool_makes_a_buffer_once_however_often_it_is_used() -> None:
    pool = ReceivePool(16 * LARGEST_DATAGRAM)
    one = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=MEBIBYTE)
    two = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=MEBIBYTE)
    seen: set[int] = set()
    try:
        for turn in range(20):
            payload = os.urandom(1000 + turn)
            one.send_run(payload, two.address)
            with trio.fail_after(5):
                await two.wait_readable()
            ((data, source, size, _, stop),) = two.receive_runs(16, pool)
            assert (bytes(data[:stop]), source[1], size) == (payload, one.address[1], len(payload))
            seen.add(id(data))
        assert len(seen) == 1
        assert len(pool) == 2  # the second for data that might have come as well
        assert two.statistics.receive_calls == 20
        assert two.statistics.pooled_receives == 19
    finally:
        one.close()
        two.close()


async def test_runs_of_one_call_lie_in_buffers_of_their_own() -> None:
    pool = ReceivePool(16 * LARGEST_DATAGRAM)
    one = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=MEBIBYTE)
    two = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=MEBIBYTE)
    try:
        # Of different sizes, so that no kernel joins them.
        payloads = [os.urandom(100 + index * 10) for index in range(5)][::-1]
        payloads = [payloads[index] for index in (1, 0, 3, 2, 4)]
        for payload in payloads:
            one.send_run(payload, two.address)
        found: list[bytes] = []
        with trio.fail_after(5):
            while len(b"".join(found)) < len(b"".join(payloads)):
                await two.wait_readable()
                runs = two.receive_runs(3, pool)
                assert len(runs) <= 3
                found += [bytes(data[:stop]) for data, _, _, _, stop in runs]
        assert b"".join(found) == b"".join(payloads)
        assert len(pool) <= 3
    finally:
        one.close()
        two.close()


async def test_what_finds_no_buffer_in_the_pool_gets_memory_of_its_own() -> None:
    pool = ReceivePool(2 * LARGEST_DATAGRAM)
    one = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=MEBIBYTE)
    two = await UdpNetwork().open_socket("127.0.0.1", 0, buffer_size=MEBIBYTE)
    # Each is larger than the one before, so that no kernel joins them.
    payloads = [os.urandom(100 + index) for index in range(5)]
    try:
        for already_pooled in (0, 2):
            for payload in payloads:
                one.send_run(payload, two.address)
            runs = two.receive_runs(16, pool)
            assert [bytes(data[:stop]) for data, _, _, _, stop in runs] == payloads
            assert [type(data) for data, *_ in runs] == [bytearray] * 2 + [bytes] * 3
            assert two.statistics.pooled_receives == already_pooled
        assert len(pool) == 2
    finally:
        one.close()
        two.close()


async def test_pools_of_one_thread_share_buffers_and_have_their_own_sizes() -> None:
    large, small = receive_pool(3 * LARGEST_DATAGRAM), receive_pool(LARGEST_DATAGRAM)
    buffers = [large.buffer(index) for index in range(4)]
    assert [buffer is None for buffer in buffers] == [False, False, False, True]
    assert small.buffer(0) is buffers[0]
    assert small.buffer(1) is None
    assert (len(large), len(small)) == (3, 1)


@pytest.mark.parametrize("buffers", [0, 1, 4, 64])
async def test_an_endpoint_uses_as_much_memory_again_as_it_may_and_reads_as_much_in_any_case(
    buffers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TransportConfig(
        enable_memory_pool=buffers > 0, memory_pool_size=max(1, buffers) * LARGEST_DATAGRAM
    )
    payload = os.urandom(4 * MEBIBYTE)
    got = bytearray()
    limits: set[int] = set()
    pooled: list[int] = []
    receive_runs = UdpSocket.receive_runs

    def receive_and_note(
        socket: UdpSocket, limit: int, pool: ReceivePool | None = None
    ) -> list[ReceivedRun]:
        runs = receive_runs(socket, limit, pool)
        limits.add(limit)
        pooled.append(sum(type(data) is bytearray for data, *_ in runs))
        assert pooled[-1] == min(len(runs), buffers)
        return runs

    monkeypatch.setattr(UdpSocket, "receive_runs", receive_and_note)

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        async with await connection.accept_stream() as stream:
            async for chunk in stream:
                got.extend(chunk)
            statistics.append(connection._driver.statistics())

    statistics: list[phoenix_trio.EndpointStatistics] = []
    async with trio.open_nursery() as nursery:
        serve = partial(
            phoenix_trio.serve,
            handler,
            0,
            host="127.0.0.1",
            tls=server_tls(),
            alpn=ALPN,
            config=config,
        )
        (listener,) = await nursery.start(serve)
        with trio.fail_after(20):
            async with (
                phoenix_trio.open_connection(
                    "127.0.0.1", listener.port, tls=client_tls(), alpn=ALPN, config=config
                ) as connection,
                await connection.open_stream() as stream,
            ):
                await stream.send_all(payload)
                await stream.send_eof()
                assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()
    assert got == payload
    (counters,) = statistics
    assert counters.receive_calls > 20
    assert limits == {RUNS_PER_TURN}
    # (The buffers were new at most once, and serve all endpoints of this thread.)
    assert counters.pooled_receives <= sum(pooled)
    assert (counters.pooled_receives > 0) is (buffers > 0)


@pytest.mark.parametrize(
    ("enabled", "data", "kept"),
    [
        (True, bytes(100_000), 1),
        (True, memoryview(bytes(100_000))[10:90_000], 1),
        (True, bytearray(100_000), 0),
        (True, memoryview(bytearray(100_000)), 0),
        (True, bytes(1000), 0),
        (False, bytes(100_000), 0),
    ],
)
async def test_only_what_is_large_and_cannot_change_is_kept_without_a_copy(
    enabled: bool,
    data: bytes | bytearray | memoryview,
    kept: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = attrs.evolve(TransportConfig(), enable_zero_copy=enabled)
    async with connected_pair(config=config) as pair:
        client, server = await stream_pair(*pair)
        expected = bytes(data)
        await client.send_all(data)
        if isinstance(data, bytearray):
            data[:] = b"\xff" * len(data)  # the caller may use it again at once
        await client.send_eof()
        got = bytearray()
        async for chunk in server:
            got += chunk
        assert got == expected
        assert client.connection.statistics().zero_copy_operations == kept


async def test_each_part_of_a_write_which_waits_for_room_is_kept_without_a_copy(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = TransportConfig(stream_send_buffer_size=64 * 1024)
    async with connected_pair(config=config) as pair:
        client, server = await stream_pair(*pair)
        payload = os.urandom(500_000)
        got = bytearray()

        async def read() -> None:
            async for chunk in server:
                got.extend(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await client.send_all(payload)
            await client.send_eof()
        assert got == payload
        # (At most 64 KiB at once.)
        assert 500_000 // (64 * 1024) < client.connection.statistics().zero_copy_operations < 32
