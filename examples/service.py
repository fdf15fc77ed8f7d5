"""A service with requests and responses, and clients that share a pool of connections.

    phoenix-trio certificate --directory certificates
    python examples/service.py serve --port 4433
    python examples/service.py load --host localhost --port 4433 --requests 1000

A request is a stream: the question, its end; the answer, its end. A thousand clients at once
share at most four connections: the pool opens another one only when no stream is free.
"""

import argparse
import json
from functools import partial

import trio

import phoenix_trio


async def serve(options: argparse.Namespace) -> None:
    async def answer(stream: phoenix_trio.QuicStream) -> None:
        async with stream:
            numbers = json.loads(await stream.receive_all(10_000))["numbers"]
            await stream.send_all(json.dumps({"sum": sum(numbers)}).encode(), end=True)

    async def guarded(stream: phoenix_trio.QuicStream) -> None:
        try:
            await answer(stream)
        except (ValueError, KeyError, TypeError, phoenix_trio.StreamTooLarge) as error:
            print(f"a bad question: {error}", flush=True)
        except trio.BrokenResourceError:
            pass  # the client has gone

    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in connection.incoming_streams():
                nursery.start_soon(guarded, stream)

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with (
        phoenix_trio.open_phoenix("service", server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        (listener, *_) = await nursery.start(partial(phoenix.serve, handler, options.port))
        print(f"listening on port {listener.port}", flush=True)


async def load(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    answered = most = 0
    async with phoenix_trio.open_phoenix(
        "clients", tls=tls, max_connections=options.max_connections
    ) as phoenix:

        async def ask(number: int) -> None:
            nonlocal answered, most
            question = json.dumps({"numbers": list(range(number % 50))}).encode()
            async with phoenix.connect((options.host, options.port)) as connection:
                most = max(most, phoenix.stats().active_connections)
                answer = await connection.request(question, max_answer=1_000)
                assert json.loads(answer)["sum"] == sum(range(number % 50))
                answered += 1

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(options.requests):
                nursery.start_soon(ask, number)
        seconds = trio.current_time() - start
        pool = phoenix.pool.statistics()
    print(f"{answered} of {options.requests} answers in {seconds:.2f} s")
    print(f"{most} connections at most, {pool.waiting} still waiting, {pool.leases} leases left")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A service and its clients with a pool")
    parser.add_argument("role", choices=["serve", "load"])
    parser.add_argument("--requests", type=int, default=1000, help="all at once")
    parser.add_argument("--max-connections", type=int, default=4)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(serve if chosen.role == "serve" else load, chosen)
