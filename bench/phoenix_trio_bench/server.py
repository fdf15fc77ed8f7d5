"""The benchmark's server on phoenix_trio: a worker's, and that of ``phoenix-trio serve-bench``."""

from __future__ import annotations

import contextlib
import json
import sys
from functools import partial

import trio

import phoenix_trio
from phoenix_trio.quic.handshake.certificates import (
    create_development_ca,
    fingerprint,
    issue_certificate,
)

from . import protocol

__all__ = ["development_tls", "run_as_process", "serve_bench"]

_RECEIVE = 256 * 1024

#: More than the workloads open at once: 1,000 idle streams beside the measured ones.
_STREAMS = 2000


class _Server:
    """Answers the benchmark's streams on any number of connections."""

    def __init__(self) -> None:
        self._buffers = protocol.Buffers()
        self._datagrams: dict[phoenix_trio.QuicConnection, int] = {}

    async def handle(self, connection: phoenix_trio.QuicConnection) -> None:
        """Serve one connection until its client closes it."""
        self._datagrams[connection] = 0
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._count_datagrams, connection)
                async for stream in connection.incoming_streams():
                    nursery.start_soon(self._serve_stream, connection, stream)
                nursery.cancel_scope.cancel()
        finally:
            del self._datagrams[connection]

    async def _count_datagrams(self, connection: phoenix_trio.QuicConnection) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await connection.receive_datagram()
                self._datagrams[connection] += 1

    async def _serve_stream(
        self, connection: phoenix_trio.QuicConnection, stream: phoenix_trio.QuicStream
    ) -> None:
        # A client that goes in the middle of something ends its own run, not the server.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                try:
                    await self._answer(connection, stream)
                except ValueError:
                    # Not our protocol, or too large for the buffers: this stream alone ends.
                    stream.reset(phoenix_trio.ApplicationErrorCode.MALFORMED)
                    stream.stop_receiving(phoenix_trio.ApplicationErrorCode.MALFORMED)

    async def _answer(
        self, connection: phoenix_trio.QuicConnection, stream: phoenix_trio.QuicStream
    ) -> None:
        first = await stream.receive_some(_RECEIVE)
        kind, rest = bytes(first[:1]), first[1:]
        if kind in (protocol.TRANSFER, protocol.FLOW):
            await self._take_in(stream, kind, bytes(rest))
        elif kind == protocol.ECHO:
            while rest or (rest := await stream.receive_some(_RECEIVE)):
                await stream.send_all(rest)
                rest = b""
        elif kind == protocol.REQUEST:
            more = await stream.receive_all(protocol.LARGEST_REQUEST)
            await stream.send_all(bytes(rest) + more, end=True)
        elif kind == protocol.DATAGRAM_COUNT:
            count, self._datagrams[connection] = self._datagrams[connection], 0
            await stream.send_all(protocol.encode_number(count))
        else:
            raise ValueError(f"{kind!r} begins nothing of this protocol")
        await stream.send_eof()

    async def _take_in(self, stream: phoenix_trio.QuicStream, kind: bytes, begun: bytes) -> None:
        while len(begun) < protocol.SIZE_LENGTH:
            more = await stream.receive_some(_RECEIVE)
            if not more:
                raise ValueError("the stream ended within its header")
            begun += more
        size = protocol.decode_number(begun[: protocol.SIZE_LENGTH])
        intake = protocol.Intake(self._buffers, kind, size)
        with contextlib.closing(intake):
            data: bytes | bytearray = begun[protocol.SIZE_LENGTH :]
            while True:
                if data and intake.add(data):
                    await stream.send_all(protocol.ACKNOWLEDGED)
                data = await stream.receive_some(_RECEIVE)
                if not data:
                    break
            if intake.end():
                await stream.send_all(protocol.ACKNOWLEDGED)
            # (The clock has to stop before this process is busy with the checksum.)
            await stream.wait_acked()
            await stream.send_all(intake.trailer())


async def serve_bench(
    *,
    host: str | None,
    port: int,
    udp_payload: int | None,
    tls: phoenix_trio.ServerTLS,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve benchmark clients until cancelled; started with the port.

    Raises:
      OSError: the port cannot be had.
    """
    config = phoenix_trio.TransportConfig(
        max_udp_payload_size=udp_payload, max_bidirectional_streams=_STREAMS
    )
    async with trio.open_nursery() as nursery:
        serve = partial(
            phoenix_trio.serve,
            _Server().handle,
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


async def run_as_process(host: str, udp_payload: int | None) -> None:
    """Serve as a worker process: print the port on standard output, end with standard input."""
    tls, pin = development_tls()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(
            partial(serve_bench, host=host, port=0, udp_payload=udp_payload, tls=tls)
        )
        sys.stdout.write(json.dumps({"port": port, "pin": pin}) + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()
