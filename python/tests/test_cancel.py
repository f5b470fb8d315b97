"""A hundred cancels at random moments: nothing is left over, and the engine is as it was."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

from tests.service import RAYREEL, Server

pytestmark = pytest.mark.skipif(not RAYREEL.exists(), reason=f"there is no {RAYREEL}")

CANCELS = 100
LEAK = 32 << 20
"""Bytes by which the engine may grow over the last three quarters of the cancels: the weights, and
what a generation allocates, are a few of these each; kept a hundred times they would be seen."""


def below(pid: int) -> dict[int, str]:
    """The processes that this one has started, and theirs: number and command."""
    parents: dict[int, tuple[int, str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text()
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        # After the command, which may hold anything: state, parent.
        parent = int(stat.rpartition(")")[2].split()[1])
        parents[int(process.name)] = parent, b" ".join(words).decode(errors="replace")
    found: dict[int, str] = {}
    wanted = [pid]
    while wanted:
        above = wanted.pop()
        for child, (parent, command) in parents.items():
            if parent == above:
                found[child] = command
                wanted.append(child)
    return found


def engine_of(server: Server) -> int:
    (pid,) = [pid for pid, line in below(server.process.pid).items() if "-m rayreel wan" in line]
    return pid


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count(pid: int, what: str) -> int:
    return len([*Path(f"/proc/{pid}/{what}").iterdir()])


@pytest.fixture
def server(tmp_path: Path, checkpoint: Callable[[str], Path]):
    server = Server(
        tmp_path,
        f"""
[models.t2v]
command = [{json.dumps(sys.executable)}, "-m", "rayreel", "wan"]
checkpoint = {json.dumps(str(checkpoint("wan-t2v")))}
grace_seconds = 60
limits = {{ multiple = 16, max_frames = 81 }}
defaults = {{ size = "64x64", frames = 17, fps = 8, steps = 10 }}
""",
    )
    yield server
    server.stop()


def test_a_hundred_cancels_at_random_moments_leave_nothing_behind(server: Server):
    chance, never = random.Random(1), threading.Event()
    server.make("t2v")
    began = time.monotonic()
    _, before = server.make("t2v")
    takes = time.monotonic() - began
    processes = below(server.process.pid)
    engine = engine_of(server)
    threads = count(engine, "task")
    files = count(engine, "fd")
    grown_from = 0
    ends: list[str] = []
    for round in range(CANCELS):
        id = server.submit("t2v", seed=round)
        # Before it runs, in the middle of a stage, or when it has just ended.
        never.wait(chance.uniform(0, takes))
        server.call(f"/v1/video/generations/{id}/cancel", {})
        ends.append(server.end_of(id)["status"])
        if round == CANCELS // 4:
            grown_from = resident(engine)

    # By far the most were cancelled; those that were too late have their video.
    assert ends.count("CANCELLED") > CANCELS // 2
    assert set(ends) <= {"CANCELLED", "SUCCEEDED"}
    _, after = server.make("t2v")
    assert after == before
    assert below(server.process.pid) == processes
    assert resident(engine) - grown_from < LEAK
    assert count(engine, "task") == threads
    assert count(engine, "fd") == files
    # Nobody keeps the unfinished files of a cancelled task.
    assert not [*server.folder.rglob("*.part")]
