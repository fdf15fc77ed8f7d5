"""A server which uses several processors: one process each, on one port.

    phoenix-trio certificate --directory certificates
    python examples/workers.py serve --port 4433 --workers 4
    python examples/workers.py ask --port 4433 --clients 20

Each client is told which worker serves it.  On SIGTERM (or Ctrl-C) all workers finish what they
have in hand; one which crashes is replaced.
"""

import argparse
from collections import Counter
from functools import partial

import trio

import phoenix_trio

ALPN = ("which-worker/1",)


async def handler(worker: phoenix_trio.Worker, connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            question = await stream.receive_all(10_000)
            answer = f"worker {worker.number} of {worker.count}: {question.decode()}"
            await stream.send_all(answer.encode(), end=True)


async def work(options: argparse.Namespace, worker: phoenix_trio.Worker) -> None:
    """Runs in each process."""
    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with trio.open_nursery() as nursery:
        serve = partial(
            phoenix_trio.serve,
            partial(handler, worker),
            tls=tls,
            socket=worker.socket,
            alpn=ALPN,
            grace_period=10,
        )
        await nursery.start(serve)
        if worker.number == 0:
            print(f"listening on port {worker.port}", flush=True)


async def ask(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    served: Counter[str] = Counter()

    async def client(number: int) -> None:
        async with phoenix_trio.open_connection(
            options.host, options.port, tls=tls, alpn=ALPN
        ) as connection:
            answer = (await connection.request(b"client %d" % number)).decode()
        assert answer.endswith(f"client {number}")
        served[answer.partition(":")[0]] += 1

    async with trio.open_nursery() as nursery:
        for number in range(options.clients):
            nursery.start_soon(client, number)
    for worker, clients in sorted(served.items()):
        print(f"{worker} has served {clients} clients")


# Each worker imports this file: only the first process may go on from here.
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A server which uses several processors")
    parser.add_argument("role", choices=["serve", "ask"])
    parser.add_argument("--host", default="localhost", help="of the server, to ask it")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--workers", type=int, help="default: one for each processor")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    if chosen.role == "ask":
        trio.run(ask, chosen)
    else:
        phoenix_trio.run_workers(partial(work, chosen), chosen.port, workers=chosen.workers)
