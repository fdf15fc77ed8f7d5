"""A directory in which strangers may store files, and nothing else.

Floor 6.  Names from the network are hostile.  Every step into the directory is
taken relative to an open descriptor of the last one and follows no symbolic
link, so that no name, and no race, leads outside.  A file appears under its
final name whole or not at all: it grows under a hidden partial name, which a
later attempt of the same transfer continues.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator

import attrs

__all__ = ["Refused", "Storage", "StoredFile", "check_path"]

_NAME_BYTES_MAX = 200
_DEPTH_MAX = 32
_PARTIAL_SUFFIX = ".part"
_HASH_CHUNK = 1024 * 1024

#: What Windows would make something else of, in case the directory is shared with one.
_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{n}{d}" for n in ("COM", "LPT") for d in range(1, 10)}


class Refused(Exception):
    """A file is not taken, and nothing has happened.

    Attributes:
      code: a short name of the reason, for programs.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_path(path: str) -> tuple[str, ...]:
    """The components of a relative POSIX path which is safe to create below a directory.

    Raises:
      Refused: with code ``"bad-name"`` and a text which says what is wrong.
    """

    def refuse(why: str) -> Refused:
        return Refused("bad-name", f"the name {path[:300]!r} is refused: {why}")

    if not path:
        raise refuse("it is empty")
    if "\\" in path or ":" in path:
        raise refuse("backslashes and colons are not allowed")
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in path):
        raise refuse("control characters are not allowed")
    if path.startswith("/"):
        raise refuse("it is absolute")
    parts = tuple(path.split("/"))
    if len(parts) > _DEPTH_MAX:
        raise refuse(f"it is more than {_DEPTH_MAX} directories deep")
    for part in parts:
        if part in ("", ".", ".."):
            raise refuse(f"it has a component {part!r}")
        if len(part.encode()) > _NAME_BYTES_MAX:
            raise refuse(f"a component has more than {_NAME_BYTES_MAX} bytes")
        if part != part.strip() or part.endswith("."):
            raise refuse("a component begins or ends with a space, or ends with a dot")
        if part.startswith(".") and part.endswith(_PARTIAL_SUFFIX):
            raise refuse("it looks like one of our partial files")
        if part.split(".")[0].upper() in _RESERVED:
            raise refuse("it is a reserved name on some systems")
    return parts


@attrs.define(eq=False)
class StoredFile:
    """A file which is being received.  Obtained from :meth:`Storage.begin`.

    Its methods block: call them in a thread.
    """

    _storage: Storage
    _key: tuple[str, ...]
    _directory: int
    _descriptor: int
    _partial: str
    _final: str
    _overwrite: bool
    offset: int
    """Bytes which an earlier attempt has left."""
    size: int
    digest: hashlib._Hash

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
          Refused: the file would be larger than the storage takes.
          OSError: the disk is full, or another fault of the system.
        """
        self._storage._check_size(self.size + len(data))
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.digest.update(data)
        self.size += len(data)

    def commit(self) -> None:
        """Give the file its final name, durably.

        Raises:
          Refused: the name has been taken meanwhile.
        """
        os.fsync(self._descriptor)
        if self._overwrite:
            os.replace(
                self._partial,
                self._final,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
            )
        else:
            try:
                # Unlike a rename, a link never replaces what is there.
                os.link(
                    self._partial,
                    self._final,
                    src_dir_fd=self._directory,
                    dst_dir_fd=self._directory,
                    follow_symlinks=False,
                )
            except FileExistsError:
                raise Refused("exists", f"{self._final!r} exists") from None
            os.unlink(self._partial, dir_fd=self._directory)
        os.fsync(self._directory)

    def discard(self) -> None:
        """Remove the partial file: its content is of no use."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial, dir_fd=self._directory)

    def close(self) -> None:
        """Close; what was not committed stays as a partial file for another attempt."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            os.close(self._directory)
            self._descriptor = -1
            self._storage._in_use.discard(self._key)


class Storage:
    """The directory of a receiver.

    Args:
      directory: where files go; made if it does not exist.
      overwrite: whether existing files may be replaced.
      max_file_size: the largest file taken, in bytes; ``None``: any.

    Raises:
      OSError: the directory cannot be made or opened.
    """

    def __init__(
        self, directory: str, *, overwrite: bool = False, max_file_size: int | None = None
    ) -> None:
        os.makedirs(directory, exist_ok=True)
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._overwrite = overwrite
        self._max_file_size = max_file_size
        self._in_use: set[tuple[str, ...]] = set()

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)

    def _check_size(self, size: int) -> None:
        if self._max_file_size is not None and size > self._max_file_size:
            raise Refused("too-large", f"files may have at most {self._max_file_size} bytes here")

    def begin(self, path: str, size: int | None, identity: str | None) -> StoredFile:
        """Open the partial file for `path`; blocks, since a partial one is hashed again.

        Args:
          path: the relative path which the sender asks for.
          size: the announced size in bytes, if known.
          identity: tells versions of the file apart; ``None``: nothing can be resumed.

        Raises:
          Refused: the name, the size or the circumstances do not allow it.
          OSError: a fault of the system.
        """
        parts = check_path(path)
        if size is not None:
            self._check_size(size)
        if parts in self._in_use:
            raise Refused("busy", f"{path!r} is being received from another sender just now")
        self._in_use.add(parts)
        try:
            return self._open(parts, identity)
        except BaseException:
            self._in_use.discard(parts)
            raise

    def _open(self, parts: tuple[str, ...], identity: str | None) -> StoredFile:
        final = parts[-1]
        with _directory(self._root, parts[:-1]) as directory:
            self._check_final(directory, final)
            tag = hashlib.sha256((identity or "").encode()).hexdigest()[:16]
            partial = f".{final[:100]}.{tag}{_PARTIAL_SUFFIX}"
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            if identity is None:
                flags |= os.O_TRUNC
            try:
                descriptor = os.open(partial, flags, 0o644, dir_fd=directory)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EISDIR):
                    raise Refused("bad-name", f"{partial!r} is in the way") from None
                raise
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise Refused("bad-name", f"{partial!r} is not a regular file")
                digest = hashlib.sha256()
                offset = 0
                while chunk := os.read(descriptor, _HASH_CHUNK):
                    digest.update(chunk)
                    offset += len(chunk)
                self._check_size(offset)
            except BaseException:
                os.close(descriptor)
                raise
            return StoredFile(
                storage=self,
                key=parts,
                directory=os.dup(directory),
                descriptor=descriptor,
                partial=partial,
                final=final,
                overwrite=self._overwrite,
                offset=offset,
                size=offset,
                digest=digest,
            )

    def _check_final(self, directory: int, final: str) -> None:
        try:
            there = os.stat(final, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not self._overwrite:
            raise Refused("exists", f"{final!r} exists, and this receiver does not overwrite")
        if not stat.S_ISREG(there.st_mode):
            raise Refused("exists", f"{final!r} exists, and is not a regular file")


@contextlib.contextmanager
def _directory(root: int, parts: tuple[str, ...]) -> Iterator[int]:
    """Descend from `root`, making directories and following no symbolic link."""
    current = os.dup(root)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=current)
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise Refused("bad-name", f"{part!r} is not a directory here") from None
                raise
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)
