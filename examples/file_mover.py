"""Move one file over one stream and check it: the least a file mover needs.

    phoenix-trio certificate --directory certificates
    python examples/file_mover.py receive copy.bin --port 4433
    python examples/file_mover.py send original.bin --host localhost --port 4433

For resuming, progress bars and safe names see the phoenix-trio program.
"""

import argparse
import hashlib
from functools import partial

import trio

import phoenix_trio

ALPN = ("file-mover-example/1",)
CHUNK = 256 * 1024


async def receive(options: argparse.Namespace) -> None:
    done = trio.Event()

    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        async with await connection.accept_stream() as stream:
            digest = hashlib.sha256()
            async with await trio.open_file(options.path, "wb") as file:
                async for chunk in stream:
                    digest.update(chunk)
                    await file.write(chunk)
            await stream.send_all(digest.digest())
        await connection.wait_closed()  # the sender says goodbye when it has the digest
        print(f"received SHA-256 {digest.hexdigest()}", flush=True)
        done.set()

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with trio.open_nursery() as nursery:
        serve = partial(phoenix_trio.serve, handler, options.port, tls=tls, alpn=ALPN)
        listeners = await nursery.start(serve)
        print(f"listening on port {listeners[0].port}", flush=True)
        await done.wait()
        nursery.cancel_scope.cancel()


async def send(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:
        digest = hashlib.sha256()
        started = trio.current_time()
        async with await connection.open_stream() as stream:
            async with await trio.open_file(options.path, "rb") as file:
                while chunk := await file.read(CHUNK):
                    digest.update(chunk)
                    await stream.send_all(chunk)
            await stream.send_eof()
            answer = await stream.receive_all(digest.digest_size)
        if answer != digest.digest():
            raise SystemExit("the receiver has something else")
        seconds = trio.current_time() - started
        print(f"sent and verified in {seconds:.2f} s, SHA-256 {digest.hexdigest()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Move a file over QUIC")
    parser.add_argument("direction", choices=["send", "receive"])
    parser.add_argument("path")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(send if chosen.direction == "send" else receive, chosen)
