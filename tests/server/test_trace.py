"""The decision trace: complete, bounded, and never in the way of a decision."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shield.server import bounds
from shield.server.trace import TraceWriter
from tests.server.running import serving


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_decision_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    ended: list[str] = []
    writer = TraceWriter(path, ended.append)
    async with serving(trace=writer) as server:
        await server.check([{"ip": "203.0.113.7", "request_id": f"r{i}"} for i in range(5)])
    writer.close()
    records = read(path)
    assert [record["allowed"] for record in records] == [True, True, True, False, False]
    assert all({"now_us", "charges"} <= set(record) for record in records)
    assert not ended
    assert path.stat().st_mode & 0o077 == 0


def test_records_wait_in_a_bounded_buffer(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    writer = TraceWriter(path, print)
    writer({"n": 0})
    assert path.read_text() == ""
    writer.flush()
    assert read(path) == [{"n": 0}]
    for n in range(1, 10_000):
        writer({"n": n, "text": "x" * 50})
    assert len(writer._buffer) < bounds.TRACE_BUFFER_BYTES
    writer.close()
    assert [record["n"] for record in read(path)] == list(range(10_000))
    assert writer.lost == 0


def test_a_trace_ends_at_its_size_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ended: list[str] = []
    writer = TraceWriter(path, ended.append, max_bytes=100)
    for n in range(5):
        writer({"n": n})
    writer.flush()
    for _ in range(20):
        writer({"text": "x" * 10})
    writer.flush()
    writer({"n": 6})
    writer.close()
    assert len(read(path)) == 5
    assert len(ended) == 1
    assert writer.lost == 21


def test_a_full_disk_ends_the_trace_and_not_the_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    writer = TraceWriter(tmp_path / "trace", ended.append)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    writer({"n": 1})
    writer.flush()
    writer({"n": 2})
    writer.close()
    assert ended == ["it cannot be written: No space left on device"]
    assert writer.lost == 2


def test_a_record_that_cannot_be_written_ends_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ended: list[str] = []
    writer = TraceWriter(path, ended.append)
    writer({"n": 1})
    writer({"n": object()})
    assert len(ended) == 1
    assert writer.lost == 2


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        TraceWriter(tmp_path / "absent" / "trace", print)
