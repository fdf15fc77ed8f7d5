"""``phoenix-trio plot``: what a trace tells, and a page that no trace can misuse."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.logger import QuicLogger
from click.testing import CliRunner, Result
from trio.testing import MockClock

from phoenix_trio import TransportConfig
from phoenix_trio.cli.plotting import Reader, Story, tell, write_page
from phoenix_trio.cli.plotting.story import MOST_MARKS, MOST_STREAMS, SHOWN_STREAMS
from phoenix_trio.cli.plotting.svg import ticks
from phoenix_trio.cli.program import program
from phoenix_trio.testing import SimulatedNetwork
from tests.support import connected_pair

from .test_reading import document, event, sequence


def story(*events: Any) -> Story:
    return tell(Reader(io.StringIO(sequence(*events))))


def packet(time: float, *frames: Any, sent: bool = True, size: Any = 100, **header: Any) -> Any:
    return event(
        time,
        f"transport:packet_{'sent' if sent else 'received'}",
        frames=list(frames),
        header={"packet_type": "1RTT", "packet_number": 1, **header},
        raw={"length": size},
    )


def stream(stream_id: Any, length: Any) -> dict[str, Any]:
    return {"frame_type": "stream", "stream_id": stream_id, "length": length, "offset": 0}


def page(told: Story, **more: Any) -> str:
    texts = {"name": "a.sqlog", "title": "abcd", "vantage": "client", "remarks": []}
    return write_page(told, **(texts | more))


class Elements(HTMLParser):
    """Counts elements, and keeps the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


# ------------------------------------------------------------------ what a trace tells


def test_figures_are_those_of_the_events() -> None:
    told = story(
        event(0, "recovery:metrics_updated", cwnd=12_000, bytes_in_flight=5, latest_rtt=20.5),
        packet(1, stream(0, 1000), stream(4, 1), size=1100),
        packet(2, stream(0, 30), sent=False, size=50),
        event(3, "recovery:packet_lost", packet_number=1),
        event(10, "recovery:metrics_updated", cwnd=6_000, smoothed_rtt=21, min_rtt=20),
    )
    assert told.window.points() == [(0, 12_000), (10, 6_000)]
    assert told.in_flight.points() == [(0, 5)]
    assert told.rtt_latest.points() == [(0, 20.5)]
    assert told.rtt_smoothed.points() == [(10, 21)]
    assert told.rtt_min.points() == [(10, 20)]
    assert (told.sent.total, told.received.total, told.lost.total) == (1, 1, 1)
    assert (told.bytes_sent, told.bytes_received, told.duration) == (1100, 50, 10)
    assert [(n, c.total) for n, c in told.streams_sent.shown()] == [
        ("stream 0", 1000),
        ("stream 4", 1),
    ]
    assert [(n, c.total) for n, c in told.streams_received.shown()] == [("stream 0", 30)]


def test_what_happened_is_marked_once_and_in_order() -> None:
    close = {"frame_type": "connection_close", "raw_error_code": 7, "reason": "done"}
    challenge = {"frame_type": "path_challenge", "data": "00"}
    told = story(
        packet(0, {"frame_type": "handshake_done"}, sent=False),
        packet(5, {"frame_type": "handshake_done"}, sent=False),
        event(10, "connectivity:mtu_updated", old=1200, new=1452),
        packet(20, challenge, dcid="aa"),
        packet(30, challenge, dcid="bb"),
        event(40, "security:key_updated", key_type="server_1rtt_secret", trigger="remote_update"),
        event(40, "security:key_updated", key_type="client_1rtt_secret", trigger="remote_update"),
        event(41, "security:key_updated", key_type="client_1rtt_secret", trigger="tls"),
        packet(50, close, dcid="bb"),
        packet(60, close, dcid="bb"),
    )
    assert [(mark.time, mark.text) for mark in told.marks] == [
        (0, "handshake confirmed"),
        (10, "packets of up to 1452 bytes"),
        (20, "a path is validated"),
        (30, "another connection ID of the peer (migration)"),
        (40, "key update by the peer"),
        (50, "closed here, code 7: done"),
    ]


def test_larger_packets_are_marked_where_the_trace_has_no_event_for_them() -> None:
    told = story(
        packet(0, stream(0, 1), size=1200),
        packet(1, {"frame_type": "ping"}, {"frame_type": "padding"}, size=1452),
        packet(2, stream(0, 1), size=1452),
        packet(3, stream(0, 1), size=1452),
    )
    assert [(mark.time, mark.text) for mark in told.marks] == [(2, "first packet of 1452 bytes")]


def test_of_many_streams_the_largest_are_shown_and_no_byte_is_lost() -> None:
    count = MOST_STREAMS * 3
    packets = [packet(n, stream(4 * n, 10)) for n in range(count)]
    told = story(packet(0, stream(4000, 5000)), *packets, packet(count, stream(0, 10)))
    shown = told.streams_sent.shown()
    assert len(shown) == SHOWN_STREAMS + 1
    assert ("stream 4000", 5000) in [(name, counter.total) for name, counter in shown]
    assert sum(counter.total for _, counter in shown) == 5000 + 10 * (count + 1)


@pytest.mark.parametrize("bad", [-1, "5", None, [], {}, True, float("nan"), float("inf"), 1e300])
def test_values_that_make_no_sense_are_left_out(bad: Any) -> None:
    told = story(
        event(0, "recovery:metrics_updated", cwnd=bad, latest_rtt=bad, other=bad),
        packet(1, stream(0, bad), stream(bad, 5), {"frame_type": bad}, bad, size=bad, dcid=bad),
        event(2, "transport:packet_sent", header=bad, frames=bad, raw=bad),
        event(3, "security:key_updated", key_type=bad, trigger=bad),
        event(4, "connectivity:mtu_updated", new=bad),
    )
    assert told.window.points() == []
    assert told.bytes_sent == 0
    assert told.sent.total == 2
    assert told.marks == []
    assert "<svg" in page(told)


# ------------------------------------------------------------------ the page


def test_no_text_of_a_trace_becomes_markup() -> None:
    evil = '"><script>alert(1)</script><img src=x onerror="y">\x00\u202e'
    told = story(packet(0, {"frame_type": "connection_close", "reason": evil, "error_code": evil}))
    safe = page(story(packet(0, {"frame_type": "connection_close", "reason": "x"})))
    text = page(told, name=evil, title=evil, vantage=evil, remarks=[evil])
    found = Elements(text)
    assert sorted(set(found.tags)) == sorted({*Elements(safe).tags, "p"})
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert found.text.count("<script>alert(1)") >= 4
    assert "\u202e" not in text
    assert "\x00" not in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(story(packet(0, stream(0, 5)), packet(9, stream(0, 5))))
    assert "default-src 'none'" in text
    assert not re.findall(r"https?:|//[a-z]|url\(|@import|<link|<script", text)


def test_the_page_of_a_long_and_wild_trace_is_small_and_complete() -> None:
    events = []
    for n in range(6000):
        metrics = {"cwnd": n * 7919 % 100_000, "bytes_in_flight": n * 104_729 % 90_000}
        metrics |= {"latest_rtt": n % 97, "smoothed_rtt": n % 89, "min_rtt": n % 83}
        events.append(event(n * 3.7, "recovery:metrics_updated", **metrics))
        events.append(packet(n * 3.7, stream(n % 300 * 4, 1000), dcid=str(n % 7)))
        events.append(event(n * 3.7, "connectivity:mtu_updated", new=n))
    told = story(*events)
    text = page(told)
    assert len(text.encode()) < 500_000
    assert len(told.marks) == MOST_MARKS
    assert told.marks_left_out > 5000
    assert max(value for _, value in told.window.points()) == max(
        each["data"]["cwnd"] for each in events[::3]
    )


def test_an_empty_trace_has_a_page() -> None:
    text = page(story(), remarks=["the trace has no events"])
    assert "the trace has no events" in text
    assert text.count("The trace does not tell.") == 6


@pytest.mark.parametrize("top", [0, 1e-9, 0.3, 1, 7, 1452, 99_999, 3.3e12, 1e18])
def test_axes_have_a_few_round_values_up_to_the_largest(top: float) -> None:
    steps = ticks(top)
    assert len(steps) <= 5
    assert steps[0] == 0
    assert steps[-1] >= top * 0.999
    assert steps[-1] <= top * 2.5
    assert ticks(top, smallest=1.0) == [round(step) for step in ticks(top, smallest=1.0)]


# ------------------------------------------------------------------ whole files


def plot(*arguments: str) -> Result:
    return CliRunner().invoke(program, ["plot", *arguments])


async def test_our_own_traces_are_drawn(tmp_path: Path, autojump_clock: MockClock) -> None:
    config = TransportConfig(qlog_dir=str(tmp_path))
    network = SimulatedNetwork(delay=0.01, loss=0.02, seed=3)
    async with connected_pair(network, config=config) as (client, server):
        stream = await client.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(300_000))
            other = await server.accept_stream()
            received = 0
            while received < 300_000:
                received += len(await other.receive_some())
        await client.update_keys()
        await client.ping()
        expected = client.statistics()
    (trace,) = tmp_path.glob("*-client.sqlog")
    with open(trace, encoding="utf-8") as file:
        reader = Reader(file)
        told = tell(reader)
    assert reader.remarks == []
    assert reader.vantage == "client"
    assert told.sent.total >= expected.packets_sent
    assert told.lost.total >= expected.packets_lost > 0
    ((name, counter),) = told.streams_sent.shown()
    assert name == f"stream {stream.id}"
    assert counter.total >= 300_000
    kinds = {mark.kind for mark in told.marks}
    assert {"handshake", "key", "size", "close"} <= kinds
    result = plot(str(trace))
    assert result.exit_code == 0, result.output
    assert "stream" in trace.with_suffix(".html").read_text()


def test_a_trace_of_aioquic_is_drawn(tmp_path: Path) -> None:
    from aioquic.quic.connection import QuicConnection

    logger = QuicLogger()
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True, quic_logger=logger))
    connection.connect(("127.0.0.1", 4433), now=0.0)
    assert connection.datagrams_to_send(now=0.0)
    path = tmp_path / "a.qlog"
    path.write_text(json.dumps(logger.to_dict()))
    result = plot(str(path), "-o", str(tmp_path / "out.html"))
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out.html").read_text()
    assert re.search(r"<dt>sent</dt><dd>[12] packets", text)
    assert "client" in text


def test_a_truncated_file_is_drawn_with_a_remark(tmp_path: Path) -> None:
    path = tmp_path / "a.qlog"
    path.write_text(document([packet(n, stream(0, 1)) for n in range(50)])[:3000])
    result = plot(str(path))
    assert result.exit_code == 0
    assert "ends too early, after" in result.output
    assert "ends too early, after" in (tmp_path / "a.html").read_text()


def test_a_file_that_is_no_qlog_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.qlog"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    result = plot(str(path))
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "no qlog" in result.output
    assert not (tmp_path / "a.html").exists()


def test_the_page_never_replaces_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(sequence(event(1)))
    for more in ([], ["--output", str(path)]):
        result = plot(str(path), *more)
        assert result.exit_code == 1
        assert "would replace the trace" in result.output
    assert path.read_text() == sequence(event(1))
