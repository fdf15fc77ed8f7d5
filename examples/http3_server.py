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
from http3 import ALPN, Http3, Inbox

import phoenix_trio

CHUNK = 64 * 1024

#: The page for browsers; its script shows which protocol brought it.
PAGE = b"""<!doctype html>
<title>phoenix_trio</title>
<p>This page came over <b id="protocol">?</b>; ask for /SIZE to get so many bytes.</p>
<script>
document.getElementById("protocol").textContent =
    performance.getEntriesByType("navigation")[0].nextHopProtocol;
</script>
"""


def body_of(size: int) -> bytes:
    """Bytes that both sides can compute."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


async def run_request(http: Http3, stream: phoenix_trio.QuicStream) -> None:
    try:
        await respond(http, stream)
    except* (phoenix_trio.StreamReset, phoenix_trio.StreamStopped):
        pass  # the client has cancelled this request; others go on


async def respond(http: Http3, stream: phoenix_trio.QuicStream) -> None:
    async with stream:
        with http.request(stream) as inbox:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(http.pump, stream, stream.id)
                method, path, uploaded = await read_request(inbox)
                kind, answer = answer_to(method, path, uploaded)
                headers = {
                    ":status": "200",
                    "content-length": str(len(answer)),
                    "content-type": kind,
                }
                await http.send_headers(stream, headers)
                for start in range(0, len(answer), CHUNK):
                    await http.send_data(stream, answer[start : start + CHUNK])
                await http.send_data(stream, b"", end=True)
                await stream.wait_acked()


async def read_request(inbox: Inbox) -> tuple[bytes, bytes, str]:
    """The method, the path, and the size and SHA-256 of the body."""
    method, path = b"GET", b"/"
    digest, size, ended = hashlib.sha256(), 0, False
    while not ended:
        event = await inbox.receive()
        if isinstance(event, HeadersReceived):
            headers = dict(event.headers)
            method, path = headers.get(b":method", method), headers.get(b":path", path)
            ended = event.stream_ended
        elif isinstance(event, DataReceived):
            digest.update(event.data)
            size += len(event.data)
            ended = event.stream_ended
    return method, path, f"{size} {digest.hexdigest()}"


def answer_to(method: bytes, path: bytes, uploaded: str) -> tuple[str, bytes]:
    """The answer's media type and body."""
    name = path.decode(errors="replace").strip("/")
    if method == b"POST":
        return "text/plain", f"{uploaded}\n".encode()
    if name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= 10**9:
        return "application/octet-stream", body_of(int(name))
    return "text/html", PAGE


async def handler(connection: phoenix_trio.QuicConnection) -> None:
    http = Http3(connection, is_client=False)
    await http.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http.run_control_streams)
        async for stream in connection.incoming_streams():
            nursery.start_soon(run_request, http, stream)
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
