"""An application with two transports that can be looked at, for tests of ``phoenix-trio top``.

Gets the path of its socket, and ends with its standard input.
"""

from __future__ import annotations

import sys

import trio

import phoenix_trio
from phoenix_trio.testing import SimulatedNetwork
from tests.support import CLIENT, PORT, SERVER, client_tls, server_tls


async def main(path: str | None) -> None:
    network = SimulatedNetwork(delay=0.005)

    async def receive(connection: phoenix_trio.PhoenixConnection) -> None:
        async for _ in connection.messages():
            pass

    async with (
        phoenix_trio.open_phoenix(
            "sink", server_tls=server_tls(), network=network.host(SERVER)
        ) as server,
        phoenix_trio.open_phoenix(
            "mover", tls=client_tls(), network=network.host(CLIENT)
        ) as client,
        phoenix_trio.open_inspection(client, server, path=path),
        trio.open_nursery() as nursery,
    ):
        await nursery.start(server.serve, receive, PORT)

        async def send() -> None:
            async with client.connect(f"{SERVER}:{PORT}") as connection:
                while True:
                    await connection.send_data(bytes(20_000))
                    await trio.sleep(0.02)

        nursery.start_soon(send)
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
