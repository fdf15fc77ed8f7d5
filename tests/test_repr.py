"""The repr of every public object: useful in logs and debuggers, and without secrets."""

from __future__ import annotations

import enum
import inspect
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import phoenix_trio
import phoenix_trio.pool
import phoenix_trio.streams
import phoenix_trio.testing
from phoenix_trio import PhoenixConnection
from phoenix_trio.quic.relay import open_inbox
from phoenix_trio.quic.shared_keys import KeyChain
from phoenix_trio.testing import SimulatedNetwork
from phoenix_trio.worker import Equipment
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    client_pem,
    client_tls,
    connected_pair,
    server_pem,
    server_tls,
    stream_pair,
)

TARGET = f"{SERVER}:{PORT}"
SECRET = b"a secret of sixteen bytes or more"


def public_classes() -> set[type]:
    """The classes whose objects users hold, except for exceptions and enumerations."""
    found = set()
    for module in (
        phoenix_trio,
        phoenix_trio.pool,
        phoenix_trio.streams,
        phoenix_trio.testing,
    ):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and not issubclass(value, (BaseException, enum.Enum)):
                found.add(value)
    return found


async def broadcasting(stream: trio.abc.SendStream) -> list[Any]:
    """A broadcast, and the summary of a subscriber that it has served to its end."""
    broadcast = phoenix_trio.Broadcast()
    summaries: list[Any] = []

    async def serve() -> None:
        summaries.append(await broadcast.serve(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.sleep(0.1)
        broadcast.close()
    return [broadcast, broadcast.statistics(), *summaries]


@asynccontextmanager
async def low_floor(network: SimulatedNetwork) -> AsyncIterator[list[Any]]:
    async with connected_pair(network) as (client, server):
        stream, other = await stream_pair(client, server)
        listener = await phoenix_trio.open_stream_listener(
            4434, tls=server_tls(), alpn=ALPN, network=network.host("10.0.0.8")
        )
        async with phoenix_trio.Endpoint.open(network=network.host("10.0.0.9")) as endpoint:
            plain = endpoint.listen(tls=server_tls(), alpn=ALPN)
            reader = phoenix_trio.streams.StreamReader(other.receive_stream)
            async with phoenix_trio.open_batching_channel(stream) as (sender, receiver):
                yield [
                    *(client, server, stream, stream.send_stream, stream.receive_stream),
                    *(listener, endpoint, plain, reader, sender, receiver),
                    phoenix_trio.streams.SequenceReceiver(reader, max_item_size=1),
                    phoenix_trio.streams.MessageReceiver(reader, max_size=1),
                    phoenix_trio.streams.FrameDecoder(10),
                    phoenix_trio.streams.Limits(max_message_size=10),
                    phoenix_trio.streams.PeerLimits(client, is_awaited=True),
                    *await broadcasting(other),
                    client.statistics(),
                    *client.paths(),
                    endpoint.statistics(),
                ]
        await listener.aclose()


@asynccontextmanager
async def high_floor(network: SimulatedNetwork) -> AsyncIterator[list[Any]]:
    async def handler(connection: PhoenixConnection) -> None:
        await connection.quic.wait_closed()

    store = phoenix_trio.SessionStore()
    tls = client_tls(
        certificate=client_pem()[0],
        private_key=client_pem()[1],
        session_store=store,
        server_name="localhost",
    )
    config = phoenix_trio.TransportConfig(stateless_reset_key=SECRET)
    async with (
        phoenix_trio.open_phoenix(
            "server", server_tls=server_tls(), network=network.host("10.0.0.3"), config=config
        ) as server,
        phoenix_trio.open_phoenix("client", tls=tls, network=network.host("10.0.0.4")) as client,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(partial(server.serve, handler, PORT))
        lease = client.connect(f"10.0.0.3:{PORT}")
        bare = client.pool.lease(f"10.0.0.3:{PORT}", exclusive=True)
        summaries = []

        async def send() -> None:
            target = f"10.0.0.3:{PORT}"
            summaries.append(await client.send_multiplexed(target, b"data", connections=1))

        async with lease as connection:
            nursery.start_soon(send)
            async with await server.receive_multiplexed() as transfer:
                async for _ in transfer:
                    pass
            await trio.sleep(1)
            yield [
                *(server, client, lease, bare, connection, client.pool, transfer, tls, store),
                *(server_tls(), config, client.pool.config, phoenix_trio.Backoff()),
                *(phoenix_trio.Retry(), phoenix_trio.pool.parse_target(TARGET)),
                *(client.stats(), connection.metrics(), client.pool.statistics()),
                *client.pool.statistics().targets.values(),
                *(client._hub, phoenix_trio.PartLimits()),
                *summaries,
            ]
        nursery.cancel_scope.cancel()


async def test_every_public_object_says_what_it_is_and_no_secrets(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_sync(work: Any, *arguments: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    network = SimulatedNetwork(delay=0.01)
    host = network.host("10.0.0.7")
    socket = await host.open_socket(None, 1, buffer_size=1000)
    others = [
        *(network, host, socket, network.link(SERVER, CLIENT), network.statistics()),
        phoenix_trio.testing.Conditions(),
        phoenix_trio.testing.Datagram((CLIENT, 1), (SERVER, 2), b"data"),
    ]
    bound = sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    inbox, sender = open_inbox()
    equipment = Equipment(0, bound, inbox, [sender], bytes(32), KeyChain.begin(0.0))
    others.append(equipment.unpack())
    async with low_floor(network) as low, high_floor(network) as high:
        objects = [*low, *high, *others]
        missing = public_classes() - {type(each) for each in objects}
        while_open = check(objects)
    socket.close()
    after = check(objects)
    for each in (others[-1].socket, inbox, sender):
        each.close()
    assert not missing
    # Objects that live and end say so.
    for each in (*low[:8], *high[:3], *high[4:6]):
        number = objects.index(each)
        assert while_open[number] != after[number], after[number]


def check(objects: list[Any]) -> list[str]:
    texts = [repr(each) for each in objects]
    keys = [pem[1].decode().splitlines()[1] for pem in (server_pem(), client_pem())]
    for each, text in zip(objects, texts, strict=True):
        assert type(each).__name__ in text
        assert " object at 0x" not in text, text
        assert text.count("\n") == 0
        assert len(text) < (3000 if attrs.has(type(each)) else 300), text
        assert SECRET.decode() not in text
        assert "PRIVATE KEY" not in text
        assert not any(key in text for key in keys), text
    return texts
