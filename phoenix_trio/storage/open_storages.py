"""Keeps storages open, one for each directory: those in use, and a few used lately.

Floor 4.  A storage remembers how far it has hashed the parts in its directory, so keeping it
open saves reading them again.  Blocks; any number of threads at once.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import final

import attrs

from .directory import Storage
from .parts import PartLimits

__all__ = ["OpenStorages"]

#: Unused storages that stay open; each has one descriptor.
_IDLE_MAX = 8


@attrs.define(eq=False)
class _Use:
    storage: Storage
    count: int = 0


@final
class OpenStorages:
    """Storages whose names come from this program, for files that replace existing ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: OrderedDict[tuple[int, int, PartLimits], _Use] = OrderedDict()
        self._closed = False

    def acquire(self, directory: str, limits: PartLimits) -> Storage:
        """The storage of an existing directory; call :meth:`release` later.

        Raises:
          OSError: the directory is not there, or cannot be opened.
        """
        with self._lock:
            # By number: another directory may have the same name later.
            status = os.stat(directory)
            key = status.st_dev, status.st_ino, limits
            use = self._uses.get(key)
            if use is None:
                storage = Storage(directory, overwrite=True, trust_names=True, limits=limits)
                use = self._uses[key] = _Use(storage)
            use.count += 1
            return use.storage

    def release(self, storage: Storage) -> None:
        """Give a storage back."""
        with self._lock:
            for key, use in self._uses.items():
                if use.storage is storage:
                    use.count -= 1
                    self._uses.move_to_end(key)
                    break
            self._close_idle()

    def close(self) -> None:
        """Close all unused storages now, and the others when they are given back."""
        with self._lock:
            self._closed = True
            self._close_idle()

    def _close_idle(self) -> None:
        idle = [key for key, use in self._uses.items() if not use.count]
        surplus = len(idle) if self._closed else len(idle) - _IDLE_MAX
        for key in idle[: max(surplus, 0)]:
            self._uses.pop(key).storage.close()
