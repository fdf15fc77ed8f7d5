"""HTTP/3 over phoenix_trio with aioquic's framing: shared by http3_server.py and http3_client.py.

aioquic's ``H3Connection`` calls a handful of methods of a QUIC connection, and these only
queue.  ``Http3`` offers them, sends the queued data over our streams, and feeds
``H3Connection`` the data that our streams receive.  One task reads each stream.  The events
found by the framing go into the inboxes of their requests without a checkpoint in between, so
every request sees its events in order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import trio
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event
from aioquic.quic.events import StreamDataReceived

import phoenix_trio

ALPN = ("h3",)
#: RFC 9114 section 8.1: the code for a clean close.
H3_NO_ERROR = 0x100

#: Bytes of a request that are read ahead of its task, or of the QPACK instructions for
#: which its headers wait.  Flow control holds back the rest.
READ_AHEAD = 1024 * 1024


class Inbox:
    """The events of one request, in order, until its task takes them."""

    def __init__(self) -> None:
        self._events: deque[H3Event] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._closed = False
        self._queued_bytes = 0
        self._bytes_without_event = 0

    def put(self, event: H3Event) -> None:
        """Add an event; never waits, so that events found at once stay together."""
        self._events.append(event)
        self._bytes_without_event = 0
        if isinstance(event, DataReceived):
            self._queued_bytes += len(event.data)
        self._changed.unpark_all()

    async def receive(self) -> H3Event:
        """The next event.

        Raises:
          trio.BrokenResourceError: the connection ended first.
        """
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._closed:
                raise trio.BrokenResourceError("the connection ended in the middle of a message")
            await self._changed.park()
        event = self._events.popleft()
        if isinstance(event, DataReceived):
            self._queued_bytes -= len(event.data)
            self._changed.unpark_all()
        return event

    def note_read(self, size: int) -> None:
        """So many bytes of the request's stream are about to be handed to the framing."""
        self._bytes_without_event += size

    async def wait_for_room(self) -> None:
        """Wait until less than READ_AHEAD waits here, and in the framing."""
        while max(self._queued_bytes, self._bytes_without_event) >= READ_AHEAD:
            if self._closed:
                return
            await self._changed.park()

    def close(self) -> None:
        """End the inbox: no more events come."""
        self._closed = True
        self._changed.unpark_all()


class Http3:
    """One HTTP/3 connection (RFC 9114) over one QUIC connection."""

    def __init__(self, connection: phoenix_trio.QuicConnection, *, is_client: bool) -> None:
        self.connection = connection
        self.configuration = SimpleNamespace(is_client=is_client)
        self._quic_logger = None
        self._senders: dict[int, phoenix_trio.SendStream | phoenix_trio.QuicStream] = {}
        self._control: list[int] = []
        self._unused: list[int] = []
        self._queues: defaultdict[int, deque[tuple[bytes, bool]]] = defaultdict(deque)
        self._sending_control = trio.Lock()
        self._inboxes: dict[int, Inbox] = {}

    async def start(self) -> None:
        """Open the control stream and the two of QPACK (RFC 9114 section 6.2)."""
        for _ in range(3):
            stream = await self.connection.open_send_stream()
            self._senders[stream.id] = stream
            self._control.append(stream.id)
            self._unused.append(stream.id)
        self.h3 = H3Connection(self)  # type: ignore[arg-type] # has all that H3Connection uses
        await self._flush_control()

    # -- called by H3Connection

    @property
    def _remote_max_datagram_frame_size(self) -> int | None:
        # RFC 9297 section 2.1.1: a peer may announce SETTINGS_H3_DATAGRAM only together
        # with this transport parameter, and H3Connection refuses it otherwise.
        return self.connection.max_datagram_size

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        return self._unused.pop(0)

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        if data or end_stream:
            self._queues[stream_id].append((data, end_stream))

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        if stream_id in self._senders:
            self._senders[stream_id].reset(error_code)

    def close(self, error_code: int, reason_phrase: str = "") -> None:
        self.connection.abort(error_code, reason_phrase)

    # -- called by the programs

    @contextmanager
    def request(self, stream: phoenix_trio.QuicStream) -> Iterator[Inbox]:
        """Let `stream` carry a request; its events come while :meth:`pump` runs for it."""
        inbox = self._inboxes[stream.id] = Inbox()
        self._senders[stream.id] = stream
        try:
            yield inbox
        finally:
            for table in (self._inboxes, self._senders, self._queues):
                table.pop(stream.id, None)

    async def send_headers(
        self, stream: phoenix_trio.QuicStream, headers: dict[str, str], *, end: bool = False
    ) -> None:
        """Send a request's or response's header section."""
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.h3.send_headers(stream.id, encoded, end_stream=end)
        # First the table's entries to which the section refers.
        await self._flush_control()
        await self._flush(stream.id)

    async def send_data(
        self, stream: phoenix_trio.QuicStream, data: bytes, *, end: bool = False
    ) -> None:
        """Send a part of the body."""
        self.h3.send_data(stream.id, data, end_stream=end)
        await self._flush(stream.id)

    async def _flush(self, stream_id: int) -> None:
        """Send the data queued for one stream; if it has to wait, other streams do not."""
        queue, stream = self._queues[stream_id], self._senders[stream_id]
        while queue:
            data, end_stream = queue.popleft()
            await stream.send_all(data)
            if end_stream:
                await stream.send_eof()

    async def _flush_control(self) -> None:
        # Any task may cause such an instruction: the lock keeps each stream's order.
        async with self._sending_control:
            for stream_id in self._control:
                await self._flush(stream_id)

    async def pump(self, stream: trio.abc.ReceiveStream, stream_id: int) -> None:
        """Read a stream to its end.

        Bytes of one stream can cause an event of another: a header section waits for the
        QPACK stream that explains it (RFC 9204 section 2.1.2).
        """
        data, own = b"-", self._inboxes.get(stream_id)
        while data:
            if own is not None:
                await own.wait_for_room()
            data = bytes(await stream.receive_some())
            if own is not None:
                own.note_read(len(data))
            event = StreamDataReceived(data=data, end_stream=not data, stream_id=stream_id)
            for found in self.h3.handle_event(event):
                inbox = self._inboxes.get(getattr(found, "stream_id", -1))
                if inbox is not None:
                    inbox.put(found)
            await self._flush_control()

    async def run_control_streams(self) -> None:
        """Read the peer's control and QPACK streams for as long as the connection lasts."""
        try:
            async with trio.open_nursery() as nursery:
                async for stream in self.connection.incoming_receive_streams():
                    nursery.start_soon(self._run_control_stream, stream)
        finally:
            for inbox in self._inboxes.values():
                inbox.close()

    async def _run_control_stream(self, stream: phoenix_trio.ReceiveStream) -> None:
        try:
            await self.pump(stream, stream.id)
        except trio.BrokenResourceError:
            pass  # the request streams report the end of the connection
