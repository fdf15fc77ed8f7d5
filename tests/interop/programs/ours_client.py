"""Our client for the matrix: the examples' hq-interop or HTTP/3 download, with more options.

Prints one JSON line of facts for each connection, and exits with 0 if all files came.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import trio
from ours_server import facts

import phoenix_trio

import hq_client  # isort: skip # ours_server has put the examples on the path
import http3  # isort: skip
import http3_client  # isort: skip


async def fetch_h3(http: http3.Http3, path: str, options: argparse.Namespace) -> None:
    async with await http.connection.open_stream() as stream:
        with http.request(stream) as inbox:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(http.pump, stream, stream.id)
                asking = argparse.Namespace(
                    host="localhost", port=options.port, path=path, post=None
                )
                nursery.start_soon(http3_client.ask, http, stream, asking)
                body = bytearray()
                ended = False
                while not ended:
                    event = await inbox.receive()
                    ended = event.stream_ended
                    body += getattr(event, "data", b"")
    (options.directory / path.strip("/")).write_bytes(body)


async def exchange(
    connection: phoenix_trio.QuicConnection, paths: list[str], options: argparse.Namespace
) -> None:
    if options.h3:
        http = http3.Http3(connection, is_client=True)
        await http.start()
        async with trio.open_nursery() as control:
            control.start_soon(http.run_control_streams)
            async with trio.open_nursery() as nursery:
                for path in paths:
                    nursery.start_soon(fetch_h3, http, path, options)
                if options.update_keys:
                    await connection.wait_confirmed()
                    await connection.update_keys()
            control.cancel_scope.cancel()
        return
    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(hq_client.download, connection, path, options.directory)
        if options.update_keys:
            await connection.wait_confirmed()
            await connection.update_keys()


async def move(connection: phoenix_trio.QuicConnection) -> None:
    """Go on from another port in the middle of the transfer."""
    await trio.sleep(0.5)
    await connection.migrate()


async def main(options: argparse.Namespace) -> None:
    store = phoenix_trio.SessionStore()
    tls = phoenix_trio.ClientTLS(ca=options.ca, session_store=store, early_data=options.early_data)
    config = phoenix_trio.TransportConfig(
        max_idle_timeout=options.idle_timeout,
        qlog_dir=os.environ.get("INTEROP_QLOG"),  # for people who look into a failed cell
    )
    paths = options.paths
    if options.each:
        rounds = [[path] for path in paths]
    elif options.resume or options.early_data:
        rounds = [paths[:1], paths[1:]]
    else:
        rounds = [paths]
    for some in rounds:
        async with phoenix_trio.Endpoint.open(config=config) as endpoint:
            async with endpoint.connect(
                options.host,
                options.port,
                tls=tls,
                alpn=http3.ALPN if options.h3 else hq_client.ALPN,
            ) as connection:
                async with trio.open_nursery() as nursery:
                    if options.migrate:
                        nursery.start_soon(move, connection)
                    await exchange(connection, some, options)
                await connection.wait_confirmed()
                with trio.move_on_after(2):
                    while len(rounds) > 1 and some is rounds[0] and not len(store):
                        await connection.ping()  # the ticket is on its way
                print(facts(connection), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--idle-timeout", type=float, default=30.0)
    for flag in ("h3", "each", "resume", "early-data", "update-keys", "migrate"):
        parser.add_argument(f"--{flag}", action="store_true")
    trio.run(main, parser.parse_args())
