"""Memory stays bounded, and many connections are served: measured in processes of their own.

Run with ``-s`` to see the figures.  No test fails for being slow; memory bounds do fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import phoenix_trio
from phoenix_trio.quic import events
from tests.engine_access import counted_stream_visits, streams_with_new_limit
from tests.support import (
    ALPN,
    EnginePair,
    authority_pem,
    client_tls,
    server_pem,
)

WORKER = Path(__file__).with_name("worker.py")
MEBIBYTE = 1024 * 1024

#: Memory that a process may need beside the buffers: copies in flight, packets, allocator slack.
SLACK = 24 * MEBIBYTE


class Worker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the worker has ended"
        message: dict[str, Any] = json.loads(line)
        return message

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.hear()


@contextmanager
def worker(*arguments: str) -> Iterator[Worker]:
    process = subprocess.Popen(
        [sys.executable, str(WORKER), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    chain, key = server_pem()
    (tmp_path / "server.pem").write_bytes(chain)
    (tmp_path / "server-key.pem").write_bytes(key)
    (tmp_path / "ca.pem").write_bytes(authority_pem())
    return tmp_path


@pytest.mark.parametrize("streams", [1, 100])
def test_a_reader_which_never_reads_is_offered_a_gigabyte(
    streams: int, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receive_limit, send_limit = 16 * MEBIBYTE, 8 * MEBIBYTE
    pem = [str(certificates / name) for name in ("server.pem", "server-key.pem")]
    with worker("receiver", *pem) as receiver:
        port = str(receiver.hear()["port"])
        before_there = receiver.ask("measure")["resident"]
        each = str(1_000_000_000 // streams)
        with worker("sender", port, str(certificates / "ca.pem"), str(streams), each) as sender:
            before_here = sender.hear()["resident"]
            written = -1
            while (now := sender.ask("measure"))["written"] != written:
                written = now["written"]
                time.sleep(1.0)  # until the sender is stuck
            here, there = sender.ask("measure"), receiver.ask("measure")
    grown_here = here["resident"] - before_here
    grown_there = there["resident"] - before_there
    with capsys.disabled():
        print(
            f"\n1 GB offered on {streams} stream(s) to a reader which never reads:"
            f" {written / MEBIBYTE:.1f} MiB taken;"
            f" receiver holds {there['buffered'] / MEBIBYTE:.1f} MiB, RSS +"
            f"{grown_there / MEBIBYTE:.1f} MiB;"
            f" sender holds {here['buffered'] / MEBIBYTE:.1f} MiB, RSS +"
            f"{grown_here / MEBIBYTE:.1f} MiB"
        )
    assert there["buffered"] <= receive_limit
    assert here["buffered"] <= send_limit
    assert grown_there <= receive_limit + SLACK
    assert grown_here <= send_limit + SLACK


def test_a_reader_which_reads_late_gets_everything(certificates: Path) -> None:
    pem = [str(certificates / name) for name in ("server.pem", "server-key.pem")]
    with worker("receiver", *pem) as receiver:
        port = str(receiver.hear()["port"])
        with worker("sender", port, str(certificates / "ca.pem"), "20", "1000000") as sender:
            sender.hear()
            time.sleep(1.0)
            receiver.tell("read")
            sender.tell("wait")
            assert sender.hear() == {"verified": 20}


@asynccontextmanager
async def many_connections(port: int, count: int) -> AsyncIterator[list[Any]]:
    async with phoenix_trio.Endpoint.open("127.0.0.1") as endpoint:
        connections: list[Any] = []

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            async with endpoint.connect("127.0.0.1", port, tls=client_tls(), alpn=ALPN) as one:
                # A client is done before the server has read the client's last handshake message.
                await one.wait_confirmed()
                connections.append(one)
                task_status.started()
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as dialling:
                for _ in range(count):
                    dialling.start_soon(nursery.start, hold)
            yield connections
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("connection_count", "streams_each"),
    [(200, 50), pytest.param(1000, 100, marks=pytest.mark.soak)],
)
async def test_two_hundred_connections_and_ten_thousand_streams_are_served(
    connection_count: int,
    streams_each: int,
    certificates: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pem = [str(certificates / name) for name in ("server.pem", "server-key.pem")]
    with worker("echo", *pem) as server:
        port = server.hear()["port"]
        before = server.ask("measure")["resident"]
        async with many_connections(port, connection_count) as connections:
            idle = server.ask("measure")
            assert idle["connections"] == connection_count
            served = 0

            async def use(connection: phoenix_trio.QuicConnection) -> None:
                nonlocal served
                for number in range(streams_each):
                    payload = b"%d" % number * 10
                    async with await connection.open_stream() as stream:
                        await stream.send_all(payload)
                        await stream.send_eof()
                        answer = b"".join([bytes(piece) async for piece in stream])
                    assert answer == payload
                    served += 1

            started = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for connection in connections:
                    nursery.start_soon(use, connection)
            seconds = time.perf_counter() - started
            after = server.ask("measure")
    total = connection_count * streams_each
    assert served == total
    per_connection = (idle["resident"] - before) / connection_count
    with capsys.disabled():
        print(
            f"\n{connection_count} connections: {per_connection / 1024:.0f} KiB each in the"
            f" server while idle; {total} streams, each new with an echo:"
            f" {seconds / total * 1e6:.0f} us a stream ({total / seconds:.0f} a second),"
            f" server RSS +{(after['resident'] - idle['resident']) / MEBIBYTE:.1f} MiB meanwhile"
        )
    assert per_connection < 400 * 1024


def test_idle_streams_are_not_looked_at_for_each_packet() -> None:
    """Counts, not times: how many streams the engine visits while it sends a megabyte."""
    visits: dict[int, int] = {}
    for idle in (0, 1000):
        config = phoenix_trio.TransportConfig(max_bidirectional_streams=2000)
        # Skipped packet numbers cut runs at random places, and so change the count.
        pair = EnginePair(client_config=config, server_config=config, skips=None).connect()
        engine = pair.client.engine
        for _ in range(idle):
            stream_id = engine.open_stream(unidirectional=False)
            assert stream_id is not None
            engine.write(stream_id, b"x")
        pair.run(2.0)
        assert pair.server is not None
        assert len(pair.server.of(events.StreamOpened)) == idle
        busy = engine.open_stream(unidirectional=False)
        assert busy is not None
        engine.write(busy, bytes(1_000_000))
        assert not streams_with_new_limit(engine)
        with counted_stream_visits(engine) as count:
            pair.run(5.0)
        assert len(pair.server.received[busy]) == 1_000_000
        visits[idle] = count()
    assert visits[1000] <= visits[0] * 1.05
