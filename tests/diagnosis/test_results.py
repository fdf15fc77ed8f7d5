"""The result of an examination: its JSON form, its exit status; and how checks are run."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from phoenix_trio.diagnosis.results import FORMAT, Finding, Report, Status
from phoenix_trio.diagnosis.running import in_parallel, run_check


def finding(status: Status, name: str = "check") -> Finding:
    return Finding(name=name, status=status, found="something")


def report(*statuses: Status) -> Report:
    findings = tuple(finding(status) for status in statuses)
    return Report(version="0.1.0", system="linux", groups={"machine": findings})


@pytest.mark.parametrize(
    ("statuses", "usual", "strict", "word"),
    [
        ([Status.OK], 0, 0, "ok"),
        ([Status.OK, Status.WARN], 0, 1, "warn"),
        ([Status.OK, Status.UNKNOWN], 0, 1, "ok"),
        ([Status.WARN, Status.FAIL], 1, 1, "fail"),
    ],
)
def test_only_failures_fail_unless_strict(
    statuses: list[Status], usual: int, strict: int, word: str
) -> None:
    found = report(*statuses)
    assert found.exit_status() == usual
    assert found.exit_status(strict=True) == strict
    assert found.status.value == word


def test_the_json_form_has_these_keys() -> None:
    one = Finding(
        name="aes",
        status=Status.WARN,
        found="slow",
        why="5 times as slow",
        commands=("qemu -cpu host",),
        values={"aes_packet_seconds": 0.1},
    )
    found = Report(
        version="0.1.0",
        system="darwin",
        target="host:1",
        symptom="high-cpu",
        groups={"machine": (one,), "target": (finding(Status.OK, "name"),)},
    )
    form = json.loads(json.dumps(found.as_dict()))
    assert form == {
        "format": FORMAT,
        "version": "0.1.0",
        "system": "darwin",
        "target": "host:1",
        "symptom": "high-cpu",
        "status": "warn",
        "checks": [
            {
                "group": "machine",
                "name": "aes",
                "status": "warn",
                "found": "slow",
                "why": "5 times as slow",
                "commands": ["qemu -cpu host"],
                "values": {"aes_packet_seconds": 0.1},
            },
            {
                "group": "target",
                "name": "name",
                "status": "ok",
                "found": "something",
                "why": "",
                "commands": [],
                "values": {},
            },
        ],
    }


async def test_the_error_of_a_check_is_its_own_finding(autojump_clock: MockClock) -> None:
    async def fails() -> list[Finding]:
        raise PermissionError(13, "not for you")

    async def hangs() -> list[Finding]:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    async def works() -> list[Finding]:
        return [finding(Status.OK, "works")]

    found = await in_parallel([("fails", fails), ("hangs", hangs), ("works", works)], 2.0)
    assert [(each.name, each.status) for each in found] == [
        ("fails", Status.UNKNOWN),
        ("hangs", Status.UNKNOWN),
        ("works", Status.OK),
    ]
    assert found[0].found == "could not check: [Errno 13] not for you"
    assert found[1].found == "could not check: it did not end within 2 s"
    assert trio.current_time() < 3


async def test_a_fault_of_a_check_is_not_hidden() -> None:
    async def wrong() -> list[Finding]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_check(("wrong", wrong), 1.0)
    with pytest.raises(ZeroDivisionError):
        await in_parallel([("wrong", wrong)], 1.0)


async def test_a_cancelled_check_is_no_finding() -> None:
    async def hangs() -> list[Finding]:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    with trio.CancelScope() as scope:
        scope.cancel()
        await run_check(("hangs", hangs), 1.0)
        raise AssertionError("not reached")
    assert scope.cancelled_caught
