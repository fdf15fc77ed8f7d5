"""Defines the interface of a connection for its streams.

Floor 3.  Streams know their connection only as a :class:`StreamHost`, so their modules import
nothing of the connection's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Protocol

import trio

from .waiter import Lot

__all__ = ["StreamHost"]


class StreamHost(Protocol):
    """The connection as seen by its streams.

    The names are private because the class with these members is public.
    """

    _is_closing: bool
    """Whether opening and sending is over: the connection is being closed, or has ended."""

    _ended: bool
    """Whether receiving is over."""

    @property
    def _is_driven_by_waiters(self) -> bool:
        """Whether the socket is served only while some task waits."""

    def _ended_error(self, stream_id: int | None = None) -> BaseException:
        """The reason for the end as a new exception, for a call on that stream."""

    # ------------------------------------------------------------------ sending

    def _send_room(self, stream_id: int, wanted: int = 1, /) -> int:
        """The number of bytes that may be written to the stream now."""

    def _has_send_room(self, stream_id: int, /) -> bool:
        """Whether a blocked writer should go on."""

    def _write(self, stream_id: int, data: bytes | bytearray | memoryview, /) -> None:
        """Append to the stream's send buffer; there is room for it."""

    def _write_end(self, stream_id: int, data: bytes | bytearray | memoryview, /) -> None:
        """The same for the last bytes of the stream; :meth:`_flush_end` has to follow."""

    def _flush_end(self) -> None:
        """Send the end of a stream: soon, or at once if no other stream is open."""

    def _written(self, stream_id: int, /) -> int:
        """The number of bytes written to the stream so far."""

    def _is_acknowledged(self, stream_id: int, offset: int, /, *, with_fin: bool) -> bool:
        """Whether the peer has acknowledged everything below `offset` (and the end)."""

    def _reset_sending(self, stream_id: int, code: int) -> None:
        """Send RESET_STREAM, and drop unacknowledged data."""

    def _note_stall(self) -> None:
        """Count a write that found the buffer full."""

    # ------------------------------------------------------------------ receiving

    def _consumed(self, stream_id: int, count: int) -> None:
        """Credit `count` bytes to the peer, since the application has read them."""

    def _stop_receiving(self, stream_id: int, code: int) -> None:
        """Send STOP_SENDING, and discard later data."""

    # ------------------------------------------------------------------ both

    def _let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> None:
        """Note that the application is done with these directions of the stream."""

    def _rest(self) -> None:
        """Note that the running task is about to wait, or is done with a stream."""

    def _wait(self, lot: Lot) -> Coroutine[object, object, None]:
        """Park in `lot`; events of the stream or the connection unpark it."""

    async def _wait_for_room(self, stream_id: int, lot: trio.lowlevel.ParkingLot) -> None:
        """Park in `lot`; it is also unparked when the stream may have room to send."""

    async def _wait_for_progress(
        self, lot: trio.lowlevel.ParkingLot, is_due: Callable[[], bool]
    ) -> None:
        """Park in `lot`; it is also unparked when an acknowledgement has made `is_due` true."""
