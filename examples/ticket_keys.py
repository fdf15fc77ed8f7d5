"""A service on several machines, or restarted often: clients resume their sessions at all of them.

    phoenix-trio certificate --directory certificates
    python examples/ticket_keys.py key > ticket.keys
    python examples/ticket_keys.py serve --port 4433
    python examples/ticket_keys.py ask --port 4433

Each machine has the same file of keys, one a line, readable by the server alone.  The first key
seals session tickets, all keys open them.  To replace a key, put a new one behind the old one on
all machines, then before it, and take the old one away a day later; SIGHUP makes the server read
the file again.  The client makes one connection for each line that it reads.
"""

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path

import trio

import phoenix_trio

ALPN = ("greeting/1",)


def read_keys(path: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in Path(path).read_text().split()]


async def handler(connection: phoenix_trio.QuicConnection) -> None:
    async for stream in connection.incoming_streams():
        async with stream:
            name = await stream.receive_all(100)
            await stream.send_all(b"hello, " + name, end=True)


async def serve(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ServerTLS(
        options.certificate, options.key, ticket_keys=read_keys(options.ticket_keys)
    )
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            start = partial(phoenix_trio.serve, handler, options.port, tls=tls, alpn=ALPN)
            (listener,) = await nursery.start(start)
            print(f"listening on port {listener.port}", flush=True)
            async for _ in signals:
                tls.reload(ticket_keys=read_keys(options.ticket_keys))
                print("keys replaced", flush=True)


async def ask(options: argparse.Namespace) -> None:
    tls = phoenix_trio.ClientTLS(ca=options.ca, session_store=phoenix_trio.SessionStore())
    async for line in trio.wrap_file(sys.stdin):
        async with phoenix_trio.open_connection(
            options.host, options.port, tls=tls, alpn=ALPN
        ) as connection:
            answer = await connection.request(line.strip().encode())
            how = "resumed" if connection.session_resumed else "full handshake"
            print(f"{answer.decode()} ({how})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Session tickets which several servers take")
    parser.add_argument("role", choices=["key", "serve", "ask"])
    parser.add_argument("--host", default="localhost", help="of the server, to ask it")
    parser.add_argument("--port", type=int, default=4433)
    parser.add_argument("--ticket-keys", default="ticket.keys")
    parser.add_argument("--ca", default="certificates/ca.pem")
    parser.add_argument("--certificate", default="certificates/server.pem")
    parser.add_argument("--key", default="certificates/server-key.pem")
    chosen = parser.parse_args()
    if chosen.role == "key":
        print(os.urandom(32).hex())
    else:
        trio.run(serve if chosen.role == "serve" else ask, chosen)
