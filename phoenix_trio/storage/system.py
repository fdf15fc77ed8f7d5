"""Opens directories and locks files safely.

Floor 4.  Blocks.
"""

from __future__ import annotations

import errno
import os

from .names import Refused

__all__ = ["open_directory", "try_lock"]

_NOT_A_DIRECTORY = (errno.ELOOP, errno.ENOTDIR)


def open_directory(name: str, inside: int) -> int:
    """Open the directory `name` inside of an open one, following no symbolic link.

    Raises:
      Refused: it is something other than a directory.
      OSError: a fault of the system; it may not be there.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=inside)
    except OSError as error:
        if error.errno in _NOT_A_DIRECTORY:
            raise Refused("bad-name", f"{name!r} is not a directory here") from None
        raise


def try_lock(descriptor: int) -> bool:
    """Lock a file against other processes; whether no other has it."""
    import fcntl  # not on Windows, where the program's other commands still work

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: the user must run one receiver a directory
    return True
