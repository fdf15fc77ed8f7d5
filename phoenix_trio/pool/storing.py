"""Stores striped transfers in files that survive a killed process.

Floor 4.  Joins a transfer (``reception.py``) with a file and its ledger (``storage/``), whose
calls block and run in threads.  One step at a time: open the partial file, check the bytes
left by an earlier attempt, tell the sender, write, verify, give the file its name, confirm.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeVar

import trio

from ..quic.handshake.places import peer_of
from ..storage.checked_file import CheckedFile
from ..storage.directory import Storage
from ..storage.ledger import Header
from ..storage.names import Refused
from ..storage.open_storages import OpenStorages
from ..storage.parts import PartLimits
from .reception import Reception
from .transfer_errors import ChecksumMismatch, TransferAbandoned, TransferCode, TransferFailed

__all__ = ["StrPath", "check_target", "store"]

logger: logging.Logger = logging.getLogger("phoenix_trio.pool")

StrPath: TypeAlias = "str | os.PathLike[str]"

_T = TypeVar("_T")

#: Bytes written and hashed at once, so that a change of threads pays.
_BATCH = 4 * 1024 * 1024

_DAY = 86_400.0

#: Long enough for a sender that returns after a weekend.
_LIMITS = PartLimits(lifetime=7 * _DAY)

#: Codes with which a sender ends a transfer whose partial file is then of no use.
_RUINED = frozenset(
    {
        TransferCode.MALFORMED,
        TransferCode.CHECKSUM_MISMATCH,
        TransferCode.TOO_LARGE,
        TransferCode.CONFLICT,
        TransferCode.BEYOND_CREDIT,
    }
)

#: Error numbers that programs get for the storage's refusals.
_NUMBERS = {"no-space": errno.ENOSPC, "too-large": errno.EFBIG, "exists": errno.EEXIST}


async def check_target(path: StrPath) -> None:
    """Check whether a file could be stored as `path`, as far as that can be told before.

    Raises:
      OSError: its directory is not there, or something other than a file is in the way.
    """
    await trio.to_thread.run_sync(_split, path)


async def store(
    transfer: Reception, storages: OpenStorages, path: StrPath, limits: PartLimits | None
) -> None:
    """See :meth:`IncomingTransfer.store`."""
    transfer._check_unread()
    directory, name = await trio.to_thread.run_sync(_split, path)
    storage = await _run(storages.acquire, directory, _LIMITS if limits is None else limits)
    try:
        await _store(transfer, storage, name)
    finally:
        # (In a thread as well: the last use may close a directory.)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(storages.release, storage)
    # No cancellation comes between: the file has its name, so the sender must be told.
    transfer._is_stored = True
    try:
        await transfer._confirm()
    except (TransferFailed, trio.ClosedResourceError) as error:
        # In the last moment the sender has given up, or this side was closed.
        logger.info("transfer %s is stored, and its sender not told: %s", _short(transfer), error)


async def _store(transfer: Reception, storage: Storage, name: str) -> None:
    file = await _run(
        partial(
            CheckedFile.begin,
            storage,
            name,
            _header(transfer),
            identity=transfer._id.hex(),
            peer=peer_of(transfer._connection.peer_address),
        )
    )
    try:
        try:
            await _write(transfer, file)
        except (ChecksumMismatch, TransferAbandoned) as error:
            if isinstance(error, ChecksumMismatch) or error.code in _RUINED:
                await _shielded(file.discard)
            raise
        await _run(file.commit)
    finally:
        await _shielded(file.close)


async def _write(transfer: Reception, file: CheckedFile) -> None:
    transfer._begin_check()
    steps = file.check(transfer._window.stripe_size)
    while await _run(next, steps, None) is not None:
        transfer._check()  # the sender may have left meanwhile
    if file.offset:
        logger.info(
            "transfer %s goes on after %d bytes of an earlier attempt",
            _short(transfer),
            file.offset,
        )
    transfer._restore(file.offset)
    while True:
        pieces, size = await transfer._take(_BATCH)
        if not pieces:
            break
        await _run(_write_pieces, file, pieces)
        transfer._consume(size)
    while not await _run(file.catch_up):
        transfer._check()
    await transfer._verify(file.digest())


def _write_pieces(file: CheckedFile, pieces: list[bytes | bytearray]) -> None:
    file.write(b"".join(pieces))


def _short(transfer: Reception) -> str:
    """The beginning of its ID; the whole ID is a secret."""
    return transfer._id.hex()[:8]


def _header(transfer: Reception) -> Header:
    manifest = transfer._manifest
    identity = hashlib.sha256(transfer._id)
    identity.update(manifest.checksum.to_bytes(8, "big"))
    identity.update(manifest.metadata)
    return Header(manifest.size, identity.digest())


def _split(path: StrPath) -> tuple[str, str]:
    """The directory and the name of a file to be, with no symbolic link on the way."""
    given = os.fspath(path)
    if not isinstance(given, str):
        raise TypeError(f"path must be text or a path, not {type(given).__name__}")
    real = os.path.realpath(given)
    directory, name = os.path.split(real)
    os.stat(os.path.join(directory, ""))
    if not name or given.endswith(os.sep) or os.path.isdir(real):
        raise IsADirectoryError(errno.EISDIR, "a transfer is stored as a file", given)
    if os.path.lexists(real) and not os.path.isfile(real):
        raise FileExistsError(errno.EEXIST, "something else than a file is there", given)
    return directory, name


async def _run(work: Callable[..., _T], *arguments: object) -> _T:
    """Run in a thread; a refusal by the storage becomes an :class:`OSError` for programs."""
    try:
        return await trio.to_thread.run_sync(work, *arguments)
    except Refused as error:
        if error.code == "busy":
            raise trio.BusyResourceError(str(error)) from error
        raise OSError(_NUMBERS.get(error.code, errno.EINVAL), str(error)) from error


async def _shielded(work: Callable[[], object]) -> None:
    """Clean up, whatever happens meanwhile."""
    with trio.CancelScope(shield=True):
        try:
            await trio.to_thread.run_sync(work)
        except (OSError, Refused) as error:
            # The transfer's own fate is decided; only the clean-up of its parts has failed.
            logger.warning("partial files could not be cleaned up: %s", error)
