"""Keeps a directory in which strangers may store files, and nothing else.

Floor 4.  Names from the network are hostile.  Every step into the directory is
taken relative to an open descriptor of the last one and follows no symbolic
link, so that no name, and no race, leads outside.  A file appears under its
final name whole or not at all.  Until then it grows as a part in the hidden
directory ``.phoenix-trio``, under a name that no sender can ask for; a later
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

from .beside import remove_widows, rename_part, unlink_beside
from .folders import Folders
from .names import Refused, check_path, shorten
from .parts import Part, PartLimits, choose_removed_parts, next_expiry, to_remove
from .stored_file import Hashed, StoredFile, look
from .system import open_directory, try_lock

__all__ = ["PARTS_DIRECTORY", "Refused", "Storage", "StoredFile", "check_path"]

#: Where parts are.  Senders cannot name it, since it begins with a dot.
PARTS_DIRECTORY = ".phoenix-trio"

#: The file's name (shortened), the key of the transfer, and the key of its sender.
_PART_NAME = re.compile(r".*\.([0-9a-f]{32})\.([0-9a-f]{16})\.part", re.DOTALL)

#: Bytes of the file's name that a part's name repeats, for people.
_SHOWN_BYTES = 100

_GIBIBYTE = 1024**3


#: Two threads that set the umask at the same time would leave the wrong one.
_umask_lock = threading.Lock()


class Storage:
    """The directory of a receiver.

    Args:
      directory: where files go; made if it does not exist.
      overwrite: whether existing files may be replaced.
      trust_names: names come from this program, not from senders: each is that of a file in
        the directory itself, and any name that the system takes is right.
      max_file_size: the largest file taken, in bytes; ``None``: any.
      limits: for partial files.
      clock: a clock that never jumps; it measures the age of parts while this process runs.

    Raises:
      OSError: the directory cannot be made or opened.
    """

    def __init__(
        self,
        directory: str,
        *,
        overwrite: bool = False,
        trust_names: bool = False,
        max_file_size: int | None = None,
        limits: PartLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        os.makedirs(directory, exist_ok=True)
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.overwrite = overwrite
        self._trust_names = trust_names
        self._max_file_size = max_file_size
        self._limits = PartLimits() if limits is None else limits
        self._clock = clock
        with _umask_lock:
            umask = os.umask(0o077)  # (It can only be read by setting it.)
            os.umask(umask)
        self.file_mode: int = 0o666 & ~umask
        self.lock: threading.RLock = threading.RLock()
        self.folders: Folders = Folders(
            self._root,
            self.lock,
            overwrite=overwrite,
            compare=not trust_names,
            mode=0o777 & ~umask,
        )
        self._active: set[str] = set()
        self._hashes: dict[str, Hashed] = {}
        self._written: dict[str, tuple[int, float]] = {}

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)

    # ------------------------------------------------------------------ beginning

    def _components(self, path: str) -> tuple[str, ...]:
        return (path,) if self._trust_names else check_path(path)

    def key(self, path: str, identity: str | None) -> str:
        """A key that is equal for two attempts of the same transfer only.

        With no identity, the key is new each time.

        Raises:
          Refused: the path is not acceptable.
        """
        parts = self._components(path)
        if identity is None:
            return os.urandom(16).hex()
        # (JSON can express halves of surrogate pairs, which UTF-8 cannot; and names on disk
        # need not be UTF-8 at all.)
        whole = f"{'/'.join(parts)}\0{identity}".encode(errors="surrogatepass")
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
        """Open the part for `path`: a new one, or the one left by an earlier attempt.

        Costs the same however large the part is: nothing of it is read.

        Args:
          path: the relative path that the sender asks for.
          size: the announced size in bytes, if known; more or fewer are refused.
          identity: tells versions of the file apart; ``None``: nothing can be resumed.  Any peer
            that knows it can continue the part, so it should be hard to guess.
          peer: the sender's address, for quotas.
          key: the result of :meth:`key`, if it is known.

        Raises:
          Refused: the name, the size, the space or the circumstances do not allow it.
          OSError: a fault of the system.
        """
        parts = self._components(path)
        if size is not None:
            if size < 0:
                raise Refused("size", f"a file cannot have {size} bytes")
            self.check_size(size)
        key = self.key(path, identity) if key is None else key
        with self.lock:
            if key in self._active:
                raise Refused("busy", "this transfer is under way already")
            self._active.add(key)
        try:
            with self.folders.descend(parts[:-1], create=False) as directory:
                if directory >= 0:
                    self.folders.check_final(directory, parts[-1])
            with self.lock:
                return self._open(parts, size, key, peer, can_resume=identity is not None)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                with self.lock:
                    self._active.discard(key)
                    self._clean()
            raise

    def make_directory(self, path: str) -> None:
        """Make a directory, and those above it, unless they exist.

        Raises:
          Refused: the name is not acceptable, or something else has it.
          OSError: a fault of the system.
        """
        parts = self._components(path)
        self._check_room(1)
        with self.folders.descend(parts, create=True):
            pass

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
                # Longer than this sender has announced: begin again.
                os.ftruncate(descriptor, 0)
                offset = 0
            self.check_size(offset)
            self._check_room(1 if size is None else size - offset)
            hashed = self._hashes.pop(key, None)
            if hashed is None or hashed.look != look(status) or not offset:
                hashed = Hashed(hashlib.sha256(), 0, ())
        except BaseException:
            if not os.fstat(descriptor).st_size:
                os.unlink(name, dir_fd=directory)
            os.close(descriptor)
            os.close(directory)
            raise
        return StoredFile(
            keeper=self,
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
        """Open the parts' directory and the part `name` in it, locked against other processes."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        for _ in range(100):
            directory = self._parts_directory(create=True)
            descriptor = -1
            try:
                for other, other_key in self._part_names(directory):
                    if other_key == key and other != name:
                        # The sender goes on from another address: the part now counts for that.
                        rename_part(other, name, directory)
                        self._written.pop(other, None)
                descriptor = os.open(name, flags, 0o600, dir_fd=directory)
                if self._lock_part(descriptor, name, directory):
                    return directory, descriptor
            except FileNotFoundError:
                pass  # another process has removed the empty directory: make it again
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
        """Lock the part; whether that succeeded, and it is still there and is a file of its own."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("system", "something else is in the way of the partial file")
        if not try_lock(descriptor):
            raise Refused("busy", "another receiver on this directory has this transfer")
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if there.st_ino != status.st_ino:
            return False
        if status.st_nlink > 1:
            # The part is a second name of a stored file, because a receiver was killed between
            # two steps: nothing may be written to that file.
            unlink_beside(name, directory)
            os.unlink(name, dir_fd=directory)
            return False
        return True

    def release(self, key: str, left: tuple[str, Hashed] | None) -> None:
        """A transfer is over and has left this part, hashed so far, or none."""
        with self.lock:
            self._active.discard(key)
            self._hashes.pop(key, None)
            if left is not None:
                part, self._hashes[key] = left
                self._written.pop(part, None)
            self._clean()

    # ------------------------------------------------------------------ room

    def check_size(self, size: int) -> None:
        """Refuse a file of `size` bytes if that is more than this storage takes."""
        if self._max_file_size is not None and size > self._max_file_size:
            raise Refused("too-large", f"files may have at most {self._max_file_size} bytes here")

    def _free(self) -> tuple[float, float]:
        """Bytes free at present, and how many of them must stay free."""
        status = os.fstatvfs(self._root)
        total = status.f_blocks * status.f_frsize
        if not total:
            return math.inf, 0  # the file system does not report it
        keep = self._limits.keep_free
        if keep is None:
            keep = min(total // 100, _GIBIBYTE)
        return status.f_bavail * status.f_frsize, keep

    def _check_room(self, needed: int) -> None:
        """Refuse a file that cannot fit, even if all waiting parts gave way.

        None of them gives way yet, because an announcement costs its sender nothing.
        """
        free, keep = self._free()
        if free - keep < needed:
            with self.lock:
                if free - keep + sum(part.size for part in self._waiting()) < needed:
                    raise _no_space()

    def make_room(self, needed: int) -> None:
        """Ensure that so many bytes can be written now; waiting parts give way."""
        free, keep = self._free()
        missing = needed - (free - keep)
        if missing > 0:
            with self.lock:
                if self._clean(int(missing)) < missing:
                    raise _no_space()

    def make_room_by_force(self) -> None:
        """Make parts give way: the disk or the user's quota is full, despite earlier figures."""
        with self.lock:
            if not self._clean(1):
                raise _no_space()

    # ------------------------------------------------------------------ parts

    def clean(self) -> float:
        """Remove the parts whose time is over, and those above the limits.

        Returns:
          The seconds until the next part is too old; ``math.inf``: never.

        Raises:
          OSError: a fault of the system.
        """
        with self.lock:
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
            remove_widows(directory)
            waiting = self._waiting(directory)
            for part in to_remove(waiting, self._limits, self._clock(), free=free):
                waiting.remove(part)
                if self._remove(directory, part):
                    given += part.size
            for part in choose_removed_parts(waiting, missing - given):
                if self._remove(directory, part):
                    given += part.size
        finally:
            os.close(directory)
        if not self._active:
            # Not empty, or another process was faster: both are fine.
            with contextlib.suppress(OSError), self.folders.changing(self._root):
                os.rmdir(PARTS_DIRECTORY, dir_fd=self._root)
        return given

    def _waiting(self, directory: int | None = None) -> list[Part]:
        """The parts of transfers that are not under way in this process."""
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

        The wall clock is read once for each part, when the part is first seen.  If that clock is
        set forward or back later, parts do not become old or young.
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
            unlink_beside(part.name, directory)
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
            with contextlib.suppress(FileExistsError), self.folders.changing(self._root):
                os.mkdir(PARTS_DIRECTORY, 0o700, dir_fd=self._root)
        directory = open_directory(PARTS_DIRECTORY, self._root)
        if os.fstat(directory).st_uid != os.geteuid():
            # If others may write to the directory, they could change parts that were verified
            # and are about to get their names.
            os.close(directory)
            raise PermissionError(errno.EPERM, f"{PARTS_DIRECTORY} belongs to another user")
        return directory

    @staticmethod
    def _part_names(directory: int) -> Iterator[tuple[str, str]]:
        for name in os.listdir(directory):
            if found := _PART_NAME.fullmatch(name):
                yield name, found[1]


def _no_space() -> Refused:
    return Refused("no-space", "the receiver's disk is full")
