"""Asks the kernel for the user at the other end of a Unix socket.

Floor 5.
"""

from __future__ import annotations

import os
import socket as sockets
import struct
import sys

import trio

__all__ = ["is_same_user_or_root", "user_of_peer"]


def user_of_peer(socket: trio.socket.SocketType) -> int | None:
    """The user ID of the process that has connected, or that listens.

    ``None``: this system does not tell.  Then only the modes of the socket and of its
    directory protect it.

    Raises:
      OSError: the other end is gone.
    """
    if sys.platform == "linux":
        size = struct.calcsize("iII")
        _, user, _ = struct.unpack(
            "iII", socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, size)
        )
        return int(user)
    option = getattr(sockets, "LOCAL_PEERCRED", None)  # macOS and FreeBSD: struct xucred
    if option is None:
        return None
    _, user = struct.unpack("II", socket.getsockopt(0, option, 76)[:8])
    return int(user)


def is_same_user_or_root(user: int | None) -> bool:
    """Whether `user` is root, or the user of this process; True where it is unknown."""
    return user is None or user in (0, os.geteuid())
