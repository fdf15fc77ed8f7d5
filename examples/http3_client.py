"""A small HTTP/3 client: GET a path, or POST a file, and print size and SHA-256 of the answer.

python examples/http3_client.py localhost 4433 /1000000
python examples/http3_client.py localhost 4433 / --post some.file
"""

import argparse
import hashlib

import trio
from aioquic.h3.events import DataReceived, HeadersReceived
from http3 import ALPN, H3_NO_ERROR, Http3, Inbox

import phoenix_trio

CHUNK = 64 * 1024


async def request(http: Http3, options: argparse.Namespace) -> None:
    async with await http.connection.open_stream() as stream:
        with http.request(stream) as inbox:
            async with trio.open_nursery() as nursery:
                # The answer is read while the question is being sent: it may come early.
                nursery.start_soon(http.pump, stream, stream.id)
                nursery.start_soon(ask, http, stream, options)
                size, digest = await read_answer(inbox, show=options.show)
    print(f"{size} bytes, SHA-256 {digest}", flush=True)


async def ask(http: Http3, stream: phoenix_trio.QuicStream, options: argparse.Namespace) -> None:
    method = "GET" if options.post is None else "POST"
    headers = {
        ":method": method,
        ":scheme": "https",
        ":authority": f"{options.host}:{options.port}",
        ":path": options.path,
    }
    await http.send_headers(stream, headers, end=method == "GET")
    if options.post is not None:
        async with await trio.open_file(options.post, "rb") as file:
            while chunk := await file.read(CHUNK):
                await http.send_data(stream, chunk)
        await http.send_data(stream, b"", end=True)


async def read_answer(inbox: Inbox, *, show: bool) -> tuple[int, str]:
    digest, size, ended = hashlib.sha256(), 0, False
    while not ended:
        event = await inbox.receive()
        if isinstance(event, HeadersReceived):
            if status := dict(event.headers).get(b":status"):
                print(f"status {status.decode()}")
            ended = event.stream_ended
        elif isinstance(event, DataReceived):
            digest.update(event.data)
            size += len(event.data)
            ended = event.stream_ended
            if show:
                print(event.data.decode(errors="replace"), end="")
    return size, digest.hexdigest()


async def main(options: argparse.Namespace) -> None:
    if options.insecure:
        tls = phoenix_trio.ClientTLS(danger_accept_any_certificate=True)
    else:
        tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:
        http = Http3(connection, is_client=True)
        await http.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http.run_control_streams)
            await request(http, options)
            nursery.cancel_scope.cancel()
        await connection.aclose(H3_NO_ERROR)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="HTTP/3 client")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--post", help="send this file")
    parser.add_argument("--show", action="store_true", help="print the answer's body")
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--insecure", action="store_true", help="for experiments: trust anybody")
    trio.run(main, parser.parse_args())
