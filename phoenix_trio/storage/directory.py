"""A directory in which strangers may store files, and nothing else.

Floor 4.  Names from the network are hostile.  Every step into the directory is
taken relative to an open descriptor of the last one and follows no symbolic
link, so that no name, and no race, leads outside.  A file appears under its
final name whole or not at all.  Until then it grows as a part in the hidden
directory ``.phoenix-trio``, under a name which no sender can ask for; a later
attempt of the same transfer continues it.

Everything here blocks: call it in threads, any number at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator

import attrs

from .folders import Folders
from .names import Refused, check_path, shorten
from .parts import Part, PartLimits, next_expiry, to_give_way, to_remove
from .system import open_directory, try_lock

__all__ = ["PARTS_DIRECTORY", "Refused", "Storage", "StoredFile", "check_path"]

#: Where parts are.  Senders cannot name it, since it begins with a dot.
PARTS_DIRECTORY = ".phoenix-trio"

#: The file's name (shortened), whose part it is, and whose sender's.
_PART_NAME = re.compile(r".*\.([0-9a-f]{32})\.([0-9a-f]{16})\.part", re.DOTALL)

#: Bytes of the file's name which a part's name repeats, for people.
_SHOWN_BYTES = 100

#: Bytes which are read again and hashed at once.
_HASH_CHUNK = 1024 * 1024
_HASH_SLICE = 64 * _HASH_CHUNK

_GIBIBYTE = 1024**3

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

#: What systems answer which cannot link, such as FAT.
_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@attrs.define
class _Hashed:
    """How far a part was hashed, and how it looked when that was noted."""

    digest: hashlib._Hash
    position: int
    look: tuple[int, ...]


def _look(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@attrs.define(eq=False)
class StoredFile:
    """A file which is being received.  Obtained from :meth:`Storage.begin`.

    One thread at a time may use it.
    """

    _storage: Storage
    _key: str
    _directory: int
    _descriptor: int
    _part: str
    _path: tuple[str, ...]
    _announced: int | None
    _can_resume: bool
    offset: int
    """Bytes which an earlier attempt has left."""
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
        storage = self._storage
        if self._announced is not None and self.size + len(data) > self._announced:
            raise Refused("size", f"the sender has announced {self._announced} bytes, sends more")
        storage._check_size(self.size + len(data))
        storage._make_room(len(data))
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(self._descriptor, view, self.size)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                storage._make_room_by_force()
                continue
            if self._hashed == self.size:
                self._digest.update(view[:count])
                self._hashed += count
            self.size += count
            view = view[count:]

    def catch_up(self) -> bool:
        """Hash the next 64 MiB of what an earlier attempt has left, where that is to be done.

        So a part is read again at most once by each process, and only when its last byte
        has come, however often its transfer is continued.  Returns whether all is hashed.

        Raises:
          OSError: the part cannot be read.
        """
        until = min(self.size, self._hashed + _HASH_SLICE)
        while self._hashed < until:
            size = min(_HASH_CHUNK, until - self._hashed)
            chunk = os.pread(self._descriptor, size, self._hashed)
            if not chunk:
                raise OSError(errno.EIO, "the partial file has become shorter")
            self._digest.update(chunk)
            self._hashed += len(chunk)
        return self._hashed == self.size

    def sha256(self) -> str:
        """The SHA-256 of all bytes, in hexadecimal; :meth:`catch_up` comes before."""
        if self._hashed != self.size:
            raise ValueError("the earlier bytes are not hashed yet")
        return self._digest.hexdigest()

    def commit(self) -> None:
        """Give the file its final name, durably.

        Raises:
          Refused: the name has been taken meanwhile, or a directory cannot be made.
          OSError: a fault of the system; the part stays.
        """
        storage = self._storage
        os.fchmod(self._descriptor, storage._file_mode)
        os.fsync(self._descriptor)
        final = self._path[-1]
        with storage._folders.descend(self._path[:-1], create=True) as directory:
            with storage._lock:
                storage._folders.check_final(directory, final)
                with storage._folders.changing(directory, final):
                    if storage._overwrite or not self._link(directory, final):
                        os.replace(
                            self._part, final, src_dir_fd=self._directory, dst_dir_fd=directory
                        )
                self._is_over = True
            os.fsync(directory)

    def _link(self, directory: int, final: str) -> bool:
        """Link the part under its final name: unlike a rename, that never replaces a file.

        Returns whether the file system can.
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
        # Were this process to end here, the part would be a second name of the file: such
        # ones are never written to (:meth:`Storage.begin`), and go with the next clean-up.
        os.unlink(self._part, dir_fd=self._directory)
        return True

    def discard(self) -> None:
        """Remove the part: its content is of no use."""
        self._is_over = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._directory)

    def close(self) -> None:
        """Close; what was not committed stays as a part for another attempt, if one can be.

        Quotas are enforced then, so it may be removed, or others are.

        Raises:
          OSError: a fault of the system.  The file is closed all the same.
        """
        if self._descriptor < 0:
            return
        storage = self._storage
        try:
            if not self._is_over and not (self.size and self._can_resume):
                self.discard()
            if not self._is_over:
                look = _look(os.fstat(self._descriptor))
                storage._hashes[self._key] = _Hashed(self._digest, self._hashed, look)
            else:
                storage._hashes.pop(self._key, None)
        finally:
            os.close(self._descriptor)
            os.close(self._directory)
            self._descriptor = -1
            storage._release(self._key, None if self._is_over else self._part)


class Storage:
    """The directory of a receiver.

    Args:
      directory: where files go; made if it does not exist.
      overwrite: whether existing files may be replaced.
      max_file_size: the largest file taken, in bytes; ``None``: any.
      limits: for partial files.
      clock: a clock that never jumps; by it parts grow old while this process runs.

    Raises:
      OSError: the directory cannot be made or opened.
    """

    def __init__(
        self,
        directory: str,
        *,
        overwrite: bool = False,
        max_file_size: int | None = None,
        limits: PartLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        os.makedirs(directory, exist_ok=True)
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._overwrite = overwrite
        self._max_file_size = max_file_size
        self._limits = PartLimits() if limits is None else limits
        self._clock = clock
        umask = os.umask(0o077)  # (It can only be read by setting it.)
        os.umask(umask)
        self._file_mode = 0o666 & ~umask
        self._lock = threading.RLock()
        self._folders = Folders(self._root, self._lock, overwrite=overwrite, mode=0o777 & ~umask)
        self._active: set[str] = set()
        self._hashes: dict[str, _Hashed] = {}
        self._written: dict[str, tuple[int, float]] = {}

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)

    # ------------------------------------------------------------------ beginning

    def key(self, path: str, identity: str | None) -> str:
        """What says that two attempts are of the same transfer.

        With no identity, no two are.

        Raises:
          Refused: the path is not one which is taken.
        """
        parts = check_path(path)
        if identity is None:
            return os.urandom(16).hex()
        # (JSON can express halves of surrogate pairs, which UTF-8 cannot.)
        whole = "/".join(parts).encode() + b"\0" + identity.encode(errors="surrogatepass")
        return hashlib.sha256(whole).hexdigest()[:32]

    def begin(
        self,
        path: str,
        size: int | None,
        identity: str | None,
        *,
        peer: str = "",
        key: str | None = None,
    ) -> StoredFile:
        """Open the part for `path`: a new one, or the one an earlier attempt has left.

        Costs the same however large the part is: nothing of it is read.

        Args:
          path: the relative path which the sender asks for.
          size: the announced size in bytes, if known; more or fewer are refused.
          identity: tells versions of the file apart; ``None``: nothing can be resumed.
            Who knows it can continue the part, so it should be hard to guess.
          peer: the sender's address, for quotas.
          key: what :meth:`key` said, if that is known.

        Raises:
          Refused: the name, the size, the space or the circumstances do not allow it.
          OSError: a fault of the system.
        """
        parts = check_path(path)
        if size is not None:
            if size < 0:
                raise Refused("size", f"a file cannot have {size} bytes")
            self._check_size(size)
        key = self.key(path, identity) if key is None else key
        with self._lock:
            if key in self._active:
                raise Refused("busy", "this transfer is under way already")
            self._active.add(key)
        try:
            with self._folders.descend(parts[:-1], create=False) as directory:
                if directory >= 0:
                    self._folders.check_final(directory, parts[-1])
            with self._lock:
                return self._open(parts, size, key, peer, can_resume=identity is not None)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                self._release(key, None)
            raise

    def _open(
        self, path: tuple[str, ...], size: int | None, key: str, peer: str, *, can_resume: bool
    ) -> StoredFile:
        owner = hashlib.sha256(peer.encode()).hexdigest()[:16]
        name = f"{shorten(path[-1], _SHOWN_BYTES)}.{key}.{owner}.part"
        directory, descriptor = self._open_part(key, name)
        try:
            status = os.fstat(descriptor)
            offset = status.st_size
            if offset and (size is not None and offset > size):
                # Not what this sender has announced: begin again.
                os.ftruncate(descriptor, 0)
                offset = 0
            self._check_size(offset)
            self._check_room(1 if size is None else size - offset)
            hashed = self._hashes.pop(key, None)
            if hashed is None or hashed.look != _look(status) or not offset:
                hashed = _Hashed(hashlib.sha256(), 0, ())
        except BaseException:
            if not os.fstat(descriptor).st_size:
                os.unlink(name, dir_fd=directory)
            os.close(descriptor)
            os.close(directory)
            raise
        return StoredFile(
            storage=self,
            key=key,
            directory=directory,
            descriptor=descriptor,
            part=name,
            path=path,
            announced=size,
            can_resume=can_resume,
            offset=offset,
            size=offset,
            digest=hashed.digest,
            hashed=hashed.position,
        )

    def _open_part(self, key: str, name: str) -> tuple[int, int]:
        """The parts' directory and the part `name` in it, locked against other processes."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        for _ in range(100):
            directory = self._parts_directory(create=True)
            descriptor = -1
            try:
                for other, other_key in self._part_names(directory):
                    if other_key == key and other != name:
                        # It goes on from another address: that one answers for it now.
                        os.rename(other, name, src_dir_fd=directory, dst_dir_fd=directory)
                        self._written.pop(other, None)
                descriptor = os.open(name, flags, 0o600, dir_fd=directory)
                if self._lock_part(descriptor, name, directory):
                    return directory, descriptor
            except FileNotFoundError:
                pass  # another process has removed the directory, being empty: make it again
            except BaseException:
                if descriptor >= 0:
                    os.close(descriptor)
                os.close(directory)
                raise
            if descriptor >= 0:
                os.close(descriptor)
            os.close(directory)
        raise OSError(errno.EAGAIN, "partial files come and go too fast")

    def _lock_part(self, descriptor: int, name: str, directory: int) -> bool:
        """Whether the part could be locked and is still there, and is a file of its own."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("system", "something else is in the way of the partial file")
        if not try_lock(descriptor):
            raise Refused("busy", "another receiver on this directory has this transfer")
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if there.st_ino != status.st_ino:
            return False
        if status.st_nlink > 1:
            # A stored file has this as a second name, since a receiver was killed between
            # two steps: that file must not be written to.
            os.unlink(name, dir_fd=directory)
            return False
        return True

    def _release(self, key: str, left: str | None) -> None:
        """A transfer is over and has left this part, or none."""
        with self._lock:
            self._active.discard(key)
            if left is not None:
                self._written.pop(left, None)
            self._clean()

    # ------------------------------------------------------------------ room

    def _check_size(self, size: int) -> None:
        if self._max_file_size is not None and size > self._max_file_size:
            raise Refused("too-large", f"files may have at most {self._max_file_size} bytes here")

    def _free(self) -> tuple[float, float]:
        """Bytes which are free, and how many are to stay so."""
        status = os.fstatvfs(self._root)
        total = status.f_blocks * status.f_frsize
        if not total:
            return math.inf, 0  # a file system which does not tell
        keep = self._limits.keep_free
        if keep is None:
            keep = min(total // 100, _GIBIBYTE)
        return status.f_bavail * status.f_frsize, keep

    def _check_room(self, needed: int) -> None:
        """Refuse what cannot fit, even if all parts which wait were to give way.

        None does so yet: an announcement costs its sender nothing.
        """
        free, keep = self._free()
        if free - keep < needed:
            with self._lock:
                if free - keep + sum(part.size for part in self._waiting()) < needed:
                    raise _no_space()

    def _make_room(self, needed: int) -> None:
        """See that so many bytes can be written now; parts which wait give way."""
        free, keep = self._free()
        missing = needed - (free - keep)
        if missing > 0:
            with self._lock:
                if self._clean(int(missing)) < missing:
                    raise _no_space()

    def _make_room_by_force(self) -> None:
        """The system says that it is full, or the user's quota is, whatever it told before."""
        with self._lock:
            if not self._clean(1):
                raise _no_space()

    # ------------------------------------------------------------------ parts

    def clean(self) -> float:
        """Remove the parts whose time is over, or which are above the limits.

        Returns:
          In how many seconds the next part is too old; ``math.inf``: never.

        Raises:
          OSError: a fault of the system.
        """
        with self._lock:
            self._clean()
            now = self._clock()
            return next_expiry(self._waiting(), self._limits, now) - now

    def _clean(self, missing: int = 0) -> int:
        """Enforce the limits, and make parts give way for so many bytes more than are free.

        Returns how many bytes were given back.
        """
        try:
            directory = self._parts_directory(create=False)
        except FileNotFoundError:
            return 0
        given = 0
        try:
            free = int(min(self._free()[0], 2**62))
            waiting = self._waiting(directory)
            for part in to_remove(waiting, self._limits, self._clock(), free=free):
                waiting.remove(part)
                if self._remove(directory, part):
                    given += part.size
            for part in to_give_way(waiting, missing - given):
                if self._remove(directory, part):
                    given += part.size
        finally:
            os.close(directory)
        if not self._active:
            # Not empty, or another process was faster: both are fine.
            with contextlib.suppress(OSError), self._folders.changing(self._root):
                os.rmdir(PARTS_DIRECTORY, dir_fd=self._root)
        return given

    def _waiting(self, directory: int | None = None) -> list[Part]:
        """The parts of transfers which are not under way in this process."""
        if directory is None:
            try:
                directory = self._parts_directory(create=False)
            except FileNotFoundError:
                return []
            try:
                return self._waiting(directory)
            finally:
                os.close(directory)
        waiting = []
        seen = set()
        for name, key in self._part_names(directory):
            if key in self._active:
                continue
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue  # another process was faster
            if not stat.S_ISREG(status.st_mode):
                continue
            seen.add(name)
            part = Part(name, name.split(".")[-2], status.st_size, self._written_at(name, status))
            if status.st_nlink > 1:
                self._remove(directory, part)  # see :meth:`_lock_part`
            else:
                waiting.append(part)
        for name in self._written.keys() - seen:
            del self._written[name]
        return waiting

    def _written_at(self, name: str, status: os.stat_result) -> float:
        """When a part was written last, by our own clock.

        The wall clock is asked once for each part, when it is first seen: it may be put
        forward or back later without making parts old or young.
        """
        known = self._written.get(name)
        if known is None or known[0] != status.st_mtime_ns:
            age = max(time.time() - status.st_mtime, 0.0)
            known = self._written[name] = (status.st_mtime_ns, self._clock() - age)
        return known[1]

    def _remove(self, directory: int, part: Part) -> bool:
        """Remove a part, unless another process is writing to it."""
        try:
            descriptor = os.open(
                part.name,
                os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
                dir_fd=directory,
            )
        except FileNotFoundError:
            return False
        try:
            if not try_lock(descriptor):
                return False
            os.unlink(part.name, dir_fd=directory)
        except FileNotFoundError:
            return False
        finally:
            os.close(descriptor)
        self._written.pop(part.name, None)
        self._hashes.pop(part.name.split(".")[-3], None)
        return True

    def _parts_directory(self, *, create: bool) -> int:
        if create:
            with contextlib.suppress(FileExistsError), self._folders.changing(self._root):
                os.mkdir(PARTS_DIRECTORY, 0o700, dir_fd=self._root)
        return open_directory(PARTS_DIRECTORY, self._root)

    @staticmethod
    def _part_names(directory: int) -> Iterator[tuple[str, str]]:
        for name in os.listdir(directory):
            if found := _PART_NAME.fullmatch(name):
                yield name, found[1]


def _no_space() -> Refused:
    return Refused("no-space", "the receiver's disk is full")
