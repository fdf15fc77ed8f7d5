"""Downloads files from a server that speaks "hq-interop", all of them at once.

python examples/hq_client.py localhost 4433 /one.bin /two.bin --directory downloads
"""

import argparse
from pathlib import Path, PurePosixPath

import trio

import phoenix_trio

ALPN = ("hq-interop",)


async def download(connection: phoenix_trio.QuicConnection, path: str, directory: Path) -> int:
    """Fetch one file into the directory; returns its size."""
    async with await connection.open_stream() as stream:
        await stream.send_all(f"GET {path}\r\n".encode(), end=True)
        size = 0
        async with await trio.open_file(directory / PurePosixPath(path).name, "wb") as file:
            async for chunk in stream:
                await file.write(chunk)
                size += len(chunk)
    return size


async def main(options: argparse.Namespace) -> None:
    options.directory.mkdir(parents=True, exist_ok=True)
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:

        async def fetch(path: str) -> None:
            print(f"{path}: {await download(connection, path, options.directory)} bytes")

        async with trio.open_nursery() as nursery:
            for path in options.paths:
                nursery.start_soon(fetch, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="download files over hq-interop")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="+", metavar="path")
    parser.add_argument("--directory", type=Path, default=Path("downloads"))
    parser.add_argument("--ca", default="certificates/ca.pem")
    trio.run(main, parser.parse_args())
