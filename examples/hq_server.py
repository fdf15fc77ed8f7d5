"""A file server that speaks HTTP/0.9 over QUIC ("hq-interop"), as interoperability tests do.

One request is one stream: the client sends ``GET /path`` and ends its side; the server
answers with the file's bytes and ends its own.  There are no headers and no errors: a
stream whose file is missing is reset.

phoenix-trio certificate --directory certificates
python examples/hq_server.py --port 4433 --directory files
"""

import argparse
from functools import partial
from pathlib import Path

import trio

import phoenix_trio

ALPN = ("hq-interop",)
LONGEST_REQUEST = 4096
CHUNK = 256 * 1024
#: The application's own code for "there is no such file".
NOT_FOUND = 0x404


async def read_request(stream: phoenix_trio.QuicStream) -> str:
    """The path that the client asks for."""
    request = b""
    async for chunk in stream:
        request += chunk
        if len(request) > LONGEST_REQUEST:
            raise ValueError("the request is too long")
    method, _, path = request.decode().strip().partition(" ")
    if method != "GET":
        raise ValueError(f"only GET is understood, not {method!r}")
    return path


def find(directory: Path, path: str) -> Path | None:
    """The file, if there is one inside the directory."""
    file = (directory / path.lstrip("/")).resolve()
    return file if file.is_relative_to(directory.resolve()) and file.is_file() else None


async def answer(directory: Path, stream: phoenix_trio.QuicStream) -> None:
    async with stream:
        try:
            file = find(directory, await read_request(stream))
        except ValueError:
            file = None
        if file is None:
            stream.reset(NOT_FOUND)
            return
        async with await trio.open_file(file, "rb") as source:
            while chunk := await source.read(CHUNK):
                await stream.send_all(chunk)


async def run_request(directory: Path, stream: phoenix_trio.QuicStream) -> None:
    try:
        await answer(directory, stream)
    except (phoenix_trio.StreamReset, phoenix_trio.StreamStopped):
        pass  # the client has cancelled this request; others go on


async def handler(directory: Path, connection: phoenix_trio.QuicConnection) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in connection.incoming_streams():
            nursery.start_soon(run_request, directory, stream)


async def main(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    serve = partial(phoenix_trio.serve, partial(handler, options.directory), options.port)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(serve, tls=tls, alpn=ALPN))
        print(f"listening on port {listeners[0].port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="serve files over hq-interop")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--directory", type=Path, default=Path("."))
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    trio.run(main, parser.parse_args())
