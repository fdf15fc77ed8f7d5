"""Keeps the keys of 1-RTT packets and their updates (RFC 9001 section 6), and of 0-RTT packets.

Floor 1, sans-IO.  Old keys are kept until a packet with the new ones has come, and a little
longer for reordered packets (section 6.1).  Otherwise a whole round trip's worth of packets
could not be read after an update.
"""

from __future__ import annotations

from ..wire.errors import KEY_UPDATE_ERROR, TransportError
from ..wire.protection import HeaderKey, NotAuthentic, PacketKey, header_key

__all__ = ["OneRttKeys"]

_NONE = 1 << 62  # larger than any packet number

#: Packets between updates of the keys: half the limit of AES-GCM (RFC 9001 section 6.6).
KEY_UPDATE_PACKETS = 1 << 22

#: Packets until another attempt, while the last update is not acknowledged.
_KEY_UPDATE_RETRY = 1000


class OneRttKeys:
    """The present keys of both directions, those before them, and those after them."""

    __slots__ = (
        "_following",
        "_forget_at",
        "_keys_since",
        "_previous",
        "_updates_noticed",
        "header_receive",
        "header_send",
        "lowest_number",
        "next_update",
        "phase",
        "receive",
        "send",
        "update_pending",
        "updates",
        "updates_begun",
    )

    def __init__(self) -> None:
        self.send: PacketKey | None = None
        self.receive: PacketKey | None = None
        self.header_send: HeaderKey | None = None
        self.header_receive: HeaderKey | None = None
        self.phase: int = 0
        """The key phase bit of the present keys."""
        self.lowest_number: int = _NONE
        """The lowest number of a packet received with the present keys."""
        self.update_pending: bool = False
        """Whether the next packet sent begins an update."""
        self.updates: int = 0
        """How often the keys were updated, by either side."""
        self.updates_begun: int = 0
        """How often this side has begun an update."""
        self._previous: PacketKey | None = None
        self._following: PacketKey | None = None
        self._forget_at = -1.0
        self._keys_since = 0  # the first packet number sent with the present keys, or a later one
        self._updates_noticed = 0
        self.next_update: int = KEY_UPDATE_PACKETS
        """The packet number from which :meth:`consider_update` is to be called (section 6.6)."""

    def install(self, for_sending: bool, suite: int, secret: bytes, version: int) -> None:
        """Take the first keys of one direction, from the TLS handshake."""
        key, header = PacketKey(suite, secret, version), header_key(suite, secret, version)
        if for_sending:
            self.send, self.header_send = key, header
        else:
            self.receive, self.header_receive = key, header

    def discard(self) -> None:
        """Forget all keys."""
        self.send = self.receive = self._previous = self._following = None
        self.header_send = self.header_receive = None

    def open_other_phase(self, number: int, header: bytes, body: bytes) -> bytes:
        """The payload of a packet whose key phase bit differs from that of the present keys.

        Raises:
          NotAuthentic: no key opens it.
          TransportError: the peer has gone back to old keys (RFC 9001 section 6.4).
        """
        previous = self._previous
        if previous is None or number >= self.lowest_number:
            return self._open_following(number, header, body)
        try:
            return previous.decrypt(number, header, body)
        except NotAuthentic:
            if self.lowest_number != _NONE:
                raise
        # The peer updates again before it knows that the last update has arrived, against
        # section 6.1; some implementations do.
        return self._open_following(number, header, body)

    def _open_following(self, number: int, header: bytes, body: bytes) -> bytes:
        assert self.receive is not None
        if self._following is None:
            # Kept, since forged packets must not cost a key derivation each (section 9.5).
            self._following = self.receive.next()
        try:
            payload = self._following.decrypt(number, header, body)
        except NotAuthentic:
            previous = self._previous
            if previous is not None and self.lowest_number != _NONE:
                previous.decrypt(number, header, body)
                raise TransportError(KEY_UPDATE_ERROR, 0, "Old keys were used again") from None
            raise
        self._advance()
        self.note_received(number)
        return payload

    def note_received(self, number: int) -> None:
        """Note that a packet with this number has come with the present keys."""
        if number < self.lowest_number:
            self.lowest_number = number

    def _advance(self) -> None:
        """Make the present keys the previous ones."""
        assert self.receive is not None
        assert self.send is not None
        self._previous = self.receive
        self.receive = self._following or self.receive.next()
        self._following = None
        self.send = self.send.next()
        self.phase ^= 1
        self.lowest_number = _NONE
        self._forget_at = -1.0
        self.updates += 1

    @property
    def has_previous(self) -> bool:
        """Whether old keys are kept, so that :meth:`age` is to be called."""
        return self._previous is not None

    def age(self, now: float, period: float) -> None:
        """Forget the previous keys a `period` after the present ones were first seen.

        RFC 9001 section 6.5: three probe timeouts.
        """
        if self.lowest_number == _NONE:
            return
        if self._forget_at < 0:
            self._forget_at = now + period
        elif now >= self._forget_at:
            self._previous = None
            self._forget_at = -1.0

    # -- updates by this side

    def can_update(self, next_number: int, largest_acknowledged: int) -> bool:
        """Whether the peer has acknowledged a packet with the present keys (section 6.1)."""
        if self.update_pending or self.send is None:
            return False
        if self.updates != self._updates_noticed:
            # The peer has updated them, perhaps more than once; it does so only once it can read
            # with both.
            self._updates_noticed = self.updates
            self._keys_since = next_number
        return largest_acknowledged >= self._keys_since

    def request_update(self, next_number: int) -> None:
        """Begin an update with the packet of this number, or the next one sent."""
        self.updates_begun += 1
        self._keys_since = next_number
        self.next_update = next_number + KEY_UPDATE_PACKETS
        self._updates_noticed = self.updates + 1
        self.update_pending = True

    def consider_update(self, next_number: int, largest_acknowledged: int) -> None:
        """Update the keys now, or try again later (section 6.6)."""
        if self.can_update(next_number, largest_acknowledged):
            self.request_update(next_number)
        else:
            self.next_update = next_number + _KEY_UPDATE_RETRY

    def begin_update(self) -> None:
        """Use the next keys from the next packet on."""
        self.update_pending = False
        self._advance()
