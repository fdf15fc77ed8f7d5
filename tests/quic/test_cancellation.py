"""Every await of the public API, cancelled at every point where it can be.

An operation is run again and again.  In run number k its scope is cancelled when it suspends for
the k-th time; the last run is the one that ends before that.  After each run: no received data
is lost, the peer is not stuck, no task is left (otherwise the run would not end), and no lone
exception is wrapped in a group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.testing import SimulatedNetwork
from tests.support import ALPN, CLIENT, PORT, SERVER, client_tls, connected_pair, server_tls
from tests.support import stream_pair as pair_of_streams

#: Virtual seconds after which a run is stuck.
STUCK = 500


class CancelAt:
    """Await `coroutine`, and cancel `scope` when it suspends for the `k`-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], scope: trio.CancelScope, k: int):
        self.coroutine, self.scope, self.k = coroutine, scope, k

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self.coroutine.__await__()
        send: Callable[[], Any] = partial(next, inner)
        count = 0
        while True:
            try:
                message = send()
            except StopIteration as end:
                return end.value
            count += 1
            if count == self.k:
                self.scope.cancel()
            try:
                value = yield message
                send = partial(inner.send, value)
            except BaseException as error:
                send = partial(inner.throw, error)


async def attempt(operation: Callable[[], Coroutine[Any, Any, Any]], k: int) -> bool:
    """Run it once; whether it ended without being cancelled."""
    finished = False
    with trio.CancelScope() as scope:
        await CancelAt(operation(), scope, k)
        finished = True
    return finished and not scope.cancel_called


def sweep(run: Callable[[int], Awaitable[bool]]) -> None:
    """Call `run` with k = 1, 2, ... until it ends."""

    async def bounded(k: int) -> bool:
        with trio.fail_after(STUCK):
            return await run(k)

    for k in range(1, 500):
        if trio.run(bounded, k, clock=MockClock(autojump_threshold=0)):
            assert k > 1, "the operation is not a checkpoint"
            return
    raise AssertionError("the operation never ends")


SMALL = TransportConfig(
    send_buffer_size=16 * 1024,
    stream_send_buffer_size=8 * 1024,
    receive_buffer_size=16 * 1024,
    stream_receive_buffer_size=8 * 1024,
    max_bidirectional_streams=2,
    max_unidirectional_streams=2,
    datagram_queue_length=2,
)


async def still_works(
    client: phoenix_trio.QuicConnection, server: phoenix_trio.QuicConnection
) -> None:
    await client.ping()
    await server.ping()


def test_receiving_loses_nothing() -> None:
    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):
            ours, theirs = await pair_of_streams(client, server)
            data = bytes(range(256)) * 40
            received = bytearray()

            async def send() -> None:
                for start in range(0, len(data), 1000):
                    await theirs.send_all(data[start : start + 1000])
                    await trio.sleep(0.01)
                await theirs.send_eof()

            async def receive() -> None:
                while chunk := await ours.receive_some(700):
                    received.extend(chunk)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                done = await attempt(receive, k)
                await receive()
            assert received == data
            await still_works(client, server)
            return done

    sweep(run)


def test_receiving_a_whole_stream_loses_nothing() -> None:
    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):
            ours, theirs = await pair_of_streams(client, server)
            data = bytes(range(256)) * 100
            received = bytearray()

            async def send() -> None:
                for start in range(0, len(data), 1000):
                    await theirs.send_all(data[start : start + 1000])
                    await trio.sleep(0.01)
                await theirs.send_eof()

            async def receive() -> None:
                # The first calls suspend often, the last one seldom.
                for _ in range(10):
                    received.extend(await ours.receive_some(500))
                received.extend(await ours.receive_all(len(data)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                done = await attempt(receive, k)
                if not done:
                    received += await ours.receive_some(100)
                received += await ours.receive_all(len(data))
            assert received == data
            assert client.statistics().stream_bytes_read == len(data)
            await still_works(client, server)
            return done

    sweep(run)


@pytest.mark.parametrize("kind", ["stream", "receive stream", "datagram"])
def test_accepting_and_datagrams_lose_nothing(kind: str) -> None:
    async def run(k: int) -> bool:
        async with connected_pair() as (client, server):
            found: list[Any] = []

            async def produce() -> None:
                for number in range(3):
                    await trio.sleep(0.05)
                    if kind == "stream":
                        await (await client.open_stream()).send_all(b"x")
                    elif kind == "receive stream":
                        await (await client.open_send_stream()).send_all(b"x")
                    else:
                        await client.send_datagram(b"%d" % number)

            async def consume() -> None:
                while len(found) < 3:
                    if kind == "stream":
                        found.append((await server.accept_stream()).id // 4)
                    elif kind == "receive stream":
                        found.append((await server.accept_receive_stream()).id // 4)
                    else:
                        found.append(int(await server.receive_datagram()))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(produce)
                done = await attempt(consume, k)
                await consume()
            assert found == [0, 1, 2]
            await still_works(client, server)
            return done

    sweep(run)


def test_sending_can_be_given_up_and_the_peer_never_takes_a_part_for_the_whole() -> None:
    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):
            ours, theirs = await pair_of_streams(client, server)
            received = bytearray()
            outcome: list[str] = []

            async def send() -> None:
                async with ours:
                    await ours.send_all(b"s" * 50_000)
                    await ours.wait_acked()

            async def receive() -> None:
                try:
                    while chunk := await theirs.receive_some():
                        received.extend(chunk)
                        await trio.sleep(0.005)
                    outcome.append("whole")
                except phoenix_trio.StreamReset:
                    outcome.append("reset")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                done = await attempt(send, k)
            assert outcome == ["whole" if len(received) == 50_000 else "reset"] or (
                outcome == ["reset"]
            )
            if outcome == ["whole"]:
                assert received == b"s" * 50_000
            if done:
                assert outcome == ["whole"]
            await theirs.aclose()
            await still_works(client, server)
            await pair_of_streams(client, server)  # both sides have given the place back
            await pair_of_streams(client, server)
            return done

    sweep(run)


@pytest.mark.parametrize("size", [10, 30_000])
def test_the_last_data_and_the_end_arrive_both_or_the_stream_is_not_ended(size: int) -> None:
    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):
            ours, theirs = await pair_of_streams(client, server)
            received: list[bytes] = []
            returned = False

            async def receive() -> None:
                with contextlib.suppress(phoenix_trio.StreamReset):
                    received.append(await theirs.receive_all(size))

            async def send() -> None:
                nonlocal returned
                await ours.send_all(bytes(size), end=True)
                returned = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                done = await attempt(send, k)
                await trio.sleep(1)
                assert received == ([bytes(size)] if returned else [])
                ours.reset()
            await theirs.aclose()
            await still_works(client, server)
            return done

    sweep(run)


@pytest.mark.parametrize("size", [10, 30_000])
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_request_can_be_given_up_anywhere(size: int, in_parts: bool) -> None:
    """The peer notices, and both sides have the stream back."""

    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):
            data = bytes(range(250)) * (size // 250) + bytes(size % 250)
            taken = 0

            async def reply(stream: phoenix_trio.QuicStream) -> None:
                nonlocal taken
                async with stream:
                    if in_parts:
                        async for chunk in stream:
                            await stream.send_all(chunk)
                            await trio.sleep(0.01)
                    else:
                        await stream.send_all(await stream.receive_all(size), end=True)
                    taken += 1

            async def serve() -> None:
                async for stream in server.incoming_streams():
                    serving.start_soon(tolerate, stream)

            async def tolerate(stream: phoenix_trio.QuicStream) -> None:
                with contextlib.suppress(phoenix_trio.StreamBroken):
                    await reply(stream)

            async def request() -> None:
                assert await client.request(data, max_answer=size) == data

            async with trio.open_nursery() as serving:
                serving.start_soon(serve)
                done = await attempt(request, k)
                await trio.sleep(1)
                assert not client._senders
                assert not client._receivers
                assert not server._senders
                assert not server._receivers
                for _ in range(3):  # more than may be open at a time
                    await request()
                assert taken in (3, 4)
                await still_works(client, server)
                serving.cancel_scope.cancel()
            return done

    sweep(run)


def test_a_request_which_waits_for_a_stream_leaves_no_hole() -> None:
    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):

            async def serve() -> None:
                async for stream in server.incoming_streams():
                    serving.start_soon(reply, stream)

            async def reply(stream: phoenix_trio.QuicStream) -> None:
                with contextlib.suppress(phoenix_trio.StreamBroken):
                    async with stream:
                        data = await stream.receive_all(10)
                        await trio.sleep(1)
                        await stream.send_all(data, end=True)

            async def request() -> None:
                assert await client.request(b"third") == b"third"

            async with trio.open_nursery() as serving:
                serving.start_soon(serve)
                async with trio.open_nursery() as asking:
                    for _ in range(2):
                        asking.start_soon(client.request, b"x")
                    await trio.sleep(0.5)
                    done = await attempt(request, k)
                await request()
                await still_works(client, server)
                serving.cancel_scope.cancel()
            return done

    sweep(run)


def test_opening_streams_leaves_no_hole() -> None:
    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):
            opened: list[phoenix_trio.QuicStream] = []

            async def serve() -> None:
                async for stream in server.incoming_streams():
                    with contextlib.suppress(phoenix_trio.StreamReset):
                        async with stream:
                            async for _ in stream:
                                pass

            async def open_four() -> None:
                while len(opened) < 4:
                    stream = await client.open_stream()
                    opened.append(stream)
                    await stream.send_all(b"x")
                    await stream.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                done = await attempt(open_four, k)
                await open_four()
                await still_works(client, server)
                nursery.cancel_scope.cancel()
            assert [stream.id for stream in opened] == [0, 4, 8, 12]
            return done

    sweep(run)


@pytest.mark.parametrize(
    "name",
    [
        "ping",
        "update_keys",
        "wait_confirmed",
        "send_datagram",
        "send_eof",
        "aclose of a stream",
        "wait_send_all_might_not_block",
    ],
)
def test_small_operations_leave_the_connection_usable(name: str) -> None:
    async def run(k: int) -> bool:
        async with connected_pair(config=SMALL) as (client, server):
            ours, theirs = await pair_of_streams(client, server)

            async def send_datagrams() -> None:
                for _ in range(10):
                    await client.send_datagram(bytes(1000))

            operations: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
                "ping": client.ping,
                "update_keys": client.update_keys,
                "wait_confirmed": client.wait_confirmed,
                "send_datagram": send_datagrams,
                "send_eof": ours.send_eof,
                "aclose of a stream": ours.aclose,
                "wait_send_all_might_not_block": ours.wait_send_all_might_not_block,
            }
            done = await attempt(operations[name], k)
            if name == "update_keys":
                await client.update_keys()
            await still_works(client, server)
            ours.reset()
            await theirs.aclose()
            return done

    sweep(run)


def test_closing_a_connection_ends_it_however_it_is_cancelled() -> None:
    async def run(k: int) -> bool:
        async with connected_pair() as (client, server):
            ours, theirs = await pair_of_streams(client, server)
            await ours.send_all(bytes(100_000))
            done = await attempt(client.aclose, k)
            assert client.is_closed
            received = 0
            with pytest.raises(phoenix_trio.ConnectionClosedByPeer):
                while chunk := await theirs.receive_some():
                    received += len(chunk)
            if done:
                assert received == 100_000
            await server.wait_closed()
            return done

    sweep(run)


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)


async def ask(connection: phoenix_trio.QuicConnection) -> None:
    async with await connection.open_stream() as stream:
        await stream.send_all(b"question")
        await stream.send_eof()
        assert b"".join([bytes(c) async for c in stream]) == b"question"


@pytest.mark.parametrize("name", [SERVER, "two.example"])
def test_a_whole_client_can_be_cancelled_anywhere(name: str) -> None:
    """Dialling (also with two addresses, one of them dead), the body, and the way out."""

    async def run(k: int) -> bool:
        network = SimulatedNetwork(delay=0.01)
        network.add_name("two.example", "10.0.0.9", SERVER)
        tls = client_tls(server_name=SERVER)

        async def client() -> None:
            async with phoenix_trio.open_connection(
                name, PORT, tls=tls, alpn=ALPN, network=network.host(CLIENT)
            ) as connection:
                await ask(connection)

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(
                    phoenix_trio.serve,
                    answer,
                    PORT,
                    tls=server_tls(),
                    alpn=ALPN,
                    network=network.host(SERVER),
                )
            )
            done = await attempt(client, k)
            assert all(key[0] != CLIENT for key in network._sockets), "a socket is left"
            await client()
            await trio.sleep(60)
            assert listeners[0].statistics().connections == 0, "the server is stuck with one"
            nursery.cancel_scope.cancel()
        return done

    sweep(run)


def test_a_server_can_be_cancelled_anywhere() -> None:
    async def run(k: int) -> bool:
        network = SimulatedNetwork(delay=0.01)
        ended: list[BaseException] = []

        async def server() -> None:
            with trio.move_on_after(0.5):
                await phoenix_trio.serve(
                    answer, PORT, tls=server_tls(), alpn=ALPN, network=network.host(SERVER)
                )

        async def client() -> None:
            try:
                async with phoenix_trio.open_connection(
                    SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
                ) as connection:
                    while True:
                        await ask(connection)
                        await trio.sleep(0.1)
            except phoenix_trio.ConnectionBroken as error:
                ended.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            done = await attempt(server, k)
        assert len(ended) == 1
        assert not network._sockets
        return done

    sweep(run)


@pytest.mark.parametrize("flat", [False, True])
def test_a_listener_without_a_nursery_hands_over_when_its_leader_is_cancelled(flat: bool) -> None:
    async def run(k: int) -> bool:
        network = SimulatedNetwork(delay=0.01)
        arguments: dict[str, Any] = {
            "tls": server_tls(),
            "alpn": ALPN,
            "network": network.host(SERVER),
        }

        async def client(count: int) -> None:
            async with phoenix_trio.open_connection(
                SERVER, PORT, tls=client_tls(), alpn=ALPN, network=network.host(CLIENT)
            ) as connection:
                async with trio.open_nursery() as asking:
                    for _ in range(count):
                        asking.start_soon(ask, connection)

        async def echo(stream: phoenix_trio.QuicStream) -> None:
            async with stream:
                async for chunk in stream:
                    await stream.send_all(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client, 2)
            if flat:
                stream_listener = await phoenix_trio.open_stream_listener(PORT, **arguments)
                streams: list[phoenix_trio.QuicStream] = []

                async def accept_streams() -> None:
                    while len(streams) < 2:
                        streams.append(await stream_listener.accept())

                done = await attempt(accept_streams, k)
                async with trio.open_nursery() as serving:
                    for stream in streams:
                        serving.start_soon(echo, stream)
                    served = len(streams)
                    await accept_streams()
                    for stream in streams[served:]:
                        serving.start_soon(echo, stream)
                for connection in list(stream_listener._connections):
                    await connection.wait_closed()
                await stream_listener.aclose()
            else:
                listener = await phoenix_trio.open_listener(PORT, **arguments)
                connections: list[phoenix_trio.QuicConnection] = []

                async def accept() -> None:
                    if not connections:
                        connections.append(await listener.accept())

                done = await attempt(accept, k)
                await accept()
                await listener.aclose()
                await answer(connections[0])
                await connections[0].aclose()
        assert not network._sockets, "the socket outlives its last connection"
        return done

    sweep(run)
