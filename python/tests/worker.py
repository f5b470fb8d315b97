"""The worker's side of the conversation, for tests."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from rayreel import Engine, serve

WAIT = 120.0
"""Seconds for anything on a slow machine."""

SOURCES = Path(__file__).parents[1] / "src"

Message = dict[str, Any]


def generate(output_dir: Path, id: str = "task/1", **request: Any) -> Message:
    output_dir.mkdir(parents=True, exist_ok=True)
    asked: Message = {
        "prompt": "a red fox", "width": 64, "height": 64, "frames": 5, "fps": 8, "steps": 4,
        "seed": 7, "format": "mp4",
    }  # fmt: skip
    asked |= request
    return {"type": "generate", "id": id, "output_dir": str(output_dir), "request": asked}


class Worker:
    """Talks to an engine over two streams."""

    def __init__(self, input: IO[bytes], output: IO[bytes]):
        self._input, self._output = input, output
        self._heard: queue.Queue[Message | None] = queue.Queue()
        self._echoes: queue.Queue[Message] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._output:
            message = json.loads(line)
            is_echo = '"echo"' in message.get("message", "")
            (self._echoes if is_echo else self._heard).put(message)
        self._heard.put(None)

    def write(self, line: bytes) -> None:
        self._input.write(line)
        self._input.flush()

    def say(self, message: Message) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def hear(self) -> Message | None:
        """The next message; None at the end."""
        return self._heard.get(timeout=WAIT)

    def is_heard(self) -> None:
        """Waits until the engine has read all that was said."""
        self.write(b'{"type":"echo"}\n')
        self._echoes.get(timeout=WAIT)

    def load(self, checkpoint: Path | None = None, **settings: Any) -> Message:
        message: Message = {"type": "load", "protocol": 1, "model": "m", "settings": settings}
        if checkpoint is not None:
            message["checkpoint"] = str(checkpoint)
        self.say(message)
        return self.hear() or {}

    def stop(self, id: str = "task/1") -> None:
        """Cancels, and comes back when the engine knows."""
        self.say({"type": "cancel", "id": id})
        self.is_heard()

    def end_of(self, id: str = "task/1") -> tuple[Message, list[Message]]:
        """The message that ends a generation, and the progress before it."""
        progress: list[Message] = []
        while (message := self.hear()) is not None:
            assert message.get("id") == id, message
            if message["type"] != "progress":
                return message, progress
            progress.append(message)
        raise AssertionError("the engine has hung up")

    def generate(
        self, output_dir: Path, id: str = "task/1", **request: Any
    ) -> tuple[Message, list[Message]]:
        self.say(generate(output_dir, id, **request))
        return self.end_of(id)

    def hang_up(self) -> None:
        self._input.close()


class InProcess(Worker):
    """An engine on a thread of this process, so that a test can look into it."""

    def __init__(self, engine: Engine):
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        input, output = os.fdopen(to_read, "rb"), os.fdopen(from_write, "wb", buffering=0)

        def run() -> None:
            with output:
                serve(engine, input, output)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        super().__init__(os.fdopen(to_write, "wb"), os.fdopen(from_read, "rb"))


class Child(Worker):
    """An engine as the worker runs it: a process of its own."""

    def __init__(self, *command: str, source: str | None = None, stderr: Any = None):
        words = [sys.executable, *(("-c", source) if source is not None else command)]
        environment = os.environ | {"PYTHONPATH": str(SOURCES)}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        super().__init__(self.process.stdin, self.process.stdout)

    def status(self) -> int:
        return self.process.wait(WAIT)


def until(condition: Callable[[], bool]) -> None:
    """Waits for what has no event of its own."""
    import time

    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
