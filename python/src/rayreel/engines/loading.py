"""Signs of life of a load. It takes minutes and says nothing, as one that hangs does; the worker
kills what is silent for too long."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

EVERY = 5.0
"""Seconds between two looks."""

LEAST = 1 << 16
"""Bytes between two looks that are more than those of waiting: of the looks themselves."""


def counts() -> tuple[int, ...]:
    """Bytes that change all the time while this process loads weights, in whatever way, and hardly
    while it waits: what it has read, what it has touched first, and what it has in memory."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    touched = (used.ru_minflt + used.ru_majflt) * resource.getpagesize()
    try:
        io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        # A mapped file is not read, and the first touch may be of many pages at once.
        resident = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return (touched,)
    return touched, int(io["rchar"]), resident * resource.getpagesize()


def moved(before: tuple[int, ...], now: tuple[int, ...]) -> int:
    return sum(abs(new - old) for old, new in zip(before, now, strict=True))


@contextmanager
def watched(
    say: Callable[[float], None], look: Callable[[], tuple[int, ...]] = counts
) -> Generator[None]:
    """Calls `say`, on a thread of its own, with the seconds that this takes, now and then, as long
    as something moves."""
    over = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        before = look()
        while not over.wait(EVERY):
            now = look()
            if moved(before, now) >= LEAST:
                say(time.monotonic() - began)
            before = now

    watcher = threading.Thread(target=watch, name="loading", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
