"""Keeps the streams of one connection, from opening to forgetting.

Floor 1, sans-IO.  A stream is one sending part and one receiving part, or one of them; each has
its own table.  A part stays in its table until it has ended on the wire and the application is
done with it, so a peer cannot open and end streams that no task reads.
"""

from __future__ import annotations

import math
from typing import Final

from ...config import TransportConfig
from ..events import Event, SendProgress, StreamForgotten, StreamOpened, StreamsAvailable
from ..wire.errors import STREAM_LIMIT_ERROR, STREAM_STATE_ERROR, TransportError
from .memory_budget import EndpointMemory
from .parameters import PeerParameters
from .receive_stream import ReceiveStream
from .receiving import Receiving
from .send_stream import SendStream
from .sending import Sending
from .stream_limits import LocalStreams, PeerStreams

__all__ = ["StreamTable"]


#: The most seconds for which a peer at its limit waits for a grant of many streams instead of
#: one; a round trip if that is shorter.
_LONGEST_WAIT: Final = 0.025


class StreamTable:
    """The streams of one connection, and how many more each side may open.

    Args:
      is_client: which side this is.
      config: limits and buffers.
      memory: shared with the endpoint's other connections.
      events: takes the events, in the order in which things happen.
    """

    __slots__ = (
        "_ended",
        "_events",
        "_held",
        "_is_remembered",
        "_local",
        "_own_bit",
        "_parameters",
        "_peer",
        "_streams_available",
        "accepted",
        "grant_at",
        "max_streams_pending",
        "now",
        "opened",
        "receivers",
        "receiving",
        "rtt",
        "senders",
        "sending",
    )

    def __init__(
        self,
        is_client: bool,
        config: TransportConfig,
        memory: EndpointMemory,
        events: list[Event],
    ) -> None:
        self._events: list[Event] = events
        self._own_bit: int = 0 if is_client else 1  # of stream IDs (RFC 9000 section 2.1)
        self._ended: list[int] = []
        self.senders: dict[int, SendStream] = {}
        """The sending parts of streams, by stream ID."""
        self.receivers: dict[int, ReceiveStream] = {}
        """The receiving parts."""
        self.sending: Sending = Sending(config, memory.send, self._ended)
        """The peer's credit, send buffers, and the queue of streams with something to send."""
        self.receiving: Receiving = Receiving(config, memory.receive)
        """The peer's credit."""
        # (Bidirectional streams, one-way streams.)
        self._local: tuple[LocalStreams, LocalStreams] = (LocalStreams(), LocalStreams())
        self._peer: tuple[PeerStreams, PeerStreams] = (
            PeerStreams(config.max_bidirectional_streams),
            PeerStreams(config.max_unidirectional_streams),
        )
        self.max_streams_pending: bool = False
        """Whether MAX_STREAMS may have to be sent."""
        self.grant_at: float = math.inf
        """When :meth:`grant_streams` is due."""
        self._parameters: PeerParameters = PeerParameters()
        self._is_remembered: bool = False
        self._held: dict[int, SendStream] = {}
        self._streams_available: bool = False
        self.now: float = 0.0
        """The time; the connection sets it before calls that receive, send, or read."""
        self.rtt: float = config.initial_rtt
        """The smoothed round-trip time, in seconds; set like :attr:`now`."""
        self.opened: int = 0
        """Streams opened by this side."""
        self.accepted: int = 0
        """Streams opened by the peer."""

    # -- opening

    def open_stream(self, *, unidirectional: bool) -> int | None:
        """Open a stream; ``None`` while the peer does not permit another one."""
        local = self._local[unidirectional]
        if local.opened >= local.permitted:
            return None
        stream_id = local.opened << 2 | unidirectional << 1 | self._own_bit
        local.opened += 1
        self.opened += 1
        self.senders[stream_id] = SendStream(stream_id, self._first_limit(stream_id), self.sending)
        if not unidirectional:
            self.receivers[stream_id] = self.receiving.open(stream_id)
        return stream_id

    def available_streams(self, *, unidirectional: bool) -> int:
        """The number of streams of this kind that the peer permits to open now."""
        local = self._local[unidirectional]
        return max(0, local.permitted - local.opened)

    def want_stream(self, change: int, *, unidirectional: bool) -> None:
        """Count a call that begins (1) or ends (-1) to wait for :meth:`open_stream`."""
        self._local[unidirectional].wanted += change

    def find_receiver(self, stream_id: int, frame_type: int) -> ReceiveStream | None:
        """The receiving part that a frame names; ``None``: it is over, and forgotten.

        Raises:
          TransportError: there is no such stream (RFC 9000 sections 4.6, 19).
        """
        receiver = self.receivers.get(stream_id)
        if receiver is not None:
            return receiver
        if stream_id & 3 == 2 | self._own_bit:
            raise TransportError(STREAM_STATE_ERROR, frame_type, "Stream is send-only")
        self._open_for_peer(stream_id, frame_type)
        return self.receivers.get(stream_id)

    def find_sender(self, stream_id: int, frame_type: int) -> SendStream | None:
        """The sending part that a frame names; ``None``: it is over, and forgotten.

        Raises:
          TransportError: there is no such stream (RFC 9000 sections 4.6, 19).
        """
        sender = self.senders.get(stream_id)
        if sender is not None:
            return sender
        if stream_id & 3 == 2 | self._own_bit ^ 1:
            raise TransportError(STREAM_STATE_ERROR, frame_type, "Stream is receive-only")
        self._open_for_peer(stream_id, frame_type)
        return self.senders.get(stream_id)

    def _open_for_peer(self, stream_id: int, frame_type: int) -> None:
        """Open the stream that a frame names, and all new ones before it of its kind."""
        index = stream_id >> 2
        kind = stream_id >> 1 & 1
        if stream_id & 1 == self._own_bit:
            if index >= self._local[kind].opened:
                raise TransportError(STREAM_STATE_ERROR, frame_type, "Wrong stream initiator")
            return
        peer = self._peer[kind]
        if index < peer.opened:
            return
        if index >= peer.announced:
            raise TransportError(STREAM_LIMIT_ERROR, frame_type, "Too many streams open")
        for each in range(peer.opened << 2 | stream_id & 3, stream_id + 1, 4):
            self.receivers[each] = self.receiving.open(each)
            if not kind:
                limit = self._parameters.max_stream_data_bidi_local
                self.senders[each] = SendStream(each, limit, self.sending)
            self._events.append(StreamOpened(each))
        self.accepted += index + 1 - peer.opened
        peer.opened = index + 1
        self._consider_grant(peer)

    # -- forgetting

    def let_go(self, stream_id: int, *, sending: bool = False, receiving: bool = False) -> bool:
        """Note that the application is done with these directions of the stream.

        Returns whether no direction is left, so that the stream is forgotten.
        """
        sender = self.senders.get(stream_id)
        receiver = self.receivers.get(stream_id)
        if sender is None and receiver is None:
            return False
        if receiving and receiver is not None:
            receiver.is_released = receiver.is_discarding = True
            if not receiver.is_finished:
                receiver.discard()
            self.receiving.release_up_to(receiver, receiver.received, self.now, self.rtt)
        if sending and sender is not None:
            sender.is_released = True
        return self._forget_if_done(stream_id)

    def _forget_if_done(self, stream_id: int) -> bool:
        """Drop ended parts of a stream that the application is done with; whether none is left."""
        sender = self.senders.get(stream_id)
        if sender is not None and sender.is_finished and sender.is_released:
            del self.senders[stream_id]
            sender = None
        receiver = self.receivers.get(stream_id)
        if receiver is not None and receiver.is_finished and receiver.is_released:
            del self.receivers[stream_id]
            receiver = None
        if sender is not None or receiver is not None:
            return False
        if stream_id & 1 != self._own_bit:
            # Only now may the peer open another one in its place (RFC 9000 section 4.6).
            peer = self._peer[stream_id >> 1 & 1]
            peer.maximum += 1
            self._consider_grant(peer)
        return True

    def _consider_grant(self, peer: PeerStreams) -> None:
        """Announce more streams now, or once the peer has waited; called on opening and ending."""
        if peer.is_due():
            self.max_streams_pending = True
        elif self.grant_at == math.inf and peer.is_held_up():
            self.grant_at = self.now + min(self.rtt, _LONGEST_WAIT)

    def grant_streams(self) -> None:
        """Announce the streams available to a peer that has waited at its limit."""
        self.grant_at = math.inf
        for peer in self._peer:
            if peer.is_held_up():
                peer.is_waiting = self.max_streams_pending = True

    def collect(self) -> None:
        """Report the results of the last calls; called after each call from the network.

        Appends the events StreamForgotten, StreamsAvailable and SendProgress.
        """
        if self._ended:
            for stream_id in self._ended:
                if (
                    stream_id in self.senders or stream_id in self.receivers
                ) and self._forget_if_done(stream_id):
                    self._events.append(StreamForgotten(stream_id))
            self._ended.clear()
        if self._streams_available:
            self._streams_available = False
            self._events.append(StreamsAvailable())
        sending = self.sending
        if sending.progress:
            sending.progress = False
            sending.review_memory()
            self._events.append(SendProgress())

    # -- the peer's parameters

    def set_peer_limits(self, parameters: PeerParameters, *, remembered: bool = False) -> None:
        """Take the limits of the peer's transport parameters.

        Args:
          parameters: those of this connection, or of an earlier one.
          remembered: whether they are of an earlier connection.  They hold for early data until
            those of this connection come (RFC 9000 section 7.4.1).
        """
        self._parameters = parameters
        self._is_remembered = remembered
        self.sending.take_max_data(parameters.max_data)
        self.permit_streams(parameters.max_streams_bidi, False)
        self.permit_streams(parameters.max_streams_uni, True)
        for stream_id, sender in self.senders.items():
            # (A stream opened for early data has only the remembered limit.)
            if stream_id & 1 == self._own_bit and not sender.is_held:
                sender.raise_limit(self._first_limit(stream_id))

    def on_early_data_refused(self) -> None:
        """Count all early data as not sent, since the server refused it (RFC 9001 section 4.6.2).

        The remembered limits are void.  The limits of this connection count from zero, whether
        they have come before or come now.  Until then, nothing is sent.
        """
        for stream_id, sender in self.senders.items():
            sender.hold()
            self._held[stream_id] = sender
            self.receiving.stops.pop(stream_id, None)
        self.sending.peer_max_data = self.sending.peer_max_data_used = 0
        for local in self._local:
            local.permitted = 0
        if not self._is_remembered:
            self.set_peer_limits(self._parameters)

    def permit_streams(self, maximum: int, unidirectional: bool) -> None:
        """Take the peer's limit: `maximum` streams of one kind in all."""
        local = self._local[unidirectional]
        if maximum <= local.permitted:
            return
        local.permitted = maximum
        self._streams_available = True
        for stream_id, sender in list(self._held.items()):
            if (stream_id & 2 != 0) == unidirectional and stream_id >> 2 < maximum:
                del self._held[stream_id]
                sender.permit(self._first_limit(stream_id))
                receiver = self.receivers.get(stream_id)
                if receiver is not None and receiver.stop_code >= 0:
                    self._ask_to_stop(receiver)

    def _first_limit(self, stream_id: int) -> int:
        """The limit in the peer's transport parameters for a stream of this side."""
        parameters = self._parameters
        if stream_id & 2:
            return parameters.max_stream_data_uni
        return parameters.max_stream_data_bidi_remote

    def _ask_to_stop(self, receiver: ReceiveStream) -> None:
        if receiver.stream_id not in self._held:
            self.receiving.stops[receiver.stream_id] = receiver

    # -- the end

    def free_buffers(self) -> None:
        """Free the buffers for sending and reordering, since the connection has ended.

        The application keeps delivered data, and it is counted until it is read.
        """
        for receiver in self.receivers.values():
            receiver.drop_pending()
        for sender in self.senders.values():
            sender.buffer.discard()
        self.sending.close_memory()
        self.sending.clear()
        self.receiving.clear()
        self.receiving.window.end(self.receiving.received)

    def unacknowledged(self) -> dict[int, tuple[int, int]]:
        """Bytes written and bytes acknowledged, for each stream with unacknowledged data or end."""
        return {
            stream_id: (sender.buffer.stop, sender.buffer.start)
            for stream_id, sender in self.senders.items()
            if not sender.is_finished
        }

    def unread(self) -> dict[int, int]:
        """Bytes delivered and not read, for each stream with a receiving part."""
        return {
            stream_id: receiver.delivered - receiver.window.released
            for stream_id, receiver in self.receivers.items()
        }

    def release(self) -> None:
        """Cut the references between the parts, so that they are freed at once."""
        self.sending.clear()
        self.receiving.clear()
        self._held.clear()
        self._ended.clear()
        self.senders.clear()
        self.receivers.clear()
