"""The format of a server's connection IDs: the numbers of the server and of its process.

Floor 0, sans-IO.  Load balancers route by the server ID.  Processes on one port pass datagrams
on by the number of the process.  The bytes of a connection ID (docs: workers):

======  ===========================================================================
first   three bits of a load balancer's configuration, five random bits
next    the server ID, 0 to 2 bytes
rest    random, 5 bytes at least; where processes share the port, the last byte is the
        number of the process, masked
======  ===========================================================================

The mask is a keyed hash of the bytes before it, so observers cannot read the number.
With a key, the server ID and the random bytes behind it are encrypted
(:mod:`~phoenix_trio.quic.connection_id_cipher`), up to the number of the process.
Without a server ID and without processes, all 8 bytes are random.
"""

from __future__ import annotations

import hashlib
import os

from .connection_id_cipher import ConnectionIdCipher

__all__ = [
    "CONNECTION_ID_LENGTH",
    "LARGEST_ROTATION",
    "LONGEST_SERVER_ID",
    "MOST_WORKERS",
    "ConnectionIdFormat",
    "random_connection_id",
]

#: The length of our connection IDs in bytes; fixed, so that short headers can be parsed.
CONNECTION_ID_LENGTH = 8

#: draft-ietf-quic-load-balancers: 7 means that a load balancer cannot tell the server.
LARGEST_ROTATION = 6

#: The fewest random bytes of a connection ID: enough that the IDs of a connection cannot be
#: guessed.
_SMALLEST_NONCE = 5

LONGEST_SERVER_ID = CONNECTION_ID_LENGTH - 1 - _SMALLEST_NONCE

#: The number of a process is one byte.
MOST_WORKERS = 256

_ROTATION_SHIFT = 5
_RANDOM_BITS = (1 << _ROTATION_SHIFT) - 1


def random_connection_id() -> bytes:
    """A random connection ID, without any number."""
    return os.urandom(CONNECTION_ID_LENGTH)


class ConnectionIdFormat:
    """Makes connection IDs, and finds the number of the process in them.

    Args:
      server_id: this server's ID for load balancers, up to 2 bytes; empty: none.
      rotation: the configuration of load balancers to which it belongs, 0 to 6.
      key: 16 bytes, which encrypt the server ID and which load balancers have, too; empty: it
        is in plaintext.
      worker: the number of this process.
      workers: how many processes share the port, 1 to 256.
      secret: shared by these processes, 16 to 64 bytes; empty for a single process.

    Raises:
      ValueError: the connection ID has no room for all of that, or the key does not fit.
    """

    __slots__ = (
        "_cipher",
        "_cipher_end",
        "_is_random",
        "_secret",
        "_server_id",
        "_top",
        "worker",
        "workers",
    )

    def __init__(
        self,
        server_id: bytes = b"",
        rotation: int = 0,
        *,
        key: bytes = b"",
        worker: int = 0,
        workers: int = 1,
        secret: bytes = b"",
    ) -> None:
        room = LONGEST_SERVER_ID - (1 if workers > 1 else 0)
        if len(server_id) > room:
            raise ValueError(
                f"connection_id_server_id must have at most {room} bytes"
                f"{' where workers share a port' if workers > 1 else ''}, not {len(server_id)}"
            )
        if workers > 1 and len(secret) < 16:
            raise ValueError("the secret of workers must have at least 16 bytes")
        self.worker: int = worker
        """The number of this process."""
        self.workers: int = workers
        """The number of processes on the port."""
        self._server_id = server_id
        self._top = rotation << _ROTATION_SHIFT
        self._secret = secret
        self._cipher_end = CONNECTION_ID_LENGTH - (1 if workers > 1 else 0)
        self._cipher: ConnectionIdCipher | None = None
        if key:
            if not server_id:
                raise ValueError("connection_id_key is of no use without connection_id_server_id")
            self._cipher = ConnectionIdCipher(key, self._cipher_end - 1)
        self._is_random = not server_id and workers == 1

    def make(self) -> bytes:
        """A new connection ID of this process."""
        if self._is_random:
            return random_connection_id()
        made = bytearray(os.urandom(CONNECTION_ID_LENGTH))
        if self._server_id:
            made[0] = self._top | made[0] & _RANDOM_BITS
            made[1 : 1 + len(self._server_id)] = self._server_id
            if self._cipher is not None:
                end = self._cipher_end
                made[1:end] = self._cipher.encrypt(bytes(made[1:end]))
        if self.workers > 1:
            made[-1] = self.worker ^ self._mask(bytes(made[:-1]))
        return bytes(made)

    def worker_of(self, connection_id: bytes) -> int:
        """The number of the process that made it; -1: not one of these processes.

        The connection ID of another program can give any of these numbers.
        """
        if len(connection_id) != CONNECTION_ID_LENGTH:
            return -1
        if self.workers == 1:
            return self.worker
        found = connection_id[-1] ^ self._mask(connection_id[:-1])
        return found if found < self.workers else -1

    def _mask(self, before: bytes) -> int:
        return hashlib.blake2b(before, key=self._secret, digest_size=1).digest()[0]
