"""A small HTTP/3 server: GET serves bytes, POST answers with the body's size and SHA-256.

phoenix-trio certificate --directory certificates
python examples/http3_server.py --port 4433
gtlsclient --exit-on-all-streams-close 127.0.0.1 4433 https://localhost/1000000
"""

import argparse
import hashlib
from functools import partial

import trio
from aioquic.h3.events import DataReceived, HeadersReceived
from http3 import ALPN, Http3

import phoenix_trio

CHUNK = 64 * 1024


def body_of(size: int) -> bytes:
    """Bytes which both sides can compute."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


async def respond(http: Http3, stream: phoenix_trio.QuicStream) -> None:
    method, path = b"GET", b"/"
    digest, size = hashlib.sha256(), 0
    async with stream, trio.open_nursery() as nursery:
        inbox = http.open_inbox(stream.id)
        nursery.start_soon(http.pump, stream, stream.id)
        ended = False
        while not ended:
            event = await inbox.receive()
            if isinstance(event, HeadersReceived):
                headers = dict(event.headers)
                method, path = headers[b":method"], headers[b":path"]
                ended = event.stream_ended
            elif isinstance(event, DataReceived):
                digest.update(event.data)
                size += len(event.data)
                ended = event.stream_ended
        name = path.decode(errors="replace").strip("/")
        if method == b"POST":
            answer = f"{size} {digest.hexdigest()}\n".encode()
        elif name.isascii() and name.isdigit() and int(name) <= 10**9:
            answer = body_of(int(name))
        else:
            answer = b"ask for /SIZE\n"
        headers_out = {":status": "200", "content-length": str(len(answer))}
        await http.send_headers(stream, headers_out)
        for start in range(0, len(answer), CHUNK):
            await http.send_data(stream, answer[start : start + CHUNK])
        await http.send_data(stream, b"", end=True)
        await stream.wait_acked()


async def handler(connection: phoenix_trio.QuicConnection) -> None:
    http = Http3(connection, is_client=False)
    await http.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http.run_control_streams)
        async for stream in connection.incoming_streams():
            nursery.start_soon(respond, http, stream)
        nursery.cancel_scope.cancel()


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with trio.open_nursery() as nursery:
        server = partial(phoenix_trio.serve, handler, options.port, tls=tls, alpn=ALPN)
        listeners = await nursery.start(server)
        print(f"listening on port {listeners[0].port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="HTTP/3 server")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    trio.run(main, parser.parse_args())
