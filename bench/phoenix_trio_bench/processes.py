"""Starts worker processes, sends them requests, reads their use of resources, ends them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

__all__ = ["Pair", "Process", "Remote", "Unsupported", "WorkerFailed", "python_module"]

_START_SECONDS = 30.0

#: Seconds for an answer; workloads that need longer say so.
_ANSWER_SECONDS = 30.0


class WorkerFailed(Exception):
    """A worker reported an error, ended, or did not answer in time."""


class Unsupported(Exception):
    """The implementation, or this way of running it, cannot carry out the request."""


@attrs.frozen
class Remote:
    """A server that runs elsewhere."""

    host: str
    port: int
    pin: str = ""
    """Its certificate's fingerprint; empty: any certificate will do."""


class Process:
    """One process that takes requests and gives answers, a JSON object a line each."""

    def __init__(self, command: list[str]) -> None:
        # A file rather than a pipe, so that the output need not be read meanwhile.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - our own program, our own arguments
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        """The system's number of it."""
        return self._process.pid

    def read(self, seconds: float) -> dict[str, Any]:
        """The next answer.

        Raises:
          WorkerFailed: there is no answer within so many seconds, or it is not an answer.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise WorkerFailed(f"no answer within {seconds:g} s")
            data = os.read(descriptor, 65536)
            if not data:
                raise WorkerFailed(self._last_words())
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise WorkerFailed(f"a worker printed {line[:200]!r}") from None
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4096))
        lines = self._errors.read().decode(errors="replace").split("\n")
        # A traceback of a group is drawn in a frame.
        said = [text for line in lines if (text := line.strip("+-| "))]
        last = said[-1] if said else "without a word"
        return f"a worker has ended with status {status}: {last}"

    def write(self, request: dict[str, Any]) -> None:
        """Send a request.

        Raises:
          WorkerFailed: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(self._last_words()) from None

    def end(self, patience: float = 3.0) -> None:
        """Close its standard input; kill it if that does not end it.  Idempotent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


class Pair:
    """A server and a client process of one implementation; or a client of a remote server.

    Args:
      worker: the command that runs the worker; its role and options come on top.
      udp_payload: the UDP payload to keep to; ``None``: the implementation finds it.
      remote: a server that runs elsewhere.

    Raises:
      WorkerFailed: the workers do not start.
    """

    def __init__(
        self,
        worker: list[str],
        *,
        udp_payload: int | None = None,
        remote: Remote | None = None,
    ) -> None:
        self._worker = worker
        self._size = [] if udp_payload is None else ["--udp-payload", str(udp_payload)]
        self._remote = remote
        self._server: Process | None = None
        self._client: Process | None = None
        self.udp_payload: int | None = None
        """The UDP payload of the warm connection, if the implementation reports it."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        there = self._remote
        if there is None:
            self._server = Process([*self._worker, "server", *self._size])
            answer = self._server.read(_START_SECONDS)
            there = Remote("127.0.0.1", answer["port"], answer.get("pin", ""))
        place = ["--host", there.host, "--port", str(there.port), "--pin", there.pin]
        self._client = Process([*self._worker, "client", *place, *self._size])
        self.udp_payload = self.ask("connect", seconds=_START_SECONDS).get("udp_payload")

    def restart(self) -> None:
        """Begin again with new processes, because their state after a failure is unknown.

        Raises:
          WorkerFailed: the workers do not start.
        """
        self._end(patience=0.2)
        self._start()

    def ask(self, op: str, *, seconds: float = _ANSWER_SECONDS, **arguments: Any) -> dict[str, Any]:
        """Have the client do something that may take so many seconds.

        Raises:
          Unsupported: it cannot.
          WorkerFailed: it failed.
        """
        if self._client is None:
            raise WorkerFailed("the workers are not running")
        self._client.write({"op": op, **arguments})
        try:
            answer = self._client.read(seconds)
        except WorkerFailed as failure:
            raise WorkerFailed(f"{op}: {failure}") from None
        if "unsupported" in answer:
            raise Unsupported(answer["unsupported"])
        if "error" in answer:
            raise WorkerFailed(f"{op}: {answer['error']}")
        return answer

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        return {side: _status(pid, "VmRSS") for side, pid in self._pids().items()}

    def forget_peaks(self) -> None:
        """Begin :meth:`peaks` anew.

        Raises:
          Unsupported: the system does not let us.
        """
        for pid in self._pids().values():
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
            except OSError as error:
                raise Unsupported(f"peaks of memory cannot be reset here: {error}") from error

    def peaks(self) -> dict[str, int]:
        """The most resident bytes that each process has had."""
        return {side: _status(pid, "VmHWM") for side, pid in self._pids().items()}

    def descriptors(self) -> dict[str, int]:
        """Open file descriptors of each process."""
        return {side: len(os.listdir(f"/proc/{pid}/fd")) for side, pid in self._pids().items()}

    def _pids(self) -> dict[str, int]:
        sides = {"client": self._client, "server": self._server}
        return {side: process.pid for side, process in sides.items() if process is not None}

    def _end(self, patience: float = 3.0) -> None:
        for process in (self._client, self._server):
            if process is not None:
                process.end(patience)
        self._client = self._server = None

    def close(self) -> None:
        """End both processes.  Idempotent."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def python_module(module: str) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", module]


def _status(pid: int, field: str) -> int:
    """A size that the system keeps about a process, in bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
    raise Unsupported(f"the system does not say {field} of a process")
