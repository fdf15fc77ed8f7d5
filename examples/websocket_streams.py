"""WebSockets on QUIC streams, with trio-websocket: any number over one connection.

    phoenix-trio certificate --directory certificates
    python examples/websocket_streams.py serve --port 4433
    python examples/websocket_streams.py talk --port 4433 --sockets 10 hello world

The server sends back each message; each of the client's WebSockets has a stream of its own.
"""

import argparse
from typing import Any, cast

import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketRequest,
    WebSocketServer,
    wrap_client_stream,
)

import phoenix_trio

ALPN = ("websocket-on-streams",)
#: Seconds for the WebSocket's opening handshake.
PATIENCE = 10.0


async def echo(request: WebSocketRequest) -> None:
    websocket = await request.accept()
    try:
        while True:
            await websocket.send_message(await websocket.get_message())
    except ConnectionClosed:
        pass  # the client has said goodbye, or has gone


async def serve(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    listener = await phoenix_trio.open_stream_listener(options.port, tls=tls, alpn=ALPN)
    print(f"listening on port {listener.port}", flush=True)
    # Its annotation names TCP's listeners; it needs no more than any Trio listener has.
    server = WebSocketServer(echo, [cast("Any", listener)], connect_timeout=PATIENCE)
    await server.run()


async def say(connection: phoenix_trio.QuicConnection, number: int, texts: list[str]) -> None:
    async with await connection.open_stream() as stream, trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            websocket = await wrap_client_stream(nursery, cast("Any", stream), "quic", "/echo")
        async with websocket:
            for text in texts:
                await websocket.send_message(text)
                print(f"{number}: {await websocket.get_message()!s}", flush=True)


async def talk(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:
        async with trio.open_nursery() as nursery:
            for number in range(options.sockets):
                nursery.start_soon(say, connection, number, options.text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="WebSockets on QUIC streams")
    parser.add_argument("role", choices=["serve", "talk"])
    parser.add_argument("text", nargs="*")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--sockets", type=int, default=3)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(serve if chosen.role == "serve" else talk, chosen)
