"""py-libp2p's QUIC transport, which is aioquic driven by Trio as well.

``py-libp2p`` needs an environment of its own (``--peer-python libp2p=...``), so this file
imports only the protocol module of this package.  Streams are opened by libp2p's own
negotiation; every request states its length.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.utils.address_validation import find_free_port
from multiaddr import Multiaddr

from phoenix_trio_bench import protocol

_NAME = TProtocol("/phoenix-bench/1.0.0")
_RECEIVE = 64 * 1024


class _Reader:
    """Reads exact amounts."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._rest = b""

    async def exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._rest += await self._more()
        result, self._rest = self._rest[:count], self._rest[count:]
        return result

    async def some(self, at_most: int) -> bytes:
        if not self._rest:
            self._rest = await self._more()
        result, self._rest = self._rest[:at_most], self._rest[at_most:]
        return result

    async def _more(self) -> bytes:
        data: bytes = await self._stream.read(_RECEIVE)
        if not data:
            raise EOFError("the stream has ended")
        return data


async def _serve(buffers: protocol.Buffers, stream: Any) -> None:
    reader = _Reader(stream)
    with contextlib.suppress(Exception):  # the client has gone; libp2p has many words for it
        while True:
            kind = await reader.exactly(1)
            size = protocol.decode_number(await reader.exactly(protocol.SIZE_LENGTH))
            if kind != protocol.TRANSFER:
                await stream.write(await reader.exactly(size))
                continue
            with contextlib.closing(protocol.Intake(buffers, kind, size)) as intake:
                at = 0
                while at < size:
                    data = await reader.some(size - at)
                    at += len(data)
                    intake.add(data)
                intake.end()
                await stream.write(protocol.ACKNOWLEDGED)
                await trio.sleep(0.02)  # as the others: first the answer, then the checksum
                await stream.write(intake.trailer())


def _host() -> Any:
    return new_host(enable_quic=True, key_pair=create_new_key_pair())


async def _server() -> None:
    host = _host()
    port = find_free_port()
    async with host.run(listen_addrs=[Multiaddr(f"/ip4/127.0.0.1/udp/{port}/quic")]):
        host.set_stream_handler(_NAME, partial(_serve, protocol.Buffers()))
        answer = {"port": port, "pin": host.get_id().to_string()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        async with trio.open_nursery() as nursery:
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


class _Client:
    def __init__(self, host: Any, address: str) -> None:
        self._host = host
        self._info = info_from_p2p_addr(Multiaddr(address))
        self._warm: tuple[Any, _Reader] | None = None

    async def _open(self) -> tuple[Any, _Reader]:
        stream = await self._host.new_stream(self._info.peer_id, [_NAME])
        return stream, _Reader(stream)

    async def connect(self) -> dict[str, Any]:
        started = time.perf_counter()
        await self._host.connect(self._info)
        seconds = time.perf_counter() - started
        self._warm = await self._open()
        return {"seconds": seconds, "udp_payload": None}

    @property
    def _pair(self) -> tuple[Any, _Reader]:
        if self._warm is None:
            raise ValueError("connect comes first")
        return self._warm

    async def transfer(self, size: int, write: int) -> dict[str, Any]:
        stream, reader = self._pair
        data, digest = protocol.payload(size)
        processor = time.process_time()
        started = time.perf_counter()
        await stream.write(protocol.transfer_header(size))
        for at in range(0, size, write):
            await stream.write(data[at : at + write])
        answer = await reader.exactly(1)
        seconds = time.perf_counter() - started
        answer += await reader.exactly(protocol.TRAILER_SIZE)
        return {
            "seconds": seconds,
            "server_processor": protocol.check_answer(answer, digest),
            "client_processor": time.process_time() - processor,
        }

    async def _echo(self, pair: tuple[Any, _Reader], data: bytes) -> None:
        stream, reader = pair
        await stream.write(protocol.ECHO + protocol.encode_number(len(data)) + data)
        if await reader.exactly(len(data)) != data:
            raise ValueError("the echo differs")

    async def round_trip(self, count: int, size: int) -> dict[str, Any]:
        data, _ = protocol.payload(size)
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await self._echo(self._pair, data)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    async def echo(self, count: int, size: int) -> dict[str, Any]:
        data, _ = protocol.payload(size)
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            pair = await self._open()
            await self._echo(pair, data)
            seconds.append(time.perf_counter() - started)
            await pair[0].close()
        return {"seconds": seconds}

    def handlers(self) -> dict[str, protocol.Handler]:
        names = ("connect", "transfer", "round_trip", "echo")
        return {name: getattr(self, name) for name in names} | {"request": self.echo}


async def _run_client(host: str, port: int, peer: str) -> None:
    async def read_line() -> str:
        return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

    own = _host()
    async with own.run(listen_addrs=[]):
        client = _Client(own, f"/ip4/{host}/udp/{port}/quic/p2p/{peer}")
        await protocol.answer_requests(client.handlers(), read_line)


def main(arguments: list[str]) -> None:
    """Run a worker."""
    logging.disable(logging.CRITICAL)
    options = protocol.parse_arguments(arguments)
    if options.role == "server":
        trio.run(_server)
    else:
        trio.run(_run_client, options.host, options.port, options.pin)


if __name__ == "__main__":
    main(sys.argv[1:])
