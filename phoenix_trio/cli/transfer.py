"""The file-transfer protocol ``phoenix-files/1``: one stream a file.

Floor 6.  Over any :class:`trio.abc.HalfCloseableStream`; ``docs/file-transfer.md``
is its specification.  Frames of :mod:`phoenix_trio.streams.framing`:

    sender    header (JSON): version, path, size, identity
    receiver  reply (JSON): accepted with the offset to go on from, or refused
    sender    data frames from that offset, then an empty frame
    sender    trailer (JSON): size and SHA-256 of the whole file; then the stream ends
    receiver  result (JSON): stored with its own size and SHA-256, or refused

A file gets its final name only when both digests agree.  Reading, writing and
hashing happen in threads, a chunk at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import trio

from ..streams.framing import FrameDecoder, FramingError, encode_frame
from .storage import Refused, Storage, StoredFile

__all__ = [
    "ALPN",
    "Outcome",
    "Source",
    "TransferError",
    "TransferRefused",
    "receive_file",
    "send_file",
]

ALPN = "phoenix-files/1"
VERSION = 1

CHUNK_SIZE = 256 * 1024
_CONTROL_FRAME_MAX = 16 * 1024

Progress = Callable[[int], object]


class TransferError(Exception):
    """The two sides disagree, or one of them broke the protocol."""


class TransferRefused(TransferError):
    """The receiver does not take the file.

    Attributes:
      code: why, for programs (see ``docs/file-transfer.md``).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@attrs.frozen
class Outcome:
    """A file which both sides agree on."""

    path: str
    size: int
    sha256: str
    resumed_at: int


class Source(Protocol):
    """What is sent."""

    @property
    def size(self) -> int | None:
        """Bytes in all, if known."""

    @property
    def identity(self) -> str | None:
        """Tells versions of the same name apart; ``None``: it cannot be read twice."""

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end.  Blocks; called in a thread."""


class _Frames:
    """Frames out of a stream."""

    def __init__(self, stream: trio.abc.ReceiveStream, max_frame_size: int) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(max_frame_size)

    async def next(self) -> bytes:
        while (frame := self._decoder.next_frame()) is None:
            data = await self._stream.receive_some()
            if not data:
                raise TransferError("the other side ended in the middle of the transfer")
            self._decoder.feed(data)
        return frame

    async def next_json(self) -> dict[str, Any]:
        frame = await self.next()
        if len(frame) > _CONTROL_FRAME_MAX:
            raise TransferError("a control message is too long")
        try:
            message = json.loads(frame)
        except (ValueError, RecursionError) as error:
            raise TransferError(f"a control message cannot be parsed: {error}") from error
        if not isinstance(message, dict):
            raise TransferError("a control message is not an object")
        return message


def _field(message: dict[str, Any], name: str, *kinds: type) -> Any:
    value = message.get(name)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
        raise TransferError(f"the field {name!r} of a message is missing or of the wrong type")
    if isinstance(value, int) and not 0 <= value < 2**62:
        raise TransferError(f"the field {name!r} of a message is out of range")
    return value


def _json_frame(**message: object) -> bytes:
    return encode_frame(json.dumps(message).encode())


async def send_file(
    stream: trio.abc.HalfCloseableStream,
    source: Source,
    path: str,
    *,
    on_progress: Progress = lambda position: None,
) -> Outcome:
    """Send one file, and return when the receiver has stored it and both digests agree.

    Args:
      stream: to the receiver; ended, not closed.
      source: what to send, at its beginning.
      path: the relative path to store it under.
      on_progress: called with the number of bytes which the receiver has or will have.

    Raises:
      TransferRefused: the receiver does not take it.
      TransferError: the digests differ, or the receiver broke the protocol.
      trio.BrokenResourceError: the stream broke; another attempt goes on where this ended.
      OSError: the source cannot be read.
    """
    try:
        return await _send_file(stream, source, path, on_progress)
    except FramingError as error:
        raise TransferError(f"the receiver broke the protocol: {error}") from error


async def _send_file(
    stream: trio.abc.HalfCloseableStream, source: Source, path: str, on_progress: Progress
) -> Outcome:
    await stream.send_all(
        _json_frame(version=VERSION, path=path, size=source.size, identity=source.identity)
    )
    frames = _Frames(stream, _CONTROL_FRAME_MAX)
    reply = await frames.next_json()
    _check_accepted(reply, "accepted")
    offset: int = _field(reply, "offset", int)
    if offset and source.identity is None:
        raise TransferError("the receiver wants to go on with what cannot be read twice")
    digest = hashlib.sha256()
    position = 0

    def read_and_hash(limit: int) -> bytes:
        chunk = source.read(limit)
        digest.update(chunk)
        return chunk

    while position < offset:
        skipped = await trio.to_thread.run_sync(read_and_hash, min(CHUNK_SIZE, offset - position))
        if not skipped:
            raise TransferError("the file is shorter than what the receiver has of it")
        position += len(skipped)
    on_progress(position)
    while chunk := await trio.to_thread.run_sync(read_and_hash, CHUNK_SIZE):
        await stream.send_all(encode_frame(chunk))
        position += len(chunk)
        on_progress(position)
    sha256 = digest.hexdigest()
    await stream.send_all(encode_frame(b"") + _json_frame(size=position, sha256=sha256))
    await stream.send_eof()
    result = await frames.next_json()
    _check_accepted(result, "stored")
    if (_field(result, "size", int), _field(result, "sha256", str)) != (position, sha256):
        raise TransferError("the receiver has stored something else than what was sent")
    return Outcome(path, position, sha256, offset)


def _check_accepted(message: dict[str, Any], flag: str) -> None:
    if not _field(message, flag, bool):
        code = str(_field(message, "code", str))[:100]
        raise TransferRefused(code, str(_field(message, "message", str))[:1000])


async def receive_file(
    stream: trio.abc.HalfCloseableStream,
    storage: Storage,
    *,
    on_begin: Callable[[str, int | None, int], object] = lambda path, size, offset: None,
    on_progress: Progress = lambda position: None,
) -> Outcome:
    """Receive one file into `storage`, and tell the sender of the outcome.

    Args:
      stream: to the sender; ended, not closed.
      storage: where the file goes.
      on_begin: called with path, size (if known) and the offset it goes on from.
      on_progress: called with the number of bytes stored.

    Cancellation and a broken stream leave a partial file behind, for another attempt.

    Raises:
      TransferRefused: the storage does not take the file; the sender was told.
      TransferError: the sender broke the protocol, or the digests differ.
      trio.BrokenResourceError: the stream broke.
    """
    try:
        try:
            return await _receive_file(stream, storage, on_begin, on_progress)
        except FramingError as error:
            raise TransferError(f"the sender broke the protocol: {error}") from error
    except Refused as error:
        raise TransferRefused(error.code, str(error)) from error


async def _receive_file(
    stream: trio.abc.HalfCloseableStream,
    storage: Storage,
    on_begin: Callable[[str, int | None, int], object],
    on_progress: Progress,
) -> Outcome:
    frames = _Frames(stream, max(CHUNK_SIZE, _CONTROL_FRAME_MAX))
    header = await frames.next_json()
    if header.get("version") != VERSION:
        await _answer(stream, accepted=False, code="version", message="only version 1 is spoken")
        raise TransferError(f"the sender speaks version {header.get('version')!r}")
    path: str = _field(header, "path", str)
    size: int | None = _field(header, "size", int, type(None))
    identity: str | None = _field(header, "identity", str, type(None))
    try:
        stored = await trio.to_thread.run_sync(storage.begin, path, size, identity)
    except (Refused, OSError) as error:
        refusal = error if isinstance(error, Refused) else _system_refusal(error)
        await _answer(stream, accepted=False, code=refusal.code, message=str(refusal))
        raise refusal from error
    try:
        await stream.send_all(_json_frame(accepted=True, offset=stored.offset))
        on_begin(path, size, stored.offset)
        try:
            return await _store(frames, stream, stored, path, on_progress)
        except (Refused, OSError) as error:
            if isinstance(error, trio.BrokenResourceError):
                raise
            refusal = error if isinstance(error, Refused) else _system_refusal(error)
            await _answer(stream, stored=False, code=refusal.code, message=str(refusal))
            raise refusal from error
    finally:
        stored.close()


async def _store(
    frames: _Frames,
    stream: trio.abc.HalfCloseableStream,
    stored: StoredFile,
    path: str,
    on_progress: Progress,
) -> Outcome:
    on_progress(stored.size)
    while chunk := await frames.next():
        await trio.to_thread.run_sync(stored.write, chunk)
        on_progress(stored.size)
    trailer = await frames.next_json()
    sha256 = stored.digest.hexdigest()
    if (_field(trailer, "size", int), _field(trailer, "sha256", str)) != (stored.size, sha256):
        await trio.to_thread.run_sync(stored.discard)
        raise Refused("checksum", "the stored bytes are not those which were sent")
    await trio.to_thread.run_sync(stored.commit)
    await stream.send_all(_json_frame(stored=True, size=stored.size, sha256=sha256))
    await stream.send_eof()
    return Outcome(path, stored.size, sha256, stored.offset)


def _system_refusal(error: OSError) -> Refused:
    # The receiver's own paths are not the sender's business.
    return Refused("system", f"the receiver cannot store it: {error.strerror or 'I/O error'}")


async def _answer(stream: trio.abc.HalfCloseableStream, **message: object) -> None:
    await stream.send_all(_json_frame(**message))
    await stream.send_eof()
