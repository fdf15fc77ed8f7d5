"""A service that can be restarted under load: SIGTERM lets it finish its work first.

    phoenix-trio certificate --directory certificates
    python examples/graceful_service.py serve --port 4433
    python examples/graceful_service.py ask --host localhost --port 4433 --calls 100

On SIGTERM (or Ctrl-C) the service refuses new requests, finishes its answers within the grace
period, and ends.  Refused calls were not processed, so clients make them again: at another
address of the name, or when the next process has the port.
"""

import argparse
import signal
from functools import partial

import trio

import phoenix_trio


async def serve(options: argparse.Namespace) -> None:
    answers = 0

    async def answer(stream: phoenix_trio.QuicStream) -> None:
        nonlocal answers
        try:
            async with stream:
                question = await stream.receive_all(10_000)
                await trio.sleep(options.seconds)  # the work
                await stream.send_all(question.upper(), end=True)
                answers += 1
        except (trio.BrokenResourceError, phoenix_trio.StreamTooLarge):
            pass  # the client has gone, or its request is too large

    async def handler(connection: phoenix_trio.PhoenixConnection) -> None:
        async with trio.open_nursery() as nursery:
            # Ends when the service shuts down; the nursery waits for answers under way.
            async for stream in connection.incoming_streams():
                nursery.start_soon(answer, stream)

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with (
        phoenix_trio.open_phoenix("service", server_tls=tls) as phoenix,
        trio.open_nursery() as nursery,
    ):
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            (listener, *_) = await nursery.start(
                partial(phoenix.serve, handler, options.port, host=options.host)
            )
            print(f"listening on port {listener.port}", flush=True)
            await anext(signals)
            await phoenix.shutdown(options.grace)
    cancelled = phoenix.stats().handlers_cancelled
    print(f"{answers} answers, {cancelled} handlers were cancelled", flush=True)


async def ask(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    retry = phoenix_trio.Retry(attempts=20)
    answers = 0

    async def call(phoenix: phoenix_trio.PhoenixTransport, number: int) -> None:
        nonlocal answers
        question = b"question %d" % number
        answer = await phoenix.request((options.host, options.port), question, retry=retry)
        assert answer == question.upper()
        answers += 1

    async with phoenix_trio.open_phoenix("clients", tls=tls) as phoenix:
        async with phoenix.connect((options.host, options.port)):
            print("connected", flush=True)
        async with trio.open_nursery() as nursery:
            for number in range(options.calls):
                nursery.start_soon(call, phoenix, number)
    print(f"{answers} of {options.calls} calls were answered")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A service which can be restarted under load")
    parser.add_argument("role", choices=["serve", "ask"])
    parser.add_argument("--host", help="serve: a local address (default: all); ask: the service")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--calls", type=int, default=100, help="all at once")
    parser.add_argument("--seconds", type=float, default=0.05, help="which an answer takes")
    parser.add_argument("--grace", type=float, default=10, help="seconds to finish after SIGTERM")
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    if chosen.role == "ask" and chosen.host is None:
        chosen.host = "localhost"
    trio.run(serve if chosen.role == "serve" else ask, chosen)
