"""TLS 1.3 over TCP by ``trio.SSLStream``: the usual alternative.

There is only one byte stream, so operations that need several at once are not supported,
and every request states its length.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import sys
import tempfile
import time
from functools import partial
from typing import Any

import trio

from phoenix_trio.quic.handshake.certificates import create_development_ca, issue_certificate

from .. import protocol

_RECEIVE = 256 * 1024
_WRITE = 256 * 1024

Stream = trio.SSLStream[trio.SocketStream]


class _Reader:
    """Reads exact amounts."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = b""

    async def exactly(self, count: int) -> bytes:
        """So many bytes; b"" at the end of the connection."""
        while len(self._rest) < count:
            data = await self._stream.receive_some(_RECEIVE)
            if not data:
                return b""
            self._rest += data
        result, self._rest = self._rest[:count], self._rest[count:]
        return result

    async def some(self, at_most: int) -> bytes:
        """The bytes available, at least one; b"" at the end of the connection."""
        if not self._rest:
            return bytes(await self._stream.receive_some(min(at_most, _RECEIVE)))
        result, self._rest = self._rest[:at_most], self._rest[at_most:]
        return result


async def _serve(buffers: protocol.Buffers, stream: Stream) -> None:
    reader = _Reader(stream)
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while kind := await reader.exactly(1):
            size = protocol.decode_number(await reader.exactly(protocol.SIZE_LENGTH))
            if kind in (protocol.TRANSFER, protocol.FLOW):
                with contextlib.closing(protocol.Intake(buffers, kind, size)) as intake:
                    await _take_in(reader, stream, intake, size)
            else:
                await stream.send_all(await reader.exactly(size))


async def _take_in(reader: _Reader, stream: Stream, intake: protocol.Intake, size: int) -> None:
    at = 0
    while at < size:
        data = await reader.some(size - at)
        if not data:
            raise trio.BrokenResourceError("the peer went in the middle of a transfer")
        at += len(data)
        if intake.add(data):
            await stream.send_all(protocol.ACKNOWLEDGED)
    if intake.end():
        await stream.send_all(protocol.ACKNOWLEDGED)
    await trio.sleep(0.02)  # as the others: first the answer, then the checksum
    await stream.send_all(intake.trailer())


def _context() -> ssl.SSLContext:
    issued = issue_certificate(create_development_ca(), ["localhost", "127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "both.pem")
        with open(path, "wb") as file:
            file.write(issued.private_key + issued.certificate)
        context.load_cert_chain(path)
    return context


async def _server(host: str) -> None:
    context = _context()
    async with trio.open_nursery() as nursery:
        serve = partial(
            trio.serve_ssl_over_tcp, partial(_serve, protocol.Buffers()), 0, context, host=host
        )
        listeners: Any = await nursery.start(serve)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        sys.stdout.write(json.dumps({"port": port}) + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


class _Client:
    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._warm: tuple[Stream, _Reader] | None = None
        self._idle: list[tuple[Stream, _Reader]] = []

    async def _dial(self) -> tuple[Stream, _Reader]:
        stream = await trio.open_ssl_over_tcp_stream(
            self._host, self._port, ssl_context=self._context
        )
        await stream.do_handshake()
        return stream, _Reader(stream)

    async def connect(self) -> dict[str, Any]:
        started = time.perf_counter()
        self._warm = await self._dial()
        return {"seconds": time.perf_counter() - started, "udp_payload": None}

    @property
    def _pair(self) -> tuple[Stream, _Reader]:
        if self._warm is None:
            raise ValueError("connect comes first")
        return self._warm

    async def transfer(self, size: int, write: int) -> dict[str, Any]:
        processor = time.process_time()
        answer = await self._transfer(self._pair, size, write)
        return {**answer, "client_processor": time.process_time() - processor}

    async def _send(self, stream: Stream, kind: bytes, size: int, write: int) -> None:
        view = memoryview(protocol.payload(size)[0])
        await stream.send_all(protocol.transfer_header(size, kind))
        for at in range(0, size, write):
            await stream.send_all(view[at : at + write])

    async def _transfer(
        self, pair: tuple[Stream, _Reader], size: int, write: int
    ) -> dict[str, Any]:
        stream, reader = pair
        _, digest = protocol.payload(size)
        started = time.perf_counter()
        await self._send(stream, protocol.TRANSFER, size, write)
        answer = await reader.exactly(1)
        seconds = time.perf_counter() - started
        answer += await reader.exactly(protocol.TRAILER_SIZE)
        return {"seconds": seconds, "server_processor": protocol.check_answer(answer, digest)}

    async def flow(self, size: int, write: int) -> dict[str, Any]:
        return {"seconds": await self._flow(self._pair, size, write)}

    async def _flow(self, pair: tuple[Stream, _Reader], size: int, write: int) -> float:
        stream, reader = pair
        _, digest = protocol.payload(size)
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, protocol.FLOW, size, write)
            answer = await reader.exactly(1)
            seconds = time.perf_counter() - started
            answer += await reader.exactly(protocol.TRAILER_SIZE)
        protocol.check_answer(answer, digest)
        return seconds

    async def round_trip(self, count: int, size: int) -> dict[str, Any]:
        stream, reader = self._pair
        data, _ = protocol.payload(size)
        request = protocol.ECHO + size.to_bytes(8, "big") + data
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await stream.send_all(request)
            if await reader.exactly(size) != data:
                raise ValueError("the echo differs")
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    async def handshake(self, count: int, resume: bool) -> dict[str, Any]:
        if resume:
            raise protocol.NotOffered("trio.SSLStream does not offer session resumption")
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            stream, _ = await self._dial()
            seconds.append(time.perf_counter() - started)
            await trio.aclose_forcefully(stream)
        return {"seconds": seconds}

    async def cold(self, size: int) -> dict[str, Any]:
        protocol.payload(size)
        started = time.perf_counter()
        pair = await self._dial()
        until = time.perf_counter() - started
        answer = await self._transfer(pair, size, _WRITE)
        await trio.aclose_forcefully(pair[0])
        return {"seconds": until + answer["seconds"]}

    async def idle_connections(self, count: int, settle: float) -> dict[str, Any]:
        for _ in range(count):
            self._idle.append(await self._dial())
        await trio.sleep(settle)
        return {"open": len(self._idle)}

    async def load_idle(self, size: int) -> dict[str, Any]:
        async with trio.open_nursery() as nursery:
            for pair in self._idle:
                nursery.start_soon(self._flow, pair, size, _WRITE)
        return {"open": len(self._idle)}

    async def close_idle(self) -> dict[str, Any]:
        for stream, _ in self._idle:
            await trio.aclose_forcefully(stream)
        self._idle.clear()
        return {"open": 0}

    def handlers(self) -> dict[str, protocol.Handler]:
        names = (
            *("connect", "transfer", "flow", "cold", "round_trip", "handshake"),
            *("idle_connections", "load_idle", "close_idle"),
        )
        return {name: getattr(self, name) for name in names}


async def _run_client(host: str, port: int) -> None:
    async def read_line() -> str:
        return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

    await protocol.answer_requests(_Client(host, port).handlers(), read_line)


def main(arguments: list[str]) -> None:
    """Run a worker."""
    options = protocol.parse_arguments(arguments)
    if options.role == "server":
        trio.run(_server, options.host)
    else:
        trio.run(_run_client, options.host, options.port)


if __name__ == "__main__":
    main(sys.argv[1:])
