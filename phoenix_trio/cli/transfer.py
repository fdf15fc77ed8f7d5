"""The file-transfer protocol ``phoenix-files/1``: one stream a file.

Floor 6.  Over any :class:`trio.abc.HalfCloseableStream`; ``docs/file-transfer.md``
is its specification.  Frames of :mod:`phoenix_trio.streams.framing`:

    sender    header (JSON): version, path, size, identity
    receiver  reply (JSON): accepted with the offset to go on from, or refused
    sender    data frames from that offset, then an empty frame
    sender    trailer (JSON): size and SHA-256 of the whole file; then the stream ends
    receiver  result (JSON): stored with its own size and SHA-256, or refused

A file gets its final name only when its size is the announced one and both digests
agree.  Reading, writing and hashing happen in threads, a chunk at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import attrs
import trio

from ..errors import StreamStopped
from ..pool.stall_clock import LEAST_PROGRESS, StallClock
from ..storage.directory import Storage, StoredFile
from ..storage.names import Refused
from ..streams.framing import FrameDecoder, FramingError, encode_frame
from .places import Places, TakenOver

__all__ = [
    "ALPN",
    "Outcome",
    "PrefixDigests",
    "Source",
    "SourceChanged",
    "TransferError",
    "TransferRefused",
    "receive_file",
    "send_directory",
    "send_file",
]

logger: logging.Logger = logging.getLogger("phoenix_trio.cli")

ALPN = "phoenix-files/1"
VERSION = 1

CHUNK_SIZE = 256 * 1024
_CONTROL_FRAME_MAX = 16 * 1024

#: Seconds to wait for the reason of a refusal in the middle of a transfer.
_LAST_WORD_SECONDS = 2.0

Progress = Callable[[int], object]


class TransferError(Exception):
    """The two sides disagree, or one of them broke the protocol."""


class SourceChanged(TransferError):
    """The file was changed while it was sent."""


class TransferRefused(TransferError):
    """The receiver does not take the file.

    Attributes:
      code: why, for programs (see ``docs/file-transfer.md``).
      resumed_at: how many bytes of an earlier attempt the transfer continued.
    """

    def __init__(self, code: str, message: str, *, resumed_at: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.resumed_at = resumed_at


@attrs.frozen
class Outcome:
    """A file, stored and verified on both sides."""

    path: str
    size: int
    sha256: str
    resumed_at: int
    is_directory: bool = False


class Source(Protocol):
    """The data to send."""

    @property
    def size(self) -> int | None:
        """Bytes in all, if known."""

    @property
    def identity(self) -> str | None:
        """Tells versions of the same name apart, hard to guess; ``None``: it cannot be read
        twice."""

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end.  Blocks; called in a thread."""

    def seek(self, position: int) -> object:
        """Go to `position`.  Blocks; called in a thread; only where there is an identity."""


class PrefixDigests:
    """SHA-256 of beginnings of one source, so that repeated attempts hash each byte once.

    Args:
      step: bytes from one to the next.
    """

    def __init__(self, step: int = 16 * 1024 * 1024) -> None:
        self._step = step
        self._known: list[hashlib._Hash] = []

    def before(self, position: int) -> tuple[int, hashlib._Hash]:
        """The longest known beginning that ends at `position` or before, and its digest."""
        number = min(position // self._step, len(self._known))
        if not number:
            return 0, hashlib.sha256()
        return number * self._step, self._known[number - 1].copy()

    def until_next(self, position: int) -> int:
        """Bytes from `position` to the place where :meth:`note` wants the digest."""
        return self._step - position % self._step

    def note(self, position: int, digest: hashlib._Hash) -> None:
        """Keep the digest of all bytes before `position`."""
        if position == (len(self._known) + 1) * self._step:
            self._known.append(digest.copy())


class _Frames:
    """Reads frames from a stream.

    Args:
      stream: the stream.
      max_frame_size: longer frames are an error.
      timeout: seconds of waiting in which the other side must make progress, or it is
        refused; ``math.inf``: no limit.
    """

    def __init__(
        self, stream: trio.abc.ReceiveStream, max_frame_size: int, timeout: float = math.inf
    ) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(max_frame_size)
        self._waited_until = trio.current_time()
        self._clock = StallClock(timeout, self._waited_until)

    async def next(self) -> bytes:
        while (frame := self._decoder.next_frame()) is None:
            data = await self._receive()
            if not data:
                raise TransferError("the other side ended in the middle of the transfer")
            self._decoder.feed(data)
        return frame

    async def _receive(self) -> bytes | bytearray:
        if self._clock.timeout == math.inf:
            return await self._stream.receive_some()
        # Time that this side spends otherwise, such as on a slow disk, does not count.
        self._clock.pause(trio.current_time() - self._waited_until)
        with trio.move_on_at(self._clock.deadline) as scope:
            data = await self._stream.receive_some()
        self._waited_until = trio.current_time()
        if scope.cancelled_caught:
            raise Refused(
                "idle",
                f"less than {LEAST_PROGRESS} bytes have come in {self._clock.timeout:g} s",
            )
        self._clock.note(len(data), self._waited_until)
        return data

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
    digests: PrefixDigests | None = None,
    on_progress: Progress = lambda position: None,
) -> Outcome:
    """Send one file, and return when the receiver has stored it and both digests agree.

    Args:
      stream: to the receiver; ended, not closed.
      source: the data to send, at its beginning.
      path: the relative path to store it under.
      digests: of earlier attempts with the same source, and for later ones.
      on_progress: called with the number of bytes that the receiver has or will have.

    Raises:
      TransferRefused: the receiver does not take it.
      TransferError: the source's size differs from the one it stated, or the receiver broke
        the protocol.
      trio.BrokenResourceError: the stream broke; another attempt goes on where this one ended.
      OSError: the source cannot be read.
    """
    try:
        return await _send_file(stream, source, path, digests or PrefixDigests(), on_progress)
    except FramingError as error:
        raise TransferError(f"the receiver broke the protocol: {error}") from error


async def _send_file(
    stream: trio.abc.HalfCloseableStream,
    source: Source,
    path: str,
    digests: PrefixDigests,
    on_progress: Progress,
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
    position, digest = digests.before(offset)
    if position:
        await trio.to_thread.run_sync(source.seek, position)

    def read_and_hash(limit: int) -> bytes:
        chunk = source.read(min(limit, CHUNK_SIZE, digests.until_next(position)))
        digest.update(chunk)
        digests.note(position + len(chunk), digest)
        return chunk

    while position < offset:
        skipped = await trio.to_thread.run_sync(read_and_hash, offset - position)
        if not skipped:
            raise SourceChanged("the file is shorter than what the receiver has of it")
        position += len(skipped)
    on_progress(position)
    try:
        # What cannot be read twice may be a terminal or a pipe, and silent for ever: a cancelled
        # transfer leaves its thread behind there.
        read = partial(
            trio.to_thread.run_sync,
            read_and_hash,
            CHUNK_SIZE,
            abandon_on_cancel=source.identity is None,
        )
        while chunk := await read():
            if source.size is not None and position + len(chunk) > source.size:
                raise SourceChanged("the file has grown while it was sent")
            await stream.send_all(encode_frame(chunk))
            position += len(chunk)
            on_progress(position)
        if source.size is not None and position != source.size:
            raise SourceChanged("the file has become shorter while it was sent")
        sha256 = digest.hexdigest()
        await stream.send_all(encode_frame(b"") + _json_frame(size=position, sha256=sha256))
        await stream.send_eof()
    except StreamStopped:
        await _find_refusal(frames, offset)
        raise
    result = await frames.next_json()
    _check_accepted(result, "stored", resumed_at=offset)
    if (_field(result, "size", int), _field(result, "sha256", str)) != (position, sha256):
        raise TransferError("the receiver has stored something else than what was sent")
    return Outcome(path, position, sha256, offset)


async def send_directory(stream: trio.abc.HalfCloseableStream, path: str) -> Outcome:
    """Have the receiver make a directory, unless it exists.

    Directories with files in them need no such message.

    Raises:
      TransferRefused: the receiver does not take it; the code says why.
      TransferError: the receiver broke the protocol.
      trio.BrokenResourceError: the stream broke.
    """
    await stream.send_all(
        _json_frame(version=VERSION, path=path, size=None, identity=None, directory=True)
    )
    await stream.send_eof()
    try:
        reply = await _Frames(stream, _CONTROL_FRAME_MAX).next_json()
    except FramingError as error:
        raise TransferError(f"the receiver broke the protocol: {error}") from error
    _check_accepted(reply, "accepted")
    if reply.get("directory") is not True:
        raise TransferError("the receiver does not know empty directories")
    return Outcome(path, 0, "", 0, is_directory=True)


async def _find_refusal(frames: _Frames, offset: int) -> None:
    """The receiver takes no more: raise the refusal that it has sent, if there is one."""
    with trio.move_on_after(_LAST_WORD_SECONDS):
        try:
            result = await frames.next_json()
        except (trio.BrokenResourceError, TransferError, FramingError):
            return  # there is none; the stream has broken
        _check_accepted(result, "stored", resumed_at=offset)


def _check_accepted(message: dict[str, Any], flag: str, *, resumed_at: int = 0) -> None:
    if not _field(message, flag, bool):
        code = str(_field(message, "code", str))[:100]
        text = str(_field(message, "message", str))[:1000]
        raise TransferRefused(code, text, resumed_at=resumed_at)


async def receive_file(
    stream: trio.abc.HalfCloseableStream,
    storage: Storage,
    *,
    peer: str = "",
    places: Places | None = None,
    idle_timeout: float = math.inf,
    on_begin: Callable[[str, int | None, int], object] = lambda path, size, offset: None,
    on_progress: Progress = lambda position: None,
) -> Outcome:
    """Receive one file, or empty directory, into `storage`, and tell the sender of the outcome.

    Args:
      stream: to the sender; ended, not closed.
      storage: where the file goes.
      peer: the sender's address, for quotas.
      places: the places for transfers under way; ``None``: no limit.
      idle_timeout: seconds in which at least 16 KiB must come while this side waits for the
        sender (more than 0, up to ``math.inf``); otherwise the sender is refused.
      on_begin: called with the path, the size (if known) and the offset from which it goes on.
      on_progress: called with the number of bytes stored.

    Cancellation and a broken stream leave a partial file behind, for another attempt.

    Raises:
      TransferRefused: the storage does not take the file; the sender was told.
      TransferError: the sender broke the protocol, or has begun another attempt.
      trio.BrokenResourceError: the stream broke.
    """
    receiver = _Receiver(stream, storage, peer, idle_timeout, on_begin, on_progress)
    try:
        try:
            if places is None:
                places = Places(1, 1)
            try:
                with places.place(peer):
                    return await receiver.run(places)
            except (Refused, OSError) as error:
                if isinstance(error, trio.BrokenResourceError):
                    raise
                refusal = error if isinstance(error, Refused) else _system_refusal(error)
                await receiver.refuse(refusal)
                raise refusal from error
        except FramingError as error:
            raise TransferError(f"the sender broke the protocol: {error}") from error
        except TakenOver as error:
            raise TransferError(str(error)) from error
    except Refused as error:
        raise TransferRefused(error.code, str(error)) from error


@attrs.define(eq=False)
class _Receiver:
    """Receives one file."""

    _stream: trio.abc.HalfCloseableStream
    _storage: Storage
    _peer: str
    _timeout: float
    _on_begin: Callable[[str, int | None, int], object]
    _on_progress: Progress
    _was_accepted: bool = False

    async def run(self, places: Places) -> Outcome:
        frames = _Frames(self._stream, max(CHUNK_SIZE, _CONTROL_FRAME_MAX), self._timeout)
        header = await frames.next_json()
        if header.get("version") != VERSION:
            raise Refused("version", f"only version {VERSION} is spoken")
        path: str = _field(header, "path", str)
        size: int | None = _field(header, "size", int, type(None))
        identity: str | None = _field(header, "identity", str, type(None))
        if header.get("directory") is True:
            await trio.to_thread.run_sync(self._storage.make_directory, path)
            await self._send(accepted=True, offset=0, directory=True)
            await self._stream.send_eof()
            return Outcome(path, 0, "", 0, is_directory=True)
        key = self._storage.key(path, identity)
        async with places.alone(key):
            stored = await trio.to_thread.run_sync(
                partial(self._storage.begin, path, size, identity, peer=self._peer, key=key)
            )
            try:
                await self._send(accepted=True, offset=stored.offset)
                self._was_accepted = True
                self._on_begin(path, size, stored.offset)
                return await self._store(frames, stored, path, size)
            finally:
                # A part is removed, or noted for the next attempt, whatever happens.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_close, stored)

    async def _store(
        self, frames: _Frames, stored: StoredFile, path: str, size: int | None
    ) -> Outcome:
        self._on_progress(stored.size)
        while chunk := await frames.next():
            try:
                await trio.to_thread.run_sync(stored.write, chunk)
            except Refused as error:
                if error.code == "size":
                    await trio.to_thread.run_sync(stored.discard)
                raise
            self._on_progress(stored.size)
        trailer = await frames.next_json()
        sent = _field(trailer, "size", int), _field(trailer, "sha256", str)
        if stored.size != sent[0] or size not in (None, stored.size):
            # Checked before any byte is hashed.
            await trio.to_thread.run_sync(stored.discard)
            raise Refused(
                "size",
                f"{stored.size} bytes have come; announced were"
                f" {'none' if size is None else size}, and {sent[0]} at the end",
            )
        while not await trio.to_thread.run_sync(stored.catch_up):
            pass
        sha256 = stored.sha256()
        if sha256 != sent[1]:
            await trio.to_thread.run_sync(stored.discard)
            raise Refused("checksum", "the stored bytes are not those which were sent")
        await trio.to_thread.run_sync(stored.commit)
        await self._send(stored=True, size=stored.size, sha256=sha256)
        await self._stream.send_eof()
        return Outcome(path, stored.size, sha256, stored.offset)

    async def refuse(self, refusal: Refused) -> None:
        """Tell the sender, if it listens."""
        flag = "stored" if self._was_accepted else "accepted"
        await self._send(**{flag: False, "code": refusal.code, "message": str(refusal)})
        await self._stream.send_eof()

    async def _send(self, **message: object) -> None:
        # A sender that reads no answers must not hold a place.
        with trio.move_on_after(self._timeout) as scope:
            await self._stream.send_all(_json_frame(**message))
        if scope.cancelled_caught:
            raise TransferError("the sender takes no answer")


def _close(stored: StoredFile) -> None:
    try:
        stored.close()
    except OSError as error:
        # The file's own result is decided and told; only the clean-up of parts has failed.
        logger.warning("partial files could not be cleaned up: %s", error)


def _system_refusal(error: OSError) -> Refused:
    # The sender must not learn the receiver's own paths.
    return Refused("system", f"the receiver cannot store it: {error.strerror or 'I/O error'}")
