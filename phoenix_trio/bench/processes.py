"""Worker processes: start them, ask them, read from the system what they use, end them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

__all__ = ["Pair", "Unsupported", "WorkerFailed"]

_START_SECONDS = 30.0
_ANSWER_SECONDS = 180.0


class WorkerFailed(Exception):
    """A worker reported an error, ended, or did not answer in time."""


class Unsupported(Exception):
    """The implementation cannot do what was asked."""


class _Process:
    def __init__(self, arguments: list[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own program, our own arguments
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self, seconds: float) -> dict[str, Any]:
        """The next line of output."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            raise WorkerFailed(f"a worker did not answer within {seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"a worker has ended (status {self._process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def write(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Pair:
    """A server and a client process of one implementation; or a client of a remote server.

    Args:
      module: the worker's module.
      udp_payload: the UDP payload to keep to; ``None``: what the implementation finds.
      remote: host, port and certificate fingerprint of a server which runs elsewhere.
    """

    def __init__(
        self,
        module: str,
        *,
        udp_payload: int | None = None,
        remote: tuple[str, int, str] | None = None,
    ) -> None:
        size = [] if udp_payload is None else ["--udp-payload", str(udp_payload)]
        self._server: _Process | None = None
        if remote is None:
            self._server = _Process([module, "server", *size])
            try:
                there = self._server.read(_START_SECONDS)
            except BaseException:
                self._server.end()
                raise
            remote = ("127.0.0.1", there["port"], there.get("fingerprint", ""))
        host, port, pin = remote
        place = ["--host", host, "--port", str(port), "--fingerprint", pin]
        self._client = _Process([module, "client", *place, *size])

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Have the client do something.

        Raises:
          Unsupported: it cannot.
          WorkerFailed: it failed.
        """
        self._client.write({"op": op, **arguments})
        answer = self._client.read(_ANSWER_SECONDS)
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        if "error" in answer:
            raise WorkerFailed(f"{op}: {answer['error']}")
        return answer

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        return {side: _resident(pid) for side, pid in self._pids().items()}

    def processor_seconds(self) -> dict[str, float]:
        """Processor time of each process so far."""
        return {side: _processor(pid) for side, pid in self._pids().items()}

    def descriptors(self) -> dict[str, int]:
        """Open file descriptors of each process."""
        return {side: len(os.listdir(f"/proc/{pid}/fd")) for side, pid in self._pids().items()}

    def _pids(self) -> dict[str, int]:
        pids = {"client": self._client.pid}
        if self._server is not None:
            pids["server"] = self._server.pid
        return pids

    def close(self) -> None:
        """End both processes."""
        self._client.end()
        if self._server is not None:
            self._server.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _processor(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
