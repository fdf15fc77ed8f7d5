"""The worker for aioquic's asyncio API, and for qh3, which has the same one.

Both use the settings that their documentation and our own experience recommend for speed:
large windows, writes of the size asked for, ``drain`` if there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import tempfile
import time
from typing import Any

from phoenix_trio.quic.handshake.certificates import create_development_ca, issue_certificate

from .. import protocol

__all__ = ["main"]

_WINDOW = 16 * 1024 * 1024

#: Datagrams between two turns of the event loop.
_BURST = 64
_READ = 256 * 1024
_WRITE = 256 * 1024


class _Stack:
    """The modules of one of the two packages."""

    def __init__(self, package: str) -> None:
        # In qh3 2.1 a stream's writer has no protocol to drain.
        self.has_drain = package != "qh3"
        # qh3 drops datagrams silently above some number, and does not show how many.
        self.has_datagram_queue = package != "qh3"
        self.asyncio = importlib.import_module(f"{package}.asyncio")
        self.protocol = importlib.import_module(f"{package}.asyncio.protocol")
        self.configuration = importlib.import_module(f"{package}.quic.configuration")
        self.events = importlib.import_module(f"{package}.quic.events")

    def configure(self, *, is_client: bool, udp_payload: int | None) -> Any:
        """A configuration with large windows."""
        configuration = self.configuration.QuicConfiguration(
            is_client=is_client,
            alpn_protocols=[protocol.ALPN],
            max_data=_WINDOW,
            max_stream_data=_WINDOW,
            max_datagram_frame_size=65536,
            idle_timeout=60.0,
        )
        if udp_payload is not None:
            configuration.max_datagram_size = udp_payload
        if is_client:
            configuration.verify_mode = False
            configuration.server_name = "localhost"
        return configuration


def _protocol_class(stack: _Stack) -> Any:
    base: Any = stack.protocol.QuicConnectionProtocol

    class Protocol(base):  # type: ignore[misc] # chosen at run time
        """Counts the datagrams that arrive."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.datagrams = 0

        def quic_event_received(self, event: Any) -> None:
            """Called by the library."""
            if isinstance(event, stack.events.DatagramFrameReceived):
                self.datagrams += 1
            else:
                super().quic_event_received(event)

    return Protocol


async def _serve_stream(reader: Any, writer: Any, buffers: protocol.Buffers) -> None:
    # (The library's reader and writer of one stream; the writer's transport is the connection.)
    kind = await reader.readexactly(1)
    if kind in (protocol.TRANSFER, protocol.FLOW):
        size = protocol.decode_number(await reader.readexactly(protocol.SIZE_LENGTH))
        with contextlib.closing(protocol.Intake(buffers, kind, size)) as intake:
            while data := await reader.read(_READ):
                if intake.add(data):
                    writer.write(protocol.ACKNOWLEDGED)
            if intake.end():
                writer.write(protocol.ACKNOWLEDGED)
            await asyncio.sleep(0.02)  # let it leave before the checksum keeps this process busy
            writer.write(intake.trailer())
    elif kind == protocol.ECHO:
        while data := await reader.read(_READ):
            writer.write(data)
    elif kind == protocol.DATAGRAM_COUNT:
        connection = writer.transport.protocol
        writer.write(protocol.encode_number(connection.datagrams))
        connection.datagrams = 0
    writer.write_eof()


def _load_certificate(configuration: Any) -> None:
    issued = issue_certificate(create_development_ca(), ["localhost", "127.0.0.1"])
    with tempfile.TemporaryDirectory() as directory:
        paths = []
        for name, content in (("cert.pem", issued.certificate), ("key.pem", issued.private_key)):
            path = os.path.join(directory, name)
            with open(path, "wb") as file:
                file.write(content)
            paths.append(path)
        configuration.load_cert_chain(*paths)


async def _server(stack: _Stack, host: str, udp_payload: int | None) -> None:
    configuration = stack.configure(is_client=False, udp_payload=udp_payload)
    _load_certificate(configuration)
    buffers = protocol.Buffers()
    tasks: set[asyncio.Task[None]] = set()

    def on_stream(reader: Any, writer: Any) -> None:
        task = asyncio.ensure_future(_serve_stream(reader, writer, buffers))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    tickets: dict[bytes, Any] = {}
    server = await stack.asyncio.serve(
        host,
        0,
        configuration=configuration,
        create_protocol=_protocol_class(stack),
        stream_handler=on_stream,
        session_ticket_fetcher=lambda label: tickets.pop(label, None),
        session_ticket_handler=lambda ticket: tickets.__setitem__(ticket.ticket, ticket),
    )
    port = server._transport.get_extra_info("sockname")[1]
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


class _Client:
    def __init__(self, stack: _Stack, host: str, port: int, udp_payload: int | None) -> None:
        self._stack = stack
        self._host = host
        self._port = port
        self._udp_payload = udp_payload
        self._has_drain = stack.has_drain
        self._has_datagram_queue = stack.has_datagram_queue
        self._warm: Any = None
        self._ticket: Any = None
        self._contexts: list[Any] = []
        self._idle: list[tuple[Any, Any]] = []

    def _dial(self, *, ticket: Any = None) -> Any:
        configuration = self._stack.configure(is_client=True, udp_payload=self._udp_payload)
        configuration.session_ticket = ticket
        return self._stack.asyncio.connect(
            self._host,
            self._port,
            configuration=configuration,
            create_protocol=_protocol_class(self._stack),
            session_ticket_handler=lambda new: setattr(self, "_ticket", new),
        )

    async def connect(self) -> dict[str, Any]:
        started = time.perf_counter()
        context = self._dial()
        self._warm = await context.__aenter__()
        self._contexts.append(context)
        seconds = time.perf_counter() - started
        await asyncio.sleep(0.3)
        size = getattr(self._warm._quic, "_max_datagram_size", self._udp_payload)
        return {"seconds": seconds, "udp_payload": size}

    async def _open(self, connection: Any) -> tuple[Any, Any]:
        """A new stream, as soon as the server allows one more (qh3 raises instead of waiting)."""
        if not self._has_drain:
            quic = connection._quic
            # Nor does it tell when it would not raise any more.
            while quic.get_next_available_stream_id() // 4 >= quic.max_concurrent_bidi_streams:  # noqa: ASYNC110
                await asyncio.sleep(0)
        streams: tuple[Any, Any] = await connection.create_stream()
        return streams

    async def _send(self, writer: Any, kind: bytes, size: int, write: int) -> None:
        view = memoryview(protocol.payload(size)[0])
        writer.write(protocol.transfer_header(size, kind))
        for at in range(0, size, write):
            # (The buffer takes bytes; it would copy a view at once anyway.)
            writer.write(bytes(view[at : at + write]))
            if self._has_drain:
                await writer.drain()
        writer.write_eof()

    async def transfer(self, size: int, write: int) -> dict[str, Any]:
        processor = time.process_time()
        answer = await self._transfer(self._warm, size, write)
        return {**answer, "client_processor": time.process_time() - processor}

    async def _transfer(self, connection: Any, size: int, write: int) -> dict[str, Any]:
        _, digest = protocol.payload(size)
        started = time.perf_counter()
        reader, writer = await self._open(connection)
        await self._send(writer, protocol.TRANSFER, size, write)
        answer = await reader.readexactly(1)
        seconds = time.perf_counter() - started
        answer += await reader.read()
        return {"seconds": seconds, "server_processor": protocol.check_answer(answer, digest)}

    async def flow(self, size: int, write: int) -> dict[str, Any]:
        return {"seconds": await self._flow(self._warm, size, write)}

    async def _flow(self, connection: Any, size: int, write: int) -> float:
        _, digest = protocol.payload(size)
        started = time.perf_counter()
        reader, writer = await self._open(connection)
        sending = asyncio.ensure_future(self._send(writer, protocol.FLOW, size, write))
        answer = await reader.readexactly(1)
        seconds = time.perf_counter() - started
        answer += await reader.read()
        await sending
        protocol.check_answer(answer, digest)
        return seconds

    async def _echo(self, data: bytes) -> None:
        reader, writer = await self._open(self._warm)
        writer.write(protocol.ECHO + data)
        writer.write_eof()
        if await reader.read() != data:
            raise ValueError("the echo differs")

    async def echo(self, count: int, size: int) -> dict[str, Any]:
        data, _ = protocol.payload(size)
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await self._echo(data)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    async def echoes(self, count: int, size: int, concurrent: int) -> dict[str, Any]:
        data, _ = protocol.payload(size)

        async def some(share: int) -> None:
            for _ in range(share):
                await self._echo(data)

        started = time.perf_counter()
        await asyncio.gather(*[some((count + task) // concurrent) for task in range(concurrent)])
        return {"seconds": time.perf_counter() - started}

    async def round_trip(self, count: int, size: int) -> dict[str, Any]:
        data, _ = protocol.payload(size)
        seconds = []
        reader, writer = await self._open(self._warm)
        writer.write(protocol.ECHO)
        for _ in range(count):
            started = time.perf_counter()
            writer.write(data)
            await reader.readexactly(size)
            seconds.append(time.perf_counter() - started)
        writer.write_eof()
        return {"seconds": seconds}

    async def handshake(self, count: int, resume: bool) -> dict[str, Any]:
        seconds = []
        if resume:
            async with self._dial() as connection:
                await connection.ping()
        for _ in range(count):
            if resume and self._ticket is None:
                raise ValueError("the server gave no ticket")
            started = time.perf_counter()
            async with self._dial(ticket=self._ticket if resume else None) as connection:
                seconds.append(time.perf_counter() - started)
                if resume:
                    await connection.ping()
        return {"seconds": seconds}

    async def cold(self, size: int) -> dict[str, Any]:
        protocol.payload(size)
        started = time.perf_counter()
        async with self._dial() as connection:
            until = time.perf_counter() - started
            answer = await self._transfer(connection, size, _WRITE)
        return {"seconds": until + answer["seconds"]}

    async def open_stream(self, count: int) -> dict[str, Any]:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            reader, writer = await self._open(self._warm)
            seconds.append(time.perf_counter() - started)
            writer.write(protocol.ECHO)
            writer.write_eof()
            await reader.read()
        return {"seconds": seconds}

    async def idle_connections(self, count: int, settle: float) -> dict[str, Any]:
        for _ in range(count):
            context = self._dial()
            self._idle.append((context, await context.__aenter__()))
        await asyncio.sleep(settle)
        return {"open": len(self._idle)}

    async def load_idle(self, size: int) -> dict[str, Any]:
        await asyncio.gather(*[self._flow(each, size, _WRITE) for _, each in self._idle])
        return {"open": len(self._idle)}

    async def close_idle(self) -> dict[str, Any]:
        for context, _ in self._idle:
            await context.__aexit__(None, None, None)
        self._idle.clear()
        return {"open": 0}

    async def datagrams(self, count: int, size: int) -> dict[str, Any]:
        data, _ = protocol.payload(size)
        await self._datagram_count()
        started = time.perf_counter()
        quic = self._warm._quic
        for number in range(count):
            quic.send_datagram_frame(data)
            if number % _BURST == _BURST - 1:
                self._warm.transmit()
                if self._has_datagram_queue:
                    await asyncio.sleep(0)
                else:
                    await self._warm.ping()
        # A PING would overtake datagrams still in the queue.
        while self._has_datagram_queue and quic._datagrams_pending:
            self._warm.transmit()
            await asyncio.sleep(0.001)
        await self._warm.ping()
        seconds = time.perf_counter() - started
        await asyncio.sleep(0.1)
        return {"seconds": seconds, "received": await self._datagram_count()}

    async def _datagram_count(self) -> int:
        reader, writer = await self._open(self._warm)
        writer.write(protocol.DATAGRAM_COUNT)
        writer.write_eof()
        return protocol.decode_number(await reader.read())

    def handlers(self) -> dict[str, protocol.Handler]:
        names = (
            *("connect", "transfer", "flow", "cold", "echo", "echoes", "round_trip"),
            *("open_stream", "handshake", "idle_connections", "load_idle", "close_idle"),
            "datagrams",
        )
        # (A single call elsewhere is the same calls here.)
        both = {"request": self.echo, "requests": self.echoes}
        return {name: getattr(self, name) for name in names} | both


async def _run_client(stack: _Stack, host: str, port: int, udp_payload: int | None) -> None:
    async def read_line() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    await protocol.answer_requests(_Client(stack, host, port, udp_payload).handlers(), read_line)


def main(package: str, arguments: list[str]) -> None:
    """Run a worker of `package`."""
    options = protocol.parse_arguments(arguments)
    stack = _Stack(package)
    if options.role == "server":
        asyncio.run(_server(stack, options.host, options.udp_payload))
    else:
        asyncio.run(_run_client(stack, options.host, options.port, options.udp_payload))
