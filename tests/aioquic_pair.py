"""Our engine and an unmodified aioquic connection, in memory and in virtual time.

For tests with aioquic as the other half of the protocol: each side has to understand the
other.  aioquic is neither changed nor accessed beyond its public interface.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from aioquic.quic import events as stock_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import SessionTicket
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import phoenix_trio
from phoenix_trio.quic import events
from phoenix_trio.quic.handshake.admission import Admit
from phoenix_trio.quic.handshake.packets import parse_long
from phoenix_trio.quic.setup import make_client_engine, make_server_engine
from tests.support import (
    ALPN,
    CLIENT,
    PORT,
    SERVER,
    Side,
    authority_pem,
    client_tls,
    server_pem,
    server_tls,
    take_apart,
)

_Kind = TypeVar("_Kind", bound=stock_events.QuicEvent)

#: aioquic compares times to which it has added one before, so rounding can make its timer fire
#: to no effect at exactly its time.
_SLACK = 1e-6


@attrs.define
class Tickets:
    """Session tickets of an aioquic server, and those given to an aioquic client."""

    issued: dict[bytes, SessionTicket] = attrs.field(factory=dict)
    taken: list[SessionTicket] = attrs.field(factory=list)

    def issue(self, ticket: SessionTicket) -> None:
        """Remember a ticket of the server."""
        self.issued[ticket.ticket] = ticket

    def fetch(self, label: bytes) -> SessionTicket | None:
        """Take a ticket of the server, once."""
        return self.issued.pop(label, None)


class Stock:
    """The aioquic connection, with everything it has reported."""

    def __init__(self, connection: QuicConnection) -> None:
        self.connection = connection
        self.log: list[stock_events.QuicEvent] = []
        self.received: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.datagrams: list[bytes] = []

    def gather(self) -> None:
        """Note what has happened since the last call."""
        while (event := self.connection.next_event()) is not None:
            self.log.append(event)
            if isinstance(event, stock_events.StreamDataReceived):
                self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
                if event.end_stream:
                    self.ended.add(event.stream_id)
            elif isinstance(event, stock_events.DatagramFrameReceived):
                self.datagrams.append(event.data)

    def of(self, kind: type[_Kind]) -> list[_Kind]:
        """The events of this kind."""
        return [event for event in self.log if isinstance(event, kind)]


class AioquicPair:
    """A connection between our engine and aioquic, over a wire of 10 ms each way.

    Args:
      we_are_client: which of the two dials.
      config: of our side.
      tls: of our side, a `ClientTLS` or `ServerTLS`; by default, it trusts and is trusted.
      stock: settings of aioquic's `QuicConfiguration`, besides those of TLS.
      tickets: of aioquic's side; it resumes, and sends early data, with the last one taken.
      make_token: of our server: makes the token of its NEW_TOKEN frame.
    """

    delay = 0.01

    def __init__(
        self,
        *,
        we_are_client: bool,
        config: phoenix_trio.TransportConfig | None = None,
        tls: Any = None,
        stock: dict[str, Any] | None = None,
        tickets: Tickets | None = None,
        make_token: Callable[[Any, float], bytes] | None = None,
    ) -> None:
        self.now = 0.0
        self.stock_tokens: list[bytes] = []
        """The tokens which an aioquic client was given."""
        self.first_token = b""
        """That in the first packet of an aioquic client."""
        self._make_token = make_token
        self.we_are_client = we_are_client
        self.lost: Callable[[bytes], bool] = lambda data: False
        """Whether a datagram is lost."""
        self.jitter: Callable[[], float] = lambda: 0.0
        """Seconds by which a datagram takes longer than the others."""
        self.copies: Callable[[], int] = lambda: 1
        """How often a datagram arrives."""
        self.batching = 0.0
        """Datagrams arrive at multiples of so many seconds."""
        self.sent: Callable[[bytes], object] = lambda data: None
        """Called with each datagram that our engine sends, in the moment of sending."""
        self.client_address: tuple[str, int] = (CLIENT, 5000)
        self.other_paths: dict[Any, tuple[str, int]] = {}
        """Where our client sends from on paths which it has besides its first one."""
        self._config = config or phoenix_trio.TransportConfig()
        self._tls = tls
        self._stock = stock or {}
        self._tickets = tickets or Tickets()
        self._wire: list[tuple[float, int, bool, bytes, tuple[str, int]]] = []
        self._sequence = 0
        self._ours: Side | None = None
        self._theirs: Stock | None = None
        if we_are_client:
            engine = make_client_engine(
                config=self._config,
                client_tls=tls or client_tls(),
                host=SERVER,
                port=PORT,
                alpn=ALPN,
                reset_token=lambda cid: (cid * 2)[:16],
                key_log=None,
                trace_logger=None,
            )
            self._ours = Side(engine, self.client_address)
            engine.start((SERVER, PORT), self.now)
        else:
            self._theirs = Stock(self._make_stock_client())
            self._theirs.connection.connect((SERVER, PORT), self.now)
        self.flush()

    @property
    def ours(self) -> Side:
        """Our engine; on a server's side, once the first packet has come."""
        assert self._ours is not None
        return self._ours

    @property
    def stock(self) -> Stock:
        """The aioquic connection; on a server's side, once the first packet has come."""
        assert self._theirs is not None
        return self._theirs

    def open_ours(self, *, unidirectional: bool = True) -> int:
        """Open a stream on our side; its ID."""
        stream_id = self.ours.engine.open_stream(unidirectional=unidirectional)
        assert stream_id is not None
        return stream_id

    def open_stock(self, *, unidirectional: bool = True) -> int:
        """Open a stream on aioquic's side; its ID."""
        connection = self.stock.connection
        stream_id: int = connection.get_next_available_stream_id(is_unidirectional=unidirectional)
        connection.send_stream_data(stream_id, b"")
        return stream_id

    # -------------------------------------------------------------- making the two ends

    def _make_stock_client(self) -> QuicConnection:
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=list(ALPN), server_name=SERVER, **self._stock
        )
        configuration.load_verify_locations(cadata=authority_pem())
        if self._tickets.taken:
            configuration.session_ticket = self._tickets.taken.pop()
        return QuicConnection(
            configuration=configuration,
            session_ticket_handler=self._tickets.taken.append,
            token_handler=self.stock_tokens.append,
        )

    def _make_stock_server(self, first: bytes) -> QuicConnection:
        certificate, key = server_pem()
        return QuicConnection(
            configuration=QuicConfiguration(
                is_client=False,
                alpn_protocols=list(ALPN),
                certificate=x509.load_pem_x509_certificate(certificate),
                private_key=load_pem_private_key(key, None),
                **self._stock,
            ),
            original_destination_connection_id=first[6 : 6 + first[5]],
            session_ticket_fetcher=self._tickets.fetch,
            session_ticket_handler=self._tickets.issue,
        )

    def _make_own_server(self, first: bytes) -> Side:
        destination = first[6 : 6 + first[5]]
        header = parse_long(first, 0)
        assert header is not None
        self.first_token = header.token
        engine = make_server_engine(
            config=self._config,
            server_tls=self._tls or server_tls(),
            alpn=ALPN,
            admit=Admit(destination, destination, None, make_token=self._make_token),
            reset_token=lambda cid: (cid * 2)[:16],
            key_log=None,
            trace_logger=None,
        )
        return Side(engine, (SERVER, PORT))

    # -------------------------------------------------------------- time

    def flush(self) -> None:
        """Put on the wire all datagrams that both sides have to send now."""
        if self._ours is not None:
            self._flush_ours(self._ours)
        if self._theirs is not None:
            for data, destination in self._theirs.connection.datagrams_to_send(self.now):
                origin = (SERVER, PORT) if self.we_are_client else self.client_address
                for path, address in self.other_paths.items():
                    if destination[:2] == address:
                        origin = path
                self._send(data, origin, to_ours=True)
            self._theirs.gather()

    def _flush_ours(self, side: Side) -> None:
        for _ in range(1000):
            side.engine.begin_pass()
            for run in side.engine.transmit(self.now):
                origin = self.client_address if self.we_are_client else (SERVER, PORT)
                origin = self.other_paths.get(run[1], origin)
                for data in take_apart([run]):
                    self.sent(data)
                    self._send(data, origin, to_ours=False)
            side.gather(self.now)
            if not side.engine.has_more_to_send(self.now):
                return
        raise AssertionError("transmit never comes to an end")

    def _send(self, data: bytes, source: tuple[str, int], *, to_ours: bool) -> None:
        if self.lost(data):
            return
        for _ in range(self.copies()):
            self._sequence += 1
            arrival = self.now + self.delay + self.jitter()
            if self.batching:
                arrival = math.ceil(arrival / self.batching) * self.batching
            heapq.heappush(self._wire, (arrival, self._sequence, to_ours, data, source))

    def _arrive(self, data: bytes, source: tuple[str, int]) -> None:
        """Hand a datagram to aioquic."""
        if self._theirs is None:
            self._theirs = Stock(self._make_stock_server(data))
        self._theirs.connection.receive_datagram(data, source, self.now)
        self._theirs.gather()

    def _arrive_together(self, datagrams: list[bytes], source: tuple[str, int]) -> None:
        """Hand datagrams to our engine, as a kernel with GRO does."""
        if self._ours is None:
            self._ours = self._make_own_server(datagrams[0])
        data, at = b"".join(datagrams), 0
        while at < len(data):
            at = self._ours.engine.receive_run(data, at, len(datagrams[0]), source, self.now)
        self._ours.gather(self.now)

    def _deliver(self) -> None:
        """Hand over due datagrams; those for us in runs of one size, the last may be shorter."""
        run: list[bytes] = []
        origin = self.client_address
        while self._wire and self._wire[0][0] <= self.now:
            _, _, to_ours, data, source = heapq.heappop(self._wire)
            if not to_ours:
                self._arrive(data, source)
                continue
            if run and (source != origin or len(data) > len(run[0]) or len(run[-1]) < len(run[0])):
                self._arrive_together(run, origin)
                run = []
            run.append(data)
            origin = source
        if run:
            self._arrive_together(run, origin)

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.now + seconds
        for _ in range(200_000):
            self.flush()
            upcoming = min(self._deadlines(), default=math.inf)
            if upcoming > until:
                self.now = max(self.now, until)
                return
            self.now = max(self.now, upcoming)
            self._deliver()
            self._run_timers()
        raise AssertionError("no progress")

    def _deadlines(self) -> list[float]:
        deadlines = [self._wire[0][0] if self._wire else math.inf]
        if self._ours is not None:
            deadlines.append(self._ours.engine.next_deadline() or math.inf)
        if self._theirs is not None:
            deadlines.append(self._theirs.connection.get_timer() or math.inf)
        return deadlines

    def _run_timers(self) -> None:
        if self._ours is not None:
            deadline = self._ours.engine.next_deadline()
            if deadline is not None and deadline <= self.now:
                self._ours.engine.on_timer(self.now)
                self._ours.gather(self.now)
        if self._theirs is not None:
            timer = self._theirs.connection.get_timer()
            if timer is not None and timer <= self.now:
                self._theirs.connection.handle_timer(self.now + _SLACK)
                self._theirs.gather()

    def connect(self) -> AioquicPair:
        """Let both sides complete and confirm the handshake."""
        self.run(1.0)
        assert self.ours.of(events.HandshakeCompleted), self.ours.log
        assert self.stock.of(stock_events.HandshakeCompleted), self.stock.log
        return self
