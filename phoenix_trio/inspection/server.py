"""Answers the viewers of a running transport over a Unix socket.

Floor 5.  Viewers ask, and get one snapshot for each request.  So there is never more than one
answer under way to each of them, and a viewer that reads slowly gets fewer snapshots and holds
nothing else up.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import final

import trio

from ..quic.groups import unwrap_lone
from ..quic.logs import bounded_logger
from ..transport import PhoenixTransport
from .format import MOST_REQUEST, MOST_TRANSPORTS, encode_snapshot
from .peer_user import is_same_user_or_root, user_of_peer
from .places import check_platform, default_path, listen_at
from .snapshot import Observer

__all__ = ["open_inspection"]

logger: logging.Logger = bounded_logger("phoenix_trio.inspection")

#: Viewers at once.  Further ones are told, and left.
MOST_VIEWERS = 8

#: Seconds between snapshots at least, and between the answers to one viewer.
SHORTEST_INTERVAL = 0.1

#: Seconds after which a viewer is left that does not ask, or does not take its answer.
IDLE_SECONDS = 60.0
SLOW_SECONDS = 10.0

#: Seconds without accepting after the system has refused to.
_PAUSE = 1.0


@asynccontextmanager
async def open_inspection(
    *transports: PhoenixTransport, path: str | None = None
) -> AsyncIterator[str]:
    """Let this user look at transports with ``phoenix-trio top``, for the length of the block.

    Opens a Unix socket and gives its path.  Only processes of the same user, and of root, get
    an answer: the socket has mode 0600, its directory has to belong to the user with mode 0700,
    and the kernel is asked for the user of each viewer (Linux, macOS and FreeBSD).  Answers hold
    addresses of peers, names of targets and figures: no keys, tokens or application data.

    Viewers cannot delay the application: 8 at once are answered, each gets at most
    10 snapshots a second, and all together cause no more than that.  The socket is removed at
    the end of the block, and one that was left by a killed process at the beginning.

    Args:
      transports: 1 to 16, in the order in which they are shown.
      path: of the socket.  Its directory is made with mode 0700 if it is missing.  ``None``: a
        place at which ``phoenix-trio top`` finds it.

    Raises:
      ValueError: there is no transport, or there are too many, or `path` is too long.
      PermissionError: the directory, or a socket that is there, belongs to another user, or
        others may enter the directory.
      OSError: the system is Windows, another process is inspected there, or the socket cannot
        be made.
    """
    if not 1 <= len(transports) <= MOST_TRANSPORTS:
        raise ValueError(f"an inspection needs 1 to {MOST_TRANSPORTS} transports")
    check_platform()
    await trio.lowlevel.checkpoint()
    place = listen_at(default_path(transports[0].name) if path is None else path)
    try:
        with unwrap_lone():
            async with trio.open_nursery() as nursery:
                listener = trio.socket.from_stdlib_socket(place.socket)
                nursery.start_soon(_accept, listener, _Answers(transports))
                yield place.path
                nursery.cancel_scope.cancel()
    finally:
        place.close()


async def _accept(listener: trio.socket.SocketType, answers: _Answers) -> None:
    viewers = 0

    async def serve(viewer: trio.SocketStream) -> None:
        nonlocal viewers
        try:
            await answers.serve(viewer)
        finally:
            viewers -= 1
            viewer.socket.close()

    async with trio.open_nursery() as nursery:
        while True:
            try:
                socket, _ = await listener.accept()
            except OSError as error:
                logger.warning("no viewer can be accepted at present: %s", error)
                await trio.sleep(_PAUSE)
                continue
            if not _is_permitted(socket):
                socket.close()
            elif viewers == MOST_VIEWERS:
                await _refuse(socket)
            else:
                viewers += 1
                nursery.start_soon(serve, trio.SocketStream(socket))


def _is_permitted(socket: trio.socket.SocketType) -> bool:
    try:
        user = user_of_peer(socket)
    except OSError:
        return False  # it has gone
    if is_same_user_or_root(user):
        return True
    logger.warning("a viewer of user %s was refused", user)
    return False


async def _refuse(socket: trio.socket.SocketType) -> None:
    """Tell a viewer that there are too many; a new socket has room for so little."""
    with trio.move_on_after(_PAUSE), socket:
        try:
            await socket.send(_error(f"{MOST_VIEWERS} viewers are served already"))
        except OSError:
            await trio.lowlevel.checkpoint()  # it has gone


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode() + b"\n"


@final
class _Answers:
    """Answers requests; all viewers share a snapshot for a tenth of a second."""

    def __init__(self, transports: Sequence[PhoenixTransport]) -> None:
        self._observer = Observer(transports)
        self._lock = trio.Lock()
        self._latest = b""
        self._taken_at = float("-inf")

    async def serve(self, viewer: trio.SocketStream) -> None:
        """Answer one viewer until it leaves, is silent or slow, or sends what is no request."""
        received = bytearray()
        answered_at = float("-inf")
        try:
            while True:
                with trio.move_on_after(IDLE_SECONDS) as waiting:
                    wanted = await _receive_request(viewer, received)
                if waiting.cancelled_caught or wanted is None:
                    return
                await trio.sleep_until(answered_at + SHORTEST_INTERVAL)
                answer = await self._snapshot() if wanted else _error("send requests, a line each")
                with trio.move_on_after(SLOW_SECONDS) as sending:
                    await viewer.send_all(answer)
                if sending.cancelled_caught or not wanted:
                    return
                answered_at = trio.current_time()
        except trio.BrokenResourceError:
            return  # the viewer has gone

    async def _snapshot(self) -> bytes:
        async with self._lock:
            if trio.current_time() >= self._taken_at + SHORTEST_INTERVAL:
                snapshot = await self._observer.take()
                self._latest = encode_snapshot(snapshot)
                self._taken_at = snapshot.time
            return self._latest


async def _receive_request(viewer: trio.SocketStream, received: bytearray) -> bool | None:
    """Whether the next line is a request for a snapshot; ``None``: the viewer has left."""
    while (end := received.find(b"\n")) < 0:
        if len(received) > MOST_REQUEST:
            return False
        chunk = await viewer.receive_some(MOST_REQUEST)
        if not chunk:
            return None
        received += chunk
    line = bytes(received[:end])
    del received[: end + 1]
    try:
        request = json.loads(line) if end <= MOST_REQUEST else None
    except (ValueError, RecursionError):
        request = None
    await trio.lowlevel.checkpoint()
    return isinstance(request, dict) and request.get("want") == "snapshot"
