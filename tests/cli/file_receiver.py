"""A receiver of files on the simulated network, for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

import phoenix_trio
from phoenix_trio.cli.receive import Receiver
from phoenix_trio.testing import SimulatedNetwork
from tests.support import PORT, SERVER, server_tls


@asynccontextmanager
async def listening(receiver: Receiver, network: SimulatedNetwork) -> AsyncIterator[None]:
    """Let the receiver listen at SERVER."""
    is_listening = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                receiver.serve,
                tls=server_tls(),
                host=None,
                port=PORT,
                config=phoenix_trio.TransportConfig(),
                on_listening=lambda port: is_listening.set(),
                network=network.host(SERVER),
            )
        )
        await is_listening.wait()
        yield
        nursery.cancel_scope.cancel()
