"""Writes one incoming file as a part, and names it when it is whole.

Floor 4.  Its keeper (:class:`~phoenix_trio.storage.directory.Storage`) handles whatever it
shares with other files, such as the room on the disk.  Blocks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from typing import Protocol

import attrs

from .beside import beside, unlink_beside
from .folders import Folders
from .names import Refused

__all__ = ["Hashed", "Keeper", "StoredFile", "look"]

#: Bytes that one step reads again and hashes.
_HASH_CHUNK = 1024 * 1024
_HASH_SLICE = 64 * _HASH_CHUNK

#: System errors when the disk, or the user's share of it, is full.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

#: System errors of file systems without links, such as FAT.
_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Keeper(Protocol):
    """The parts of its storage that a file needs."""

    folders: Folders
    lock: threading.RLock
    overwrite: bool
    file_mode: int

    def check_size(self, size: int) -> None:
        """Refuse a file of `size` bytes if that is too large."""

    def make_room(self, needed: int) -> None:
        """Ensure that so many bytes can be written; refuse if they cannot."""

    def make_room_by_force(self) -> None:
        """The same, after the system has reported that the disk is full."""

    def release(self, key: str, left: tuple[str, Hashed] | None) -> None:
        """A transfer is over; it has left this part, or none."""


@attrs.define
class Hashed:
    """How far a part was hashed, and how it looked when that was noted."""

    digest: hashlib._Hash
    position: int
    look: tuple[int, ...]


def look(status: os.stat_result) -> tuple[int, ...]:
    """The properties of a file that change when another process changes it."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@attrs.define(eq=False)
class StoredFile:
    """An incoming file.  Obtained from :meth:`Storage.begin`.

    One thread at a time may use it.
    """

    _keeper: Keeper
    _key: str
    _directory: int
    _descriptor: int
    _part: str
    _path: tuple[str, ...]
    _announced: int | None
    _can_resume: bool
    offset: int
    """Bytes left by an earlier attempt."""
    size: int
    _digest: hashlib._Hash
    _hashed: int
    """How many of the bytes are in the digest."""
    _is_over: bool = False

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
          Refused: the sender sends more than it has announced, the file would be larger
            than the storage takes, or the disk is full.
          OSError: another fault of the system.
        """
        keeper = self._keeper
        if self._announced is not None and self.size + len(data) > self._announced:
            raise Refused("size", f"the sender has announced {self._announced} bytes, sends more")
        keeper.check_size(self.size + len(data))
        keeper.make_room(len(data))
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(self._descriptor, view, self.size)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                keeper.make_room_by_force()
                continue
            if self._hashed == self.size:
                self._digest.update(view[:count])
                self._hashed += count
            self.size += count
            view = view[count:]

    def catch_up(self) -> bool:
        """Hash the next 64 MiB left by an earlier attempt, if they are not hashed yet.

        So a part is read again at most once by each process, and only when its last byte
        has come, however often its transfer is continued.  Returns whether all is hashed.

        Raises:
          OSError: the part cannot be read.
        """
        until = min(self.size, self._hashed + _HASH_SLICE)
        while self._hashed < until:
            self.read_again(self._hashed, min(_HASH_CHUNK, until - self._hashed))
        return self._hashed == self.size

    @property
    def hashed(self) -> int:
        """How many bytes are hashed; up to there, this process has seen the part before."""
        return self._hashed

    def read_again(self, position: int, size: int, *, hashing: bool = True) -> bytes:
        """Read at most `size` of the bytes from `position` on; hash them if they come next.

        Raises:
          OSError: the part cannot be read, or has become shorter.
        """
        chunk = os.pread(self._descriptor, size, position)
        if not chunk:
            raise OSError(errno.EIO, "the partial file has become shorter")
        if hashing and position == self._hashed:
            self._digest.update(chunk)
            self._hashed += len(chunk)
        return chunk

    def cut(self, size: int) -> None:
        """Keep only the first `size` bytes.

        Raises:
          OSError: a fault of the system.
        """
        os.ftruncate(self._descriptor, size)
        self.size = size
        self.offset = min(self.offset, size)
        if self._hashed > size:
            self._digest, self._hashed = hashlib.sha256(), 0

    def open_beside(self, suffix: str, flags: int) -> int:
        """Open a file of the same transfer beside the part; it goes where the part goes.

        Args:
          suffix: :data:`LEDGER_SUFFIX`, or a longer one for a file that will replace it.

        Raises:
          OSError: a fault of the system; or something other than a file is there.
        """
        name = beside(self._part, suffix)
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "something else is in the way of a file beside the part")
        return descriptor

    def remove_beside(self, suffix: str) -> None:
        """Remove a file beside the part, if it is there.

        Raises:
          OSError: a fault of the system.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside(self._part, suffix), dir_fd=self._directory)

    def rename_beside(self, suffix: str, new_suffix: str) -> None:
        """Rename a file beside the part; an existing one is replaced.

        Raises:
          OSError: a fault of the system.
        """
        where = self._directory
        names = beside(self._part, suffix), beside(self._part, new_suffix)
        os.replace(*names, src_dir_fd=where, dst_dir_fd=where)

    def sha256(self) -> str:
        """The SHA-256 of all bytes, in hexadecimal; call :meth:`catch_up` before."""
        if self._hashed != self.size:
            raise ValueError("the earlier bytes are not hashed yet")
        return self._digest.hexdigest()

    def commit(self) -> None:
        """Give the file its final name, durably.

        Raises:
          Refused: the name has been taken meanwhile, or a directory cannot be made.
          OSError: a fault of the system; the part stays.
        """
        keeper = self._keeper
        os.fchmod(self._descriptor, keeper.file_mode)
        os.fsync(self._descriptor)
        final = self._path[-1]
        with keeper.folders.descend(self._path[:-1], create=True) as directory:
            with keeper.lock:
                keeper.folders.check_final(directory, final)
                with keeper.folders.changing(directory, final):
                    if keeper.overwrite or not self._link(directory, final):
                        os.replace(
                            self._part, final, src_dir_fd=self._directory, dst_dir_fd=directory
                        )
                self._is_over = True
            os.fsync(directory)
        unlink_beside(self._part, self._directory)

    def _link(self, directory: int, final: str) -> bool:
        """Link the part under its final name: unlike a rename, a link never replaces a file.

        Returns whether the file system supports links.
        """
        try:
            os.link(
                self._part,
                final,
                src_dir_fd=self._directory,
                dst_dir_fd=directory,
                follow_symlinks=False,
            )
        except FileExistsError:
            raise Refused("exists", f"{final!r} exists") from None
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
        # If this process ended here, the part would be a second name of the file.  Such parts
        # are never written to (:meth:`Storage.begin`), and go with the next clean-up.
        os.unlink(self._part, dir_fd=self._directory)
        return True

    def discard(self) -> None:
        """Remove the part: its content is of no use."""
        self._is_over = True
        unlink_beside(self._part, self._directory)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._directory)

    def close(self) -> None:
        """Close; a part not committed stays for another attempt, if it can be continued.

        Quotas are enforced then, so this part or others may be removed.

        Raises:
          OSError: a fault of the system.  The file is closed all the same.
        """
        if self._descriptor < 0:
            return
        keeper = self._keeper
        left: tuple[str, Hashed] | None = None
        try:
            if not self._is_over and not (self.size and self._can_resume):
                self.discard()
            if not self._is_over:
                now = look(os.fstat(self._descriptor))
                left = self._part, Hashed(self._digest, self._hashed, now)
        finally:
            os.close(self._descriptor)
            os.close(self._directory)
            self._descriptor = -1
            keeper.release(self._key, left)
