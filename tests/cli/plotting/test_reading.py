"""Reading qlog files: ours, aioquic's, damaged ones and hostile ones."""

from __future__ import annotations

import io
import json
import time
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phoenix_trio.cli.plotting import reading
from phoenix_trio.cli.plotting.reading import Event, Reader
from tests.support import examples


def event(time: Any, name: str = "recovery:x", **data: Any) -> dict[str, Any]:
    return {"time": time, "name": name, "data": data}


HEADER = {
    "qlog_format": "JSON-SEQ",
    "qlog_version": "0.3",
    "trace": {
        "common_fields": {"ODCID": "abcd", "time_format": "relative"},
        "vantage_point": {"type": "client"},
    },
}


def sequence(*events: Any, header: Any = HEADER) -> str:
    return "".join(f"\x1e{json.dumps(each)}\n" for each in (header, *events))


def document(*traces: list[Any], **common: Any) -> str:
    return json.dumps(
        {
            "qlog_format": "JSON",
            "qlog_version": "0.3",
            "traces": [
                {
                    "common_fields": {"ODCID": "abcd", **common},
                    "events": events,
                    "vantage_point": {"type": "server"},
                }
                for events in traces
            ],
        }
    )


def read(text: str) -> tuple[list[Event], Reader]:
    reader = Reader(io.StringIO(text))
    return list(reader.events()), reader


TWO = [event(5.0, a=1), event(7.5, "transport:packet_sent", b="\u2028")]
EXPECTED = [Event(0.0, "x", {"a": 1}), Event(2.5, "packet_sent", {"b": "\u2028"})]


def test_a_sequence_is_read() -> None:
    events, reader = read(sequence(*TWO))
    assert events == EXPECTED
    assert (reader.vantage, reader.title, reader.remarks) == ("client", "abcd", [])


def test_a_document_is_read() -> None:
    events, reader = read(document(TWO))
    assert events == EXPECTED
    assert (reader.vantage, reader.title, reader.remarks) == ("server", "abcd", [])


def test_an_object_a_line_is_read() -> None:
    assert read(sequence(*TWO).replace("\x1e", ""))[0] == EXPECTED
    assert read("".join(json.dumps(each) + "\n" for each in TWO))[0] == EXPECTED


def test_a_document_with_spaces_is_read() -> None:
    text = json.dumps(json.loads(document(TWO)), indent=3)
    assert read(f"\ufeff{text}\n")[0] == EXPECTED


def test_times_that_count_from_the_event_before_are_added_up() -> None:
    text = document([event(5), event(2), event(2)], time_format="delta")
    assert [each.time for each in read(text)[0]] == [0.0, 2.0, 4.0]


def test_events_do_not_go_back_in_time() -> None:
    assert [each.time for each in read(sequence(event(5), event(1), event(6)))[0]] == [0, 0, 1]


def test_a_number_is_read_whole_wherever_the_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"size": 12345, ' + document(TWO)[1:]
    for chunk in range(1, 30):
        monkeypatch.setattr(reading, "_CHUNK", chunk)
        assert read(text)[0] == EXPECTED


@given(cut=st.integers(0, 700), chunk=st.integers(1, 50), in_document=st.booleans())
@examples(200)
def test_a_file_cut_off_anywhere_gives_its_whole_events(
    cut: int, chunk: int, in_document: bool
) -> None:
    many = [event(number, text="x" * number) for number in range(6)]
    text = document(many) if in_document else sequence(*many)
    text = text[:cut]
    whole = [number for number, each in enumerate(many) if json.dumps(each) in text]
    before, reading._CHUNK = reading._CHUNK, chunk
    reader = Reader(io.StringIO(text))
    times = []
    try:
        with nullcontext() if whole else suppress(ValueError):
            times += [each.time for each in reader.events()]
    finally:
        reading._CHUNK = before
    assert times == whole
    if whole and len(whole) < len(many) and not text.rstrip("\x1e\n").endswith("}"):
        assert reader.remarks


def test_a_damaged_record_of_a_sequence_is_left_out() -> None:
    text = sequence(event(1), "HERE", event(3)).replace('"HERE"', '{"time": 2, "na')
    events, reader = read(text)
    assert [each.time for each in events] == [0.0, 2.0]
    assert reader.remarks == ["1 records that are no events were left out"]


@pytest.mark.parametrize(
    "record",
    [
        *(5, None, [], "text", {}, {"time": 1}, {"time": 1, "name": "x"}),
        *({"time": 1, "name": 5, "data": {}}, {"time": 1, "name": "x", "data": []}),
        *(event("1"), event(True), event(float("nan")), event(float("inf")), event(10**400)),
    ],
)
def test_what_is_no_event_is_counted(record: Any) -> None:
    events, reader = read(sequence(event(1), record, event(3)))
    assert [each.time for each in events] == [0.0, 2.0]
    assert "left out" in reader.remarks[0]


@pytest.mark.parametrize(
    "text", ["", " \n", "x", "\x89PNG\r\n", "[]", "5", "{}", '{"a": 1}', "[" * 100_000, "{" * 5]
)
def test_other_files_are_no_qlog(text: str) -> None:
    with pytest.raises(ValueError, match="no qlog file"):
        read(text)


def test_of_several_traces_the_first_one_with_events_is_read() -> None:
    events, reader = read(document([], TWO, [event(1)] * 5))
    assert events == EXPECTED
    assert "several traces" in reader.remarks[0]


def test_a_trace_without_events_is_told() -> None:
    events, reader = read(sequence())
    assert events == []
    assert reader.remarks == ["the trace has no events"]


@pytest.mark.parametrize("bad", ["{", "[[", '"', "x", '{"a":'])
def test_many_damaged_records_cost_time_in_proportion(bad: str) -> None:
    text = sequence(event(1)).replace("\x1e", "") + f"{bad}\n" * 50_000
    start = time.process_time()
    events, reader = read(text)
    assert time.process_time() - start < 2
    assert len(events) == 1
    assert "50,000 records" in "".join(reader.remarks)


def test_a_record_above_the_limit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_VALUE", 1000)
    monkeypatch.setattr(reading, "_CHUNK", 100)
    events, reader = read(sequence(event(1), event(2, text="x" * 5000), event(3)))
    assert [each.time for each in events] == [0.0, 2.0]
    assert reader.remarks == ["1 records that are no events were left out"]


class Endless(io.TextIOBase):
    """A file that goes on with the same text, and counts how much was read."""

    def __init__(self, start: str, more: str) -> None:
        self._start = start
        self._more = more
        self.size = 0

    def read(self, size: int | None = -1) -> str:
        assert size is not None
        assert size > 0
        text, self._start = self._start or self._more * (size // len(self._more) or 1), ""
        self.size += len(text)
        return text


def test_an_endless_value_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_VALUE", 100_000)
    monkeypatch.setattr(reading, "_CHUNK", 1000)
    start = f'{{"traces": [{{"events": [{json.dumps(event(1))}, {{"time": "'
    file: Any = Endless(start, "x")
    reader = Reader(file)
    assert [each.time for each in reader.events()] == [0.0]
    assert "damaged" in reader.remarks[0]
    assert file.size < 500_000


def test_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file: Any = Endless('{"traces": [{"events": [', json.dumps(event(1)) + ",")
    reader = Reader(file)
    events = reader.events()
    for _ in range(20_000):
        next(events)
    assert file.size > 1_000_000
    assert len(reader._text._text) <= 2 * reading._CHUNK
