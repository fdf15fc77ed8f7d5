"""Both ends for test_namespaces.py, each run inside a network namespace of its own.

``serve DIRECTORY`` answers each stream with the checksum of what it carried and the
server's path MTU; ``send DIRECTORY HOST`` sends 10 MB and prints both ends' view.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

import trio

import phoenix_trio

PORT = 4433
SIZE = 10_000_000


async def answer(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            digest = hashlib.sha256()
            async for chunk in stream:
                digest.update(chunk)
            report = [digest.hexdigest(), connection.statistics().path_mtu]
            await stream.send_all(json.dumps(report).encode())


async def serve(directory: Path) -> None:
    tls = phoenix_trio.ServerTLS(directory / "certificate.pem", directory / "key.pem")
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: phoenix_trio.serve(
                answer, PORT, host="::", tls=tls, task_status=task_status
            )
        )
        print("ready", flush=True)


async def send(directory: Path, host: str) -> None:
    tls = phoenix_trio.ClientTLS(ca=directory / "ca.pem", server_name="localhost")
    data = random.Random(1).randbytes(SIZE)
    with trio.fail_after(60):
        async with phoenix_trio.open_connection(host, PORT, tls=tls) as connection:
            async with await connection.open_stream() as stream:
                await stream.send_all(data)
                await stream.send_eof()
                received = bytearray()
                async for chunk in stream:
                    received += chunk
            digest, theirs = json.loads(received)
            is_intact = digest == hashlib.sha256(data).hexdigest()
            print(json.dumps([is_intact, connection.statistics().path_mtu, theirs]))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, Path(sys.argv[2]))
    else:
        trio.run(send, Path(sys.argv[2]), sys.argv[3])
