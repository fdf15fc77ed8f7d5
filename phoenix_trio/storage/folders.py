"""Opens the directories of stored files, and checks their final names.

Floor 4.  Every step is taken relative to an open descriptor of the last one and follows no
symbolic link, so that no name, and no race, leads outside.  Blocks.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator

from .names import Refused, fold
from .system import open_directory

__all__ = ["Folders"]

#: The most entries of a directory that are compared with a new name, and the most directories
#: whose entries are remembered.
_COMPARED_MAX = 10_000
_REMEMBERED_DIRECTORIES = 8


class Folders:
    """The root directory and the directories below it, opened as they are asked for.

    Args:
      root: an open descriptor of the directory.
      lock: of the storage.
      overwrite: whether existing files may be replaced.
      compare: whether a name is refused if it equals another one except for case or composition.
      mode: the mode of new directories.
    """

    def __init__(
        self, root: int, lock: threading.RLock, *, overwrite: bool, compare: bool, mode: int
    ) -> None:
        self._root = root
        self._lock = lock
        self._overwrite = overwrite
        self._compare = compare
        self._directory_mode = mode
        self._device = os.fstat(root).st_dev
        self._names: OrderedDict[tuple[int, int], tuple[int, dict[str, str]]] = OrderedDict()

    @contextlib.contextmanager
    def descend(self, parts: tuple[str, ...], *, create: bool) -> Iterator[int]:
        """Go down from the root, following no symbolic link.

        Yields a descriptor of the last directory; -1 if one is missing and `create` is not
        set.
        """
        current = os.dup(self._root)
        try:
            for part in parts:
                below = self._step(current, part, create=create)
                os.close(current)
                current = below
                if current < 0:
                    break
            yield current
        finally:
            if current >= 0:
                os.close(current)

    def _step(self, current: int, part: str, *, create: bool) -> int:
        try:
            below = open_directory(part, current)
        except FileNotFoundError:
            with self._lock:
                self._refuse_equivalent_names(current, part)
                if not create:
                    return -1
                with contextlib.suppress(FileExistsError), self.changing(current, part):
                    os.mkdir(part, self._directory_mode, dir_fd=current)
            os.fsync(current)
            below = open_directory(part, current)
        if os.fstat(below).st_dev != self._device:
            os.close(below)
            raise Refused("system", f"{part!r} is another file system, which is not entered")
        return below

    def check_final(self, directory: int, final: str) -> None:
        try:
            there = os.stat(final, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            self._refuse_equivalent_names(directory, final)
            return
        if not self._overwrite:
            raise Refused("exists", f"{final!r} exists, and this receiver does not overwrite")
        if not stat.S_ISREG(there.st_mode):
            raise Refused("exists", f"{final!r} exists, and is not a regular file")

    def _refuse_equivalent_names(self, directory: int, name: str) -> None:
        """Refuse a name that equals another one except for case or the form of its letters.

        This is a courtesy to systems that take the two for one name, so it is bounded: the first
        10,000 entries of a directory are compared.
        """
        if not self._compare:
            return
        with self._lock:
            twin = self._folded(directory).get(fold(name))
        if twin is not None and twin != name:
            raise Refused("exists", f"{twin!r} exists, which is the same name on some systems")

    def _folded(self, directory: int) -> dict[str, str]:
        status = os.fstat(directory)
        where = status.st_dev, status.st_ino
        known = self._names.pop(where, None)
        if known is None or known[0] != status.st_mtime_ns:
            names: dict[str, str] = {}
            with os.scandir(directory) as entries:
                for entry, _ in zip(entries, range(_COMPARED_MAX), strict=False):
                    names[fold(entry.name)] = entry.name
            known = status.st_mtime_ns, names
        self._names[where] = known
        while len(self._names) > _REMEMBERED_DIRECTORIES:
            self._names.popitem(last=False)
        return known[1]

    @contextlib.contextmanager
    def changing(self, directory: int, name: str | None = None) -> Iterator[None]:
        """Change a directory; remembered entries stay true if they were true before.

        So the directory is not read again for every file stored in it.
        """
        with self._lock:
            before = os.fstat(directory)
            yield
            where = before.st_dev, before.st_ino
            known = self._names.get(where)
            if known is not None and known[0] == before.st_mtime_ns:
                if name is not None and len(known[1]) < _COMPARED_MAX:
                    known[1][fold(name)] = name
                self._names[where] = os.fstat(directory).st_mtime_ns, known[1]
