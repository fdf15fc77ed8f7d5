"""A server process for test_crash.py: prints its port, echoes, and is killed from outside."""

from __future__ import annotations

import sys

import trio

import phoenix_trio


async def echo(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async for chunk in stream:
            await stream.send_all(chunk)


async def main(certificate: str, key: str, port: int) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: phoenix_trio.serve(
                echo,
                port,
                host="127.0.0.1",
                tls=phoenix_trio.ServerTLS(certificate, key),
                task_status=task_status,
            )
        )
        print(listeners[0].port, flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
