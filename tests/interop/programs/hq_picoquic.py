"""hq-interop with picoquic (the package aiopquic), as server or client.

Runs in the peer's own virtual environment, so it knows nothing of phoenix_trio.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from pathlib import Path
from typing import Any

from aiopquic.asyncio.client import connect
from aiopquic.asyncio.protocol import QuicConnectionProtocol
from aiopquic.asyncio.server import serve
from aiopquic.quic.configuration import QUIC_V1, QUIC_V2, QuicConfiguration
from aiopquic.quic.events import ConnectionTerminated, StreamDataReceived, StreamReset


def configure(options: argparse.Namespace, *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=["hq-interop"],
        cipher_suite=0x1303 if options.chacha20 else None,
        supported_versions=[QUIC_V2, QUIC_V1] if options.v2 else None,
        key_update_interval=20 if options.update_keys else None,
        session_ticket_file=options.tickets,
        ip_family=socket.AF_INET6 if ":" in options.host else socket.AF_INET,
        congestion_control_algorithm="cubic",
        stream_ring_cap=16 * 1024 * 1024,
        tx_max_queued_bytes=None,
    )


class Server(QuicConnectionProtocol):
    directory: Path

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._requests: dict[int, bytes] = {}

    def quic_event_received(self, event: Any) -> None:
        if isinstance(event, StreamDataReceived):
            request = self._requests.get(event.stream_id, b"") + bytes(event.data)
            self._requests[event.stream_id] = request
            if event.end_stream:
                del self._requests[event.stream_id]
                body = (self.directory / request.decode().split()[1].strip("/")).read_bytes()
                self._quic.send_stream_data(event.stream_id, body, end_stream=True)


async def run_server(options: argparse.Namespace) -> None:
    configuration = configure(options, is_client=False)
    configuration.load_cert_chain(options.certificate, options.key)
    Server.directory = options.directory
    server = await serve(
        options.host,
        options.port,
        configuration=configuration,
        create_protocol=Server,
        retry=options.retry,
    )
    print(f"listening on port {options.port}", flush=True)
    await asyncio.Event().wait()
    server.close()


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._bodies: dict[int, tuple[bytearray, asyncio.Future[bytes]]] = {}

    def request(self, path: str) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        stream_id = self._quic.get_next_available_stream_id()
        self._bodies[stream_id] = (bytearray(), answer)
        self._quic.send_stream_data(stream_id, f"GET {path}\r\n".encode(), end_stream=True)
        return answer

    def quic_event_received(self, event: Any) -> None:
        if isinstance(event, StreamDataReceived) and event.stream_id in self._bodies:
            body, answer = self._bodies[event.stream_id]
            body += event.data
            if event.end_stream:
                del self._bodies[event.stream_id]
                answer.set_result(bytes(body))
        elif isinstance(event, (ConnectionTerminated, StreamReset)):
            for _, answer in self._bodies.values():
                if not answer.done():
                    answer.set_exception(ConnectionError(str(event)))
            self._bodies.clear()


async def run_client(options: argparse.Namespace) -> None:
    if options.each:
        rounds = [[path] for path in options.paths]
    elif options.tickets:
        rounds = [options.paths[:1], options.paths[1:]]
    else:
        rounds = [options.paths]
    for number, paths in enumerate(rounds):
        configuration = configure(options, is_client=True)
        configuration.server_name = "localhost"
        configuration.load_verify_locations(cafile=options.ca)
        async with connect(
            options.host,
            options.port,
            configuration=configuration,
            create_protocol=Client,
            wait_connected=not (number and options.early_data),
        ) as protocol:
            answers = [protocol.request(path) for path in paths]
            for path, answer in zip(paths, answers, strict=True):
                (options.directory / path.strip("/")).write_bytes(await answer)
            if not number and options.tickets:
                await asyncio.sleep(0.3)  # the session ticket is on its way


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--ca")
    parser.add_argument("--tickets")
    for flag in ("each", "early-data", "update-keys", "chacha20", "v2", "retry"):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args()
    asyncio.run(run_server(options) if options.role == "server" else run_client(options))


if __name__ == "__main__":
    main()
