"""Encrypts the server ID and the nonce of a connection ID, for load balancers with the same key.

Floor 0, sans-IO.  draft-ietf-quic-load-balancers-21 section 5.4.  Observers see random bytes, and
cannot link two connection IDs by the server that has made them.  Both fields together are
encrypted in place, so the size stays: 16 bytes as one block of AES-128, any other size by a
Feistel network of four rounds, whose round function is that cipher.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

__all__ = ["KEY_SIZE", "ConnectionIdCipher"]

#: Bytes of a key.
KEY_SIZE: Final = 16

_BLOCK: Final = 16
_SMALLEST: Final = 5
_LARGEST: Final = 19


class ConnectionIdCipher:
    """Encrypts with one key.

    Args:
      key: 16 bytes.
      size: bytes of server ID and nonce together, 5 to 19.

    Raises:
      ValueError: one of them is out of its range.
    """

    __slots__ = ("_encryptor", "_half", "_left_mask", "_right_mask", "_size")

    def __init__(self, key: bytes, size: int) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError(f"the key of connection IDs must have {KEY_SIZE} bytes")
        if not _SMALLEST <= size <= _LARGEST:
            raise ValueError(f"size must be between {_SMALLEST} and {_LARGEST}, not {size}")
        # (ECB of single blocks: the draft builds its own mode from them.)
        self._encryptor = Cipher(AES(key), ECB()).encryptor()  # noqa: S305
        self._size = size
        self._half = (size + 1) // 2
        # Of an odd number of bytes, the one in the middle is split: four bits for each half.
        bits = 8 * self._half
        self._left_mask = (1 << bits) - (1 << 4 * (size % 2))
        self._right_mask = (1 << bits - 4 * (size % 2)) - 1

    def encrypt(self, plaintext: bytes) -> bytes:
        """The encrypted server ID and nonce; they have the size of this cipher."""
        if len(plaintext) != self._size:
            raise ValueError(f"{self._size} bytes can be encrypted, not {len(plaintext)}")
        if self._size == _BLOCK:
            return self._encryptor.update(plaintext)
        half = self._half
        left = int.from_bytes(plaintext[:half], "big") & self._left_mask
        right = int.from_bytes(plaintext[-half:], "big") & self._right_mask
        for number in (1, 3):
            right ^= self._round(number, left) & self._right_mask
            left ^= self._round(number + 1, right) & self._left_mask
        joined = left << 8 * (self._size - half) | right
        return joined.to_bytes(self._size, "big")

    def _round(self, number: int, half: int) -> int:
        """The first bytes of the encrypted half, as many as it has."""
        padding = bytes(_BLOCK - 2 - self._half)
        block = half.to_bytes(self._half, "big") + padding + bytes((self._size, number))
        return int.from_bytes(self._encryptor.update(block)[: self._half], "big")
