"""The matrix's own tools: the relay's faults happen, and no proof holds without its event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import attrs
import pytest
import trio

from tests.engine_access import write_key_log
from tests.support import EnginePair, Side

from .cases import CASES, Evidence
from .relay import LARGEST, Faults, Record, Relay
from .wire import Wire

#: Cases whose proof is more than a handshake on the wire.
DEMANDING = {
    "retry": "no Retry packet was sent",
    "resumption": "1 handshakes instead of two",
    "0-RTT": "1 handshakes instead of two",
    "key update": "key phases to the server: [0], to the client: [0]",
    "ChaCha20": "cipher suites: ",
    "v2": "Handshake packets of versions [1]",
    "amplification limit": "the server's flight was ",
    "handshake loss": "1 of 2 handshakes were seen",
    "handshake corruption": "1 of 2 handshakes were seen",
    "transfer corruption": "nothing was corrupted",
    "long RTT": "the server answered after 0.",
    "HTTP/3": "application protocols: ['hq-interop']",
    "transfer loss": "nothing was lost",
    "blackhole": "the transfer was over before the blackout",
    "rebind port": "the transfer was over before the rebinding",
    "migration": "the client did not move",
    "ECN": "the client marked 0% of its datagrams",
}


class Recorded(EnginePair):
    """A pair of engines whose wire is recorded as a relay would."""

    def __init__(self, key_log: TextIO) -> None:
        self.records: list[Record] = []
        super().__init__()
        self.drop = self.record
        write_key_log(self.client.engine, key_log)

    def record(self, destination: Side, data: bytes) -> bool:
        is_server = destination is not self.client
        self.records.append(
            Record(
                self.now,
                is_server,
                client=0,
                path=0,
                size=len(data),
                ecn=0,
                passed=True,
                corrupted=False,
                head=data,
            )
        )
        return False

    def send(self, size: int) -> None:
        stream_id = self.client.engine.open_stream(unidirectional=False)
        self.client.engine.write(stream_id, bytes(size), end_stream=True)
        self.run(1)
        assert self.server is not None
        self.server.engine.write(stream_id, bytes(size), end_stream=True)
        self.run(1)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Recorded]:
    with open(tmp_path / "keys.log", "w") as key_log:
        found = Recorded(key_log)
        found.connect()
        found.send(20_000)
        yield found


def evidence(pair: Recorded, tmp_path: Path) -> Evidence:
    return Evidence(
        wire=Wire(pair.records, tmp_path / "keys.log"),
        ours=[{"early_data_accepted": True, "ecn_validated": True, "alpn": "hq-interop"}],
        role="server",
        files=2,
        bytes_received=20_000,
        rebindings=0,
    )


def test_the_wire_shows_what_the_server_chose(pair: Recorded, tmp_path: Path) -> None:
    wire = evidence(pair, tmp_path).wire
    (hello,) = wire.server_hellos
    assert hello.cipher_suite in (0x1301, 0x1302, 0x1303)
    assert not hello.resumed
    assert 0 < wire.most_amplified <= 3


@pytest.mark.parametrize(("name", "reason"), DEMANDING.items())
def test_a_plain_transfer_proves_no_other_case(
    name: str, reason: str, pair: Recorded, tmp_path: Path
) -> None:
    missing = CASES[name].proof(evidence(pair, tmp_path))
    assert missing is not None
    assert missing.startswith(reason)


def test_a_key_update_shows_in_both_key_phases(pair: Recorded, tmp_path: Path) -> None:
    pair.client.engine.update_keys()
    pair.send(20_000)
    assert CASES["key update"].proof(evidence(pair, tmp_path)) is None


def test_more_than_three_times_what_came_is_no_good_cell(pair: Recorded, tmp_path: Path) -> None:
    first = next(index for index, r in enumerate(pair.records) if not r.to_server)
    answer = attrs.evolve(pair.records[first], size=4_000)
    pair.records.insert(first, answer)
    missing = CASES["amplification limit"].proof(evidence(pair, tmp_path))
    assert missing is not None
    assert "times what it had received" in missing


async def echo(server: trio.socket.SocketType) -> None:
    while True:
        data, address = await server.recvfrom(65_535)
        await server.sendto(data, address)


async def pass_through(faults: Faults, count: int, size: int = 100) -> tuple[Relay, list[bytes]]:
    """Send numbered datagrams to an echo server through a relay; returns those that came back."""
    came: list[bytes] = []
    # A machine under load is slow, but only drops keep datagrams from coming at all.
    patience = 0.05 if faults.loss or size > LARGEST else 5.0
    server = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    client = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    with server, client:
        await server.bind(("127.0.0.1", 0))
        relay = Relay(faults, host="127.0.0.1", server_port=server.getsockname()[1], seed=7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, server)
            await nursery.start(relay.run)
            for number in range(count):
                await client.sendto(bytes([number]) + bytes(size - 1), ("127.0.0.1", relay.port))
                with trio.move_on_after(patience):
                    came.append(await client.recv(65_535))
            nursery.cancel_scope.cancel()
    return relay, came


async def test_the_relay_passes_everything_and_records_it() -> None:
    relay, came = await pass_through(Faults(delay=0.001), 20)
    assert [data[0] for data in came] == list(range(20))
    assert [record.to_server for record in relay.records] == [True, False] * 20
    assert all(record.passed for record in relay.records)


async def test_the_relay_loses_a_share_but_never_many_in_a_row() -> None:
    relay, came = await pass_through(Faults(loss=0.5, burst=3), 60)
    assert 5 < len(came) < 50
    lost = "".join("." if r.passed else "x" for r in relay.records if r.to_server)
    assert "xxxx" not in lost


async def test_the_relay_flips_one_bit() -> None:
    relay, came = await pass_through(Faults(corrupt=0.5), 40)
    assert len(came) == 40
    changed = [data for number, data in enumerate(came) if data != bytes([number]) + bytes(99)]
    assert changed
    assert any(record.corrupted for record in relay.records)


async def test_the_relay_drops_what_no_ethernet_carries() -> None:
    relay, came = await pass_through(Faults(), 1, size=LARGEST + 1)
    assert came == []
    assert not relay.records[0].passed


async def test_the_relay_shows_the_server_a_new_address() -> None:
    relay, came = await pass_through(Faults(delay=0.01, rebind_every=0.05, rebind_address=True), 12)
    assert len(came) == 12
    assert relay.rebindings >= 2
    assert len({record.path for record in relay.records}) >= 3


def test_every_file_of_a_case_has_a_name_of_its_own() -> None:
    for case in CASES.values():
        assert case.sizes, case.name
        assert len(set(case.sizes)) == len(case.sizes), "a file's name is its size"
