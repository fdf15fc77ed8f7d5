"""Reads the events of a qlog file one by one, without keeping the file in memory.

Floor 6.  Takes qlog 0.3 and later: one JSON document with ``traces`` (aioquic), JSON text
sequences (RFC 7464, our own traces), and a JSON object a line.  A damaged file gives its events
up to the damage; a damaged record of a sequence is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, TextIO, final

import attrs

__all__ = ["MOST_VALUE", "Event", "Reader", "number"]

#: Characters of one event, or of another value, at most.
MOST_VALUE = 4 * 1024 * 1024

_CHUNK = 256 * 1024
_SPACE = " \t\r\n\x1e\ufeff"

#: Milliseconds above which a time is no time: some 30,000 years.
_MOST_TIME = 1e15

#: Texts about the file that are kept.
_MOST_REMARKS = 20

#: The time of an event counts from the one before.
_DELTA_FORMATS = ("delta", "relative_to_previous_event")


class _Damaged(Exception):
    """The text is not JSON here, or ends too early."""


def number(value: object) -> float | None:
    """`value` if it is a finite number of 0 or more, and not absurd; otherwise ``None``."""
    if type(value) is int or type(value) is float:
        return value if 0 <= value <= 1e18 else None
    return None


@attrs.frozen
class Event:
    """One event of a trace."""

    time: float
    """Milliseconds since the first event."""
    name: str
    """Without its category, as ``packet_sent``."""
    data: dict[str, Any]


class _Text:
    """A window on the text of a file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False

    def _fill(self, count: int = 0) -> bool:
        if self._ended:
            return False
        more = self._file.read(max(count, _CHUNK))
        self._ended = not more
        self._text = self._text[self._at :] + more
        self._at = 0
        return not self._ended

    def separator(self) -> str:
        """The character between records; called at the beginning of the file."""
        self._fill()
        return "\x1e" if self._text.startswith("\x1e") else "\n"

    def peek(self) -> str:
        """The next character that is no space; nothing at the end of the file."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _SPACE:
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._fill():
                return ""

    def take(self, wanted: str) -> None:
        """Take the next character, which has to be `wanted`."""
        if self.peek() != wanted:
            raise _Damaged
        self._at += 1

    def value(self) -> Any:
        """Take a whole JSON value."""
        self.peek()
        while True:
            rest = len(self._text) - self._at
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError):
                # It may go on; reading twice as much each time keeps the cost in proportion.
                if rest > MOST_VALUE or not self._fill(rest):
                    raise _Damaged from None
                continue
            # (A number may go on as well.)
            if end == len(self._text) and self._fill():
                continue
            self._at = end
            return value

    def record(self, separator: str) -> tuple[str, bool]:
        """Take the text up to the separator, or the end of the file.

        Returns the text and whether the separator was there.  There is no text for a record
        above the limit.
        """
        searched = 0
        is_too_long = False
        while (end := self._text.find(separator, self._at + searched)) < 0:
            searched = len(self._text) - self._at
            if searched > MOST_VALUE:
                is_too_long = True
                self._at, searched = len(self._text), 0
            if not self._fill():
                text, self._at = self._text[self._at :], len(self._text)
                return "" if is_too_long else text, False
        text, self._at = self._text[self._at : end], end + 1
        return "" if is_too_long else text, True


@final
class Reader:
    """The events of one trace.

    Args:
      file: the text of the file.

    Attributes:
      vantage: ``"client"``, ``"server"``, or what else the file says.
      title: the original destination connection ID, or the file's own title.
      remarks: texts about damage, for the user; complete when all events were read.
    """

    def __init__(self, file: TextIO) -> None:
        self._text = _Text(file)
        self._time_format = ""
        self._first: float | None = None
        self._now = 0.0
        self._count = 0
        self._odd = 0
        self._is_sequence = False
        self.vantage: str = ""
        self.title: str = ""
        self.remarks: list[str] = []

    def events(self) -> Iterator[Event]:
        """All events of the first trace that has any.

        Raises:
          ValueError: the file is no qlog at all.
        """
        separator = self._text.separator()
        try:
            yield from self._document()
            if self._is_sequence:
                yield from self._sequence(separator)
        except _Damaged:
            if not self._count and not self.vantage:
                raise ValueError("this is no qlog file: it is not JSON, or has no trace") from None
            self._remark(f"the file is damaged, or ends too early, after {self._count:,} events")
        if self._odd:
            self._remark(f"{self._odd:,} records that are no events were left out")
        if not self._count and not self.remarks:
            self._remark("the trace has no events")

    def _remark(self, text: str) -> None:
        if len(self.remarks) < _MOST_REMARKS:
            self.remarks.append(text)

    # ------------------------------------------------------------------ the parts of a file

    def _document(self) -> Iterator[Event]:
        """The first value: a whole document, or the header of a sequence."""
        record: dict[str, Any] = {}
        for key in self._keys():
            if key == "traces":
                yield from self._traces()
                if self._count:
                    return
            elif key == "events":
                yield from self._list_of_events()
            else:
                value = self._text.value()
                if key in ("trace", "time", "name", "data"):
                    record[key] = value
        trace = record.get("trace")
        self._is_sequence = isinstance(trace, dict) or "name" in record
        if isinstance(trace, dict):
            self._describe(trace)
        elif self._is_sequence:
            yield from self._event(record)
        elif not self._count and not self.vantage:
            raise _Damaged

    def _traces(self) -> Iterator[Event]:
        """The list of traces, up to the first one with events."""
        for _ in self._parts("[", "]"):
            if self._count:
                self._remark("the file has several traces; this is the first one with events")
                return
            for key in self._keys():
                if key == "events":
                    yield from self._list_of_events()
                else:
                    self._describe({key: self._text.value()})

    def _list_of_events(self) -> Iterator[Event]:
        for _ in self._parts("[", "]"):
            yield from self._event(self._text.value())

    def _sequence(self, separator: str) -> Iterator[Event]:
        """The records after the first one."""
        while self._text.peek():
            text, is_whole = self._text.record(separator)
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                if not is_whole:
                    raise _Damaged from None
                record = None
            yield from self._event(record)

    def _keys(self) -> Iterator[str]:
        """The keys of an object; the caller takes each value."""
        for _ in self._parts("{", "}"):
            key = self._text.value()
            if not isinstance(key, str):
                raise _Damaged
            self._text.take(":")
            yield key

    def _parts(self, begin: str, end: str) -> Iterator[None]:
        """Stop at each part of a list or an object; the caller takes the part."""
        text = self._text
        text.take(begin)
        if text.peek() != end:
            yield
            while text.peek() == ",":
                text.take(",")
                yield
        text.take(end)

    # ------------------------------------------------------------------ records

    def _describe(self, trace: dict[str, Any]) -> None:
        vantage = trace.get("vantage_point")
        if isinstance(vantage, dict):
            self.vantage = str(vantage.get("type", ""))[:40]
        common = trace.get("common_fields")
        if isinstance(common, dict):
            self._time_format = str(common.get("time_format", ""))
            self.title = str(common.get("ODCID", common.get("odcid", self.title)))[:80]
        if isinstance(trace.get("title"), str):
            self.title = trace["title"][:80]

    def _event(self, record: Any) -> Iterator[Event]:
        if not isinstance(record, dict):
            self._odd += 1
            return
        time, name, data = record.get("time"), record.get("name"), record.get("data")
        at = self._at(time)
        if at is None or not isinstance(name, str) or not isinstance(data, dict):
            self._odd += 1
            return
        self._count += 1
        yield Event(at, name.rpartition(":")[2], data)

    def _at(self, time: object) -> float | None:
        """Milliseconds since the first event; events do not go back in time."""
        if type(time) not in (int, float) or not -_MOST_TIME < time < _MOST_TIME:  # type: ignore[operator]
            return None
        value = float(time)  # type: ignore[arg-type]
        if self._first is None:
            self._first = value
        if self._time_format in _DELTA_FORMATS:
            later = self._now + value if self._count else 0.0
        else:
            later = value - self._first
        if math.isfinite(later):
            self._now = min(_MOST_TIME, max(self._now, later))
        return self._now
