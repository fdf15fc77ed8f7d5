"""An echo server: sends back what arrives on every stream.

Make certificates once, then run server and client in two terminals:

    phoenix-trio certificate --directory certificates
    python examples/echo_server.py --port 4433
    python examples/echo_client.py localhost 4433 hello
"""

import argparse
from functools import partial

import trio

import phoenix_trio


async def echo(stream: phoenix_trio.QuicStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def handler(connection: phoenix_trio.QuicConnection) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams():
            nursery.start_soon(echo, stream)


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(phoenix_trio.serve, handler, options.port, tls=tls, alpn=("echo/1",))
        )
        print(f"listening on port {listeners[0].port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo server over QUIC")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    trio.run(main, parser.parse_args())
