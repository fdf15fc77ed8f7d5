"""The protocols of the worker processes, with each other and with the measuring process.

There are two protocols.  On a worker's standard input and output: one JSON object a line, a
request with ``"op"`` and its arguments, then an answer.  Between client and server worker, on
a bidirectional stream of any transport: one byte for the purpose of the stream, then bytes as
the constants here describe.  All implementations speak both, so all do the same work.

Every worker uses this module, also in an environment of its own, so it imports only the
standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
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
    "FLOW",
    "LARGEST_REQUEST",
    "REQUEST",
    "SIZE_LENGTH",
    "TRAILER_SIZE",
    "TRANSFER",
    "Buffers",
    "Handler",
    "Intake",
    "NotOffered",
    "answer_requests",
    "check_answer",
    "decode_number",
    "encode_number",
    "parse_arguments",
    "payload",
    "transfer_header",
]

ALPN = "phoenix-bench/1"

TRANSFER = b"\x01"
"""Then 8 bytes of size, so many bytes, and the end of the stream.  Answer: :data:`ACKNOWLEDGED`
as soon as the application has read everything, which stops the clock; then the SHA-256 of
the bytes it read, and in 8 bytes the nanoseconds of processor time for reading them."""

ECHO = b"\x02"
"""Then anything: it comes back as it is, and so does the end of the stream."""

FLOW = b"\x03"
"""As :data:`TRANSFER`, but :data:`ACKNOWLEDGED` comes as soon as the application has read
the first bytes, and it keeps none, so that memory under load is the transport's."""

DATAGRAM_COUNT = b"\x04"
"""Answer: how many datagrams have arrived since the last question, in 8 bytes."""

REQUEST = b"\x05"
"""Then at most :data:`LARGEST_REQUEST` bytes, and the end of the stream.  Answer: the same bytes,
once all have arrived.  Only phoenix_trio has it; others answer an :data:`ECHO`."""

LARGEST_REQUEST = 1024 * 1024

ACKNOWLEDGED = b"\x06"

DIGEST_SIZE = 32

SIZE_LENGTH = 8

TRAILER_SIZE = DIGEST_SIZE + SIZE_LENGTH
"""The size of the answer after :data:`ACKNOWLEDGED`."""


class NotOffered(Exception):
    """The implementation does not offer the operation; the row says so."""


Handler = Callable[..., Awaitable[dict[str, Any]]]


def encode_number(number: int) -> bytes:
    """A size or a count on the wire.

    Raises:
      OverflowError: it is negative or takes more than 8 bytes.
    """
    return number.to_bytes(SIZE_LENGTH, "big")


def decode_number(data: bytes | bytearray) -> int:
    """The opposite of :func:`encode_number`.

    Raises:
      ValueError: it is not 8 bytes.
    """
    if len(data) != SIZE_LENGTH:
        raise ValueError(f"a number takes {SIZE_LENGTH} bytes, not {len(data)}")
    return int.from_bytes(data, "big")


def transfer_header(size: int, kind: bytes = TRANSFER) -> bytes:
    """The beginning of a transfer of `size` bytes."""
    return kind + encode_number(size)


class Buffers:
    """Buffers for a server's incoming bytes, kept from run to run.

    Otherwise every transfer would include the first touch of fresh memory, which is the
    kernel's work.

    Args:
      limit: bytes in all, in use and kept.
    """

    def __init__(self, limit: int = 2 * 1024**3) -> None:
        self._limit = limit
        self._held = 0
        self._free: dict[int, list[bytearray]] = {}

    def take(self, size: int) -> bytearray:
        """A buffer of `size` bytes.

        Raises:
          ValueError: that would be more than the limit.
        """
        free = self._free.get(size)
        if free:
            return free.pop()
        if self._held + size > self._limit:
            # Buffers not in use make room.
            self._held -= sum(each * len(kept) for each, kept in self._free.items())
            self._free.clear()
        if self._held + size > self._limit:
            raise ValueError(f"this server has no room for a transfer of {size} bytes")
        self._held += size
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Keep the buffer for the next one."""
        self._free.setdefault(len(buffer), []).append(buffer)


class Intake:
    """The server's side of a :data:`TRANSFER` or a :data:`FLOW`, without any I/O.

    Make it when the header has arrived, :meth:`add` the bytes after it, send
    :data:`ACKNOWLEDGED` when :meth:`add` or :meth:`end` says so, then :meth:`trailer`.

    Raises:
      ValueError: there is no room for so much.
    """

    def __init__(self, buffers: Buffers, kind: bytes, size: int) -> None:
        self._processor = time.process_time_ns()
        self._buffers = buffers
        self._size = size
        self._at = 0
        self._acknowledged = False
        self._hash = hashlib.sha256()
        self._buffer = buffers.take(size) if kind == TRANSFER else None

    def add(self, data: bytes | bytearray | memoryview) -> bool:
        """Take bytes that have arrived; True: acknowledge now.

        Raises:
          ValueError: this is more than was announced.
        """
        end = self._at + len(data)
        if end > self._size:
            raise ValueError(f"more than the {self._size} bytes which were announced")
        if self._buffer is not None:
            self._buffer[self._at : end] = data
        else:
            self._hash.update(data)
        self._at = end
        return self._buffer is None and self._acknowledge()

    def end(self) -> bool:
        """The stream has ended; True: acknowledge now."""
        self._processor = time.process_time_ns() - self._processor
        return self._acknowledge()

    def _acknowledge(self) -> bool:
        first = not self._acknowledged
        self._acknowledged = True
        return first

    def trailer(self) -> bytes:
        """The bytes after the acknowledgement; computing the checksum takes time."""
        if self._buffer is not None:
            self._hash.update(memoryview(self._buffer)[: self._at])
        return self._hash.digest() + encode_number(self._processor)

    def close(self) -> None:
        """Give the buffer back.  Idempotent."""
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None


def check_answer(answer: bytes | bytearray, digest: bytes) -> float:
    """Check a server's whole answer to a transfer; returns its seconds of processor time.

    Raises:
      ValueError: the bytes that arrived there are not the bytes that were sent.
    """
    if len(answer) != len(ACKNOWLEDGED) + TRAILER_SIZE or answer[:1] != ACKNOWLEDGED:
        raise ValueError(f"the server answered {len(answer)} bytes which are no receipt")
    if answer[1 : 1 + DIGEST_SIZE] != digest:
        raise ValueError("what arrived is not what was sent")
    return decode_number(answer[1 + DIGEST_SIZE :]) / 1e9


#: Made at once; the generator needs as much again while it works.
_BLOCK = 16 * 1024 * 1024

_payloads: dict[int, tuple[bytes, bytes]] = {}


def payload(size: int) -> tuple[bytes, bytes]:
    """Random bytes and their SHA-256; made once and kept, the same in every run."""
    if size not in _payloads:
        source = random.Random(size)  # noqa: S311 - repeatable on purpose
        sizes = [_BLOCK] * (size // _BLOCK) + [size % _BLOCK]
        data = b"".join(source.randbytes(each) for each in sizes)
        _payloads[size] = (data, hashlib.sha256(data).digest())
    return _payloads[size]


async def answer_requests(
    handlers: dict[str, Handler], read_line: Callable[[], Awaitable[str]]
) -> None:
    """Carry out requests from standard input until it ends.

    A request with ``"repeat"`` is carried out so many times; the answer is that of its median
    run by seconds.  Otherwise, an operation of a millisecond would be measured together with
    the waking up of two processes.
    """
    while line := await read_line():
        request = json.loads(line)
        repeat = request.pop("repeat", 1)
        op = request.pop("op")
        handler = _prepare if op == "prepare" else handlers.get(op)
        if handler is None:
            answer: dict[str, Any] = {"unsupported": "this implementation cannot do that"}
        else:
            try:
                answers = [await handler(**request) for _ in range(repeat)]
                answer = sorted(answers, key=_seconds)[repeat // 2] if repeat > 1 else answers[0]
            except NotOffered as reason:
                answer = {"unsupported": str(reason)}
            except Exception as error:  # noqa: BLE001 - reported, and the row says so
                answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def _prepare(size: int) -> dict[str, Any]:
    """Make a payload now, so that the first run does not have to."""
    payload(size)
    return {}


def _seconds(answer: dict[str, Any]) -> float:
    seconds: float = answer["seconds"]
    return seconds


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line of all workers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pin", default="", help="The server's fingerprint, or whatever names it.")
    parser.add_argument("--udp-payload", type=int, default=None)
    return parser.parse_args(arguments)
