"""Decrypts connection IDs as a load balancer does: written apart from the library, for its tests.

Halves are lists of hexadecimal digits here, so a byte in the middle is split without shifting.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB


def decrypt(key: bytes, ciphertext: bytes) -> bytes:
    """Server ID and nonce (draft-ietf-quic-load-balancers-21 section 5.5)."""
    if len(ciphertext) == 16:
        return Cipher(AES(key), ECB()).decryptor().update(ciphertext)
    digits = ciphertext.hex()
    middle = len(digits) // 2
    left, right = digits[:middle], digits[middle:]
    size = len(ciphertext)
    width = 2 * -(-size // 2)
    for number in (4, 3, 2, 1):
        if number % 2:
            right = _xor(right, _encrypt(key, left.ljust(width, "0"), size, number)[-middle:])
        else:
            left = _xor(left, _encrypt(key, right.rjust(width, "0"), size, number)[:middle])
    return bytes.fromhex(left + right)


def _encrypt(key: bytes, half: str, size: int, number: int) -> str:
    """The first digits, as many as the half has."""
    block = bytes.fromhex(half.ljust(28, "0") + f"{size:02x}{number:02x}")
    return Cipher(AES(key), ECB()).encryptor().update(block).hex()[: len(half)]


def _xor(one: str, other: str) -> str:
    return "".join(f"{int(a, 16) ^ int(b, 16):x}" for a, b in zip(one, other, strict=True))
