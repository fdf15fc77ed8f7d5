"""Passes datagrams on between processes that share a port.

Floor 1.  The system chooses the process for a datagram by source and destination address.  So
the datagrams of a client that has moved can reach the wrong process.  Their connection ID
contains the number of the right one (:mod:`~phoenix_trio.quic.connection_id_format`).  The
receiving process passes them on through a Unix datagram socket, together with their addresses
and ECN mark.  The right process treats them like datagrams of its own socket.

Each process has one inbox, and the sending ends of all.  A full inbox drops datagrams, like a
UDP socket's buffer.  So no process waits for another, and the sockets' buffers bound the memory.

A message is a head, the peer's host, our own host (if the system reports it), and a run of
datagrams.  The head, without padding: the ECN codepoint (1 byte), the size of the datagrams (2),
the peer's port (2), flow information (4) and scope (4), the lengths of the two hosts (1 each).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Sequence

import trio

from .datagram_socket import ReceivedRun
from .path_address import Address, PathAddress, SocketAddress
from .shared_keys import SharedKeys

__all__ = ["Relay", "open_inbox"]

_HEAD = struct.Struct("!BHHIIBB")

#: The most bytes of a message: a head, two hosts, a run.
_LARGEST_MESSAGE = _HEAD.size + 2 * 255 + 65_535

#: The size of an inbox in bytes, including the system's records; the system may grant less.
INBOX_SIZE = 1024 * 1024

#: Errors when an inbox is full, or its process has ended.
_DROPPED = frozenset(
    {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE, errno.ECONNREFUSED, errno.EPIPE}
)


def open_inbox() -> tuple[socket.socket, socket.socket]:
    """The receiving end and the sending end of an inbox."""
    receive, send = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    # (Linux counts waiting messages against the sender's buffer.)
    with contextlib.suppress(OSError):
        send.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, INBOX_SIZE)
    return receive, send


class Relay:
    """The inbox of this process, and the way into those of the others.

    Args:
      number: that of this process.
      secret: shared by all of them, 16 bytes or more.
      inbox: the receiving end of this process's inbox.
      outboxes: the sending ends of all inboxes by number.
      keys: with which all of them seal tickets and tokens; ``None``: each has its own.

    The caller keeps the sockets; they become non-blocking.
    """

    __slots__ = ("_inbox", "_outboxes", "dropped", "keys", "number", "passed_on", "secret")

    def __init__(
        self,
        number: int,
        secret: bytes,
        inbox: socket.socket,
        outboxes: Sequence[socket.socket],
        keys: SharedKeys | None = None,
    ) -> None:
        self.number: int = number
        self.secret: bytes = secret
        self.keys: SharedKeys | None = keys
        self._inbox = inbox
        self._outboxes = tuple(outboxes)
        for each in (inbox, *self._outboxes):
            each.setblocking(False)
        self.passed_on: int = 0
        """Datagrams passed on to others."""
        self.dropped: int = 0
        """Datagrams dropped because the inbox of another process was full."""

    @property
    def count(self) -> int:
        """The number of processes."""
        return len(self._outboxes)

    def pass_on(
        self, worker: int, run: bytes | memoryview, address: Address, size: int, mark: int
    ) -> None:
        """Give a run of datagrams of `size` bytes to another process.  Never blocks.

        Args:
          worker: its number.
          run: one datagram at least; of the last one there may be less than `size`.
          address: their source, with our own address if it is known.
          mark: their ECN codepoint.

        Raises:
          OSError: the socket has failed.
        """
        datagrams = -(-len(run) // size)
        try:
            self._outboxes[worker].sendmsg([_encode_head(address, size, mark), run])
        except OSError as error:
            if error.errno not in _DROPPED:
                raise
            self.dropped += datagrams
        else:
            self.passed_on += datagrams

    def take(self, limit: int) -> list[ReceivedRun]:
        """Up to `limit` runs that other processes have passed on.  Never blocks."""
        taken: list[ReceivedRun] = []
        for _ in range(limit):
            try:
                message = self._inbox.recv(_LARGEST_MESSAGE)
            except (BlockingIOError, InterruptedError):
                break
            taken.append(_parse(message))
        return taken

    async def wait_readable(self) -> None:
        """Wait until :meth:`take` has something."""
        await trio.lowlevel.wait_readable(self._inbox)


def _encode_head(address: Address, size: int, mark: int) -> bytes:
    remote: SocketAddress
    local = ""
    if isinstance(address, PathAddress):
        remote, local = address.remote, address.local
    else:
        remote = address
    flow, scope = (remote[2], remote[3]) if len(remote) == 4 else (0, 0)
    host, own = remote[0].encode("ascii"), local.encode("ascii")
    head = _HEAD.pack(mark, size, remote[1], flow, scope, len(host), len(own))
    return head + host + own


def _parse(message: bytes) -> ReceivedRun:
    # (Only processes of the same program write to it, so the form is not checked.)
    mark, size, port, flow, scope, host_length, own_length = _HEAD.unpack_from(message)
    host_end = _HEAD.size + host_length
    own_end = host_end + own_length
    host = message[_HEAD.size : host_end].decode("ascii")
    remote: SocketAddress = (host, port, flow, scope) if ":" in host else (host, port)
    address: Address = remote
    if own_length:
        address = PathAddress.join(remote, message[host_end:own_end].decode("ascii"))
    run = message[own_end:]
    return run, address, size, mark, len(run)
