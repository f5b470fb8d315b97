"""A rank other than 0: does what rank 0 says until it is killed, or until rank 0 is gone."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from rayreel import wire
from rayreel.engine import Cancelled, Progress
from rayreel.gang.launch import Seat
from rayreel.gang.link import STOP, Gang, Link, connect, device_of
from rayreel.serving import failure, is_out_of_memory
from rayreel.wire import Load, Output, Request

SECOND_THOUGHT = 1.0
"""Seconds before an exception is told: it may be the death of another rank, for which rank 0 kills
this one, or that of rank 0. Longer than rank 0's own, so that what all ranks stumble over is told
by that one."""


class Member(Protocol):
    """An engine that can be in a gang."""

    gang: Gang

    def load(self, load: Load) -> None: ...
    def generate(self, request: Request, progress: Progress) -> list[Output]: ...


class Denoised(BaseException):
    """Ends a request on this rank. As `Cancelled`, libraries let it pass."""


class Peer(Gang):
    def __init__(self, seat: Seat, store: Any, device: str):
        self.rank, self.world = seat.rank, seat.world
        self.device = device_of(device, seat.rank)
        self._link = Link(store, seat.rank, seat.world, seat.host, self.device)

    def meet(self) -> None:
        self._link.meet()

    @contextmanager
    def loading(self) -> Generator[None]:
        yield
        self.meet()

    @contextmanager
    def together(self, request: Request, progress: Progress) -> Generator[None]:  # noqa: ARG002
        # Before, nothing is shared: rank 0 has looked at the request already.
        progress.agree = self._agree
        yield

    def denoised(self, progress: Progress) -> None:  # noqa: ARG002
        raise Denoised

    def _agree(self, _stop: bool) -> bool:
        kind, _ = self._link.hear()
        return kind == STOP

    def hear(self) -> wire.ToEngine:
        """What rank 0 wants next, perhaps in some days."""
        _, line = self._link.hear()
        return wire.read(line)


def join(seat: Seat, engine_named: Callable[[str], Member]) -> None:
    """Is a rank: takes its seat, loads the model, and works. Does not come back: the process ends
    with the gang."""
    store = connect(seat.host, seat.port)
    doing: str | None = None
    try:
        terms = json.loads(store.get("terms"))
        peer = Peer(seat, store, terms["device"])
        engine = engine_named(terms["engine"])
        engine.gang = peer
        load = peer.hear()
        assert isinstance(load, Load)
        engine.load(load)
        while isinstance(request := peer.hear(), Request):
            doing = request.id
            try:
                engine.generate(request, Progress(_untold, threading.Event()))
                raise RuntimeError("the engine went on after its last step")
            except (Cancelled, Denoised):
                pass
            doing = None
    except BaseException as error:
        _say_why(seat, store, doing, error)
    finally:
        # Not through the ends of libraries, which may wait for ranks that are no more.
        os._exit(1)


def _untold(_stage: str, _step: int, _steps: int) -> None:
    """Rank 0 tells how far a request is."""


def _say_why(seat: Seat, store: Any, doing: str | None, error: BaseException) -> None:
    if not is_out_of_memory(error):
        time.sleep(SECOND_THOUGHT)
    said = failure(doing, error)
    try:
        reason = {"code": said.code, "message": said.message, "retryable": said.retryable}
        store.set(f"failure/{seat.rank}", json.dumps(reason))
    except Exception:
        # Rank 0 is gone; there is nobody to tell, and nothing to explain.
        return
    traceback.print_exception(error)
