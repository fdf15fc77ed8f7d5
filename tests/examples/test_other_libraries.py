"""Other people's libraries on our streams: httpcore, h11, trio-websocket, msgspec.

Over the simulated network, so that time and faults are exact; test_examples.py runs the same
examples as processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import h11
import httpcore
import pytest
import trio
import trio.testing
import trio_websocket

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from tests.example_programs import example_programs
from tests.support import CLIENT, PORT, SERVER, client_tls, connected_pair, server_tls, stream_pair

PROGRAMS = ("h11_server", "httpcore_backend", "websocket_streams", "actor_channel")
URL = f"https://{SERVER}:{PORT}"


@pytest.fixture
def programs() -> Iterator[SimpleNamespace]:
    with example_programs(*PROGRAMS) as modules:
        yield modules


@attrs.frozen
class Client:
    """httpcore on a simulated network."""

    http: httpcore.AsyncConnectionPool
    pool: phoenix_trio.ConnectionPool

    async def get(self, path: str, **timeouts: float) -> httpcore.Response:
        return await self.http.request("GET", URL + path, extensions={"timeout": timeouts})

    async def streams_opened(self) -> int:
        async with self.pool.lease((SERVER, PORT)) as quic:
            return quic.streams_opened


@asynccontextmanager
async def http_client(
    programs: SimpleNamespace,
    network: SimulatedNetwork,
    handler: Callable[[Any], Awaitable[object]] | None = None,
) -> AsyncIterator[Client]:
    """A client of the example's server, or of one with another handler; ``None``: of no server."""
    alpn = programs.h11_server.ALPN
    config = phoenix_trio.TransportConfig(keep_alive=5)
    with trio.fail_after(600):
        async with (
            trio.open_nursery() as nursery,
            phoenix_trio.Endpoint.open(config=config, network=network.host(CLIENT)) as endpoint,
            phoenix_trio.open_pool(
                lambda target: endpoint.connect(
                    target.host, target.port, tls=client_tls(), alpn=alpn
                )
            ) as pool,
            httpcore.AsyncConnectionPool(
                network_backend=programs.httpcore_backend.QuicBackend(pool)
            ) as http,
        ):
            if handler is not None:
                listener = await phoenix_trio.open_stream_listener(
                    PORT, host=SERVER, tls=server_tls(), alpn=alpn, network=network.host(SERVER)
                )
                nursery.start_soon(trio.serve_listeners, handler, [listener])
            yield Client(http, pool)
            await http.aclose()
            await pool.aclose()
            nursery.cancel_scope.cancel()


async def test_requests_at_the_same_time_are_streams_of_one_connection(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    network = SimulatedNetwork(delay=0.05)
    async with http_client(programs, network, programs.h11_server.handler) as client:
        await client.get("/1")
        started = trio.current_time()
        answers: dict[int, httpcore.Response] = {}

        async def fetch(size: int) -> None:
            answers[size] = await client.get(f"/{size}")

        async with trio.open_nursery() as nursery:
            for size in range(1_000, 1_008):
                nursery.start_soon(fetch, size)
        assert trio.current_time() - started < 0.15, "one round trip for all of them"
        assert {size: len(answer.content) for size, answer in answers.items()} == {
            size: size for size in range(1_000, 1_008)
        }
        assert await client.streams_opened() == 8
        statistics = client.pool.statistics().targets[f"{SERVER}:{PORT}"]
        assert (statistics.dials, statistics.connections) == (1, 1)


async def test_requests_one_after_the_other_share_a_stream(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with http_client(programs, network, programs.h11_server.handler) as client:
        for size in (0, 1, 300_000, 5):
            answer = await client.get(f"/{size}")
            assert answer.content == b"".join(programs.h11_server.body_of(size))
        body = bytes(range(256)) * 4_000
        answer = await client.http.request("POST", URL + "/", content=body)
        assert answer.content.decode().split() == [
            str(len(body)),
            hashlib.sha256(body).hexdigest(),
        ]
        assert (await client.get("/none")).status == 404
        assert await client.streams_opened() == 1


async def test_a_connection_which_the_server_has_ended_while_idle_is_not_used_again(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01)
    async with http_client(programs, network, programs.h11_server.handler) as client:
        assert (await client.get("/1")).status == 200
        await trio.sleep(programs.h11_server.PATIENCE + 1)  # the server ends idle streams
        assert (await client.get("/2")).status == 200
        assert await client.streams_opened() == 2


async def silent(stream: trio.abc.Stream) -> None:
    async with stream:
        await trio.sleep_forever()


async def test_silence_of_the_server_is_a_read_timeout(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    async with http_client(programs, SimulatedNetwork(delay=0.01), silent) as client:
        started = trio.current_time()
        with pytest.raises(httpcore.ReadTimeout):
            await client.get("/1", read=3)
        assert trio.current_time() - started == pytest.approx(3, abs=0.2)


class Endless:
    """A body without an end; not a generator, which httpcore would leave to the collector."""

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return bytes(100_000)


async def test_a_server_which_reads_nothing_is_a_write_timeout(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    async with http_client(programs, SimulatedNetwork(delay=0.01), silent) as client:
        timeouts = {"timeout": {"write": 5}}
        with pytest.raises(httpcore.WriteTimeout):
            await client.http.request("POST", URL + "/", content=Endless(), extensions=timeouts)


async def test_a_host_which_does_not_answer_is_a_connect_timeout(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    async with http_client(programs, SimulatedNetwork(delay=0.01)) as client:
        started = trio.current_time()
        with pytest.raises(httpcore.ConnectTimeout):
            await client.get("/1", connect=2)
        assert trio.current_time() - started == pytest.approx(2)


async def test_a_port_on_which_nothing_listens_is_a_connect_error(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    network = SimulatedNetwork(delay=0.01, port_unreachable=True)
    network.host(SERVER)
    async with http_client(programs, network) as client:
        with pytest.raises(httpcore.ConnectError) as caught:
            await client.get("/1")
        assert isinstance(caught.value.__context__, phoenix_trio.ServerUnreachable)


async def test_a_reset_stream_is_a_read_error_and_the_next_request_works(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    count = 0

    async def failing_once(stream: phoenix_trio.QuicStream) -> None:
        nonlocal count
        count += 1
        if count == 1:
            async with stream:
                await stream.receive_some()
                stream.reset(5)
        else:
            await programs.h11_server.handler(stream)

    async with http_client(programs, SimulatedNetwork(delay=0.01), failing_once) as client:
        with pytest.raises(httpcore.ReadError) as caught:
            await client.get("/1")
        assert isinstance(caught.value.__context__, phoenix_trio.StreamReset)
        assert (await client.get("/2")).status == 200
        assert client.pool.statistics().targets[f"{SERVER}:{PORT}"].dials == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 100_000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", 400),
    ],
)
async def test_the_http_server_outlives_bad_clients(
    sent: bytes,
    status: int,
    programs: SimpleNamespace,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(programs.h11_server.handler, theirs)
            await ours.send_all(sent, end=True)
            reader = h11.Connection(h11.CLIENT)
            reader.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
            reader.send(h11.EndOfMessage())
            reader.receive_data(await ours.receive_all(100_000))
            event = reader.next_event()
            assert isinstance(event, h11.Response)
            assert event.status_code == status


async def test_websockets_are_wrapped_around_our_streams(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)

        async def serve() -> None:
            async with trio.open_nursery() as nursery:
                request = await trio_websocket.wrap_server_stream(nursery, theirs)
                assert request.path == "/there"
                async with await request.accept() as websocket:
                    for _ in range(3):
                        await websocket.send_message(await websocket.get_message())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            wrapped: Any = ours
            websocket = await trio_websocket.wrap_client_stream(nursery, wrapped, "host", "/there")
            for message in ("text", b"bytes", "x" * 500_000):
                await websocket.send_message(message)
                assert await websocket.get_message() == message
            with pytest.raises(trio_websocket.ConnectionClosed) as caught:
                await websocket.get_message()
            assert caught.value.reason.code == 1000
        assert client.available_streams > 0
        assert not client.is_closed


async def test_a_websocket_hears_of_the_end_of_its_connection(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)

        async def serve() -> None:
            async with trio.open_nursery() as nursery:
                request = await trio_websocket.wrap_server_stream(nursery, theirs)
                await programs.websocket_streams.echo(request)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            wrapped: Any = ours
            websocket = await trio_websocket.wrap_client_stream(nursery, wrapped, "host", "/")
            await websocket.send_message("hello")
            assert await websocket.get_message() == "hello"
            server.abort(7)
            with pytest.raises(trio_websocket.ConnectionClosed) as caught:
                await websocket.get_message()
            assert caught.value.reason.code == 1006  # abnormal closure


async def test_messages_of_actors_survive_cancelled_receives(
    programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        receiving = programs.actor_channel.MessageChannel(theirs)
        messages = [{"n": n, "data": bytes(n * 20_000)} for n in range(10)]

        async def send() -> None:
            async with programs.actor_channel.MessageChannel(ours) as sending:
                for message in messages:
                    await sending.send(message)

        received: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            cancelled = 0
            while len(received) < len(messages):
                with trio.move_on_after(0.005) as scope:
                    received.append(await receiving.receive())
                cancelled += scope.cancelled_caught
            with pytest.raises(trio.EndOfChannel):
                await receiving.receive()
        assert received == messages
        assert cancelled > 1


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"\xff\xff\xff\xff", "announced a message of 4294967295 bytes"),
        (b"\x02\x00\x00\x00\xc1\xc1", "something else than msgpack"),
        (b"\x05\x00\x00\x00ab", "ended within a message"),
        (b"\x05", "ended within a message"),
    ],
)
async def test_what_is_no_message_breaks_an_actors_channel(
    sent: bytes, error: str, programs: SimpleNamespace, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected_pair() as (client, server):
        ours, theirs = await stream_pair(client, server)
        await ours.send_all(sent, end=True)
        with pytest.raises(trio.BrokenResourceError, match=error):
            await programs.actor_channel.MessageChannel(theirs).receive()
