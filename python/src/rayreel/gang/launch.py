"""How the processes of ranks are started, watched and killed. Another way to start them, on other
machines, is another `Launcher`."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Seat:
    """What a process must know to be a rank."""

    rank: int
    """1 to `world` - 1; rank 0 needs no seat from anybody."""
    world: int
    """How many ranks there are, rank 0 among them."""
    host: str
    port: int
    """Where rank 0's store listens, in which all other addresses are found."""


class Rank(Protocol):
    """A rank that was started."""

    def wait(self) -> str:
        """Blocks until the process has ended, and says how: `was killed by signal 9` …"""
        ...

    def kill(self) -> None:
        """Ends the process at once; does nothing if it has ended. Safe from any thread."""
        ...


class Launcher(Protocol):
    """Starts the ranks from 1 on; each calls `rayreel.gang.join` with its seat."""

    host: str
    """The address of rank 0's machine at which the ranks reach it."""

    def room(self, device: str) -> int | None:
        """How many ranks there may be on devices of this type (`cuda`, `cpu` …); None: any
        number."""
        ...

    def start(self, seat: Seat) -> Rank:
        """Starts the process of a rank, and does not wait until it is ready."""
        ...


class Local:
    """Ranks on this machine, as children of this process; they run this Python."""

    host = "127.0.0.1"

    def room(self, device: str) -> int | None:
        if device == "cpu":
            return None
        return int(importlib.import_module("torch").accelerator.device_count())

    def start(self, seat: Seat) -> Child:
        # The kernel takes the end of the thread that starts a process for the end of its parent:
        # this one is the engine's, and ends with the engine.
        words = [
            sys.executable,
            "-m",
            "rayreel",
            "rank",
            json.dumps(asdict(seat)),
            str(os.getpid()),
        ]
        return Child(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=2))


class Child:
    """A rank that is a child process."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self.process = process

    def wait(self) -> str:
        return ending(self.process.wait())

    def kill(self) -> None:
        self.process.kill()


def ending(status: int) -> str:
    """How a process has ended, of its exit status, or of the signal as a negative number."""
    if status == -signal.SIGKILL:
        return "was killed by signal 9, as the kernel does when memory runs out"
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, which is the process with this
    number. Elsewhere than on Linux only a broken connection tells."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1  # prctl(2)
        libc: Any = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Who was dead before that sends no signal.
    if os.getppid() != parent:
        os._exit(1)
