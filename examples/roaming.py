"""A client which goes from one network to another, and keeps its connection.

    phoenix-trio certificate --directory certificates
    python examples/roaming.py serve --port 4433
    python examples/roaming.py roam --host localhost --port 4433 --local 127.0.0.2 --local 127.0.0.3

The client sends lines, and moves to each of its addresses in turn.  The server answers with the
number of lines that it has, and prints at the end from where they came; none is missing.
"""

import argparse
import sys
from functools import partial

import trio

import phoenix_trio

ALPN = ("roaming-example/1",)
LINES_BETWEEN_MOVES = 10


async def serve(options: argparse.Namespace) -> None:
    async def handler(connection: phoenix_trio.QuicConnection) -> None:
        seen: list[str] = []
        lines = 0
        async with await connection.accept_stream() as stream:
            async for chunk in stream:
                lines += chunk.count(b"\n")
                if connection.peer_address[0] not in seen:
                    seen.append(connection.peer_address[0])
                await stream.send_all(b"%d\n" % lines)
        print(f"{lines} lines from {', '.join(seen)}", flush=True)

    tls = phoenix_trio.ServerTLS(options.certificate, options.key)
    async with trio.open_nursery() as nursery:
        server = partial(phoenix_trio.serve, handler, options.port, tls=tls, alpn=ALPN)
        listeners = await nursery.start(server)
        print(f"listening on port {listeners[0].port}", flush=True)


async def roam(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca)
    async with phoenix_trio.open_connection(
        options.host, options.port, tls=tls, alpn=ALPN
    ) as connection:
        async with await connection.open_stream() as stream:
            answers, sent = b"", 0
            for address in (None, *options.local):
                if address is not None:
                    try:
                        await connection.migrate(address)
                    except phoenix_trio.MigrationFailed as error:
                        print(f"stayed where it was: {error}")
                for _ in range(LINES_BETWEEN_MOVES):
                    sent += 1
                    await stream.send_all(b"line %d\n" % sent)
                while not answers.endswith(b"%d\n" % sent):  # the server has all of them
                    answer = await stream.receive_some()
                    if not answer:
                        sys.exit("the server has ended")
                    answers += answer
        for path in connection.paths():
            state = "in use" if path.is_active else "left"
            print(f"{path.local_address[0]} to {path.peer_address[0]}: {state}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A client which moves")
    parser.add_argument("role", choices=["serve", "roam"])
    parser.add_argument("--local", action="append", default=[], help="an address to move to")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    trio.run(serve if chosen.role == "serve" else roam, chosen)
