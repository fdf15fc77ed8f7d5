"""Presents a bidirectional stream as a Trio stream: its two parts under one name.

Floor 3.  The parts are in :mod:`.sending_part` and :mod:`.receiving_part`.  All three know the
connection as a :class:`StreamHost`.  They are generic in its type, which users see in
``stream.connection``; :mod:`.connection` gives them their public names.
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

import trio

from ..errors import ApplicationErrorCode
from .construction import NoPublicConstructor
from .receiving_part import ReceivingPart
from .sending_part import SendingPart
from .stream_host import StreamHost

__all__ = ["BidirectionalStream"]

ConnectionT = TypeVar("ConnectionT", bound=StreamHost)
SendingT = TypeVar("SendingT", bound=SendingPart[Any])
ReceivingT = TypeVar("ReceivingT", bound=ReceivingPart[Any])


class BidirectionalStream(
    trio.abc.HalfCloseableStream,
    Generic[ConnectionT, SendingT, ReceivingT],
    metaclass=NoPublicConstructor,
):
    """Both parts of a bidirectional stream; for users: :class:`QuicStream`."""

    __slots__ = ("__weakref__", "_receive", "_send")

    def __init__(self, send_stream: SendingT, receive_stream: ReceivingT) -> None:
        self._send = send_stream
        self._receive = receive_stream

    def __repr__(self) -> str:
        directions = f"sending: {self._send._state}, receiving: {self._receive._state}"
        return f"<{type(self).__name__} {self.id} ({directions})>"

    def _attach(self, connection: ConnectionT) -> None:
        self._send._attach(connection)
        self._receive._attach(connection)

    def _detach(self) -> None:
        self._send._detach()
        self._receive._detach()

    @property
    def id(self) -> int:
        """The stream ID (RFC 9000 section 2.1)."""
        return self._send.id

    @property
    def connection(self) -> ConnectionT:
        """The connection this stream belongs to."""
        connection: ConnectionT = self._send.connection
        return connection

    @property
    def send_stream(self) -> SendingT:
        """The sending direction."""
        return self._send

    @property
    def receive_stream(self) -> ReceivingT:
        """The receiving direction."""
        return self._receive

    @property
    def is_readable(self) -> bool:
        """See :attr:`ReceiveStream.is_readable`."""
        return self._receive.is_readable

    # The calls of every exchange return the coroutine of their direction, instead of awaiting it
    # in one of their own.

    def send_all(
        self, data: bytes | bytearray | memoryview, *, end: bool = False
    ) -> Coroutine[object, Any, None]:
        """See :meth:`SendStream.send_all`."""
        return self._send.send_all(data, end=end)

    async def wait_send_all_might_not_block(self) -> None:
        """See :meth:`SendStream.wait_send_all_might_not_block`."""
        await self._send.wait_send_all_might_not_block()

    def send_eof(self) -> Coroutine[object, Any, None]:
        """See :meth:`SendStream.send_eof`."""
        return self._send.send_eof()

    async def wait_acked(self) -> None:
        """See :meth:`SendStream.wait_acked`."""
        await self._send.wait_acked()

    async def wait_stopped(self) -> NoReturn:
        """See :meth:`SendStream.wait_stopped`."""
        await self._send.wait_stopped()

    def receive_some(
        self, max_bytes: int | None = None
    ) -> Coroutine[object, Any, bytes | bytearray]:
        """See :meth:`ReceiveStream.receive_some`."""
        return self._receive.receive_some(max_bytes)

    def receive_all(
        self, max_bytes: int, *, code: int = ApplicationErrorCode.MESSAGE_TOO_LARGE
    ) -> Coroutine[object, Any, bytes]:
        """See :meth:`ReceiveStream.receive_all`; the sending direction stays open."""
        return self._receive.receive_all(max_bytes, code=code)

    def reset(self, code: int = ApplicationErrorCode.CANCELLED) -> None:
        """See :meth:`SendStream.reset`; the receiving direction stays open."""
        self._send.reset(code)

    def stop_receiving(self, code: int = ApplicationErrorCode.CANCELLED) -> None:
        """See :meth:`ReceiveStream.stop_receiving`; the sending direction stays open."""
        self._receive.stop_receiving(code)

    def close(self) -> None:
        """Close both directions at once: end sending in good order, discard unread data."""
        self._send.close()
        self._receive.close()

    async def aclose(self) -> None:
        """Like :meth:`close`, as a checkpoint.  If cancelled, sending is reset instead of ended."""
        try:
            await self._send.aclose()
        finally:
            self._receive.close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            if not self._send._finished:
                self._send.reset(ApplicationErrorCode.CANCELLED)
            self._receive.stop_receiving(ApplicationErrorCode.CANCELLED)
        await self.aclose()
