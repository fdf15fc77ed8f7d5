"""Which keys open a 1-RTT packet, while they are being updated?

Floor 1, sans-IO, private to :mod:`phoenix_trio.quic.engine`.  aioquic 1.7.2
(``quic/crypto.py`` 84-120, 192-256) forgets its old keys in the moment in which
it begins an update or notices the peer's.  What the peer had sent until it
heard of the update, a whole round trip's worth, could not be read then, and a
transfer at full speed took that for congestion.  RFC 9001 section 6.1: the old
keys must be kept until something has come with the new ones, and a little longer
for what is reordered.
"""

from __future__ import annotations

from collections.abc import Callable

from aioquic._crypto import AEAD, CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair, next_key_phase
from aioquic.quic.packet import decode_packet_number

from .early_packets import EarlyPackets

__all__ = ["EarlyKeys", "OneRttKeys"]

_NONE = 1 << 62  # larger than any packet number


class EarlyKeys(CryptoPair):
    """The keys of one encryption level, which keep the packets that come before them.

    A :class:`~aioquic.quic.crypto.CryptoPair` becomes one by :meth:`adopt`.
    """

    early: EarlyPackets
    level: int

    @classmethod
    def adopt(cls, pair: CryptoPair, early: EarlyPackets, level: int) -> None:
        """Extend aioquic's pair, which its TLS callbacks hold already."""
        pair.__class__ = cls
        assert isinstance(pair, EarlyKeys)
        pair.early = early
        pair.level = level

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        """Crypto.py 201.

        Raises:
          KeyUnavailableError: there are no keys yet, or no more.
          CryptoError: the packet is not authentic.
        """
        if self.recv.aead is None:
            self.early.offer(self.level, packet)
        result: tuple[bytes, bytes, int] = super().decrypt_packet(
            packet, encrypted_offset, expected_packet_number
        )
        return result


class OneRttKeys(CryptoPair):
    """The keys of 1-RTT packets, those before them, and those after them.

    A :class:`~aioquic.quic.crypto.CryptoPair` becomes one by :meth:`adopt`.
    """

    previous: AEAD | None
    """Opens packets of the phase before; ``None``: there was none, or it is forgotten."""
    lowest_number: int
    """The lowest number of the packets which came with the present keys."""
    forget_at: float | None
    """When to forget the previous keys, once packets have come with the present ones."""
    updates: int
    """How often the keys were updated, by either side."""
    on_violation: Callable[[], None]
    """Told when the peer has gone back to old keys."""
    early: EarlyPackets
    """Keeps the packets which come before the keys."""
    level: int
    _next: CryptoContext | None

    @classmethod
    def adopt(
        cls, pair: CryptoPair, on_violation: Callable[[], None], early: EarlyPackets, level: int
    ) -> OneRttKeys:
        """Extend aioquic's pair, which its TLS callbacks hold already."""
        pair.__class__ = cls
        assert isinstance(pair, OneRttKeys)
        pair.previous = None
        pair.lowest_number = _NONE
        pair.forget_at = None
        pair.updates = 0
        pair.on_violation = on_violation
        pair.early = early
        pair.level = level
        pair._next = None
        return pair

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        """Crypto.py 201: the header, the payload and the packet's number.

        Raises:
          CryptoError: none of the keys opens it.
        """
        recv = self.recv
        if recv.aead is None or recv.hp is None:
            self.early.offer(self.level, packet)
            return super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        header, truncated = recv.hp.remove(packet, encrypted_offset)
        number = decode_packet_number(truncated, 8 * ((header[0] & 3) + 1), expected_packet_number)
        body = packet[len(header) :]
        if (header[0] >> 2 & 1) == recv.key_phase:
            payload = recv.aead.decrypt(body, header, number)
            self.note_received(number)
        elif self.previous is not None and number < self.lowest_number:
            try:
                payload = self.previous.decrypt(body, header, number)
            except CryptoError:
                if self.lowest_number != _NONE:
                    raise
                # A peer which updates again before it knows that the last update arrived,
                # against section 6.1: aioquic by itself does, when it is asked to.
                payload = self._decrypt_next(body, header, number)
        else:
            payload = self._decrypt_next(body, header, number)
        return header, payload, number

    def _decrypt_next(self, body: bytes, header: bytes, number: int) -> bytes:
        """A packet of another phase which is newer than the present one's beginning."""
        # (Kept, for forged packets must not cost a key derivation each, RFC 9001 section 9.5.)
        following = self._next = self._next or next_key_phase(self.recv)
        assert following.aead is not None
        try:
            payload: bytes = following.aead.decrypt(body, header, number)
        except CryptoError:
            if self.previous is not None and self.lowest_number != _NONE:
                # RFC 9001 section 6.4: old keys, after newer ones were used.
                self.previous.decrypt(body, header, number)
                self.on_violation()
            raise
        self._update_key("remote_update")
        self.note_received(number)
        return payload

    def note_received(self, number: int) -> None:
        """A packet with this number has come with the present keys."""
        if number < self.lowest_number:
            self.lowest_number = number

    def _update_key(self, trigger: str) -> None:
        """Crypto.py 252: the present keys become the previous ones."""
        self.previous = self.recv.aead
        self.lowest_number = _NONE
        self.forget_at = None
        self._next = None
        self.updates += 1
        super()._update_key(trigger)

    def age(self, now: float, period: float) -> None:
        """Forget the previous keys a `period` after the present ones were first seen."""
        if self.lowest_number == _NONE:
            return
        if self.forget_at is None:
            self.forget_at = now + period
        elif now >= self.forget_at:
            self.previous = None
            self.forget_at = None
