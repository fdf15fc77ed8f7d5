"""What a probe carries while the handshake is under way, and how soon the next one follows.

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`.  RFC 9002 section
6.2.4: a probe timeout sends up to two datagrams, with data where there is some,
also from other packet number spaces.  A probe is no sign of loss (section 6.2):
the packets whose frames it repeats stay known, so that an acknowledgement of any
copy counts.  (aioquic 1.7.2, ``quic/recovery.py`` 378, forgets them.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from aioquic.quic.recovery import QuicPacketSpace

from .stream_state import BulkRun, CryptoSender, TrackedSender

__all__ = [
    "HANDSHAKE_PROBES",
    "MAX_HANDSHAKE_PROBE_PERIOD",
    "forget_acknowledgements",
    "next_backoff",
    "repeat_application_data",
    "repeat_crypto",
]

#: Datagrams for each probe timeout (RFC 9002 section 6.2.4 permits two).
HANDSHAKE_PROBES = 2

#: Seconds beyond which the probe period does not double before the handshake is confirmed,
#: unless the round trip alone makes it longer.  RFC 9002 section 6.2.1 doubles without end,
#: so after five losses in a row a path with a loss now and then looks dead for 20 s.  Two
#: datagrams in two seconds congest nothing.
MAX_HANDSHAKE_PROBE_PERIOD = 2.0


def next_backoff(count: int, period: float) -> int:
    """How often the probe `period`, in seconds, is doubled after one more timeout."""
    following = count + 1
    if period * (1 << following) > MAX_HANDSHAKE_PROBE_PERIOD:
        return count
    return following


def repeat_crypto(spaces: Iterable[QuicPacketSpace], control: Any) -> int:
    """Queue all CRYPTO data again which is neither acknowledged nor lost.

    Its packets leave the congestion window, which the copies enter in their place.

    Returns:
      Bytes of the packets whose data is queued; several copies of one count once.
    """
    size = 0
    for space in spaces:
        first_copies: set[int] = set()
        for packet in space.sent_packets.values():
            if not packet.is_crypto_packet:
                continue
            for sender, frame in _repeatable(packet.delivery_handlers, CryptoSender):
                sender.repeat(*frame)
                if frame[0] not in first_copies:
                    first_copies.add(frame[0])
                    size += frame[1] - frame[0]
            if packet.in_flight:
                packet.in_flight = False
                control.on_packets_expired(packets=[packet])
    return size


def repeat_application_data(space: QuicPacketSpace) -> bool:
    """Queue the stream data of the oldest packet in flight again; whether there was any."""
    sent: Mapping[int, Any] = space.sent_packets
    for number, packet in sent.items():
        if type(packet) is BulkRun:
            packet = packet.packet(number)
        found = False
        for sender, frame in _repeatable(packet.delivery_handlers, TrackedSender):
            sender.repeat(*frame)
            found = True
        if found:
            return True
    return False


def forget_acknowledgements(space: QuicPacketSpace, count: int) -> None:
    """Forget those of the oldest `count` packets sent which need no acknowledgement themselves.

    Nobody has to acknowledge them, so they would be kept until the space is discarded.
    """
    sent = space.sent_packets
    for number in list(islice(sent, count)):
        if not sent[number].is_ack_eliciting:
            del sent[number]


def _repeatable(
    handlers: Iterable[tuple[Any, tuple[Any, ...]]], kind: type[Any]
) -> Iterable[tuple[Any, tuple[int, int, bool]]]:
    """The senders whose data is in a packet, and which data."""
    for handler, frame in handlers:
        sender = getattr(handler, "__self__", None)
        if isinstance(sender, kind) and handler == sender.on_data_delivery:
            yield sender, (frame[0], frame[1], frame[2])
