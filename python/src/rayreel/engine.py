"""What an engine is: a class that loads a model and generates files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rayreel.wire import Load, Output, Request


class Engine:
    """Base class of engines. `serve` calls one method at a time, always on the same thread."""

    name = "engine"
    """For the worker's log."""
    version = "0"
    test_pattern = False
    """True if no model runs: the files are then shown as a test pattern."""

    remedy = ""
    """What to try when memory runs out, for the end of a sentence; the task's owner reads it, and
    the operator."""

    def abandon(self, error: Exception) -> None:
        """Ends this process because of what can't be mended in it, from any thread: the load or the
        generation under way fails with this, and the worker starts the engine anew. Set by
        `serve`."""
        raise error

    def load(self, load: Load) -> None:
        """Loads the model, once. Import heavy libraries here, not above: what they print while
        `serve` is running goes to the log."""

    def generate(self, request: Request, progress: Progress) -> list[Output]:
        """Writes files into `request.output_dir` and names them, the main one first.

        Call `progress` after each step: it raises `Cancelled` when the generation must stop."""
        raise NotImplementedError

    def free(self) -> None:
        """Gives back as much memory as it can: the last generation, or the load, had too little.
        What is needed again is loaded by the next `generate`."""


class Failed(Exception):
    """Ends a load or a generation; the message is shown to the task's owner.

    Any other exception does so as well, with its traceback in the log. `retryable` says whether the
    same request may succeed on another try."""

    def __init__(self, message: str, *, retryable: bool = True):
        super().__init__(message)
        self.retryable = retryable


class InvalidRequest(Failed):
    """The model can't do this request, whoever tries."""

    def __init__(self, message: str):
        super().__init__(message, retryable=False)


class LoadFailed(Failed):
    """The model can't be loaded, on this machine or at all."""

    def __init__(self, message: str, *, retryable: bool = False):
        super().__init__(message, retryable=retryable)


class OutOfMemory(Failed):
    """GPU or host memory ran out. Those that torch and Python raise are recognised, too."""


class Cancelled(BaseException):
    """Raised by `Progress` to end a generation. No `Exception`, so that libraries let it pass."""


class Progress:
    """Tells the worker how far a generation is, and stops it when the worker says so."""

    BETWEEN_STEPS = 0.1
    """Seconds between two reports of one stage; the steps in between are left out …"""
    BETWEEN_STAGES = 0.01
    """… but for its first and last, if they are not so many."""

    def __init__(
        self,
        report: Callable[[str, int, int], None],
        stopped: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.metrics: dict[str, float] = {}
        """Figures kept with the attempt; the milliseconds of the stages come by themselves."""
        self.agree: Callable[[bool], bool] | None = None
        """Of an engine of several processes: says if it stops, in all of them, given if it was told
        to in this one."""
        self._report = report
        self._stopped = stopped
        self._clock = clock
        self._stage: str | None = None
        self._since = self._last = float("-inf")

    def __call__(self, stage: str, step: int, steps: int) -> None:
        """`step` of `steps` are done in this stage: `load`, `encode_prompt`, `denoise`, `decode`,
        `encode` …; 0 when it begins."""
        self.check()
        now = self._clock()
        begins = stage != self._stage
        if begins:
            self._end_stage(now)
            self._stage, self._since = stage, now
        pause = self.BETWEEN_STAGES if begins or step >= steps else self.BETWEEN_STEPS
        if now - self._last >= pause:
            self._last = now
            self._report(stage, step, steps)

    def check(self) -> None:
        """Raises `Cancelled` if the generation must stop. Cheap enough for every layer."""
        stop = self._stopped.is_set()
        if stop if self.agree is None else self.agree(stop):
            raise Cancelled

    def finish(self) -> dict[str, float]:
        """Ends the last stage. Called by `serve`."""
        self._end_stage(self._clock())
        self._stage = None
        return self.metrics

    def _end_stage(self, now: float) -> None:
        if self._stage is not None:
            name = f"{self._stage}_ms"
            self.metrics[name] = self.metrics.get(name, 0.0) + (now - self._since) * 1000
