"""How many streams of one kind each side may open (RFC 9000 section 4.6).

Floor 1, sans-IO.  Bidirectional and one-way streams are counted apart.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LocalStreams", "PeerStreams"]


#: MAX_STREAMS is worth a frame once this share of the window can be granted.
_GRANT_SHARE: Final = 4  # a quarter


class LocalStreams:
    """The streams of one kind which this side opens."""

    __slots__ = ("opened", "permitted", "wanted")

    def __init__(self) -> None:
        self.opened: int = 0
        """Streams opened so far."""
        self.permitted: int = 0
        """Streams which the peer permits to open in all."""
        self.wanted: int = 0
        """Calls which wait for a stream."""

    def is_blocked(self) -> bool:
        """Whether a call waits for a stream which the peer does not permit."""
        return self.wanted > 0 and self.opened >= self.permitted


class PeerStreams:
    """The streams of one kind which the peer opens.

    The limit follows the application, not the wire: a stream counts until the application
    is done with it, so a peer cannot open and end streams without end that nothing reads.

    Args:
      maximum: streams which are announced in the transport parameters.
    """

    __slots__ = ("announced", "is_waiting", "maximum", "opened", "was_lost", "window")

    def __init__(self, maximum: int) -> None:
        self.window: int = maximum
        """Streams which it may have open at a time."""
        self.maximum: int = maximum
        """Streams which the peer may open in all."""
        self.announced: int = maximum
        """The limit of which it was told."""
        self.opened: int = 0
        """Streams which it has opened."""
        self.was_lost: bool = False
        """Whether the frame with the newest limit was lost."""
        self.is_waiting: bool = False
        """Whether the peer says, or seems, to wait for a stream: no grant is too small."""

    def is_due(self) -> bool:
        """Whether MAX_STREAMS is worth a frame.

        It is once the peer has fewer streams left to open than the frame grants, and the
        frame grants a quarter of the window or the peer waits.
        """
        if self.was_lost:
            return True
        granted = self.maximum - self.announced
        return self.announced - self.opened < granted and (
            self.is_waiting or granted * _GRANT_SHARE >= self.window
        )

    def is_held_up(self) -> bool:
        """Whether the peer has opened all streams of which it knows, and not all it may."""
        return self.opened == self.announced < self.maximum
