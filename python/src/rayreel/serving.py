"""The conversation with the worker.

A thread reads what the worker says, so that a cancel is heard during the work; the thread that
called `serve` runs the engine. Standard output belongs to the protocol: what libraries print, in
Python, in C or in child processes, goes to standard error, which is the log.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import queue
import stat
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from rayreel import wire
from rayreel.engine import (
    Cancelled,
    Engine,
    Failed,
    InvalidRequest,
    LoadFailed,
    OutOfMemory,
    Progress,
)

MAX_MESSAGE = 2000
"""Characters of an error's message that the worker keeps."""

PATIENCE = 5.0
"""Seconds that a generation may go on when the worker is gone."""


def serve(engine: Engine, input: BinaryIO | None = None, output: BinaryIO | None = None) -> None:
    """Serves one worker until it says `exit` or hangs up. Without streams: on standard input and
    output, which are the worker's from then on."""
    if input is not None and output is not None:
        _Conversation(engine, input, output).run()
        return
    input, output = _take_standard_streams()

    def leave() -> None:
        os._exit(1)

    _Conversation(engine, input, output, leave).run()


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    sys.stdout.flush()
    # Duplicates are not inherited by child processes.
    input, output = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(input, "rb"), os.fdopen(output, "wb", buffering=0)


class _Conversation:
    def __init__(
        self,
        engine: Engine,
        input: BinaryIO,
        output: BinaryIO,
        give_up: Callable[[], None] | None = None,
    ):
        self._engine = engine
        self._input = input
        self._output = output
        self._give_up = give_up
        self._loaded = False
        # What the reading thread leaves to the other one: at most one message, and the end.
        self._inbox: queue.Queue[wire.Load | wire.Request | None] = queue.Queue()
        # Guards the output and all that is below.
        self._lock = threading.RLock()
        self._busy = False
        self._generating: str | None = None
        self._stopped = threading.Event()
        self._gone = False
        engine.abandon = self._abandon

    def run(self) -> None:
        threading.Thread(target=self._read, name="stdin", daemon=True).start()
        while (message := self._inbox.get()) is not None:
            if isinstance(message, wire.Load):
                answer = self._load(message)
            else:
                answer = self._generate(message)
            with self._lock:
                self._busy = False
                self._generating = None
                self._say(answer)

    def _say(self, message: wire.FromEngine) -> None:
        with self._lock:
            if self._gone:
                return
            try:
                left = memoryview(wire.write(message))
                while left:
                    left = left[self._output.write(left) :]
            except OSError:
                # The worker is gone; the end of the input says so, too.
                self._gone = True

    # The reading thread.

    def _read(self) -> None:
        try:
            while (line := self._line()) is not None:
                try:
                    message = wire.read(line)
                except wire.Invalid as error:
                    self._refuse(error)
                    continue
                if isinstance(message, wire.Exit):
                    break
                self._hear(message)
        finally:
            self._hang_up()

    def _line(self) -> bytes | None:
        """The next line; none at the end of the input, where half a line counts for nothing."""
        try:
            line = self._input.readline(wire.MAX_LINE + 1)
            too_long = len(line) > wire.MAX_LINE
            while too_long and not line.endswith(b"\n"):
                line = self._input.readline(wire.MAX_LINE)
                if not line:
                    return None
        except (OSError, ValueError):
            return None
        if too_long:
            self._refuse(wire.Invalid(f"the line has more than {wire.MAX_LINE} bytes"))
            return self._line()
        return line if line.endswith(b"\n") else None

    def _refuse(self, error: wire.Invalid) -> None:
        code = "failed" if error.id is None else "invalid_request"
        message = f"the worker sent what is no message: {error}"
        print(f"rayreel: {message}", file=sys.stderr)
        self._say(_error(error.id, code, message, retryable=False))

    def _hear(self, message: wire.Load | wire.Request | wire.Cancel) -> None:
        with self._lock:
            if isinstance(message, wire.Cancel):
                # Of another id it came when its generation had just ended.
                if message.id == self._generating:
                    self._stopped.set()
                return
            if self._busy:
                id = message.id if isinstance(message, wire.Request) else None
                self._say(_error(id, "failed", "the engine is at work on something else"))
                return
            self._busy = True
            if isinstance(message, wire.Request):
                self._generating = message.id
                self._stopped.clear()
            self._inbox.put(message)

    def _hang_up(self) -> None:
        with self._lock:
            self._gone = True
            self._stopped.set()
            busy = self._busy
            self._inbox.put(None)
        if busy and self._give_up is not None:
            # A generation that hangs must not outlive its worker.
            timer = threading.Timer(PATIENCE, self._give_up)
            timer.daemon = True
            timer.start()

    def _abandon(self, error: Exception) -> None:
        with self._lock:
            if self._busy:
                self._say(self._told(self._generating, error))
            else:
                print(f"rayreel: the idle engine ends: {error}", file=sys.stderr)
            self._gone = True
            # Seen at once, while the end of a process with a GPU takes its time.
            self._output.close()
        self._inbox.put(None)
        if self._give_up is not None:
            self._give_up()

    # The thread that runs the engine.

    def _load(self, load: wire.Load) -> wire.FromEngine:
        if self._loaded:
            return _error(None, "load_failed", "a model is loaded already", retryable=False)
        if load.protocol != wire.PROTOCOL:
            message = (
                f"the worker speaks version {load.protocol} of the engine protocol,"
                f" this engine version {wire.PROTOCOL}"
            )
            return _error(None, "load_failed", message, retryable=False)
        failure = self._try(lambda: self._engine.load(load), None)
        if failure is not None:
            return failure
        self._loaded = True
        return wire.Ready(self._engine.name, self._engine.version)

    def _generate(self, request: wire.Request) -> wire.FromEngine:
        if not self._loaded:
            return _error(request.id, "failed", "no model is loaded", retryable=False)

        def report(stage: str, step: int, steps: int) -> None:
            with self._lock:
                # A thread that the engine has left behind has nothing to say.
                if self._generating == request.id:
                    self._say(wire.Step(request.id, step, steps, stage))

        progress = Progress(report, self._stopped)
        done: list[wire.Done] = []

        def work() -> None:
            files = self._engine.generate(request, progress)
            for file in files:
                _check(request.output_dir, file)
            metrics = progress.finish()
            done.append(wire.Done(request.id, files, metrics, self._engine.test_pattern))
            # What is no JSON is the engine's fault, too.
            wire.write(done[0])

        return self._try(work, request.id) or done[0]

    def _try(self, work: Callable[[], None], id: str | None) -> wire.Error | None:
        """Does it, and says how it failed if it did."""
        try:
            work()
            return None
        except Cancelled:
            return _error(id, "cancelled", "cancelled", retryable=False)
        except Exception as error:
            failed = self._told(id, error)
            if not isinstance(error, Failed):
                traceback.print_exc()
            if failed.code == "out_of_memory":
                # The frames hold what was computed so far.
                traceback.clear_frames(error.__traceback__)
        if failed.code == "out_of_memory":
            try:
                self._engine.free()
            except Exception:
                traceback.print_exc()
        return failed

    def _told(self, id: str | None, error: Exception) -> wire.Error:
        failed = failure(id, error)
        if failed.code == "out_of_memory" and self._engine.remedy:
            # At the end, and whole, however much torch has to say.
            remedy = f"; {self._engine.remedy}"
            message = failed.message[: MAX_MESSAGE - len(remedy)] + remedy
            failed = dataclasses.replace(failed, message=message)
        if id is not None and self._stopped.is_set() and failed.code != "out_of_memory":
            # It came to nothing because it was told to stop.
            return _error(id, "cancelled", "cancelled", retryable=False)
        return failed


def failure(id: str | None, error: BaseException) -> wire.Error:
    """What the worker is told of an exception in the generation with this id; without: in the
    load."""
    message = str(error) or type(error).__name__
    if is_out_of_memory(error):
        return _error(id, "out_of_memory", message)
    if isinstance(error, InvalidRequest) and id is not None:
        return _error(id, "invalid_request", message, retryable=False)
    if isinstance(error, Failed):
        code = "load_failed" if id is None or isinstance(error, LoadFailed) else "failed"
        return _error(id, code, message, retryable=error.retryable)
    return _error(
        id, "load_failed" if id is None else "failed", f"{type(error).__name__}: {message}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """If this is for want of memory, or what was made of that on its way here."""
    cause: BaseException | None = error
    while cause is not None:
        if _is_out_of_memory(cause):
            return True
        hidden = cause.__suppress_context__
        cause = cause.__cause__ or (None if hidden else cause.__context__)
    return False


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (OutOfMemory, MemoryError)):
        return True
    text = str(error)
    if isinstance(error, OSError):
        # The number is lost where Rust has passed it on.
        return error.errno == errno.ENOMEM or "Cannot allocate memory (os error 12)" in text
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # The allocators of the host and of some accelerators have no type of their own.
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in text
        or "out of memory" in text
        or "Cannot allocate memory" in text
    )


def _error(id: str | None, code: wire.Code, message: str, *, retryable: bool = True) -> wire.Error:
    message = message.encode(errors="replace").decode()
    return wire.Error(id, code, message[:MAX_MESSAGE], retryable)


def _check(directory: Path, file: wire.Output) -> None:
    """Says early what the worker would refuse."""
    path = PurePosixPath(file.path)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise Failed(f"the engine's file {file.path!r} is not beneath the request's `output_dir`")
    try:
        found = os.lstat(directory / path)
    except OSError as error:
        raise Failed(f"the engine's file {file.path!r} can't be found: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size == 0:
        raise Failed(f"the engine's file {file.path!r} is empty, or no regular file")
