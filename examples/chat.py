"""Chat: every line goes to all other guests.  One bidirectional stream per guest.

phoenix-trio certificate --directory certificates
python examples/chat.py serve --port 4433
python examples/chat.py join --host localhost --port 4433 --name alice
python examples/chat.py join --host localhost --port 4433 --name bob
"""

import argparse
import sys
from collections.abc import AsyncIterator
from functools import partial

import trio

import phoenix_trio

ALPN = ("chat-example/1",)
LONGEST_LINE = 4096


async def lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    buffer = b""
    async for chunk in stream:
        *whole, buffer = (buffer + bytes(chunk)).split(b"\n")
        if len(buffer) > LONGEST_LINE:
            raise ValueError("a guest sends lines without end")
        for line in whole:
            yield line


async def serve(options: argparse.Namespace) -> None:
    guests: set[trio.MemorySendChannel[bytes]] = set()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        outbox, inbox = trio.open_memory_channel[bytes](100)
        async with await connection.accept_stream() as stream:

            async def deliver() -> None:
                async for line in inbox:
                    await stream.send_all(line + b"\n")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(deliver)
                guests.add(outbox)
                try:
                    async for line in lines(stream):
                        for guest in guests - {outbox}:
                            try:
                                guest.send_nowait(line)
                            except trio.WouldBlock:
                                pass  # a guest that does not read misses lines
                finally:
                    guests.discard(outbox)
                nursery.cancel_scope.cancel()

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with trio.open_nursery() as nursery:
        server = partial(phoenix_trio.serve, handler, options.port, tls=tls, alpn=ALPN)
        listeners = await nursery.start(server)
        print(f"listening on port {listeners[0].port}", flush=True)


async def join(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:
        stream = await connection.open_stream()

        async def show() -> None:
            async for line in lines(stream):
                print(line.decode(errors="replace"), flush=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            await stream.send_all(f"{options.name} has joined\n".encode())
            await stream.wait_acked()
            print("you have joined", flush=True)
            async for text in trio.wrap_file(sys.stdin):
                await stream.send_all(f"{options.name}: {text.rstrip()}\n".encode())
            await stream.wait_acked()
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Chat over QUIC")
    parser.add_argument("role", choices=["serve", "join"])
    parser.add_argument("--name", default="somebody")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(serve if chosen.role == "serve" else join, chosen)
