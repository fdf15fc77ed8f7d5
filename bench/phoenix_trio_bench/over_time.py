"""A transfer over time: acknowledged bytes, round-trip time and congestion window.

A :class:`Recorder` reads the statistics of connections at a bounded rate and keeps a bounded
number of moments.  It costs processor time, so no measured row runs beside one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import attrs
import trio

import phoenix_trio

__all__ = ["LIMIT", "Moment", "Recorder", "Timeline"]

#: The most moments of one timeline.
LIMIT = 400

_INTERVAL = 0.002


@attrs.frozen
class Moment:
    """The state of a transfer at one moment; several connections count together."""

    seconds: float
    """Since the beginning."""
    acknowledged: int
    """Stream bytes that the peer has acknowledged since the beginning."""
    rtt: float | None
    """The smoothed round-trip time in seconds, the mean of the connections."""
    congestion_window: int
    """Bytes, the sum of the connections."""
    packets_lost: int
    """Since the beginning."""


@attrs.frozen(kw_only=True)
class Timeline:
    """One transfer over time."""

    name: str
    moments: list[Moment] = attrs.field(factory=list)
    bandwidth: float | None = None
    """Of the link, in bits a second; ``None``: it has no limit, or an unknown one."""
    note: str = ""
    """Why there are no moments."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON file has it."""
        return {
            "name": self.name,
            "bandwidth": self.bandwidth,
            "note": self.note,
            "columns": [field.name for field in attrs.fields(Moment)],
            "moments": [list(attrs.astuple(moment)) for moment in self.moments],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The opposite of :meth:`to_json`.

        Raises:
          KeyError: something is missing.
          TypeError: something has another form.
        """
        return cls(
            name=content["name"],
            bandwidth=content["bandwidth"],
            note=content["note"],
            moments=[Moment(*moment) for moment in content["moments"]],
        )


class Recorder:
    """Records moments of connections, from its creation on.

    Args:
      connections: those of one transfer, on the sending side.
    """

    def __init__(self, connections: Sequence[phoenix_trio.QuicConnection]) -> None:
        self._connections = connections
        self._started = trio.current_time()
        self._interval = _INTERVAL
        self._before = self._counters()
        self._moments: list[Moment] = []

    def _counters(self) -> tuple[int, int]:
        counters = [connection.statistics() for connection in self._connections]
        return (
            sum(each.stream_bytes_acknowledged for each in counters),
            sum(each.packets_lost for each in counters),
        )

    def take(self) -> None:
        """Record this moment.  Beyond :data:`LIMIT`, every second moment is dropped."""
        counters = [connection.statistics() for connection in self._connections]
        times = [each.rtt_smoothed for each in counters if each.rtt_smoothed is not None]
        acknowledged, lost = self._before
        if len(self._moments) >= LIMIT:
            del self._moments[1::2]
            self._interval *= 2
        self._moments.append(
            Moment(
                seconds=round(trio.current_time() - self._started, 6),
                acknowledged=sum(each.stream_bytes_acknowledged for each in counters)
                - acknowledged,
                rtt=round(sum(times) / len(times), 7) if times else None,
                congestion_window=sum(each.congestion_window for each in counters),
                packets_lost=sum(each.packets_lost for each in counters) - lost,
            )
        )

    async def run(self) -> None:
        """Record until cancelled."""
        while True:
            self.take()
            await trio.sleep(self._interval)

    def moments(self) -> list[Moment]:
        """The moments until the last acknowledgement; later ones show only an idle connection."""
        moments = list(self._moments)
        while len(moments) > 1 and moments[-1].acknowledged == moments[-2].acknowledged:
            del moments[-1]
        return moments
