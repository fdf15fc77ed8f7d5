"""Turns the events of a trace into figures over time, and marks of what happened.

Floor 6.  The values come from a stranger: what is not a sensible number or text is left out.
"""

from __future__ import annotations

from typing import Any, final

import attrs

from .reading import Event, Reader, number
from .timeline import Counter, Gauge, Timeline

__all__ = ["Mark", "Story", "StreamFigures", "tell"]

#: Streams of one direction that are counted by themselves, and that are shown.
MOST_STREAMS = 200
SHOWN_STREAMS = 7

MOST_MARKS = 100
_MOST_FRAMES = 10_000
_MOST_REASON = 200

#: Milliseconds within which the same mark counts once.
_SAME_MOMENT = {"path": 1000.0, "key": 1.0}

#: The largest UDP payload that every path carries (RFC 9000 section 14).
_SMALLEST_LARGEST = 1200


@attrs.frozen
class Mark:
    """Something that happened once."""

    time: float
    """Milliseconds since the first event."""
    kind: str
    """A word for the style of the mark."""
    text: str
    """For people; may hold text of a stranger."""


@final
class StreamFigures:
    """Stream bytes in packets of one direction, repeated ones included, for each stream.

    The streams with most bytes are counted by themselves; the others together.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._streams: dict[int, Counter] = {}
        self._others = timeline.counter()
        self._others_joined = 0

    def add(self, stream_id: int, time: float, count: float) -> None:
        """Count bytes of a stream."""
        counter = self._streams.get(stream_id)
        if counter is None:
            if len(self._streams) == MOST_STREAMS:
                smallest = min(self._streams, key=lambda each: self._streams[each].total)
                self._join(smallest)
            counter = self._streams[stream_id] = self._timeline.counter()
        counter.add(time, count)

    def _join(self, stream_id: int) -> None:
        counter = self._streams.pop(stream_id)
        self._others.add_all(counter)
        self._timeline.forget(counter)
        self._others_joined += 1

    def shown(self) -> list[tuple[str, Counter]]:
        """The streams with most bytes, and the others as one; with their names."""
        order = sorted(self._streams, key=lambda each: (-self._streams[each].total, each))
        for stream_id in order[SHOWN_STREAMS:]:
            self._join(stream_id)
        named = [(f"stream {each}", self._streams[each]) for each in sorted(self._streams)]
        return [*named, ("other streams", self._others)] if self._others_joined else named


@attrs.define
class Story:
    """The figures of one trace."""

    timeline: Timeline = attrs.field(factory=Timeline)
    duration: float = 0.0
    """Milliseconds from the first event to the last one."""
    events: int = 0
    window: Gauge = attrs.field(init=False)
    in_flight: Gauge = attrs.field(init=False)
    rtt_latest: Gauge = attrs.field(init=False)
    rtt_smoothed: Gauge = attrs.field(init=False)
    rtt_min: Gauge = attrs.field(init=False)
    sent: Counter = attrs.field(init=False)
    received: Counter = attrs.field(init=False)
    lost: Counter = attrs.field(init=False)
    bytes_sent: float = 0.0
    bytes_received: float = 0.0
    streams_sent: StreamFigures = attrs.field(init=False)
    streams_received: StreamFigures = attrs.field(init=False)
    marks: list[Mark] = attrs.field(factory=list)
    marks_left_out: int = 0

    def __attrs_post_init__(self) -> None:
        line = self.timeline
        self.window, self.in_flight = line.gauge(), line.gauge()
        self.rtt_latest, self.rtt_smoothed, self.rtt_min = line.gauge(), line.gauge(), line.gauge()
        self.sent, self.received, self.lost = line.counter(), line.counter(), line.counter()
        self.streams_sent, self.streams_received = StreamFigures(line), StreamFigures(line)


def tell(reader: Reader) -> Story:
    """The figures of all events of a trace.

    Raises:
      ValueError: the file is no qlog.
    """
    teller = _Teller()
    for event in reader.events():
        teller.take(event)
    return teller.finish()


class _Teller:
    def __init__(self) -> None:
        self.story = Story()
        self._latest: dict[str, float] = {}
        self._once: set[str] = set()
        self._peer_cid: str | None = None
        self._largest: float = _SMALLEST_LARGEST
        self._growth: list[Mark] = []
        self._gauges = {
            "cwnd": self.story.window,
            "congestion_window": self.story.window,
            "bytes_in_flight": self.story.in_flight,
            "latest_rtt": self.story.rtt_latest,
            "smoothed_rtt": self.story.rtt_smoothed,
            "min_rtt": self.story.rtt_min,
        }

    def take(self, event: Event) -> None:
        story, time, data = self.story, event.time, event.data
        story.events += 1
        story.duration = time
        match event.name:
            case "packet_sent":
                story.sent.add(time)
                story.bytes_sent += self._packet(time, data, is_sent=True)
            case "packet_received":
                story.received.add(time)
                story.bytes_received += self._packet(time, data, is_sent=False)
            case "packet_lost":
                story.lost.add(time)
            case "metrics_updated":
                for name, value in data.items():
                    gauge, figure = self._gauges.get(name), number(value)
                    if gauge is not None and figure is not None:
                        gauge.add(time, figure)
            case "key_updated":
                self._key_update(time, data)
            case "mtu_updated":
                size = number(data.get("new"))
                if size is not None:
                    self._once.add("mtu_updated")
                    self._mark(time, "size", f"packets of up to {size:.0f} bytes")

    def finish(self) -> Story:
        if "mtu_updated" not in self._once:
            for mark in self._growth:
                self._mark(mark.time, mark.kind, mark.text)
        self.story.marks.sort(key=lambda mark: mark.time)
        return self.story

    # ------------------------------------------------------------------ packets

    def _packet(self, time: float, data: dict[str, Any], *, is_sent: bool) -> float:
        """Take a packet; returns its bytes."""
        header, raw = _dict(data.get("header")), _dict(data.get("raw"))
        size = number(raw.get("length")) or number(header.get("packet_size")) or 0.0
        kind = str(header.get("packet_type", ""))[:20]
        if kind.lower() == "retry":
            self._mark_once(time, "retry", "Retry: the server wants the address confirmed")
        frames = data.get("frames")
        has_data = False
        if isinstance(frames, list):
            for frame in frames[:_MOST_FRAMES]:
                has_data |= self._frame(time, _dict(frame), is_sent=is_sent)
        if is_sent and kind.lower() in ("1rtt", "0rtt"):
            self._look_at_header(time, header)
            if has_data and size > self._largest:
                self._largest = size
                if len(self._growth) < MOST_MARKS:
                    text = f"first packet of {size:.0f} bytes"
                    self._growth.append(Mark(time, "size", text))
        return size

    def _frame(self, time: float, frame: dict[str, Any], *, is_sent: bool) -> bool:
        """Take a frame; returns whether it carries data of the application."""
        match frame.get("frame_type"):
            case "stream":
                stream_id, length = frame.get("stream_id"), number(frame.get("length"))
                if type(stream_id) is int and 0 <= stream_id < 1 << 62 and length is not None:
                    story = self.story
                    figures = story.streams_sent if is_sent else story.streams_received
                    figures.add(stream_id, time, length)
                return True
            case "datagram":
                return True
            case "handshake_done":
                self._mark_once(time, "handshake", "handshake confirmed")
            case "path_challenge":
                self._mark(time, "path", "a path is validated")
            case "connection_close":
                reason = str(frame.get("reason", ""))[:_MOST_REASON]
                code = str(frame.get("raw_error_code", frame.get("error_code", "?")))[:40]
                by = "closed here" if is_sent else "closed by the peer"
                text = f"{by}, code {code}" + (f": {reason}" if reason else "")
                if by not in self._once:
                    self._once.add(by)
                    self._mark(time, "close", text)
        return False

    def _look_at_header(self, time: float, header: dict[str, Any]) -> None:
        cid = header.get("dcid")
        if isinstance(cid, str) and len(cid) <= 40:
            if self._peer_cid is not None and cid != self._peer_cid:
                self._mark(time, "path", "another connection ID of the peer (migration)")
            self._peer_cid = cid

    def _key_update(self, time: float, data: dict[str, Any]) -> None:
        kind, trigger = str(data.get("key_type", "")), data.get("trigger")
        if "1rtt" in kind and trigger in ("local_update", "remote_update"):
            side = "this side" if trigger == "local_update" else "the peer"
            self._mark(time, "key", f"key update by {side}")

    # ------------------------------------------------------------------ marks

    def _mark_once(self, time: float, kind: str, text: str) -> None:
        if kind not in self._once:
            self._once.add(kind)
            self._mark(time, kind, text)

    def _mark(self, time: float, kind: str, text: str) -> None:
        before = self._latest.get(text)
        if before is not None and time - before <= _SAME_MOMENT.get(kind, 0.0):
            return
        if len(self.story.marks) >= MOST_MARKS:
            self.story.marks_left_out += 1
            return
        if len(self._latest) < 10 * MOST_MARKS:
            self._latest[text] = time
        self.story.marks.append(Mark(time, kind, text))


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
