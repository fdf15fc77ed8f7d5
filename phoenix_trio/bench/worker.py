"""The worker of phoenix_trio itself: ``python -m phoenix_trio.bench.worker server|client``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from functools import partial
from typing import Any

import trio

import phoenix_trio

from ..quic.certificates import create_development_ca, fingerprint, issue_certificate
from . import protocol

__all__ = ["main", "serve_bench"]

_RECEIVE = 256 * 1024


class Server:
    """Answers the benchmark's streams on any number of connections."""

    def __init__(self) -> None:
        self._buffers = protocol.Buffers()
        self._datagrams: dict[phoenix_trio.QuicConnection, int] = {}

    async def handle(self, connection: phoenix_trio.QuicConnection) -> None:
        """Serve one connection until its client closes it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._count_datagrams, connection)
                async for stream in connection.incoming_streams():
                    nursery.start_soon(self._serve_stream, connection, stream)
                nursery.cancel_scope.cancel()
        finally:
            self._datagrams.pop(connection, None)

    async def _count_datagrams(self, connection: phoenix_trio.QuicConnection) -> None:
        self._datagrams[connection] = 0
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await connection.receive_datagram()
                self._datagrams[connection] += 1

    async def _serve_stream(
        self, connection: phoenix_trio.QuicConnection, stream: phoenix_trio.QuicStream
    ) -> None:
        # A client which goes in the middle of something ends its own run, not the server.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                first = await stream.receive_some(_RECEIVE)
                kind, rest = first[:1], first[1:]
                if kind == protocol.TRANSFER:
                    await self._take_transfer(stream, bytes(rest))
                elif kind == protocol.ECHO:
                    while rest or (rest := await stream.receive_some(_RECEIVE)):
                        await stream.send_all(rest)
                        rest = b""
                elif kind == protocol.DATAGRAM_COUNT:
                    count = self._datagrams.get(connection, 0)
                    self._datagrams[connection] = 0
                    await stream.send_all(count.to_bytes(8, "big"))
                await stream.send_eof()

    async def _take_transfer(self, stream: phoenix_trio.QuicStream, begun: bytes) -> None:
        while len(begun) < 8:
            begun += await stream.receive_some(_RECEIVE)
        size = int.from_bytes(begun[:8], "big")
        buffer = self._buffers.take(size)
        at = 0
        data: bytes | bytearray = begun[8:]
        while True:
            buffer[at : at + len(data)] = data
            at += len(data)
            data = await stream.receive_some(_RECEIVE)
            if not data:
                break
        await stream.send_all(protocol.ACKNOWLEDGED)
        # (The clock has to stop before this process is busy with the checksum.)
        await stream.wait_acked()
        digest = self._buffers.give_back(buffer)
        await stream.send_all(digest if at == size else b"\0" * protocol.DIGEST_SIZE)


async def serve_bench(
    *,
    host: str | None,
    port: int,
    udp_payload: int | None,
    tls: phoenix_trio.ServerTLS,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve benchmark clients until cancelled; started with the port."""
    config = phoenix_trio.TransportConfig(
        max_udp_payload_size=udp_payload, max_bidirectional_streams=2000
    )
    async with trio.open_nursery() as nursery:
        serve = partial(
            phoenix_trio.serve,
            Server().handle,
            port,
            host=host,
            tls=tls,
            alpn=(protocol.ALPN,),
            config=config,
        )
        listeners = await nursery.start(serve)
        task_status.started(listeners[0].port)


def development_tls() -> tuple[phoenix_trio.ServerTLS, str]:
    """A certificate for this run, and its fingerprint."""
    issued = issue_certificate(create_development_ca(), ["localhost", "127.0.0.1", "::1"])
    tls = phoenix_trio.ServerTLS(issued.certificate, issued.private_key)
    return tls, fingerprint(tls.identity.certificate)


async def _server_process(host: str, udp_payload: int | None) -> None:
    tls, pin = development_tls()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(
            partial(serve_bench, host=host, port=0, udp_payload=udp_payload, tls=tls)
        )
        sys.stdout.write(json.dumps({"port": port, "fingerprint": pin}) + "\n")
        sys.stdout.flush()
        # The end of standard input is the order to stop.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


class Client:
    """Carries out requests on connections to one server."""

    def __init__(
        self, host: str, port: int, pin: str, udp_payload: int | None, nursery: trio.Nursery
    ) -> None:
        self._host = host
        self._port = port
        self._store = phoenix_trio.SessionStore()
        self._full = phoenix_trio.ClientTLS(pinned_sha256=pin)
        self._resuming = phoenix_trio.ClientTLS(pinned_sha256=pin, session_store=self._store)
        self._config = phoenix_trio.TransportConfig(
            max_udp_payload_size=udp_payload, keep_alive=10.0
        )
        self._nursery = nursery
        self._warm: phoenix_trio.QuicConnection | None = None
        self._idle: list[trio.CancelScope] = []
        self._idle_streams: list[phoenix_trio.QuicStream] = []

    def _dial(self, tls: phoenix_trio.ClientTLS | None = None) -> Any:
        return phoenix_trio.open_connection(
            self._host,
            self._port,
            tls=tls or self._full,
            alpn=(protocol.ALPN,),
            config=self._config,
        )

    @property
    def _connection(self) -> phoenix_trio.QuicConnection:
        assert self._warm is not None, "connect comes first"
        return self._warm

    async def _hold(self, *, task_status: trio.TaskStatus[Any]) -> None:
        with trio.CancelScope() as scope:
            async with self._dial() as connection:
                task_status.started((connection, scope))
                await connection.wait_closed()

    async def connect(self) -> dict[str, Any]:
        """Open the warm connection, and wait until the search for the path MTU is over."""
        started = time.perf_counter()
        self._warm, _ = await self._nursery.start(self._hold)
        seconds = time.perf_counter() - started
        assert self._warm is not None
        await self._warm.wait_confirmed()
        await trio.sleep(0.3)
        return {"seconds": seconds, "udp_payload": self._warm.statistics().path_mtu}

    async def transfer(self, size: int, write: int) -> dict[str, Any]:
        """Send `size` random bytes on a new stream, in writes of `write` bytes."""
        cpu = time.process_time()
        seconds = await self._transfer(self._connection, size, write)
        return {"seconds": seconds, "verified": True, "cpu": time.process_time() - cpu}

    async def _transfer(
        self, connection: phoenix_trio.QuicConnection, size: int, write: int
    ) -> float:
        data, digest = protocol.payload(size)
        view = memoryview(data)
        started = time.perf_counter()
        async with await connection.open_stream() as stream:
            await stream.send_all(protocol.transfer_header(size))
            for at in range(0, size, write):
                await stream.send_all(view[at : at + write])
            await stream.send_eof()
            answer = bytearray(await stream.receive_some(1))
            seconds = time.perf_counter() - started
            async for chunk in stream:
                answer += chunk
        if answer != protocol.ACKNOWLEDGED + digest:
            raise ValueError("what arrived is not what was sent")
        return seconds

    async def _echo(self, data: bytes) -> None:
        async with await self._connection.open_stream() as stream:
            await stream.send_all(protocol.ECHO + data)
            await stream.send_eof()
            received = bytearray()
            async for chunk in stream:
                received += chunk
        if received != data:
            raise ValueError("the echo differs")

    async def echo(self, count: int, size: int) -> dict[str, Any]:
        """New stream, `size` bytes there and back, its end: one after the other."""
        data, _ = protocol.payload(size)
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await self._echo(data)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    async def echoes(self, count: int, size: int, concurrent: int) -> dict[str, Any]:
        """The same, by `concurrent` tasks."""
        data, _ = protocol.payload(size)

        async def some(share: int) -> None:
            for _ in range(share):
                await self._echo(data)

        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for task in range(concurrent):
                nursery.start_soon(some, (count + task) // concurrent)
        return {"seconds": time.perf_counter() - started}

    async def round_trip(self, count: int, size: int) -> dict[str, Any]:
        """`size` bytes there and back on one open stream."""
        data, _ = protocol.payload(size)
        seconds = []
        async with await self._connection.open_stream() as stream:
            await stream.send_all(protocol.ECHO)
            for _ in range(count):
                started = time.perf_counter()
                await stream.send_all(data)
                received = 0
                while received < size:
                    chunk = await stream.receive_some()
                    if not chunk:
                        raise ValueError("the echo ended early")
                    received += len(chunk)
                seconds.append(time.perf_counter() - started)
            await stream.send_eof()
        return {"seconds": seconds}

    async def open_stream(self, count: int) -> dict[str, Any]:
        """Opening alone; the streams are used and ended afterwards."""
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            stream = await self._connection.open_stream()
            seconds.append(time.perf_counter() - started)
            async with stream:
                await stream.send_all(protocol.ECHO)
                await stream.send_eof()
                async for _chunk in stream:
                    pass
        return {"seconds": seconds}

    async def handshake(self, count: int, resume: bool) -> dict[str, Any]:
        """New connections, one after the other, until each can be used."""
        tls = self._resuming if resume else self._full
        if resume:
            await self._earn_tickets()
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            async with self._dial(tls) as connection:
                seconds.append(time.perf_counter() - started)
                if resume and not connection.session_resumed:
                    raise ValueError("the session was not resumed")
                if resume:
                    await self._wait_for_ticket(connection)
        return {"seconds": seconds}

    async def _earn_tickets(self) -> None:
        async with self._dial(self._resuming) as connection:
            await self._wait_for_ticket(connection)

    async def _wait_for_ticket(self, connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_confirmed()
        await connection.ping()  # tickets come with the confirmation

    async def cold(self, size: int) -> dict[str, Any]:
        """A new connection and a transfer on it, from nothing to the acknowledgement."""
        protocol.payload(size)
        started = time.perf_counter()
        async with self._dial() as connection:
            await self._transfer_on(connection, size)
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "verified": True}

    async def _transfer_on(self, connection: phoenix_trio.QuicConnection, size: int) -> None:
        await self._transfer(connection, size, 256 * 1024)

    async def idle_connections(self, count: int) -> dict[str, Any]:
        """Open `count` more connections, and keep them."""
        for _ in range(count):
            _, scope = await self._nursery.start(self._hold)
            self._idle.append(scope)
        await trio.sleep(1.0)  # path MTU, tickets, acknowledgements: what follows a handshake
        return {"open": len(self._idle)}

    async def close_idle(self) -> dict[str, Any]:
        """Close them."""
        for scope in self._idle:
            scope.cancel()
        self._idle.clear()
        await trio.sleep(0.2)
        return {"open": 0}

    async def idle_streams(self, count: int) -> dict[str, Any]:
        """Open `count` streams on the warm connection, and keep them."""
        for _ in range(count):
            stream = await self._connection.open_stream()
            await stream.send_all(protocol.ECHO)
            self._idle_streams.append(stream)
        await trio.sleep(0.3)
        return {"open": len(self._idle_streams)}

    async def close_idle_streams(self) -> dict[str, Any]:
        """Close them."""
        for stream in self._idle_streams:
            await stream.aclose()
        self._idle_streams.clear()
        await trio.sleep(0.3)
        return {"open": 0}

    async def datagrams(self, count: int, size: int) -> dict[str, Any]:
        """Send datagrams as fast as the queue takes them; count what arrived."""
        data, _ = protocol.payload(size)
        connection = self._connection
        await self._datagram_count()
        started = time.perf_counter()
        for _ in range(count):
            await connection.send_datagram(data)
        await connection.ping()
        seconds = time.perf_counter() - started
        await trio.sleep(0.1)
        return {"seconds": seconds, "received": await self._datagram_count()}

    async def _datagram_count(self) -> int:
        async with await self._connection.open_stream() as stream:
            await stream.send_all(protocol.DATAGRAM_COUNT)
            await stream.send_eof()
            answer = bytearray()
            async for chunk in stream:
                answer += chunk
        return int.from_bytes(answer, "big")

    def handlers(self) -> dict[str, protocol.Handler]:
        """By the names of the requests."""
        return {
            "connect": self.connect,
            "transfer": self.transfer,
            "echo": self.echo,
            "echoes": self.echoes,
            "round_trip": self.round_trip,
            "open_stream": self.open_stream,
            "handshake": self.handshake,
            "cold": self.cold,
            "idle_connections": self.idle_connections,
            "close_idle": self.close_idle,
            "idle_streams": self.idle_streams,
            "close_idle_streams": self.close_idle_streams,
            "datagrams": self.datagrams,
            "usage": protocol.usage,
        }


async def _client_process(host: str, port: int, pin: str, udp_payload: int | None) -> None:
    async def read_line() -> str:
        return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

    async with trio.open_nursery() as nursery:
        client = Client(host, port, pin, udp_payload, nursery)
        await protocol.answer_requests(client.handlers(), read_line)
        nursery.cancel_scope.cancel()


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line which all workers have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fingerprint", default="")
    parser.add_argument("--udp-payload", type=int, default=None)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Run a worker."""
    options = parse_arguments(arguments)
    if options.role == "server":
        trio.run(_server_process, options.host, options.udp_payload)
    else:
        trio.run(
            _client_process, options.host, options.port, options.fingerprint, options.udp_payload
        )


if __name__ == "__main__":
    main(sys.argv[1:])
