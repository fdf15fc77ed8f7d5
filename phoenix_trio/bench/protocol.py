"""What worker processes say to each other, and to the process which measures.

Two protocols.  On a worker's standard input and output: one JSON object a line,
a request with ``"op"`` and its arguments, an answer.  Between client and server
worker, on a bidirectional stream of whichever transport: one byte which says
what it is for, then as the functions here describe.  All implementations speak
both, so all do the same work.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = [
    "ACKNOWLEDGED",
    "ALPN",
    "DATAGRAM_COUNT",
    "DIGEST_SIZE",
    "ECHO",
    "TRANSFER",
    "Buffers",
    "Handler",
    "answer_requests",
    "payload",
    "transfer_header",
]

ALPN = "phoenix-bench/1"

TRANSFER = b"\x01"
"""Then 8 bytes of size (big endian), so many bytes, and the end of the stream.  Answer:
:data:`ACKNOWLEDGED` as soon as the application has read everything, which stops the
clock; then the SHA-256 of what it read."""

ECHO = b"\x02"
"""Then anything: it comes back as it is, and so does the end of the stream."""

DATAGRAM_COUNT = b"\x04"
"""Answer: how many datagrams have arrived since the last question, in 8 bytes."""

ACKNOWLEDGED = b"\x06"

DIGEST_SIZE = 32

Handler = Callable[..., Awaitable[dict[str, Any]]]


def transfer_header(size: int) -> bytes:
    """The beginning of a transfer of `size` bytes."""
    return TRANSFER + size.to_bytes(8, "big")


class Buffers:
    """Room for what a server receives, kept from run to run.

    Otherwise the first touch of fresh memory, a matter of the kernel, would be
    measured as part of every transfer.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}

    def take(self, size: int) -> bytearray:
        """A buffer of `size` bytes."""
        free = self._free.get(size)
        return free.pop() if free else bytearray(size)

    def give_back(self, buffer: bytearray) -> bytes:
        """Keep the buffer for the next one; returns the SHA-256 of what it holds."""
        digest = hashlib.sha256(buffer).digest()
        self._free.setdefault(len(buffer), []).append(buffer)
        return digest


_payloads: dict[int, tuple[bytes, bytes]] = {}


def payload(size: int) -> tuple[bytes, bytes]:
    """Random bytes and their SHA-256; made once and kept."""
    if size not in _payloads:
        data = os.urandom(size)
        _payloads[size] = (data, hashlib.sha256(data).digest())
    return _payloads[size]


async def answer_requests(
    handlers: dict[str, Handler], read_line: Callable[[], Awaitable[str]]
) -> None:
    """Carry out requests from standard input until it ends."""
    while line := await read_line():
        request = json.loads(line)
        handler = handlers.get(request.pop("op"))
        if handler is None:
            answer: dict[str, Any] = {"unsupported": "this implementation cannot do that"}
        else:
            try:
                answer = await handler(**request)
            except Exception as error:  # noqa: BLE001 - reported, and the row says so
                answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def usage() -> dict[str, Any]:
    """Processor seconds used by this process so far."""
    return {"cpu": time.process_time()}
