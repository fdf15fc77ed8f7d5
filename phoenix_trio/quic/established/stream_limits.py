"""Counts the streams of one kind, and how many each side may open (RFC 9000 section 4.6).

Floor 1, sans-IO.  Bidirectional and one-way streams are counted apart.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LocalStreams", "PeerStreams"]


#: MAX_STREAMS is worth a frame once this share of the window can be granted.
_GRANT_SHARE: Final = 4  # a quarter


class LocalStreams:
    """The streams of one kind opened by this side."""

    __slots__ = ("opened", "permitted", "wanted")

    def __init__(self) -> None:
        self.opened: int = 0
        """Streams opened so far."""
        self.permitted: int = 0
        """All streams that the peer permits to open, counted from the first."""
        self.wanted: int = 0
        """Calls that wait for a stream."""

    def is_blocked(self) -> bool:
        """Whether a call waits for a stream that the peer does not permit yet."""
        return self.wanted > 0 and self.opened >= self.permitted


class PeerStreams:
    """The streams of one kind opened by the peer.

    The limit follows the application, not the wire: a stream counts until the application is
    done with it, so a peer cannot open and end streams without limit while no task reads them.

    Args:
      maximum: the limit announced in the transport parameters.
    """

    __slots__ = ("announced", "is_waiting", "maximum", "opened", "was_lost", "window")

    def __init__(self, maximum: int) -> None:
        self.window: int = maximum
        """The most streams open at a time."""
        self.maximum: int = maximum
        """All streams that the peer may open, counted from the first."""
        self.announced: int = maximum
        """The limit last announced to the peer."""
        self.opened: int = 0
        """Streams opened so far."""
        self.was_lost: bool = False
        """Whether the frame with the newest limit was lost."""
        self.is_waiting: bool = False
        """Whether the peer waits for a stream, or seems to, so that no grant is too small."""

    def is_due(self) -> bool:
        """Whether MAX_STREAMS is worth a frame.

        It is if the peer has fewer streams left to open than the frame grants, and the frame
        grants a quarter of the window or the peer waits.
        """
        if self.was_lost:
            return True
        granted = self.maximum - self.announced
        return self.announced - self.opened < granted and (
            self.is_waiting or granted * _GRANT_SHARE >= self.window
        )

    def is_held_up(self) -> bool:
        """Whether the peer has opened all streams announced to it, and more could be announced."""
        return self.opened == self.announced < self.maximum
