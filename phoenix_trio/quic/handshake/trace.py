"""qlog traces written as they happen, one file a connection.

Floor 1.  For the endpoint.  They are JSON text sequences (RFC 7464, the ``.sqlog`` form of
qlog 0.3).  Nothing is kept in memory, where the trace of a long connection would grow
without bound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TextIO

from ..wire.qlog import Trace

__all__ = ["TraceDirectory"]

_RECORD_SEPARATOR = "\x1e"


class _FileTrace:
    def __init__(self, *, is_client: bool, odcid: bytes, path: str, clock: Callable[[], float]):
        self._clock = clock
        self._file: TextIO | None = open(path, "w", encoding="utf-8")  # noqa: SIM115
        self._write(
            {
                "qlog_format": "JSON-SEQ",
                "qlog_version": "0.3",
                "trace": {
                    "common_fields": {"ODCID": odcid.hex(), "time_format": "relative"},
                    "vantage_point": {"type": "client" if is_client else "server"},
                },
            }
        )
        self._start = clock()

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        milliseconds = (self._clock() - self._start) * 1000
        self._write({"time": milliseconds, "name": f"{category}:{event}", "data": data})

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(f"{_RECORD_SEPARATOR}{json.dumps(record, default=str)}\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class TraceDirectory:
    """Makes one trace file per connection in a directory.

    Args:
      path: the directory; it must exist.
      clock: seconds since any moment, monotonic.

    Raises:
      NotADirectoryError: `path` is not a directory.
    """

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        if not os.path.isdir(path):
            raise NotADirectoryError(f"qlog_dir: {path!r} is not a directory")
        self._path = path
        self._clock = clock
        self._open: set[_FileTrace] = set()

    def start_trace(self, is_client: bool, odcid: bytes) -> Trace:
        side = "client" if is_client else "server"
        path = os.path.join(self._path, f"{odcid.hex()}-{side}.sqlog")
        trace = _FileTrace(is_client=is_client, odcid=odcid, path=path, clock=self._clock)
        self._open.add(trace)
        return trace

    def end_trace(self, trace: Trace) -> None:
        assert isinstance(trace, _FileTrace)
        trace.close()
        self._open.discard(trace)

    def close(self) -> None:
        """Close the traces of connections dropped without their end."""
        for trace in list(self._open):
            self.end_trace(trace)
