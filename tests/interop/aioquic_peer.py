"""Stock aioquic with its asyncio API, as a process of its own: server or client.

Server: echoes every stream and datagram; prints its port.  Client: runs the steps given on
its command line, and prints one JSON line of results.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import ssl
import sys
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    QuicEvent,
    StreamDataReceived,
)
from aioquic.tls import SessionTicket

ALPN = ["test/1"]


class Echo(QuicConnectionProtocol):
    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)
        elif isinstance(event, DatagramFrameReceived):
            self._quic.send_datagram_frame(event.data)
        self.transmit()


async def run_server(options: argparse.Namespace) -> None:
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=ALPN, max_datagram_frame_size=65536
    )
    configuration.load_cert_chain(options.certificate, options.key)
    tickets: dict[bytes, SessionTicket] = {}
    server = await serve(
        "127.0.0.1",
        0,
        configuration=configuration,
        create_protocol=Echo,
        retry=options.retry,
        session_ticket_fetcher=lambda label: tickets.pop(label, None),
        session_ticket_handler=lambda ticket: tickets.__setitem__(ticket.ticket, ticket),
    )
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


class Recorder(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.datagrams: asyncio.Queue[bytes] = asyncio.Queue()
        self.terminated: ConnectionTerminated | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self.datagrams.put_nowait(event.data)
        elif isinstance(event, ConnectionTerminated):
            self.terminated = event
        super().quic_event_received(event)


async def run_client(options: argparse.Namespace) -> None:
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=ALPN,
        max_datagram_frame_size=65536,
        server_name="localhost",
    )
    configuration.verify_mode = ssl.CERT_REQUIRED
    configuration.load_verify_locations(options.ca)
    if options.version2:
        configuration.supported_versions = [0x6B3343CF]
    tickets: list[SessionTicket] = []
    found: dict[str, Any] = {}
    for attempt in range(2 if options.resume else 1):
        if attempt:
            configuration.session_ticket = tickets.pop()
        async with connect(
            "127.0.0.1",
            options.port,
            configuration=configuration,
            create_protocol=Recorder,
            session_ticket_handler=tickets.append,
            wait_connected=not (attempt and options.early),
        ) as protocol:
            assert isinstance(protocol, Recorder)

            async def echo(size: int) -> None:
                reader, writer = await protocol.create_stream()
                data = os.urandom(size)
                writer.write(data)
                writer.write_eof()
                answer = await reader.read(-1)
                assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()

            await asyncio.gather(*(echo(options.size) for _ in range(options.streams)))
            if options.moves:
                protocol.change_connection_id()
                await protocol.ping()
                protocol.request_key_update()
                await protocol.ping()
                await echo(10_000)
            protocol._quic.send_datagram_frame(b"datagram")
            protocol.transmit()
            assert await asyncio.wait_for(protocol.datagrams.get(), 5) == b"datagram"
            if options.code is None:
                protocol.close()
            else:
                protocol.close(error_code=options.code, reason_phrase="as told")
            found["resumed"] = protocol._quic.tls.session_resumed
            found["early"] = protocol._quic.tls.early_data_accepted
            found["version"] = protocol._quic._version
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--ca")
    parser.add_argument("--port", type=int)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--code", type=int)
    for flag in ("retry", "version2", "resume", "early", "moves"):
        parser.add_argument(f"--{flag}", action="store_true")
    options = parser.parse_args()
    asyncio.run(run_server(options) if options.role == "server" else run_client(options))


if __name__ == "__main__":
    sys.exit(main())
