"""Keeps inspection sockets in directories of the user's own, and finds them again.

Floor 5.  The directory has mode 0700 and belongs to the user, the socket has mode 0600.  A
socket gets its name only when it listens, so a name at which nothing listens is left over
from a process that was killed, and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket as sockets
import stat
import sys
import tempfile
from collections.abc import Iterator

import attrs

__all__ = ["ListeningPlace", "check_platform", "default_path", "find_applications", "listen_at"]

_SUFFIX = ".sock"

#: Bytes of a Unix socket's path, with the final zero: 108 on Linux, 104 on macOS and BSD.
_MOST_PATH = 108 if sys.platform == "linux" else 104

#: Sockets of which the default directory is searched, at most.
_MOST_SOCKETS = 1000

#: Connections that wait to be accepted.
_BACKLOG = 8


def check_platform() -> None:
    """Raise OSError on systems without Unix sockets and user IDs, which is Windows."""
    if not hasattr(sockets, "AF_UNIX") or not hasattr(os, "geteuid"):
        raise OSError(errno.ENOTSUP, "inspection sockets are not available on this system")


def default_directory() -> str:
    """``$XDG_RUNTIME_DIR/phoenix-trio`` if that is the user's, else one for temporary files."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(base) and os.stat(base).st_uid == os.geteuid():
            return os.path.join(base, "phoenix-trio")
    return os.path.join(tempfile.gettempdir(), f"phoenix-trio-{os.geteuid()}")


def default_path(name: str) -> str:
    """The socket of this process, for a transport's name."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:32].lstrip(".") or "transport"
    return os.path.join(default_directory(), f"{safe}-{os.getpid()}{_SUFFIX}")


def find_applications() -> dict[str, str]:
    """The applications of this user that can be inspected: names, and paths of their sockets.

    A name is that of the first transport, ``-``, and the process ID.  Only sockets at the
    default place are found, and only those at which a process listens.

    Raises:
      OSError: the system has no Unix sockets, or the directory does not belong to the user.
    """
    check_platform()
    directory = default_directory()
    try:
        _check_directory(directory)
    except FileNotFoundError:
        return {}
    return {
        os.path.basename(path).removesuffix(_SUFFIX): path
        for path in _sockets_in(directory)
        if _is_served(path)
    }


@attrs.frozen(kw_only=True)
class ListeningPlace:
    """A socket that listens, and its name in the file system."""

    socket: sockets.socket
    path: str
    device: int
    inode: int

    def close(self) -> None:
        """Close the socket, and remove its name unless another process has taken that over."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


def listen_at(path: str) -> ListeningPlace:
    """Listen at `path`; the directory is made if it is missing.

    A socket that was left there by a process of this user is replaced.

    Raises:
      ValueError: `path` is too long, or has no directory.
      PermissionError: the directory, or a socket there, belongs to another user, or others
        may enter the directory.
      FileExistsError: `path` is not a socket.
      OSError: another process listens there, or the socket cannot be made.
    """
    path = os.path.abspath(path)
    directory = os.path.dirname(path)
    new = os.path.join(directory, f".{secrets.token_hex(4)}")
    if max(len(os.fsencode(path)), len(os.fsencode(new))) >= _MOST_PATH:
        raise ValueError(f"the path of a Unix socket has less than {_MOST_PATH} bytes: {path!r}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    _check_directory(directory)
    _remove_left_over(path)
    if directory == default_directory():
        for other in _sockets_in(directory):
            if not _is_served(other):
                _remove_left_over(other)
    listening = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        listening.bind(new)
        try:
            os.chmod(new, 0o600)
            listening.listen(_BACKLOG)
            os.rename(new, path)
        except BaseException:
            os.unlink(new)
            raise
        made = os.lstat(path)
    except BaseException:
        listening.close()
        raise
    return ListeningPlace(socket=listening, path=path, device=made.st_dev, inode=made.st_ino)


def _check_directory(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "the directory belongs to another user", path)
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(
            errno.EPERM, "other users may enter the directory (chmod 700 it, or use another)", path
        )


def _sockets_in(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        found = [
            entry.path
            for entry, _ in zip(entries, range(_MOST_SOCKETS), strict=False)
            if entry.name.endswith(_SUFFIX) and _is_own_socket(entry)
        ]
    yield from sorted(found)


def _is_own_socket(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()


def _is_served(path: str) -> bool:
    """Whether a process listens at `path`; True as well if that cannot be found out."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # its backlog is full, or it is not for us
    return True


def _remove_left_over(path: str) -> None:
    """Make room at `path`, where a process that was killed may have left its socket."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "there is something else, not a socket", path)
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "the socket belongs to another user", path)
    if _is_served(path):
        raise OSError(errno.EADDRINUSE, "another process is inspected there", path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
