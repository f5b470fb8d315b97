"""A load that goes on is heard, one that hangs is not."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import pytest

from rayreel.engines import loading
from tests.worker import until

MIB = 1 << 20


def test_a_load_is_heard_while_something_moves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "EVERY", 0.001)
    # It reads, hangs, reads a little more, and hangs for ever.
    looks = iter([0, 5 * MIB, 9 * MIB, 9 * MIB, 9 * MIB + 300, 20 * MIB])
    seen: list[int] = []
    said: list[int] = []
    hung = threading.Event()

    def look() -> tuple[int, ...]:
        seen.append(next(looks, 20 * MIB))
        if len(seen) > 30:
            hung.set()
        return (seen[-1],)

    with loading.watched(lambda _: said.append(seen[-1]), look):
        assert hung.wait(60)
    assert said == [5 * MIB, 9 * MIB, 20 * MIB]


def test_it_says_for_how_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "EVERY", 0.001)
    said: list[float] = []
    looks = iter(range(0, 1 << 60, MIB))
    with loading.watched(said.append, lambda: (next(looks),)):
        until(lambda: len(said) >= 3)
    assert 0 < said[0] < said[1] < said[2] < 60


def test_files_that_are_read_or_mapped_move_and_waiting_does_not(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (64 * MIB // 256))
    begin = loading.counts()
    assert len(file.read_bytes()) == 64 * MIB
    read = loading.counts()
    assert loading.moved(begin, read) >= 64 * MIB
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as map:
        assert sum(map[place] for place in range(0, 64 * MIB, 4096)) == 0
        mapped = loading.counts()
        assert loading.moved(read, mapped) >= 16 * MIB
        assert loading.moved(loading.counts(), loading.counts()) < loading.LEAST
