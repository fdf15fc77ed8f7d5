"""The keys of Initial packets (RFC 9001 section 5.2), for the versions that are in use.

Floor 1, sans-IO.  They follow from the destination connection ID of the client's first
packet.  Nearly every connection uses one version, so the keys of a version are derived when
they are asked for.
"""

from __future__ import annotations

from ..wire.protection import PacketKey, header_key
from .initial_protection import InitialKeys, derive_initial_keys, initial_secret
from .space import Keys

__all__ = ["InitialKeyring", "derive_keys"]


def derive_keys(suite: int, secret: bytes, version: int) -> Keys:
    """The keys of one direction, from the secret of TLS (RFC 9001 section 5.1)."""
    return Keys(PacketKey(suite, secret, version), header_key(suite, secret, version))


class InitialKeyring:
    """The keys of both sides, by version.

    Args:
      destination_cid: that of the client's first packet, or of its first one after Retry.
      known: the client's keys, if they were derived already.
    """

    __slots__ = ("_common", "_keys", "_known", "destination_cid")

    def __init__(self, destination_cid: bytes, known: InitialKeys | None = None) -> None:
        self.destination_cid: bytes = destination_cid
        self._known = known
        self._keys: dict[tuple[int, bool], Keys] = {}
        self._common: dict[int, bytes] = {}

    def get(self, version: int, *, of_client: bool) -> Keys:
        """The keys with which one side seals, and the other one opens."""
        keys = self._keys.get((version, of_client))
        if keys is None:
            keys = self._keys[version, of_client] = self._derive(version, of_client)
        return keys

    def discard(self) -> None:
        """Forget all keys (RFC 9001 section 4.9.1)."""
        self._known = None
        self._keys.clear()
        self._common.clear()

    def _derive(self, version: int, of_client: bool) -> Keys:
        known = self._known
        if (
            known is None
            or not of_client
            or known.version != version
            or known.destination_cid != self.destination_cid
        ):
            common = self._common.get(version)
            if common is None:
                common = self._common[version] = initial_secret(version, self.destination_cid)
            known = derive_initial_keys(common, version, self.destination_cid, of_client=of_client)
        return Keys(known.packet, known.header)
