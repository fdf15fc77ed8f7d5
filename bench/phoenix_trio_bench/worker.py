"""The worker of phoenix_trio itself: ``python -m phoenix_trio_bench.worker server|client``."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import trio

import phoenix_trio

from . import protocol, server
from .over_time import Recorder

__all__ = ["main"]

_WRITE = 256 * 1024


@attrs.frozen
class _Held:
    connection: phoenix_trio.QuicConnection
    scope: trio.CancelScope


class _Client:
    """Carries out requests on connections to one server."""

    def __init__(
        self,
        host: str,
        port: int,
        pin: str,
        config: phoenix_trio.TransportConfig,
        nursery: trio.Nursery,
    ) -> None:
        self._host = host
        self._port = port
        # Without a pin any server is accepted: the client sends nothing but random bytes.
        trust: dict[str, Any] = (
            {"pinned_sha256": pin} if pin else {"danger_accept_any_certificate": True}
        )
        self._full = phoenix_trio.ClientTLS(**trust)
        store = phoenix_trio.SessionStore()
        self._resuming = phoenix_trio.ClientTLS(session_store=store, **trust)
        self._config = config
        self._nursery = nursery
        self._warm: phoenix_trio.QuicConnection | None = None
        self._idle: list[_Held] = []
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
        if self._warm is None:
            raise ValueError("connect comes first")
        return self._warm

    async def _hold(self, *, task_status: trio.TaskStatus[_Held]) -> None:
        with trio.CancelScope() as scope:
            async with self._dial() as connection:
                task_status.started(_Held(connection, scope))
                await connection.wait_closed()

    async def connect(self) -> dict[str, Any]:
        """Open the warm connection, and wait until the search for the path MTU is over."""
        started = time.perf_counter()
        held = await self._nursery.start(self._hold)
        seconds = time.perf_counter() - started
        self._warm = held.connection
        await held.connection.wait_confirmed()
        size, before = held.connection.path_mtu, 0
        while size != before:
            await trio.sleep(max(0.1, 3 * (held.connection.rtt_smoothed or 0)))
            before, size = size, held.connection.path_mtu
        return {"seconds": seconds, "udp_payload": size}

    # ------------------------------------------------------------- transfers

    async def transfer(self, size: int, write: int) -> dict[str, Any]:
        """Send `size` random bytes on a new stream, in writes of `write` bytes."""
        processor = time.process_time()
        answer = await self._transfer(self._connection, size, write)
        return {**answer, "client_processor": time.process_time() - processor}

    async def _transfer(
        self, connection: phoenix_trio.QuicConnection, size: int, write: int
    ) -> dict[str, Any]:
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
        return {"seconds": seconds, "server_processor": protocol.check_answer(answer, digest)}

    async def flow(self, size: int, write: int) -> dict[str, Any]:
        """Begin a transfer of `size` bytes; return when the server has answered its first ones."""
        return {"seconds": await self._flow(self._connection, size, write)}

    async def _flow(self, connection: phoenix_trio.QuicConnection, size: int, write: int) -> float:
        data, digest = protocol.payload(size)
        view = memoryview(data)
        started = time.perf_counter()
        async with await connection.open_stream() as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(protocol.transfer_header(size, protocol.FLOW))
                for at in range(0, size, write):
                    await stream.send_all(view[at : at + write])
                await stream.send_eof()

            nursery.start_soon(send)
            answer = bytearray(await stream.receive_some(1))
            seconds = time.perf_counter() - started
            async for chunk in stream:
                answer += chunk
        protocol.check_answer(answer, digest)
        return seconds

    async def over_time(self, size: int, write: int) -> dict[str, Any]:
        """A transfer of `size` bytes on a new connection, recorded from its beginning."""
        protocol.payload(size)
        async with self._dial() as connection:
            await connection.wait_confirmed()
            recorder = Recorder([connection])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recorder.run)
                await self._transfer(connection, size, write)
                recorder.take()
                nursery.cancel_scope.cancel()
        return {"moments": [attrs.astuple(moment) for moment in recorder.moments()]}

    async def cold(self, size: int) -> dict[str, Any]:
        """A new connection and a transfer on it, from nothing to the acknowledgement."""
        protocol.payload(size)
        started = time.perf_counter()
        async with self._dial() as connection:
            until = time.perf_counter() - started
            answer = await self._transfer(connection, size, _WRITE)
        return {"seconds": until + answer["seconds"]}

    # ---------------------------------------------------------------- echoes

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
        return await _side_by_side(partial(self._echo, data), count, concurrent)

    async def _request(self, data: bytes) -> None:
        connection = self._connection
        answer = await connection.request(protocol.REQUEST + data, max_answer=len(data))
        if answer != data:
            raise ValueError("the answer differs")

    async def request(self, count: int, size: int) -> dict[str, Any]:
        """`size` bytes as a request, and as its answer: one after the other."""
        data, _ = protocol.payload(size)
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await self._request(data)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    async def requests(self, count: int, size: int, concurrent: int) -> dict[str, Any]:
        """The same, by `concurrent` tasks."""
        data, _ = protocol.payload(size)
        return await _side_by_side(partial(self._request, data), count, concurrent)

    async def round_trip(self, count: int, size: int) -> dict[str, Any]:
        """`size` bytes there and back on one open stream."""
        data, _ = protocol.payload(size)
        seconds = []
        async with await self._connection.open_stream() as stream:
            await stream.send_all(protocol.ECHO)
            for _ in range(count):
                started = time.perf_counter()
                await stream.send_all(data)
                received = bytearray()
                while len(received) < size:
                    chunk = await stream.receive_some()
                    if not chunk:
                        raise ValueError("the echo ended early")
                    received += chunk
                seconds.append(time.perf_counter() - started)
                if received != data:
                    raise ValueError("the echo differs")
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

    # ----------------------------------------------------------- connections

    async def handshake(self, count: int, resume: bool) -> dict[str, Any]:
        """New connections, one after the other, until each can be used."""
        tls = self._resuming if resume else self._full
        if resume:
            async with self._dial(tls) as connection:
                await self._wait_for_ticket(connection)
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            async with self._dial(tls) as connection:
                seconds.append(time.perf_counter() - started)
                if resume:
                    if not connection.session_resumed:
                        raise ValueError("the session was not resumed")
                    await self._wait_for_ticket(connection)
        return {"seconds": seconds}

    async def pooled(self, count: int) -> dict[str, Any]:
        """Leases on a connection that the pool has open, until each can be used."""
        seconds = []
        async with phoenix_trio.open_pool(lambda _: self._dial()) as pool:
            async with pool.lease((self._host, self._port)) as connection:
                await connection.wait_confirmed()
            for _ in range(count):
                started = time.perf_counter()
                async with pool.lease((self._host, self._port)):
                    seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    async def _wait_for_ticket(self, connection: phoenix_trio.QuicConnection) -> None:
        await connection.wait_confirmed()
        await connection.ping()  # tickets come with the confirmation

    async def idle_connections(self, count: int, settle: float) -> dict[str, Any]:
        """Open `count` more connections, and keep them; `settle` seconds for the packets after a
        handshake: path MTU, tickets, acknowledgements."""
        for _ in range(count):
            self._idle.append(await self._nursery.start(self._hold))
        await trio.sleep(settle)
        return {"open": len(self._idle)}

    async def load_idle(self, size: int) -> dict[str, Any]:
        """A flow of `size` bytes on each of them, all at the same time."""
        async with trio.open_nursery() as nursery:
            for held in self._idle:
                nursery.start_soon(self._flow, held.connection, size, _WRITE)
        return {"open": len(self._idle)}

    async def close_idle(self) -> dict[str, Any]:
        """Close them."""
        for held in self._idle:
            held.scope.cancel()
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

    # ------------------------------------------------------------- datagrams

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
        return protocol.decode_number(answer)

    # ------------------------------------------------------------------------

    def handlers(self) -> dict[str, protocol.Handler]:
        """By the names of the requests."""
        return {
            "connect": self.connect,
            "transfer": self.transfer,
            "flow": self.flow,
            "over_time": self.over_time,
            "cold": self.cold,
            "echo": self.echo,
            "echoes": self.echoes,
            "request": self.request,
            "requests": self.requests,
            "round_trip": self.round_trip,
            "open_stream": self.open_stream,
            "handshake": self.handshake,
            "pooled": self.pooled,
            "idle_connections": self.idle_connections,
            "load_idle": self.load_idle,
            "close_idle": self.close_idle,
            "idle_streams": self.idle_streams,
            "close_idle_streams": self.close_idle_streams,
            "datagrams": self.datagrams,
        }


async def _side_by_side(
    work: Callable[[], Awaitable[None]], count: int, concurrent: int
) -> dict[str, Any]:
    """Run `work` `count` times, by `concurrent` tasks."""

    async def some(share: int) -> None:
        for _ in range(share):
            await work()

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for task in range(concurrent):
            nursery.start_soon(some, (count + task) // concurrent)
    return {"seconds": time.perf_counter() - started}


async def _run_client(host: str, port: int, pin: str, udp_payload: int | None) -> None:
    async def read_line() -> str:
        return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

    config = phoenix_trio.TransportConfig(max_udp_payload_size=udp_payload, keep_alive=10.0)
    async with trio.open_nursery() as nursery:
        client = _Client(host, port, pin, config, nursery)
        await protocol.answer_requests(client.handlers(), read_line)
        nursery.cancel_scope.cancel()


def main(arguments: list[str]) -> None:
    """Run a worker."""
    options = protocol.parse_arguments(arguments)
    run = (
        partial(server.run_as_process, options.host, options.udp_payload)
        if options.role == "server"
        else partial(_run_client, options.host, options.port, options.pin, options.udp_payload)
    )
    trio.run(run)


if __name__ == "__main__":
    main(sys.argv[1:])
