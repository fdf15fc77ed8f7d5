"""Remembers which certificate chains were accepted, so that they are not verified again.

Floor 0.  Verifying a chain costs more than all else that a client computes in a handshake.
A chain that the same settings have accepted once is good until one of its certificates expires;
the peer still has to prove that it has the private key.
"""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict

from cryptography import x509

__all__ = ["Verdict", "Verdicts"]


class Verdict:
    """An accepted chain.

    Args:
      certificate: the peer's.
      chain: the further certificates which it has sent.
      verified: the certificates by which it leads to an authority.
    """

    __slots__ = ("_not_after", "_not_before", "certificate", "chain")

    def __init__(
        self,
        certificate: x509.Certificate,
        chain: list[x509.Certificate],
        verified: list[x509.Certificate],
    ) -> None:
        self.certificate: x509.Certificate = certificate
        self.chain: list[x509.Certificate] = chain
        every = [certificate, *verified]
        self._not_before = max(each.not_valid_before_utc for each in every)
        self._not_after = min(each.not_valid_after_utc for each in every)

    def is_valid(self, now: dt.datetime) -> bool:
        """Whether all of its certificates are valid at this time."""
        return self._not_before <= now <= self._not_after


class Verdicts:
    """The verdicts of one set of trust settings; the one used least recently goes first.

    Args:
      limit: how many are kept.
    """

    __slots__ = ("_limit", "_verdicts")

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._verdicts: OrderedDict[tuple[str, tuple[bytes, ...]], Verdict] = OrderedDict()

    def __len__(self) -> int:
        return len(self._verdicts)

    def find(self, name: str, certificates: tuple[bytes, ...]) -> Verdict | None:
        """The verdict about what a peer has sent; ``None``: it is not known.

        Args:
          name: what the certificate has to name.
          certificates: in DER form, exactly as they came.
        """
        key = name, certificates
        verdict = self._verdicts.get(key)
        if verdict is not None:
            self._verdicts.move_to_end(key)
        return verdict

    def add(self, name: str, certificates: tuple[bytes, ...], verdict: Verdict) -> None:
        """Remember what was accepted."""
        self._verdicts[name, certificates] = verdict
        if len(self._verdicts) > self._limit:
            self._verdicts.popitem(last=False)
