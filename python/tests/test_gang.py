"""Gangs, with real diffusers and tiny random weights, on the CPU over gloo."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

import numpy as np
import torch
from PIL import Image

from rayreel.engines.stable_diffusion import StableDiffusion
from rayreel.engines.wan import Wan
from tests.service import RAYREEL, Server
from tests.worker import SOURCES, InProcess, Message, Worker, generate, until

Checkpoint = Callable[[str], Path]

AT_ONCE = 2.0
"""Seconds within which a dead rank has ended the gang, and the worker knows, on a machine that is
busy with other things; otherwise it takes some milliseconds."""


class GangOf(Worker):
    """A worker whose engine is a gang."""

    def __init__(self, nursery: subprocess.Popen[bytes], folder: Path, world: int):
        self.folder, self.world = folder, world
        for name in ("to", "from"):
            os.mkfifo(folder / name)
        assert nursery.stdin is not None
        order = {"folder": str(folder), "world": world}
        nursery.stdin.write(json.dumps(order).encode() + b"\n")
        nursery.stdin.flush()
        super().__init__((folder / "to").open("wb"), (folder / "from").open("rb"))

    def processes(self) -> list[int]:
        return [int((self.folder / f"pid.{rank}").read_text()) for rank in range(self.world)]

    def calls(self) -> list[int]:
        """How many passes of a denoiser each rank has begun."""
        paths = [self.folder / f"calls.{rank}" for rank in range(self.world)]
        return [path.stat().st_size if path.exists() else 0 for path in paths]

    def tell(self, rank: int, where: str, what: str) -> None:
        part = self.folder / "part"
        part.write_text(what)
        part.rename(self.folder / f"{where}.{rank}")

    def is_gone(self) -> bool:
        return not any(map(is_alive, self.processes()))

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def is_denoising(self, more: int = 1) -> None:
        """Waits for so many calls."""
        before = self.calls()[0]
        until(lambda: self.calls()[0] >= before + more)


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    # Who is dead waits for its parent in state Z, or X.
    return status.rpartition(")")[2].split()[0] not in "ZX"


def ranks_of(ancestor: int) -> list[int]:
    """The ranks but 0 that a process, or what it has started, has started."""
    parents: dict[int, int] = {}
    ranks: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, words = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        process = int(folder.name)
        parents[process] = int(status.rpartition(")")[2].split()[1])
        if b"\0rayreel\0rank\0" in words:
            ranks.append(process)

    def descends(process: int) -> bool:
        return process == ancestor or (process in parents and descends(parents[process]))

    return [rank for rank in ranks if descends(rank)]


@pytest.fixture(scope="module")
def nursery():
    words = [sys.executable, "-m", "tests.ranks"]
    environment = os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{SOURCES.parent}"}
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.wait()


Start = Callable[[int], GangOf]
Get = Callable[[int, str], GangOf]


@pytest.fixture(scope="module")
def start(nursery: subprocess.Popen[bytes], tmp_path_factory: pytest.TempPathFactory) -> Start:
    return lambda world: GangOf(nursery, tmp_path_factory.mktemp("gang"), world)


@pytest.fixture(scope="module")
def gang(start: Start, checkpoint: Checkpoint) -> Get:
    """A gang that lives, with a model: the one that other tests have used, if it does."""
    gangs: dict[tuple[int, str], GangOf] = {}

    def get(world: int, kind: str) -> GangOf:
        gang = gangs.get((world, kind))
        if gang is None or not all(map(is_alive, gang.processes())):
            gang = gangs[world, kind] = start(world)
            ready = gang.load(checkpoint(kind), ulysses=world, device="cpu")
            assert ready["type"] == "ready", (ready, gang.log())
        return gang

    return get


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoint) -> Callable[[str], InProcess]:
    """The same model in one process."""
    workers: dict[str, InProcess] = {}

    def get(kind: str) -> InProcess:
        if kind not in workers:
            workers[kind] = InProcess(Wan())
            assert workers[kind].load(checkpoint(kind), device="cpu")["type"] == "ready"
        return workers[kind]

    return get


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("image") / "image.png"
    ramp = np.linspace(0, 255, 96 * 80 * 3).astype(np.uint8).reshape(80, 96, 3)
    Image.fromarray(ramp).save(path)
    return str(path)


def make(worker: Worker, directory: Path, **asked: Any) -> bytes:
    done, _ = worker.generate(directory, **asked)
    assert done["type"] == "done", done
    return (directory / done["files"][0]["path"]).read_bytes()


LONG: Message = {"steps": 1000}


@pytest.mark.parametrize(
    ("world", "kind", "asked"),
    [
        (2, "wan-t2v", {"steps": 8}),
        (2, "wan-ti2v", {}),
        (2, "wan-ti2v", {"image": "IMAGE"}),
        (4, "wan-t2v", {"frames": 17, "width": 96}),
        (4, "wan-i2v", {"image": "IMAGE", "last_image": "IMAGE"}),
    ],
)
def test_a_gang_draws_what_one_process_draws(
    gang: Get,
    alone: Callable[[str], InProcess],
    image: str,
    tmp_path: Path,
    world: int,
    kind: str,
    asked: Message,
):
    asked = {name: image if value == "IMAGE" else value for name, value in asked.items()}
    steps: Any = asked.get("steps", 4)
    ranks = gang(world, kind)
    before = ranks.calls()
    together = make(ranks, tmp_path / "gang", **asked)
    # Bit for bit, and every rank did its share.
    assert together == make(alone(kind), tmp_path / "alone", **asked)
    made = {now - then for now, then in zip(ranks.calls(), before, strict=True)}
    assert made == {2 * steps}
    assert make(ranks, tmp_path / "again", **asked) == together


def test_only_rank_0_decodes_and_writes(gang: Get, tmp_path: Path):
    ranks = gang(2, "wan-t2v")
    # It would be a picture without numbers, if it were decoded.
    ranks.tell(1, "decode", "nan")
    make(ranks, tmp_path)
    assert (ranks.folder / "decode.1").exists()
    (ranks.folder / "decode.1").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"video.mp4", "thumbnail.png"}


@pytest.mark.parametrize("where", ["text", "image"])
def test_all_ranks_draw_what_rank_0_has_read(
    gang: Get, alone: Callable[[str], InProcess], image: str, tmp_path: Path, where: str
):
    ranks, one = gang(4, "wan-i2v"), alone("wan-i2v")
    for misreads, same in ((2, True), (0, False)):
        # Prompts are kept, so that only a new one is read.
        asked = {"image": image, "prompt": f"a {where} that rank {misreads} misreads"}
        ranks.tell(misreads, where, "1.5")
        drawn = make(ranks, tmp_path / f"gang-{misreads}", **asked)
        assert not (ranks.folder / f"{where}.{misreads}").exists()
        assert (drawn == make(one, tmp_path / f"alone-{misreads}", **asked)) == same


def test_a_cancel_stops_all_ranks_within_a_step(gang: Get, tmp_path: Path):
    ranks = gang(4, "wan-t2v")
    processes = ranks.processes()
    ranks.say(generate(tmp_path, **LONG))
    ranks.is_denoising(more=4)
    ranks.stop()
    told = max(ranks.calls())
    end, _ = ranks.end_of()
    assert end["code"] == "cancelled"
    # Two calls are a step.
    assert len(set(ranks.calls())) == 1
    assert ranks.calls()[0] <= told + 2
    make(ranks, tmp_path / "next")
    assert ranks.processes() == processes
    assert not ranks.is_gone()


def test_cancels_at_random_moments_leave_the_gang_as_it_is(gang: Get, tmp_path: Path):
    ranks = gang(2, "wan-t2v")
    processes, film = ranks.processes(), make(ranks, tmp_path / "before")
    chance = random.Random(5)
    for number in range(20):
        # 4 steps are 8 calls: some are cancelled while they are decoded, or when they are done.
        ranks.say(generate(tmp_path / str(number), id := f"task/{number}"))
        before, calls = ranks.calls()[0], chance.randrange(9)
        until(lambda before=before, calls=calls: ranks.calls()[0] >= before + calls)
        ranks.stop(id)
        end, _ = ranks.end_of(id)
        assert end["type"] == "done" or end["code"] == "cancelled", end
        assert len(set(ranks.calls())) == 1
    assert make(ranks, tmp_path / "after") == film
    assert ranks.processes() == processes
    assert all(map(is_alive, processes))


def test_what_rank_0_refuses_the_others_never_hear_of(gang: Get, tmp_path: Path):
    ranks = gang(2, "wan-t2v")
    refused: list[tuple[Message, str]] = [
        ({"width": 72}, "width and height are multiples of 16"),
        (
            {"width": 16, "height": 16, "frames": 1, "format": "png"},
            "make 1 tokens, which this model's 2 GPUs can't divide",
        ),
        ({"format": "gif", "frames": 1}, "a still is one of"),
    ]
    for asked, why in refused:
        error, _ = ranks.generate(tmp_path, **asked)
        assert error["code"] == "invalid_request"
        assert why in error["message"]
    # After the last step rank 0 is alone, with its failures too.
    ranks.tell(0, "decode", "nan")
    error, _ = ranks.generate(tmp_path)
    assert (error["code"], "no numbers" in error["message"]) == ("failed", True)
    make(ranks, tmp_path)


@pytest.mark.parametrize(
    ("rank", "what", "code", "message"),
    [
        (1, "exit", "failed", "rank 1 (cpu) exited with status 3"),
        (1, "raise", "failed", "rank 1 (cpu): RuntimeError: the cat has walked over the keyboard"),
        (1, "run out of memory", "out_of_memory", "rank 1 (cpu): CUDA out of memory. Tried …"),
        (0, "raise", "failed", "rank 0 (cpu): RuntimeError: the cat has walked over the keyboard"),
        (0, "run out of memory", "out_of_memory", "rank 0 (cpu): CUDA out of memory. Tried …"),
    ],
)
def test_the_failure_of_a_rank_ends_the_gang(
    gang: Get, tmp_path: Path, rank: int, what: str, code: str, message: str
):
    ranks = gang(2, "wan-t2v")
    ranks.say(generate(tmp_path, **LONG))
    ranks.is_denoising()
    ranks.tell(rank, "denoise", what)
    error, _ = ranks.end_of()
    assert (error["code"], error["retryable"]) == (code, True)
    remedy = f"; {Wan.remedy}" if code == "out_of_memory" else ""
    assert error["message"] == f"{message}{remedy}"
    assert ranks.hear() is None
    until(ranks.is_gone)


def test_a_rank_that_is_killed_in_mid_step_ends_the_gang_at_once(gang: Get, tmp_path: Path):
    ranks = gang(4, "wan-t2v")
    ranks.say(generate(tmp_path, **LONG))
    ranks.is_denoising()
    since = time.monotonic()
    os.kill(ranks.processes()[2], signal.SIGKILL)
    error, _ = ranks.end_of()
    assert time.monotonic() - since < AT_ONCE
    assert error["message"].startswith("rank 2 (cpu) was killed by signal 9")
    assert (error["code"], error["retryable"]) == ("failed", True)
    # The others were gone before it was said.
    assert not any(map(is_alive, ranks.processes()[1:]))
    assert ranks.hear() is None
    until(ranks.is_gone)


def test_when_rank_0_is_killed_the_others_go(gang: Get, tmp_path: Path):
    ranks = gang(2, "wan-t2v")
    ranks.say(generate(tmp_path, **LONG))
    ranks.is_denoising()
    os.kill(ranks.processes()[0], signal.SIGKILL)
    until(ranks.is_gone)


def test_an_idle_gang_ends_with_any_of_its_ranks(gang: Get):
    ranks = gang(2, "wan-t2v")
    os.kill(ranks.processes()[1], signal.SIGKILL)
    assert ranks.hear() is None
    until(ranks.is_gone)
    assert "the idle engine ends: rank 1 (cpu) was killed by signal 9" in ranks.log()


def test_a_gang_leaves_with_its_worker(gang: Get):
    ranks = gang(2, "wan-t2v")
    ranks.say({"type": "exit"})
    assert ranks.hear() is None
    until(ranks.is_gone)


@pytest.mark.parametrize(
    ("rank", "what", "code", "message"),
    [
        (1, "raise", "load_failed", "rank 1 (cpu): RuntimeError: the cat has walked over the"),
        (1, "exit", "load_failed", "rank 1 (cpu) exited with status 3"),
        (1, "run out of memory", "out_of_memory", "rank 1 (cpu): CUDA out of memory. Tried …"),
        (0, "raise", "load_failed", "rank 0 (cpu): RuntimeError: the cat has walked over the"),
    ],
)
def test_a_rank_that_can_not_load_the_model_fails_the_load(
    start: Start, checkpoint: Checkpoint, rank: int, what: str, code: str, message: str
):
    ranks = start(2)
    ranks.tell(rank, "load", what)
    error = ranks.load(checkpoint("wan-ti2v"), ulysses=2, device="cpu")
    assert (error["type"], error["code"]) == ("error", code)
    assert error["message"].startswith(message)
    assert ranks.hear() is None
    until(ranks.is_gone)


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("wan-t2v", {"ulysses": 3}, "must divide the model's 4 attention heads, which 3 does not"),
        ("wan-t2v", {"ulysses": 0}, "setting `ulysses` must be at least 1, not 0"),
        ("wan-t2v", {"ring": 2, "device": "cpu"}, "setting `ring` needs GPUs"),
        ("wan-t2v", {"ulysses": 2, "device": "cuda:1"}, 'say "cuda", and choose among them with'),
        pytest.param(
            "wan-t2v",
            {"ulysses": 2, "device": "cuda"},
            "is 2, but there are 0 devices of type cuda",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
        ("stable-diffusion", {"ulysses": 2, "device": "cpu"}, "runs on one GPU: leave out"),
    ],
)
def test_what_no_gang_can_run_is_said_before_one_is_started(
    checkpoint: Checkpoint, kind: str, settings: Message, why: str
):
    engine = StableDiffusion() if kind == "stable-diffusion" else Wan()
    error = InProcess(engine).load(checkpoint(kind), **settings)
    assert error["code"] == "load_failed"
    assert why in error["message"], error


@pytest.mark.skipif(not RAYREEL.exists(), reason=f"there is no {RAYREEL}")
def test_a_task_whose_gang_loses_a_rank_succeeds_with_the_next(
    tmp_path: Path, checkpoint: Checkpoint
):
    config = f"""
        [models.gang]
        command = [{json.dumps(sys.executable)}, "-m", "rayreel", "wan"]
        checkpoint = {json.dumps(str(checkpoint("wan-t2v")))}
        settings = {{ ulysses = 2, device = "cpu" }}
        limits = {{ multiple = 16, max_frames = 81 }}
        defaults = {{ size = "64x64", frames = 5, fps = 8, steps = 4 }}
    """
    server = Server(tmp_path, config)
    try:
        # When it is warm, progress means steps.
        server.make("gang")
        id = server.submit("gang", steps=60)
        until(lambda: server.task(id)["progress"] > 0)
        (rank,) = ranks_of(server.process.pid)
        os.kill(rank, signal.SIGKILL)
        task = server.end_of(id)
        assert task["status"] == "SUCCEEDED", (task, server.log.read_text())
        first, second = task["attempts"]
        assert first["error"]["message"].startswith("rank 1 (cpu) was killed by signal 9")
        assert second["outcome"] == "succeeded"
        (other,) = ranks_of(server.process.pid)
        assert other != rank
    finally:
        server.stop()
    assert not is_alive(other)
