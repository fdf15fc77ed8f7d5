"""Measures the ciphers that protect packets, as the processor runs them.

Floor 4.  AES-256-GCM comes first in the hello of our clients; without instructions for AES it
costs several times as much as ChaCha20-Poly1305.
"""

from __future__ import annotations

import os
import time

import attrs
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from .results import Finding, Status
from .text import format_rate

__all__ = ["CipherRates", "check_ciphers", "measure_ciphers"]

#: A packet on Ethernet, and its header.
_PACKET = 1452
_HEADER = 20

#: Packets between two looks at the clock.
_BATCH = 50


@attrs.frozen
class CipherRates:
    """Seconds of processor time that a packet of 1,452 bytes costs."""

    aes: float
    chacha: float


def measure_ciphers(seconds: float = 0.1) -> CipherRates:
    """Encrypt for `seconds` in all.  Blocks: run it in a thread."""
    packet, header, nonce = os.urandom(_PACKET), os.urandom(_HEADER), bytes(12)
    best: dict[bool, float] = {}
    aes = AESGCM(AESGCM.generate_key(bit_length=256))
    chacha = ChaCha20Poly1305(ChaCha20Poly1305.generate_key())
    end = time.perf_counter() + seconds
    # Both in turns, the best batch of each: another program takes the processor now and then.
    while True:
        for is_aes, cipher in ((True, aes), (False, chacha)):
            start = time.perf_counter()
            for _ in range(_BATCH):
                cipher.encrypt(nonce, packet, header)
            cost = (time.perf_counter() - start) / _BATCH
            best[is_aes] = min(cost, best.get(is_aes, cost))
        if time.perf_counter() >= end:
            return CipherRates(best[True], best[False])


def check_ciphers(rates: CipherRates, has_aes: bool | None) -> Finding:
    """Whether AES is fast here.

    Args:
      rates: as measured.
      has_aes: whether the processor says that it has instructions for it; ``None``: unknown.
    """
    flag = {True: "; the processor has AES", False: "; the processor has no AES", None: ""}
    found = (
        f"a packet of 1,452 bytes takes {1e6 * rates.aes:.1f} us with AES-256-GCM "
        f"({format_rate(8 * _PACKET / rates.aes)}), {1e6 * rates.chacha:.1f} us with "
        f"ChaCha20-Poly1305{flag[has_aes]}"
    )
    values = {
        "aes_packet_seconds": round(rates.aes, 9),
        "chacha_packet_seconds": round(rates.chacha, 9),
        "has_aes": has_aes,
    }
    if rates.aes <= 1.5 * rates.chacha and has_aes is not False:
        return Finding(name="aes", status=Status.OK, found=found, values=values)
    return Finding(
        name="aes",
        status=Status.WARN,
        found=found,
        why="AES without instructions of the processor costs 6.2 us a packet and not 0.8: a "
        f"gigabyte takes {rates.aes * 1e9 / _PACKET:.1f} s of processor time here; a virtual "
        "machine may have to be given the instructions by its host (QEMU: -cpu host)",
        values=values,
    )
