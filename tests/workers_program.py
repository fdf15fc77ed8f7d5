"""The program of test_workers.py: workers that say which of them answers.

Arguments: certificate, key, and how `main` behaves: ``serve``, ``crash``, ``return`` or
``stubborn``.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial

import trio

import phoenix_trio


async def answer(
    worker: phoenix_trio.Worker,
    listeners: list[phoenix_trio.QuicListener],
    connection: phoenix_trio.QuicConnection,
) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            if await stream.receive_all(100) == b"slow":
                await trio.sleep(0.5)
            said = {
                "worker": worker.number,
                "pid": os.getpid(),
                "passed_on": listeners[0].statistics().datagrams_passed_on,
            }
            await stream.send_all(json.dumps(said).encode(), end=True)


def say_started(worker: phoenix_trio.Worker) -> None:
    # (In one piece, since others write to the same pipe.)
    os.write(1, b"%d %d %d\n" % (worker.number, os.getpid(), worker.port))


async def main(certificate: str, key: str, behaviour: str, worker: phoenix_trio.Worker) -> None:
    if behaviour == "crash":
        raise RuntimeError("no configuration")
    if behaviour == "return" and worker.number == 1:
        return
    if behaviour == "stubborn":
        say_started(worker)
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()
    listeners: list[phoenix_trio.QuicListener] = []
    serve = partial(
        phoenix_trio.serve,
        partial(answer, worker, listeners),
        tls=phoenix_trio.ServerTLS(certificate, key, early_data=True),
        socket=worker.socket,
        grace_period=5,
    )
    async with trio.open_nursery() as nursery:
        listeners += await nursery.start(serve)
        say_started(worker)


if __name__ == "__main__":
    phoenix_trio.run_workers(
        partial(main, *sys.argv[1:4]),
        0,
        workers=2,
        host="127.0.0.1",
        max_crashes=0 if sys.argv[3] == "crash" else 1,
        stop_timeout=0.2 if sys.argv[3] == "stubborn" else 30.0,
    )
