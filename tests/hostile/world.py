"""A server on a simulated network, and strangers and rogue peers that attack it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

import phoenix_trio
from phoenix_trio import TransportConfig
from phoenix_trio.quic import events
from phoenix_trio.testing import SimulatedNetwork
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    EnginePair,
    client_tls,
    server_tls,
)

STRANGER = "10.9.9.9"


async def echo(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)


class World:
    """A server on a simulated network, and a stranger's raw socket."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        handler: Callable[[phoenix_trio.QuicConnection], Awaitable[None]] = echo,
        on_error: Callable[[Exception], object] | None = None,
        **config: Any,
    ) -> None:
        self.nursery = nursery
        self.handler = handler
        self.on_error = on_error
        self.network = SimulatedNetwork(delay=0.001)
        self.config = TransportConfig(**config)

    async def start(self) -> World:
        (self.listener,) = await self.nursery.start(
            partial(
                phoenix_trio.serve,
                self.handler,
                PORT,
                tls=server_tls(),
                alpn=ALPN,
                config=self.config,
                on_error=self.on_error,
                network=self.network.host(SERVER),
            )
        )
        self.stranger = await self.network.host(STRANGER).open_socket(
            None, 0, buffer_size=10_000_000
        )
        return self

    async def say(self, data: bytes) -> list[bytes]:
        """Send a datagram from the stranger's socket; returns the answers within 10 ms."""
        self.stranger.send(data, (SERVER, PORT))
        await trio.sleep(0.01)
        return [answer for answer, _ in self.stranger.receive(1000)]

    async def check_alive(self) -> None:
        """A new client connects from another address and gets its echo."""
        async with phoenix_trio.open_connection(
            SERVER, PORT, tls=client_tls(), alpn=ALPN, network=self.network.host(CLIENT)
        ) as connection:
            async with await connection.open_stream() as stream:
                await stream.send_all(b"alive?")
                await stream.send_eof()
                assert await stream.receive_some() == b"alive?"


def first_initial() -> bytes:
    """A real client's first datagram."""
    return bytes(EnginePair().wire[0][3])


def rogue_pair(**server_config: Any) -> EnginePair:
    """An established connection whose client can be made to misbehave."""
    return EnginePair(server_config=TransportConfig(**server_config)).connect()


def ended_with(pair: EnginePair) -> Exception:
    """The protocol error that ended the connection at the server."""
    assert pair.server is not None
    (ending,) = pair.server.of(events.Terminated)
    assert isinstance(ending.error, phoenix_trio.ProtocolError), ending
    assert not ending.error.by_peer
    (seen,) = pair.client.of(events.Terminated)
    assert isinstance(seen.error, phoenix_trio.ProtocolError)
    assert seen.error.by_peer
    return ending.error
