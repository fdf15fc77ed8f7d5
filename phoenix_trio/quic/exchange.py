"""Sends one request and returns its answer, on a bidirectional stream of its own.

Floor 3.  For :meth:`QuicConnection.request`, which documents the behaviour.
"""

from __future__ import annotations

from typing import Any

import trio

from ..errors import ApplicationErrorCode, ConnectionBroken, StreamReset, StreamStopped
from .receiving_part import ReceivingPart
from .sending_part import SendingPart
from .stream_errors import fresh

__all__ = ["exchange"]


async def exchange(
    sender: SendingPart[Any],
    receiver: ReceivingPart[Any],
    data: bytes | memoryview,
    limit: int,
    *,
    is_alone: bool,
) -> bytes:
    """Send `data` and the end on a new stream, and return the answer, of at most `limit` bytes.

    Unless it `is_alone` on its connection, other tasks get a turn before this one waits, and
    their writes leave in the same packet.  Otherwise each of the tasks woken by one packet would
    send a packet of its own, which costs far more than a turn.

    Both directions are finished afterwards: they were used to their end, or were given up with a
    code to the peer.
    """
    try:
        try:
            await _send(sender, receiver, data, limit, is_alone=is_alone)
        except (StreamStopped, ConnectionBroken):
            # The answer may have arrived nevertheless.  If not, the next line raises the reason.
            pass
        return await receiver.receive_all(limit)
    except BaseException as error:
        refusal = sender._error
        sender.reset(ApplicationErrorCode.CANCELLED)
        receiver.stop_receiving(ApplicationErrorCode.CANCELLED)
        if refusal is not None and isinstance(error, StreamReset):
            # The code of the refusal says more than that of the missing answer.
            raise fresh(refusal) from error
        raise


async def _send(
    sender: SendingPart[Any],
    receiver: ReceivingPart[Any],
    data: bytes | memoryview,
    limit: int,
    *,
    is_alone: bool,
) -> None:
    size = len(data)
    if size <= sender.connection._send_room(sender.id, size):
        sender._finish(data)
        if not is_alone:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return
    # A peer that sends its answer while it still reads must not have to wait for this side to
    # read, or it would stop reading.  So the answer is collected from now on, and a failed
    # answer ends the wait for room.
    receiver._collect(limit)
    receiver._waiter = sender._waiting_place()
    await sender._send_in_parts(memoryview(data), end=True, is_futile=receiver._has_failed)
