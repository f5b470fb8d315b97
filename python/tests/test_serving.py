"""An engine's conversation with the worker."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from rayreel import (
    Cancelled,
    Engine,
    Failed,
    InvalidRequest,
    Load,
    LoadFailed,
    Output,
    Progress,
    Request,
    serve,
    wire,
)
from tests.worker import WAIT, Child, InProcess, generate


class Scripted(Engine):
    """Does what the prompt says."""

    name = "scripted"
    version = "1"

    def __init__(self):
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.freed = 0
        self.steps = 0

    def load(self, load: Load) -> None:
        match load.settings.get("load"):
            case "fail":
                raise LoadFailed("there are no weights")
            case "burst":
                raise RuntimeError("unexpected")
            case "memory":
                raise MemoryError("81 GiB")
            case _:
                pass

    def generate(self, request: Request, progress: Progress) -> list[Output]:
        match request.prompt:
            case "wait":
                self.began.set()
                assert self.go_on.wait(WAIT)
            case "refuse":
                raise InvalidRequest("no foxes, please")
            case "fail":
                raise Failed("the weather is bad")
            case "hopeless":
                raise Failed("never", retryable=False)
            case "burst":
                raise ZeroDivisionError("division by zero")
            case "memory":
                raise MemoryError("81 GiB")
            case "long":
                raise Failed("é" * 100_000)
            case "escape":
                (request.output_dir / "../escaped").write_text("escaped")
                return [Output("../escaped", "video", "video/mp4", 64, 64)]
            case "absolute":
                return [Output("/etc/hostname", "video", "video/mp4", 64, 64)]
            case "link":
                (request.output_dir / "link").symlink_to("/etc/hostname")
                return [Output("link", "video", "video/mp4", 64, 64)]
            case "missing":
                return [Output("video.mp4", "video", "video/mp4", 64, 64)]
            case "strange":
                progress.metrics["seconds"] = float("nan")
                return []
            case _:
                pass
        for step in range(1, request.steps + 1):
            progress("denoise", step, request.steps)
            self.steps += 1
        (request.output_dir / "video.mp4").write_text("video")
        return [Output("video.mp4", "video", "video/mp4", 64, 64, 5, 8)]

    def free(self) -> None:
        self.freed += 1


@pytest.fixture
def engine():
    return Scripted()


@pytest.fixture
def worker(engine: Scripted):
    worker = InProcess(engine)
    yield worker
    engine.go_on.set()
    worker.hang_up()
    worker.thread.join(WAIT)
    assert not worker.thread.is_alive()


READY = {"type": "ready", "protocol": 1, "engine": "scripted", "version": "1"}


def test_an_engine_loads_generates_and_leaves(worker: InProcess, tmp_path: Path):
    assert worker.load() == READY
    done, progress = worker.generate(tmp_path, steps=3)
    assert done["type"] == "done"
    assert done["files"] == [
        {"path": "video.mp4", "role": "video", "media_type": "video/mp4", "width": 64,
         "height": 64, "frames": 5, "fps": 8}
    ]  # fmt: skip
    assert done["test_pattern"] is False
    assert done["metrics"].keys() == {"denoise_ms"}
    first = {"type": "progress", "id": "task/1", "stage": "denoise", "step": 1, "steps": 3}
    assert progress[0] == first
    worker.say({"type": "exit"})
    assert worker.hear() is None


@pytest.mark.parametrize(
    ("prompt", "code", "message", "retryable"),
    [
        ("refuse", "invalid_request", "no foxes, please", False),
        ("fail", "failed", "the weather is bad", True),
        ("hopeless", "failed", "never", False),
        ("burst", "failed", "ZeroDivisionError: division by zero", True),
        ("memory", "out_of_memory", "81 GiB", True),
        ("long", "failed", "é" * 2000, True),
        ("escape", "failed", "the engine's file '../escaped' is not beneath", True),
        ("absolute", "failed", "the engine's file '/etc/hostname' is not beneath", True),
        ("link", "failed", "the engine's file 'link' is empty, or no regular file", True),
        ("missing", "failed", "the engine's file 'video.mp4' can't be found: No such file", True),
        ("strange", "failed", "ValueError: ", True),
    ],
)
def test_a_failure_has_its_code_and_the_engine_lives_on(
    worker: InProcess, tmp_path: Path, prompt: str, code: str, message: str, retryable: bool
):
    worker.load()
    error, _ = worker.generate(tmp_path / "1" / "out", prompt=prompt)
    assert error["message"].startswith(message)
    assert (error["type"], error["code"], error["retryable"]) == ("error", code, retryable)
    worker.say(generate(tmp_path / "2" / "out", "task/2"))
    assert worker.end_of("task/2")[0]["type"] == "done"


def test_memory_is_given_back_when_it_ran_out(worker: InProcess, engine: Scripted, tmp_path: Path):
    worker.load()
    worker.generate(tmp_path, prompt="fail")
    assert engine.freed == 0
    worker.generate(tmp_path, prompt="memory")
    assert engine.freed == 1


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("fail", "load_failed", "there are no weights"),
        ("burst", "load_failed", "RuntimeError: unexpected"),
        ("memory", "out_of_memory", "81 GiB"),
    ],
)
def test_a_load_that_fails_says_so_without_an_id(
    worker: InProcess, how: str, code: str, message: str
):
    error = worker.load(load=how)
    assert "id" not in error
    assert (error["code"], error["message"]) == (code, message)


def test_another_version_of_the_protocol_is_refused(worker: InProcess):
    worker.say({"type": "load", "protocol": 2, "model": "m"})
    error = worker.hear() or {}
    assert error["code"] == "load_failed"
    assert "version 2" in error["message"]


def test_a_model_is_loaded_once_and_before_anything_else(worker: InProcess, tmp_path: Path):
    error, _ = worker.generate(tmp_path)
    assert (error["code"], error["message"]) == ("failed", "no model is loaded")
    worker.load()
    assert worker.load()["message"] == "a model is loaded already"


def test_a_cancel_stops_at_the_next_step(worker: InProcess, engine: Scripted, tmp_path: Path):
    worker.load()
    worker.say(generate(tmp_path, prompt="wait"))
    assert engine.began.wait(WAIT)
    worker.say({"type": "cancel", "id": "task/0"})
    worker.stop()
    engine.go_on.set()
    error, progress = worker.end_of()
    assert (error["code"], error["retryable"], progress) == ("cancelled", False, [])
    assert engine.steps == 0
    assert worker.generate(tmp_path)[0]["type"] == "done"


def test_one_generation_at_a_time(worker: InProcess, engine: Scripted, tmp_path: Path):
    worker.load()
    worker.say(generate(tmp_path, prompt="wait"))
    assert engine.began.wait(WAIT)
    worker.say(generate(tmp_path, "task/2"))
    busy = worker.hear() or {}
    assert (busy["id"], busy["code"], busy["retryable"]) == ("task/2", "failed", True)
    engine.go_on.set()
    assert worker.end_of()[0]["type"] == "done"


def test_a_cancel_that_comes_too_late_does_nothing(worker: InProcess, tmp_path: Path):
    worker.load()
    worker.generate(tmp_path)
    worker.say({"type": "cancel", "id": "task/1"})
    assert worker.generate(tmp_path)[0]["type"] == "done"


def test_no_library_swallows_a_cancel():
    assert not issubclass(Cancelled, Exception)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"hello\n", "not JSON"),
        (b"\n", "not JSON"),
        (b'{"type":"sing"}\n', "no message of type"),
        (b"x" * (wire.MAX_LINE * 3) + b"\n", "more than 1048576 bytes"),
    ],
)
def test_a_hostile_line_is_answered_and_the_engine_lives_on(
    worker: InProcess, tmp_path: Path, line: bytes, why: str
):
    worker.load()
    worker.write(line)
    error = worker.hear() or {}
    assert (error["type"], error["code"]) == ("error", "failed")
    assert why in error["message"]
    assert "id" not in error
    assert worker.generate(tmp_path)[0]["type"] == "done"


def test_a_request_that_is_wrong_is_the_requests_fault(worker: InProcess, tmp_path: Path):
    worker.load()
    error, _ = worker.generate(tmp_path, steps="many")
    assert error["code"] == "invalid_request"
    assert "`request.steps` must be a whole number" in error["message"]


def test_half_a_line_at_the_end_counts_for_nothing(worker: InProcess):
    worker.load()
    worker.write(b'{"type":"generate"')
    worker.hang_up()
    assert worker.hear() is None


def test_progress_is_bounded_but_for_the_ends_of_a_stage():
    told: list[tuple[str, int]] = []
    now = 0.0

    def report(stage: str, step: int, _steps: int) -> None:
        told.append((stage, step))

    progress = Progress(report, threading.Event(), clock=lambda: now)
    for step in range(1001):
        progress("denoise", step, 1000)
        now += 0.002
    progress("decode", 0, 10)
    steps = [step for stage, step in told if stage == "denoise"]
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert 15 <= len(steps) <= 22
    assert [step for stage, step in told if stage == "decode"] == []
    for _ in range(100_000):
        progress("a", 1, 1)
        progress("b", 1, 1)
    assert len(told) <= 23


def ignore(_stage: str, _step: int, _steps: int) -> None:
    pass


def test_each_stage_is_timed():
    now = 0.0
    progress = Progress(ignore, threading.Event(), clock=lambda: now)
    for stage, seconds in (("denoise", 2.0), ("denoise", 1.0), ("decode", 0.5), ("denoise", 0.25)):
        progress(stage, 0, 1)
        now += seconds
    assert progress.finish() == {"denoise_ms": 3250.0, "decode_ms": 500.0}


NOISY = """
import os, subprocess, sys
from rayreel import Engine, Output, serve
class Noisy(Engine):
    def load(self, load):
        print("Loading pipeline components...: 100%")
        os.write(1, b"from C\\n")
        subprocess.run(["echo", "from a child"], check=True)
        sys.stdout.write("half a line")
    def generate(self, request, progress):
        assert sys.stdin.read() == "" and os.read(0, 1) == b""
        path = request.output_dir / "a.mp4"
        path.write_text("a")
        return [Output("a.mp4", "video", "video/mp4", 64, 64)]
serve(Noisy())
"""


def test_what_libraries_print_goes_to_the_log(tmp_path: Path):
    engine = Child(source=NOISY, stderr=subprocess.PIPE)
    assert engine.load()["type"] == "ready"
    assert engine.generate(tmp_path)[0]["type"] == "done"
    engine.say({"type": "exit"})
    assert engine.hear() is None
    assert engine.status() == 0
    assert engine.process.stderr is not None
    log = engine.process.stderr.read().decode()
    for text in ("Loading pipeline", "from C", "from a child", "half a line"):
        assert text in log


STUCK = """
import rayreel.serving, threading
from rayreel import Engine, serve
rayreel.serving.PATIENCE = 0.05
class Stuck(Engine):
    def generate(self, request, progress):
        progress("denoise", 0, 1)
        threading.Event().wait()
serve(Stuck())
"""


def test_a_generation_that_hangs_does_not_outlive_its_worker(tmp_path: Path):
    engine = Child(source=STUCK)
    engine.load()
    engine.say(generate(tmp_path))
    assert (engine.hear() or {})["type"] == "progress"
    engine.hang_up()
    assert engine.status() == 1


DOOMED = """
import threading
from rayreel import Engine, OutOfMemory, serve
class Doomed(Engine):
    def load(self, load):
        self.when = threading.Event()
        threading.Thread(target=self.end, daemon=True).start()
    def end(self):
        self.when.wait()
        self.abandon(OutOfMemory("the other GPU is full"))
    def generate(self, request, progress):
        self.when.set()
        threading.Event().wait()
serve(Doomed())
"""


def test_an_engine_may_end_itself_while_it_is_blocked(tmp_path: Path):
    engine = Child(source=DOOMED)
    engine.load()
    error, _ = engine.generate(tmp_path)
    told = error["code"], error["message"], error["retryable"]
    assert told == ("out_of_memory", "the other GPU is full", True)
    assert engine.hear() is None
    assert engine.status() == 1


def test_an_engine_ends_with_its_input():
    engine = Child(source="from rayreel import Engine, serve; serve(Engine())")
    assert engine.load()["type"] == "ready"
    engine.hang_up()
    assert engine.status() == 0


def test_a_worker_that_does_not_listen_any_more_is_no_crash(tmp_path: Path):
    nobody, output = os.pipe()
    os.close(nobody)
    messages = [{"type": "load", "protocol": 1, "model": "m"}, generate(tmp_path)]
    input = io.BytesIO(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
    with os.fdopen(output, "wb", buffering=0) as output:
        serve(Scripted(), input, output)
