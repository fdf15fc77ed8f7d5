"""Finds what a sender sends: files, the files of directories, standard input.

Floor 6, no network.  Below a directory, symbolic links are not followed, and names that no
receiver takes (hidden files, for instance) are left out here already, with the reason.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import attrs
import click

from ..storage.names import Refused, check_path
from .transfer import PrefixDigests

__all__ = ["Directory", "File", "LeftOut", "find_sources"]

_STANDARD_INPUT = 0


@attrs.define
class File:
    """A file, or standard input, as a source; a file can be begun again."""

    name: str
    path: str | None
    size: int | None = None
    identity: str | None = None
    digests: PrefixDigests = attrs.field(factory=PrefixDigests)
    _flags: int = 0
    _open: BinaryIO | io.FileIO | None = None

    @classmethod
    def of(cls, path: str, name: str, status: os.stat_result, *, flags: int = 0) -> File:
        # The same as long as the file is unchanged, and hard to guess: only its own sender can
        # continue the part that the receiver has.  Hashed, since the facts are not for others.
        facts = (
            *(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            *(status.st_dev, status.st_ino),
        )
        identity = hashlib.sha256(repr(facts).encode(errors="surrogatepass")).hexdigest()
        return cls(name, path, status.st_size, identity, flags=flags)

    def rewind(self) -> None:
        """Open the file at its beginning.  Blocks."""
        self.close()
        if self.path is None:
            # Not sys.stdin, whose lock a thread that is left waiting for data would keep.
            self._open = io.FileIO(_STANDARD_INPUT, closefd=False)
        else:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | self._flags)
            self._open = open(descriptor, "rb")  # noqa: SIM115

    def read(self, size: int) -> bytes:
        """See :class:`~phoenix_trio.cli.transfer.Source`."""
        assert self._open is not None
        data = self._open.read(size)
        if data is None:
            raise BlockingIOError(errno.EAGAIN, "standard input must not be non-blocking")
        return data

    def seek(self, position: int) -> None:
        """See :class:`~phoenix_trio.cli.transfer.Source`."""
        assert self._open is not None
        self._open.seek(position)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._open is not None and self.path is not None:
            self._open.close()
        self._open = None


@attrs.frozen
class Directory:
    """An empty directory, which no file's name would bring along."""

    name: str


@attrs.frozen
class LeftOut:
    """Something that is not sent."""

    name: str
    reason: str


def find_sources(paths: Iterable[str], name: str | None) -> Iterator[File | Directory | LeftOut]:
    """What to send for these arguments, in order; of directories, all below them.

    Args:
      paths: of files and directories; ``-`` is standard input.
      name: the name of the only one at the receiver; ``None``: its own.

    Raises:
      OSError: there is no such file.
      click.UsageError: it is neither file nor directory, or a name is missing.
    """
    for path in paths:
        if path == "-":
            if name is None:
                raise click.UsageError("standard input (-) needs a --name to be stored under")
            yield File(name, None)
            continue
        status = os.stat(path)
        stored_as = name or os.path.basename(os.path.abspath(path))
        if not stored_as:
            raise click.UsageError(f"{path} needs a --name to be stored under")
        if stat.S_ISDIR(status.st_mode):
            reason = _refusal(stored_as)
            yield from _walk(path, stored_as) if reason is None else [LeftOut(stored_as, reason)]
        elif stat.S_ISREG(status.st_mode):
            yield File.of(path, stored_as, status)
        else:
            raise click.UsageError(f"{path} is neither a regular file nor a directory")


def _walk(path: str, name: str) -> Iterator[File | Directory | LeftOut]:
    try:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield LeftOut(f"{name}/", error.strerror or str(error))
        return
    if not entries:
        yield Directory(name)
    for entry in entries:
        below = f"{name}/{entry.name}"
        try:
            yield from _entry(entry, below)
        except OSError as error:  # it has gone meanwhile, for instance
            yield LeftOut(below, error.strerror or str(error))


def _entry(entry: os.DirEntry[str], name: str) -> Iterator[File | Directory | LeftOut]:
    is_directory = entry.is_dir(follow_symlinks=False)
    shown = f"{name}/" if is_directory else name
    reason = _refusal(name)
    if entry.is_symlink():
        yield LeftOut(shown, "symbolic links are not followed")
    elif reason is not None:
        yield LeftOut(shown, reason)
    elif is_directory:
        yield from _walk(entry.path, name)
    elif entry.is_file(follow_symlinks=False):
        # A link that takes the file's place meanwhile is not followed either.
        status = entry.stat(follow_symlinks=False)
        yield File.of(entry.path, name, status, flags=os.O_NOFOLLOW)
    else:
        yield LeftOut(shown, "it is not a regular file")


def _refusal(name: str) -> str | None:
    """Why no receiver takes the name."""
    try:
        check_path(name)
    except Refused as error:
        return str(error).rpartition("' is refused: ")[2]
    return None
