"""HTTP/3 over phoenix_trio, with aioquic's framing: what http3_server.py and http3_client.py share.

aioquic's ``H3Connection`` speaks to a QUIC connection by a handful of methods
which only queue.  ``Http3`` offers them, sends what was queued over our streams,
and feeds it what our streams receive.
"""

from __future__ import annotations

from types import SimpleNamespace

import trio
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import H3Event
from aioquic.quic.events import StreamDataReceived

import phoenix_trio

ALPN = ("h3",)
#: RFC 9114 section 8.1: the code for a clean close.
H3_NO_ERROR = 0x100


class Http3:
    """One HTTP/3 connection (RFC 9114) over one QUIC connection."""

    def __init__(self, connection: phoenix_trio.QuicConnection, *, is_client: bool) -> None:
        self.connection = connection
        self.configuration = SimpleNamespace(is_client=is_client)
        self._quic_logger = None
        self._remote_max_datagram_frame_size = None
        self._senders: dict[int, phoenix_trio.SendStream | phoenix_trio.QuicStream] = {}
        self._unused: list[int] = []
        self._queue: list[tuple[int, bytes, bool]] = []
        self._sending = trio.Lock()
        self._inboxes: dict[int, trio.MemorySendChannel[H3Event]] = {}

    async def start(self) -> None:
        """Open the control stream and the two of QPACK (RFC 9114 section 6.2)."""
        for _ in range(3):
            stream = await self.connection.open_send_stream()
            self._senders[stream.id] = stream
            self._unused.append(stream.id)
        self.h3 = H3Connection(self)  # type: ignore[arg-type] # it has what is used
        await self.flush()

    # -- what H3Connection calls

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        return self._unused.pop(0)

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        self._queue.append((stream_id, data, end_stream))

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        self._senders[stream_id].reset(error_code)

    def close(self, error_code: int, reason_phrase: str = "") -> None:
        self.connection.abort(error_code, reason_phrase)

    # -- what the programs call

    async def flush(self) -> None:
        """Send what was queued, in order."""
        async with self._sending:
            while self._queue:
                stream_id, data, end_stream = self._queue.pop(0)
                stream = self._senders[stream_id]
                await stream.send_all(data)
                if end_stream:
                    await stream.send_eof()

    async def send_headers(
        self, stream: phoenix_trio.QuicStream, headers: dict[str, str], *, end: bool = False
    ) -> None:
        """Send a request's or response's header section."""
        self._senders[stream.id] = stream
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        self.h3.send_headers(stream.id, encoded, end_stream=end)
        await self.flush()

    async def send_data(
        self, stream: phoenix_trio.QuicStream, data: bytes, *, end: bool = False
    ) -> None:
        """Send a part of the body."""
        self.h3.send_data(stream.id, data, end_stream=end)
        await self.flush()

    def open_inbox(self, stream_id: int) -> trio.MemoryReceiveChannel[H3Event]:
        """Where the events of a request stream arrive while :meth:`pump` runs for it."""
        self._inboxes[stream_id], inbox = trio.open_memory_channel[H3Event](16)
        return inbox

    async def pump(self, stream: trio.abc.ReceiveStream, stream_id: int) -> None:
        """Read a stream to its end.

        What one stream receives can be an event of another: a header section waits
        for the QPACK stream which explains it (RFC 9204 section 2.1.2).
        """
        data = b"-"
        while data:
            data = bytes(await stream.receive_some())
            event = StreamDataReceived(data=data, end_stream=not data, stream_id=stream_id)
            for found in self.h3.handle_event(event):
                owner = getattr(found, "stream_id", None)
                if owner in self._inboxes:
                    await self._inboxes[owner].send(found)
            await self.flush()

    async def run_control_streams(self) -> None:
        """Read the peer's control and QPACK streams for as long as the connection lasts."""
        async with trio.open_nursery() as nursery:
            async for stream in self.connection.incoming_receive_streams():
                nursery.start_soon(self._run_control_stream, stream)

    async def _run_control_stream(self, stream: phoenix_trio.ReceiveStream) -> None:
        try:
            await self.pump(stream, stream.id)
        except trio.BrokenResourceError:
            pass  # the connection's end is everybody's; the request streams report it
