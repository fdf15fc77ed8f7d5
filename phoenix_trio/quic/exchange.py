"""One request and its answer: a bidirectional stream from its first byte to its last.

Floor 3.  For :meth:`QuicConnection.request`, which says what it does.
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
    """Send `data` and the end on a new stream, and return the answer, of `limit` bytes at most.

    Unless it `is_alone` on its connection, other tasks get a turn before this one waits.  What
    they write meanwhile leaves in the same packet: of tasks which were woken by one packet
    each would send its own otherwise, which costs far more than a turn.

    Both directions are done with afterwards: they were used to their end, or were given up
    so that the peer hears of it.
    """
    try:
        try:
            await _send(sender, receiver, data, limit, is_alone=is_alone)
        except (StreamStopped, ConnectionBroken):
            # The answer may have come all the same.  If not, the next line raises why.
            pass
        return await receiver.receive_all(limit)
    except BaseException as error:
        refusal = sender._error
        sender.reset(ApplicationErrorCode.CANCELLED)
        receiver.stop_receiving(ApplicationErrorCode.CANCELLED)
        if refusal is not None and isinstance(error, StreamReset):
            # The code of the refusal says more than that of the answer which is missing.
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
    # A peer which answers while it reads must not wait for this side to read: it would not
    # read on meanwhile.  So the answer is collected from now on, and an answer which fails
    # ends the waiting for room.
    receiver._collect(limit)
    receiver._waiter = sender._waiting_place()
    await sender._send_in_parts(memoryview(data), end=True, is_futile=receiver._has_failed)
