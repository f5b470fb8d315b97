"""Rank 0: starts the other ranks, tells them what to do, and ends when one of them does."""

from __future__ import annotations

import atexit
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rayreel import wire
from rayreel.engine import Cancelled, Failed, LoadFailed, OutOfMemory, Progress
from rayreel.gang.launch import Launcher, Rank, Seat
from rayreel.gang.link import (
    GO,
    JOIN,
    MESSAGE,
    STOP,
    Gang,
    Link,
    connect,
    device_of,
    distributed,
)
from rayreel.serving import failure, is_out_of_memory
from rayreel.wire import Load, Request

SECOND_THOUGHT = 0.5
"""Seconds in which an exception may turn out to be the death of another rank: its connections
break, too."""

LAST_BREATH = 5.0
"""Seconds that killed ranks may take to be gone, with the memory that the next gang needs."""


class Lead(Gang):
    rank = 0

    def __init__(
        self,
        engine: str,
        load: Load,
        world: int,
        device: str,
        launcher: Launcher,
        abandon: Callable[[Exception], None],
    ):
        """Starts the other ranks with this engine and model. `device` is a type, as in
        `torch.device(…).type`. `abandon` ends this process, saying why; see `Engine.abandon`."""
        self.world = world
        self._kind = device
        self.device = device_of(device, 0)
        self._abandon = abandon
        self._ranks: list[Rank] = []
        self._watchers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._ended = threading.Event()
        atexit.register(self.close)
        try:
            store = self._listen(launcher.host)
            store.set("terms", json.dumps({"engine": engine, "device": device}))
            # Of its own, because the other one is locked while it waits.
            self._reasons = connect(launcher.host, store.port)
            for rank in range(1, world):
                self._start(launcher, Seat(rank, world, launcher.host, store.port))
            self._link = Link(store, 0, world, launcher.host, self.device)
            self._link.tell(MESSAGE, wire.forward(load))
        except Exception as error:
            self._fail(error)
            raise

    def _listen(self, host: str) -> Any:
        # On this address alone, and on a port that is free.
        listener = socket.create_server((host, 0), backlog=128)
        port = listener.getsockname()[1]
        return distributed().TCPStore(
            host, port, is_master=True, wait_for_workers=False, timeout=JOIN,
            master_listen_fd=listener.detach(),
        )  # fmt: skip

    def _start(self, launcher: Launcher, seat: Seat) -> None:
        try:
            rank = launcher.start(seat)
        except OSError as error:
            raise LoadFailed(
                f"{self._name(seat.rank)} can't be started: {error}", retryable=True
            ) from error
        self._ranks.append(rank)
        watcher = threading.Thread(
            target=self._watch, args=(seat.rank, rank), name=f"rank {seat.rank}", daemon=True
        )
        self._watchers.append(watcher)
        watcher.start()

    def meet(self) -> None:
        self._link.meet()

    @contextmanager
    def loading(self) -> Generator[None]:
        try:
            yield
            self.meet()
        except Exception as error:
            self._fail(error)
            raise

    @contextmanager
    def together(self, request: Request, progress: Progress) -> Generator[None]:
        try:
            self._link.tell(MESSAGE, wire.forward(request))
            progress.agree = self._agree
            yield
        except Cancelled:
            raise
        except Exception as error:
            # Alone again, the others are as they should be; but what had no room in this process
            # may have none for the next request.
            if progress.agree is not None or is_out_of_memory(error):
                self._fail(error, request.id)
            raise
        finally:
            progress.agree = None

    def denoised(self, progress: Progress) -> None:
        progress.agree = None

    def _agree(self, stop: bool) -> bool:
        self._link.tell(STOP if stop else GO)
        return stop

    def close(self) -> None:
        """Ends the other ranks."""
        with self._lock:
            if self._ending.is_set():
                return
            self._ending.set()
        self._kill()
        self._ended.set()

    def _watch(self, rank: int, process: Rank) -> None:
        how = process.wait()
        if not self._ending.is_set():
            self._end(self._reason(rank) or Failed(f"{self._name(rank)} {how}"))

    def _reason(self, rank: int) -> Failed | None:
        """What the rank itself has said before it ended."""
        key = f"failure/{rank}"
        try:
            if not self._reasons.check([key]):
                return None
            said = json.loads(self._reasons.get(key))
            return named(self._name(rank), wire.Error(None, **said))
        except Exception as error:
            print(f"rayreel: what {self._name(rank)} said is lost: {error}", file=sys.stderr)
            return None

    def _fail(self, error: Exception, id: str | None = None) -> None:
        """Ends the gang for what has happened on this rank, unless it was the death of another."""
        certain = isinstance(error, Failed) or is_out_of_memory(error)
        if not certain and not self._ending.wait(SECOND_THOUGHT):
            traceback.print_exception(error)
        if not isinstance(error, LoadFailed):
            error = named(self._name(0), failure(id, error))
        self._end(error)
        # Only if this process is not to end: in a test.
        self._ended.wait()

    def _end(self, error: Exception) -> None:
        with self._lock:
            if self._ending.is_set():
                return
            self._ending.set()
        self._kill()
        self._abandon(error)
        self._ended.set()

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()
        deadline = time.monotonic() + LAST_BREATH
        for watcher in self._watchers:
            if watcher is not threading.current_thread():
                watcher.join(max(0.0, deadline - time.monotonic()))

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({device_of(self._kind, rank)})"


def named(who: str, said: wire.Error) -> Failed:
    """What a rank has said, as an exception that says which one it was."""
    message = f"{who}: {said.message}"
    if said.code == "out_of_memory":
        return OutOfMemory(message, retryable=said.retryable)
    if said.code == "load_failed":
        return LoadFailed(message, retryable=said.retryable)
    return Failed(message, retryable=said.retryable)
