"""The network paths of a connection: validation and migration (RFC 9000 sections 8.2 and 9).

Floor 1, sans-IO.  A path is a peer's address, together with the local address where a
host has several.  The first path of the list is the active one.  A server follows its
client to a new address and validates it there.  A client moves when its application says
calls for it, or to the preferred address of its server.
"""

from __future__ import annotations

import ipaddress
import math
import os

from ..path_address import Address, SocketAddress, remote_of
from ..preferred_address import PreferredAddresses
from .connection_ids import PeerIds
from .parameters import PreferredAddress

__all__ = ["PROBE_SIZE", "Path", "Paths"]

#: The most paths at a time; a further one replaces one that is not in use.
_MAX_PATHS = 8

#: The most challenges of a peer that wait for their answer; a peer needs one answer.
_PATH_CHALLENGES = 4

#: The most challenges of ours on a path; any of them may still be answered.  While the path is
#: not active, no more are sent.
_OWN_CHALLENGES = 5

#: The size to which a datagram with a PATH_CHALLENGE or PATH_RESPONSE is expanded (RFC 9000
#: section 8.2.1).
PROBE_SIZE = 1200


class Path:
    """One path.

    Args:
      address: the peer's.
      is_validated: whether the peer is known to receive there.
    """

    __slots__ = (
        "addr",
        "bytes_received",
        "bytes_sent",
        "challenge_sent",
        "challenges",
        "is_candidate",
        "is_validated",
        "own_challenges",
        "repeat_at",
        "reserved_id",
        "validation_deadline",
    )

    def __init__(self, address: Address, is_validated: bool = False) -> None:
        self.addr: Address = address
        self.bytes_received: int = 0
        """UDP payload received while the path was not validated."""
        self.bytes_sent: int = 0
        self.is_validated: bool = is_validated
        self.is_candidate: bool = False
        """Client: whether the application waits for its validation, to move to it or not."""
        self.challenge_sent: bool = False
        """Whether a PATH_CHALLENGE was sent, and not declared lost."""
        self.own_challenges: list[bytes] = []
        """Our challenges that may still be answered."""
        self.challenges: list[bytes] = []
        """The peer's challenges that wait for their PATH_RESPONSE."""
        self.reserved_id: int = -1
        """The sequence number of the peer's connection ID for this path alone; -1: none."""
        self.validation_deadline: float = math.inf
        """When the validation of the active path, or of a candidate, is given up."""
        self.repeat_at: float = math.inf
        """When a challenge is sent again while the path is not active."""

    def can_send(self, size: int) -> bool:
        """Whether the anti-amplification limit permits so many bytes (RFC 9000 section 8.1)."""
        return self.is_validated or self.bytes_sent + size <= 3 * self.bytes_received

    def room(self) -> float:
        """Bytes that the anti-amplification limit permits; infinite on a validated path."""
        if self.is_validated:
            return math.inf
        return 3 * self.bytes_received - self.bytes_sent

    def needs_challenge(self) -> bool:
        """Whether a PATH_CHALLENGE is to be sent."""
        return not self.is_validated and not self.challenge_sent

    def has_frames(self) -> bool:
        """Whether a PATH_CHALLENGE or PATH_RESPONSE is to be sent."""
        return bool(self.challenges) or self.needs_challenge()

    def new_challenge(self) -> bytes:
        """The data of a PATH_CHALLENGE to be sent now."""
        data = os.urandom(8)
        self.own_challenges.append(data)
        if len(self.own_challenges) > _OWN_CHALLENGES:
            del self.own_challenges[0]
        self.challenge_sent = True
        return data

    def take_challenge(self, data: bytes) -> None:
        """Record a PATH_CHALLENGE of the peer; only the newest few are answered."""
        self.challenges.append(data)
        if len(self.challenges) > _PATH_CHALLENGES:
            del self.challenges[0]


class Paths:
    """The paths of one connection.

    Args:
      is_client: which side this is.
    """

    __slots__ = (
        "_is_client",
        "all",
        "announced",
        "first",
        "has_frames",
        "preferred",
        "probed",
        "repeat_at",
    )

    def __init__(self, is_client: bool) -> None:
        self._is_client = is_client
        self.all: list[Path] = []
        """The active one first."""
        self.preferred: PreferredAddress | None = None
        """The server's preferred address, until it was tried."""
        self.announced: PreferredAddresses | None = None
        """Server: those to which its client was asked to move."""
        self.first: SocketAddress | None = None
        """Client: the server's address in the handshake."""
        self.has_frames: bool = False
        """Whether any path may have a PATH_CHALLENGE or PATH_RESPONSE to send.  False while a
        path lacks a connection ID or room; set again when either arrives."""
        self.repeat_at: float = math.inf
        """When :meth:`repeat_challenges` is due."""
        self.probed: list[tuple[Address, bool]] = []
        """Client: candidates to report, with true if validated, false if given up."""

    def begin(self, address: Address, *, is_validated: bool) -> None:
        """The path of the handshake."""
        self.all[:] = [Path(address, is_validated)]
        self.first = remote_of(address)

    @property
    def is_at_first_address(self) -> bool:
        """Client: whether the server is addressed as in the handshake."""
        return remote_of(self.all[0].addr) == self.first

    def may_follow(self, path: Path) -> bool:
        """Server: whether to send to the client on this path from now on.

        As on all paths, before it is validated, too; but on one to a preferred address only
        then (RFC 9000 section 9.6.2): else a forged packet could move the connection there.
        """
        announced = self.announced
        return (
            path.is_validated
            or announced is None
            or not announced.has(path.addr)
            or announced.has(self.all[0].addr)
        )

    def find(self, address: Address) -> Path:
        """The path with this address, or a new one; the new one is not added to :attr:`all`."""
        for path in self.all:
            if path.addr == address:
                return path
        return Path(address)

    def count_received(self, path: Path, size: int) -> None:
        """Count bytes from an address, whether they can be decrypted or not (section 8.1)."""
        if not path.is_validated:
            path.bytes_received += size
            self.has_frames = True  # (A probe may have waited for the room.)

    def knows(self, address: Address) -> bool:
        """Whether a path has this address."""
        return any(path.addr == address for path in self.all)

    def add(self, path: Path, ids: PeerIds) -> None:
        """Add a path, in place of another one at the limit.

        The active path stays.  Of the others, one without validation is replaced first.
        """
        if len(self.all) >= _MAX_PATHS:
            others = self.all[1:]
            evicted = next((each for each in others if not each.is_validated), others[0])
            self.all.remove(evicted)
            if evicted.reserved_id >= 0:
                ids.retire_reserved(evicted.reserved_id)
        self.all.append(path)
        self.has_frames = True

    def promote(self, path: Path, ids: PeerIds) -> bool:
        """The peer has moved to this path (RFC 9000 section 9.3).

        Returns whether a connection ID reserved for the path is used from now on.
        """
        self.all.remove(path)
        self.all.insert(0, path)
        self.has_frames = True
        used_reserved = path.reserved_id >= 0
        if used_reserved:
            ids.use_reserved(path.reserved_id)
            path.reserved_id = -1
        if not path.is_validated:
            # Challenges of the time before the move are not repeated.
            path.challenge_sent = False
            path.validation_deadline = math.inf
        return used_reserved

    def take_response(self, data: bytes, ids: PeerIds) -> bool:
        """A PATH_RESPONSE; whether the active path is another one or is validated now.

        A PATH_RESPONSE to no known challenge is ignored: the challenge may have been dropped
        (RFC 9000 section 19.18).
        """
        for path in self.all:
            if data in path.own_challenges:
                path.is_validated = True
                path.own_challenges.clear()
                if path.is_candidate:
                    self.probed.append((path.addr, True))
                    return False
                if self._is_client and path.reserved_id >= 0:
                    # RFC 9000 section 9.6.1: the preferred address works.
                    ids.use_reserved(path.reserved_id)
                    path.reserved_id = -1
                    self.all.remove(path)
                    self.all.insert(0, path)
                    return True
                return path is self.all[0]
        return False

    def pending(self) -> bool:
        """Whether a PATH_CHALLENGE or PATH_RESPONSE is to be sent on any path."""
        if not self.has_frames:
            return False
        self.has_frames = any(path.has_frames() for path in self.all)
        return self.has_frames

    def deadline(self) -> float:
        """When the validation of the active path is given up; infinite: never."""
        if not self.all or self.all[0].is_validated:
            return math.inf
        return self.all[0].validation_deadline

    def abandon(self) -> bool:
        """Go back to a validated path (RFC 9000 section 9.3.2); whether there is one."""
        active = self.all[0]
        for path in self.all:
            if path.is_validated:
                self.all.remove(active)
                self.all.remove(path)
                self.all.insert(0, path)
                return True
        return False

    def on_challenge_lost(self) -> None:
        """A PATH_CHALLENGE on the active path was lost: another one is sent (section 8.2.1)."""
        active = self.all[0]
        if not active.is_validated:
            active.challenge_sent = False
            self.has_frames = True

    def expect_response(self, path: Path, now: float, period: float) -> None:
        """Schedule the repetition of a challenge on a path other than the active one.

        RFC 9000 section 8.2.1: as often as an Initial packet, after a `period` that doubles;
        :data:`_OWN_CHALLENGES` in all.
        """
        sent = len(path.own_challenges)
        if sent < _OWN_CHALLENGES:
            path.repeat_at = now + period * (1 << sent - 1)
            self.repeat_at = min(self.repeat_at, path.repeat_at)

    def repeat_challenges(self, now: float, ids: PeerIds) -> None:
        """Repeat unanswered challenges on paths other than the active one.

        Candidates without an answer to the last challenge are given up.
        """
        self.repeat_at = math.inf
        for path in self.all[1:]:
            if path.is_candidate and not path.is_validated:
                if path.validation_deadline <= now:
                    self.all.remove(path)
                    if path.reserved_id >= 0:
                        ids.retire_reserved(path.reserved_id)
                    self.probed.append((path.addr, False))
                    continue
                self.repeat_at = min(self.repeat_at, path.validation_deadline)
            if path.repeat_at <= now:
                path.repeat_at = math.inf
                path.challenge_sent = False
                self.has_frames = True
            self.repeat_at = min(self.repeat_at, path.repeat_at)

    def begin_probe(self, address: Address, ids: PeerIds, now: float, period: float) -> bool:
        """Client: challenge the server on another path, and stay on this one (section 9.1).

        :attr:`probed` gets the outcome.  :meth:`expect_response` schedules repetitions.  After
        the last challenge, an answer counts for one more period.

        Returns whether the server has given a connection ID for it (section 9.5).
        """
        reserved = ids.reserve()
        if reserved is None:
            return False
        path = Path(address)
        path.reserved_id = reserved.number
        path.is_candidate = True
        path.validation_deadline = now + period * ((1 << _OWN_CHALLENGES) - 1)
        self.add(path, ids)
        self.repeat_at = min(self.repeat_at, path.validation_deadline)
        return True

    def add_known(self, address: Address, ids: PeerIds) -> bool:
        """Client: add a path from a new local address without a probe, for :meth:`move`.

        Returns whether the server has given a connection ID for it.
        """
        reserved = ids.reserve()
        if reserved is None:
            return False
        path = Path(address, is_validated=True)
        path.reserved_id = reserved.number
        self.add(path, ids)
        return True

    def move(self, address: Address, ids: PeerIds) -> bool:
        """Client: use this validated path from now on (section 9.2).

        Returns whether the connection has moved.  Without a connection ID unused on other
        paths, it stays.
        """
        for path in self.all[1:]:
            if path.addr != address or not path.is_validated:
                continue
            if path.reserved_id < 0:
                reserved = ids.reserve()
                if reserved is None:
                    return False
                path.reserved_id = reserved.number
            ids.use_reserved(path.reserved_id)
            path.reserved_id = -1
            path.is_candidate = False
            self.all.remove(path)
            self.all.insert(0, path)
            self._forget_preferred(ids)
            return True
        return False

    def _forget_preferred(self, ids: PeerIds) -> None:
        """Client: it has moved, so a late answer from there would take it back."""
        for path in self.all[1:]:
            if path.reserved_id >= 0 and not path.is_candidate:
                self.all.remove(path)
                ids.retire_reserved(path.reserved_id)

    def forget(self, address: Address, ids: PeerIds) -> None:
        """Send and receive nothing on this path any more, unless it is the active one."""
        for path in self.all[1:]:
            if path.addr == address:
                self.all.remove(path)
                if path.reserved_id >= 0:
                    ids.retire_reserved(path.reserved_id)

    def try_preferred(self, ids: PeerIds) -> None:
        """Client: begin to validate the server's preferred address (section 9.6.1)."""
        preferred, self.preferred = self.preferred, None
        if preferred is None:
            return
        address = _preferred_address(preferred, self.all[0].addr)
        if address is None:
            return
        reserved = ids.reserve()
        if reserved is None:
            return
        path = Path(address)
        path.reserved_id = reserved.number
        self.add(path, ids)


def _preferred_address(preferred: PreferredAddress, active: Address) -> Address | None:
    """The preferred address in the family and form of the active one; ``None``: none fits."""
    try:
        host = ipaddress.ip_address(active[0])
    except ValueError:
        return None
    prefix = ""
    chosen = preferred.ipv6
    if host.version == 4:
        chosen = preferred.ipv4
    elif host.ipv4_mapped is not None:
        # The form in which a dual-stack socket reports IPv4 peers.
        host, prefix, chosen = host.ipv4_mapped, "::ffff:", preferred.ipv4
    if chosen is None:
        return None
    target = ipaddress.ip_address(chosen[0])
    if (
        chosen[1] == 0
        or target.is_multicast
        or target == ipaddress.IPv4Address("255.255.255.255")
        or (target.is_loopback and not host.is_loopback)
        or (isinstance(target, ipaddress.IPv6Address) and target.ipv4_mapped is not None)
    ):
        return None  # malformed, or usable for request forgery (RFC 9000 section 21.5.6)
    address: Address = (prefix + chosen[0], chosen[1])
    if len(active) == 4:
        address = (prefix + chosen[0], chosen[1], 0, 0)
    return None if address == active else address
