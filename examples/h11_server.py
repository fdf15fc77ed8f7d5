"""An HTTP/1.1 server whose connections are QUIC streams: h11 with trio.serve_listeners.

    phoenix-trio certificate --directory certificates
    python examples/h11_server.py --port 4433
    python examples/httpcore_backend.py https://localhost:4433/100000

GET /SIZE answers with so many bytes, POST with the body's size and SHA-256.  The same code
serves TCP: of QUIC it knows the listener alone.  (Browsers speak HTTP/3 over QUIC, see
http3_server.py; this is for programs with HTTP/1.1 on both sides.)
"""

import argparse
import hashlib
from collections.abc import Iterator

import h11
import trio

import phoenix_trio

#: Our own name: none is registered for HTTP/1.1 on QUIC streams.
ALPN = ("http1-on-streams",)
#: Seconds for which a client may say nothing, or read nothing.
PATIENCE = 60.0
CHUNK = 64 * 1024
LARGEST = 1 << 30


class HttpConnection:
    """One HTTP/1.1 connection: h11's events on one side, a Trio stream on the other."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h11 = h11.Connection(h11.SERVER)

    async def receive(self) -> h11.Event:
        """The next event of the client's."""
        if self.h11.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = self.h11.next_event()
            if isinstance(event, h11.Event):
                return event
            with trio.fail_after(PATIENCE):
                self.h11.receive_data(bytes(await self.stream.receive_some(CHUNK)))

    async def send(self, event: h11.Event) -> None:
        if data := self.h11.send(event):
            with trio.fail_after(PATIENCE):
                await self.stream.send_all(data)

    async def answer(self, status: int, size: int, body: Iterator[bytes]) -> None:
        headers = [("content-length", str(size)), ("content-type", "application/octet-stream")]
        await self.send(h11.Response(status_code=status, headers=headers))
        for part in body:
            await self.send(h11.Data(data=part))
        await self.send(h11.EndOfMessage())


def body_of(size: int) -> Iterator[bytes]:
    """Bytes which both sides can compute, in parts."""
    whole = bytes(range(256)) * (CHUNK // 256)
    for start in range(0, size, CHUNK):
        yield whole[: size - start]


async def respond(http: HttpConnection, request: h11.Request) -> None:
    digest, size = hashlib.sha256(), 0
    while not isinstance(event := await http.receive(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            digest.update(event.data)
            size += len(event.data)
    path = request.target.removeprefix(b"/")
    wanted = int(path) if path.isdigit() and len(path) < 12 else None
    if request.method == b"POST":
        text = f"{size} {digest.hexdigest()}\n".encode()
        await http.answer(200, len(text), iter([text]))
    elif request.method == b"GET" and wanted is not None and wanted <= LARGEST:
        await http.answer(200, wanted, body_of(wanted))
    else:
        await http.answer(404, 0, iter(()))


async def converse(http: HttpConnection) -> None:
    """Answer requests for as long as the client makes any."""
    try:
        while isinstance(request := await http.receive(), h11.Request):
            await respond(http, request)
            if http.h11.our_state is not h11.DONE:
                return  # the client wants no more than one answer
            http.h11.start_next_cycle()
    except h11.RemoteProtocolError as error:
        if http.h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await http.answer(error.error_status_hint, 0, iter(()))


async def handler(stream: trio.abc.Stream) -> None:
    """Serve one connection."""
    async with stream:
        try:
            await converse(HttpConnection(stream))
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # the client has gone, or keeps silent


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    listener = await phoenix_trio.open_stream_listener(options.port, tls=tls, alpn=ALPN)
    print(f"listening on port {listener.port}", flush=True)
    await trio.serve_listeners(handler, [listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="HTTP/1.1 on QUIC streams")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    trio.run(main, parser.parse_args())
