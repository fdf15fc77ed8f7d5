"""Asks a running application for snapshots of its transports.

Floor 5.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import final

import trio

from ..quic.construction import NoPublicConstructor
from .format import MOST_ANSWER, REQUEST, Snapshot, decode_snapshot
from .peer_user import is_same_user_or_root, user_of_peer
from .places import check_platform

__all__ = ["Viewer", "open_viewer"]

_CHUNK = 64 * 1024


@final
class Viewer(metaclass=NoPublicConstructor):
    """A connection to an application's inspection socket.  Obtained from :func:`open_viewer`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def look(self) -> Snapshot:
        """A snapshot of now; the application makes at most 10 a second.

        Cancellation: the viewer cannot be used any more.

        Raises:
          trio.BrokenResourceError: the application has ended the inspection, serves too many
            viewers, or answers in another format; the text says what.
          trio.ClosedResourceError: the viewer was closed, or an earlier call has failed.
          trio.BusyResourceError: another task is looking.
        """
        try:
            await self._stream.send_all(REQUEST)
            return decode_snapshot(await self._receive_line())
        except ValueError as error:
            self._stream.socket.close()
            raise trio.BrokenResourceError(str(error)) from None
        except trio.BusyResourceError:
            raise
        except BaseException:
            self._stream.socket.close()
            raise

    async def _receive_line(self) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MOST_ANSWER:
                raise ValueError(f"the answer has more than {MOST_ANSWER} bytes")
            chunk = await self._stream.receive_some(_CHUNK)
            if not chunk:
                raise trio.BrokenResourceError("the application has ended the inspection")
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


@asynccontextmanager
async def open_viewer(path: str) -> AsyncIterator[Viewer]:
    """Connect to the inspection socket at `path`, for the length of the block.

    Raises:
      PermissionError: the socket belongs to another user.
      OSError: no application listens there, or the system has no Unix sockets.
    """
    check_platform()
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    async with stream:
        # Root may look at the applications of others.
        if os.geteuid() != 0 and not is_same_user_or_root(user_of_peer(stream.socket)):
            raise PermissionError(f"the socket {path!r} belongs to another user")
        yield Viewer._create(stream)
