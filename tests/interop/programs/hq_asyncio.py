"""hq-interop and HTTP/3 with aioquic or its relative qh3, as server or client.

Runs in the peer's own virtual environment, so it knows nothing of phoenix_trio.  A client
prints one JSON line for each connection.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

STACK = sys.argv[1]

aio = importlib.import_module(f"{STACK}.asyncio")
h3 = importlib.import_module(f"{STACK}.h3.connection")
h3_events = importlib.import_module(f"{STACK}.h3.events")
configuration_module = importlib.import_module(f"{STACK}.quic.configuration")
events = importlib.import_module(f"{STACK}.quic.events")
tls = importlib.import_module(f"{STACK}.tls")

VERSION_2 = 0x6B3343CF


def configure(options: argparse.Namespace, *, is_client: bool) -> Any:
    configuration = configuration_module.QuicConfiguration(
        is_client=is_client, alpn_protocols=["h3"] if options.h3 else ["hq-interop"]
    )
    configuration.max_datagram_frame_size = 65536
    if options.chacha20:
        configuration.cipher_suites = [tls.CipherSuite.CHACHA20_POLY1305_SHA256]
    if options.v2:
        configuration.supported_versions = [VERSION_2]
        if STACK == "qh3":
            configuration.original_version = VERSION_2
    return configuration


class Server(aio.QuicConnectionProtocol):
    directory: Path
    use_h3 = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._requests: dict[int, bytes] = {}
        self._http: Any = None

    def body(self, path: str) -> bytes | None:
        file = self.directory / path.strip("/")
        return file.read_bytes() if file.is_file() else None

    def quic_event_received(self, event: Any) -> None:
        if self.use_h3:
            if self._http is None and isinstance(event, events.ProtocolNegotiated):
                self._http = h3.H3Connection(self._quic)
            if self._http is not None:
                for found in self._http.handle_event(event):
                    if isinstance(found, h3_events.HeadersReceived):
                        body = self.body(dict(found.headers)[b":path"].decode())
                        status = b"404" if body is None else b"200"
                        self._http.send_headers(found.stream_id, [(b":status", status)])
                        self._http.send_data(found.stream_id, body or b"", end_stream=True)
        elif isinstance(event, events.StreamDataReceived):
            request = self._requests.get(event.stream_id, b"") + event.data
            self._requests[event.stream_id] = request
            if event.end_stream:
                del self._requests[event.stream_id]
                body = self.body(request.decode().split()[1])
                if body is not None:
                    self._quic.send_stream_data(event.stream_id, body, end_stream=True)
        self.transmit()


async def run_server(options: argparse.Namespace) -> None:
    configuration = configure(options, is_client=False)
    configuration.load_cert_chain(options.certificate, options.key)
    Server.directory, Server.use_h3 = options.directory, options.h3
    tickets: dict[bytes, Any] = {}
    await aio.serve(
        options.host,
        options.port,
        configuration=configuration,
        create_protocol=Server,
        retry=options.retry,
        session_ticket_fetcher=lambda label: tickets.pop(label, None),
        session_ticket_handler=lambda ticket: tickets.__setitem__(ticket.ticket, ticket),
    )
    print(f"listening on port {options.port}", flush=True)
    await asyncio.Event().wait()


class Client(aio.QuicConnectionProtocol):
    use_h3 = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._bodies: dict[int, tuple[bytearray, asyncio.Future[bytes]]] = {}
        self._http: Any = None
        self.ended: Any = None

    async def request(self, path: str) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        stream_id = self._quic.get_next_available_stream_id()
        self._bodies[stream_id] = (bytearray(), answer)
        if self.use_h3:
            headers = [
                (b":method", b"GET"),
                (b":scheme", b"https"),
                (b":authority", b"localhost"),
                (b":path", path.encode()),
            ]
            self._http.send_headers(stream_id, headers, end_stream=True)
        else:
            request = f"GET {path}\r\n".encode()
            while True:
                try:
                    self._quic.send_stream_data(stream_id, request, end_stream=True)
                    break
                except ValueError:  # qh3 does not queue requests above the limit of streams
                    self.transmit()
                    await asyncio.sleep(0.002)
        return answer

    def _take(self, stream_id: int, data: bytes, ended: bool) -> None:
        if stream_id in self._bodies:
            body, answer = self._bodies[stream_id]
            body += data
            if ended:
                del self._bodies[stream_id]
                answer.set_result(bytes(body))

    def quic_event_received(self, event: Any) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self.ended = event
            for _, answer in self._bodies.values():
                answer.set_exception(ConnectionError(str(event)))
            self._bodies.clear()
        if self.use_h3 and self._http is None and isinstance(event, events.ProtocolNegotiated):
            self._http = h3.H3Connection(self._quic)
        if self._http is not None:
            for found in self._http.handle_event(event):
                data = getattr(found, "data", b"")
                if isinstance(found, (h3_events.DataReceived, h3_events.HeadersReceived)):
                    self._take(found.stream_id, data, found.stream_ended)
        elif isinstance(event, events.StreamDataReceived):
            self._take(event.stream_id, event.data, event.end_stream)


async def run_client(options: argparse.Namespace) -> None:
    tickets: list[Any] = []
    Client.use_h3 = options.h3
    if options.each:
        rounds = [[path] for path in options.paths]
    elif options.resume or options.early_data:
        rounds = [options.paths[:1], options.paths[1:]]
    else:
        rounds = [options.paths]
    for number, paths in enumerate(rounds):
        configuration = configure(options, is_client=True)
        configuration.server_name = "localhost"
        configuration.verify_mode = ssl.CERT_REQUIRED
        configuration.load_verify_locations(options.ca)
        if number and tickets:
            configuration.session_ticket = tickets.pop()
        async with aio.connect(
            options.host,
            options.port,
            configuration=configuration,
            create_protocol=Client,
            session_ticket_handler=tickets.append,
            wait_connected=not (number and options.early_data),
        ) as protocol:
            answers = [await protocol.request(path) for path in paths]
            protocol.transmit()
            if options.update_keys or options.migrate:
                await protocol.ping()
            if options.update_keys:
                protocol.request_key_update()
                await protocol.ping()
            if options.migrate:
                await asyncio.sleep(0.3)
                family = protocol._transport.get_extra_info("socket").family
                new = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                new.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
                old = protocol._transport
                await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: protocol, sock=new
                )
                protocol.change_connection_id()
                await protocol.ping()
                del old  # stays open until the end, as a real host's other interface would
            for path, answer in zip(paths, answers, strict=True):
                (options.directory / path.strip("/")).write_bytes(await answer)
            for _ in range(20):
                if number or tickets or not (options.resume or options.early_data):
                    break
                await protocol.ping()
            print(
                json.dumps(
                    {
                        "resumed": protocol._quic.tls.session_resumed,
                        "early_data_accepted": protocol._quic.tls.early_data_accepted,
                    }
                ),
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stack")
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--ca")
    for flag in (
        *("h3", "each", "resume", "early-data", "update-keys", "migrate"),
        *("chacha20", "v2", "retry"),
    ):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args()
    asyncio.run(run_server(options) if options.role == "server" else run_client(options))


if __name__ == "__main__":
    main()
