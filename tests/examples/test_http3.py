"""The HTTP/3 example on a bad network, and against slow and hostile peers."""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived
from aioquic.quic.events import StreamDataReceived

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from tests.example_programs import example_programs
from tests.support import CLIENT, PORT, SERVER, client_tls, server_tls

PROGRAMS = ("http3", "http3_client", "http3_server")


@pytest.fixture
def programs() -> Iterator[SimpleNamespace]:
    with example_programs(*PROGRAMS) as modules:
        yield modules


def asking(path: str, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"host": SERVER, "port": PORT, "path": path, "post": None, "show": False, **more}
    )


@asynccontextmanager
async def connected(
    programs: SimpleNamespace,
    network: SimulatedNetwork,
    config: phoenix_trio.TransportConfig | None = None,
) -> AsyncIterator[Any]:
    """A client's HTTP/3 connection to the example's server."""
    async with (
        phoenix_trio.Endpoint.open(
            SERVER, PORT, config=config, network=network.host(SERVER)
        ) as server,
        phoenix_trio.Endpoint.open(config=config, network=network.host(CLIENT)) as client,
    ):
        listener = server.listen(tls=server_tls(), alpn=programs.http3.ALPN)

        async def serve() -> None:
            connection = await listener.accept()
            try:
                await programs.http3_server.handler(connection)
            except* phoenix_trio.ConnectionBroken:
                pass  # the client's goodbye, or its silence if that was lost

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with client.connect(
                SERVER, PORT, tls=client_tls(), alpn=programs.http3.ALPN
            ) as connection:
                http = programs.http3.Http3(connection, is_client=True)
                await http.start()
                async with trio.open_nursery() as control:
                    control.start_soon(http.run_control_streams)
                    yield http
                    control.cancel_scope.cancel()
                await connection.aclose(programs.http3.H3_NO_ERROR)


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.soak) for n in range(4, 60))]
)
async def test_bodies_arrive_in_order_at_thirty_percent_loss(
    seed: int,
    programs: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Header sections refer to QPACK's table (RFC 9204), so a lost packet of the encoder's
    # stream makes them wait while their bodies arrive.
    config = phoenix_trio.TransportConfig(max_idle_timeout=600)
    network = SimulatedNetwork(seed=seed, delay=0.02, jitter=0.01)
    size = 40_000
    async with connected(programs, network, config) as http:
        network.conditions = attrs.evolve(network.conditions, loss=0.3)
        for _ in range(6):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(programs.http3_client.request, http, asking(f"/{size}"))
    digest = hashlib.sha256(programs.http3_server.body_of(size)).hexdigest()
    answers = [line for line in capsys.readouterr().out.splitlines() if "SHA-256" in line]
    assert answers == [f"{size} bytes, SHA-256 {digest}"] * 30, network


class FakeQuic:
    """The connection that aioquic's H3Connection uses: collects the bytes of each stream."""

    def __init__(self, *, is_client: bool) -> None:
        self.configuration = SimpleNamespace(is_client=is_client)
        self._quic_logger = None
        self._remote_max_datagram_frame_size = None
        self._next = itertools.count(2 if is_client else 3, 4)
        self.sent: defaultdict[int, bytes] = defaultdict(bytes)

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        return next(self._next)

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        self.sent[stream_id] += data


class FakeConnection:
    """The connection that our Http3 uses; drops everything sent."""

    max_datagram_size: int | None = 1200
    closed_with: int | None = None

    def __init__(self) -> None:
        self._next = itertools.count(2, 4)

    async def open_send_stream(self) -> Any:
        async def nothing(data: bytes = b"") -> None:
            await trio.lowlevel.checkpoint()

        return SimpleNamespace(id=next(self._next), send_all=nothing, send_eof=nothing)

    def abort(self, code: int, reason: str = "") -> None:
        self.closed_with = code


def take(quic: FakeQuic) -> dict[int, bytes]:
    sent, quic.sent = dict(quic.sent), defaultdict(bytes)
    return sent


async def test_a_body_behind_a_qpack_wait_stays_in_order(programs: SimpleNamespace) -> None:
    client = programs.http3.Http3(FakeConnection(), is_client=True)
    await client.start()
    ours, theirs = FakeQuic(is_client=True), FakeQuic(is_client=False)
    H3Connection(ours)  # type: ignore[arg-type]
    server = H3Connection(theirs)  # type: ignore[arg-type]
    for number, data in take(ours).items():
        server.handle_event(StreamDataReceived(data=data, end_stream=False, stream_id=number))
    # A header that comes for the second time goes into the table; the section only refers
    # to it, and cannot be read before the encoder's stream has brought it.
    headers = [(b":status", b"200"), (b"name", b"value")]
    server.send_headers(4, headers, end_stream=True)
    table = 7
    before = take(theirs)
    server.send_headers(0, headers)
    explanation = theirs.sent.pop(table)
    parts = [bytes([65 + number]) * 1_000 for number in range(40)]
    for part in parts[:20]:
        server.send_data(0, part, end_stream=False)
    first = theirs.sent.pop(0)
    for number, part in enumerate(parts[20:], 21):
        server.send_data(0, part, end_stream=number == 40)
    second = theirs.sent.pop(0)

    received: list[bytes] = []
    with client.request(SimpleNamespace(id=0)) as inbox:
        async with trio.open_nursery() as nursery:
            pipes = {}
            for number in (0, 3, table):
                pipes[number], receiving = trio.testing.memory_stream_one_way_pair()
                nursery.start_soon(client.pump, receiving, number)
            for number in (3, table):
                await pipes[number].send_all(before[number])
            await pipes[0].send_all(first)
            await trio.testing.wait_all_tasks_blocked()
            # Both in one turn: the explanation that was awaited, and more behind it.
            await pipes[table].send_all(explanation)
            await pipes[0].send_all(second)
            await pipes[0].aclose()
            ended = False
            while not ended:
                event = await inbox.receive()
                ended = event.stream_ended
                if isinstance(event, DataReceived):
                    received.append(event.data)
            nursery.cancel_scope.cancel()
    assert b"".join(received) == b"".join(parts)


async def test_a_peer_which_never_explains_its_headers_is_not_read_without_end(
    programs: SimpleNamespace,
) -> None:
    client = programs.http3.Http3(FakeConnection(), is_client=True)
    await client.start()
    taken = 0

    class Endless(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            nonlocal taken
            await trio.lowlevel.checkpoint()
            # First a header section (RFC 9204 section 4.5.1) that needs one entry of the table.
            data = b"\x01\x03\x02\x00\x80" if not taken else b"\x00\x7f\xff" + bytes(16_383)
            taken += len(data)
            return data

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    with client.request(SimpleNamespace(id=0)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.pump, Endless(), 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert programs.http3.READ_AHEAD <= taken < programs.http3.READ_AHEAD + 20_000


@pytest.mark.parametrize(("datagrams", "refused"), [(True, False), (False, True)])
async def test_a_peer_may_announce_http_datagrams_if_its_transport_has_them(
    datagrams: bool, refused: bool, programs: SimpleNamespace
) -> None:
    # RFC 9297 section 2.1.1; browsers do.
    connection = FakeConnection()
    connection.max_datagram_size = 1200 if datagrams else None
    server = programs.http3.Http3(connection, is_client=False)
    await server.start()
    settings = b"\x00\x04\x02\x33\x01"
    with pytest.raises(trio.BrokenResourceError, match="no more"):
        await server.pump(trio_stream(settings), 2)
    assert (connection.closed_with == 0x109) is refused


async def test_one_answer_which_is_not_read_does_not_hold_up_the_others(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with connected(programs, network) as http:
        async with await http.connection.open_stream() as unread:
            with http.request(unread):
                headers = {
                    ":method": "GET",
                    ":scheme": "https",
                    ":authority": "example.org",
                    ":path": "/100000000",
                }
                await http.send_headers(unread, headers, end=True)
                await trio.sleep(5)
                with trio.fail_after(5):
                    await programs.http3_client.request(http, asking("/10000"))
            unread.stop_receiving()
        # Nor does a cancelled request hold up others.
        await programs.http3_client.request(http, asking("/10000"))


def trio_stream(data: bytes) -> trio.abc.ReceiveStream:
    """A stream that brings `data`, and then only waits to be asked again once."""

    class Once(trio.abc.ReceiveStream):
        left = data

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            if not self.left:
                raise trio.BrokenResourceError("no more")
            given, self.left = self.left, b""
            return given

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    return Once()
