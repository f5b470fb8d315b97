"""The real SGLang and the real vLLM-Omni behind rayreel, on the CPU, with a tiny checkpoint.

The variables `SGLANG` and `VLLM` name their programs `sglang` and `vllm`; without them these tests
are skipped. `scripts/test servers` installs both, and what they lack for a CPU (`e2e/servers`).
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

import av

from tests.service import ENDS, RAYREEL, Server
from tests.test_server import IMAGE
from tests.worker import WAIT, until

pytestmark = pytest.mark.skipif(not RAYREEL.exists(), reason=f"there is no {RAYREEL}")


@dataclass
class Real:
    """A server of somebody else."""

    adapter: str
    program: str
    arguments: list[str]
    fails: dict[str, Any]
    """A request with which a job of its fails, and how it says so."""
    says: str

    def run(self) -> list[str]:
        program = os.environ.get(self.program)
        if not program:
            pytest.skip(f"{self.program} names no program of {self.adapter}")
        return [program, *self.arguments]


# Width and height are in the patches and strides of the checkpoint: 32 pixels.
REAL = [
    Real(
        "sglang", "SGLANG",
        ["serve", "--model-path", "{checkpoint}", "--host", "{host}", "--port", "{port}",
         "--output-path", "{scratch}/outputs", "--input-save-path", "{scratch}/inputs"],
        fails={"size": "48x48"}, says="The size of tensor a",
    ),
    Real(
        "vllm-omni", "VLLM",
        ["serve", "{checkpoint}", "--omni", "--host", "{host}", "--port", "{port}"],
        fails={"size": "16x16"}, says="cannot reshape tensor of 0 elements",
    ),
]  # fmt: skip

LONG = {"size": "128x128", "frames": 33, "steps": 150}
"""Half a minute of work."""

MODEL = """
[retry]
max_failures = 2
backoff_seconds = 0.1

[models.real]
engine = "server"
checkpoint = {checkpoint}
images = "first"
limits = {{ min_side = 16, multiple = 16, max_frames = 81, max_steps = 300 }}
defaults = {{ size = "64x64", frames = 5, fps = 8, steps = 4 }}

[models.real.settings]
adapter = {adapter}
{where}
"""

# One thread: the others are of no use to a tiny model. No hub.
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def config(real: Real, checkpoint: Path, **where: Any) -> str:
    lines = [f"{name} = {json.dumps(value)}" for name, value in where.items()]
    names = {"checkpoint": json.dumps(str(checkpoint)), "adapter": json.dumps(real.adapter)}
    return MODEL.format(**names, where="\n".join(lines))


@pytest.fixture(scope="module", params=REAL, ids=lambda real: real.adapter)
def real(request: pytest.FixtureRequest) -> Real:
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    """SGLang tells by the directory's name what a model can do."""
    path = tmp_path_factory.mktemp("models") / "Wan2.2-TI2V-5B-Diffusers"
    path.symlink_to(checkpoint("wan-ti2v"))
    return path


@pytest.fixture(scope="module")
def behind(real: Real, tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    """rayreel, which starts the server."""
    lines = config(real, model, run=real.run())
    lines += "environment = { " + ", ".join(f'{k} = "{v}"' for k, v in QUIET.items()) + " }\n"
    server = Server(tmp_path_factory.mktemp("behind"), lines)
    yield server
    server.stop()


class Standing:
    """The server, started by hand, and rayreel before its address."""

    def __init__(self, real: Real, folder: Path, checkpoint: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        places = {"checkpoint": checkpoint, "host": "127.0.0.1", "port": port, "scratch": folder}
        self._log = folder / "real.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [word.format(**places) for word in real.run()], cwd=folder, stdout=log, stderr=log,
                env=os.environ | QUIET, start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 5 * WAIT
            while not self._answers():
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.1)
            self.server = Server(folder, config(real, checkpoint, url=self.url))
        except BaseException:
            self._kill()
            raise

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._get("/health")[0] == 200
        except OSError:
            return False

    def _get(self, path: str) -> tuple[int, bytes]:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return answer.status, answer.read()

    def jobs(self) -> list[Any]:
        """Those that the real server knows."""
        return json.loads(self._get("/v1/videos")[1])["data"]

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        self.server.stop()
        self._kill()


@pytest.fixture(scope="module")
def standing(
    real: Real, tmp_path_factory: pytest.TempPathFactory, model: Path
) -> Iterator[Standing]:
    standing = Standing(real, tmp_path_factory.mktemp("standing"), model)
    yield standing
    standing.stop()


def frames(file: bytes) -> list[Any]:
    with av.open(io.BytesIO(file), "r") as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def running(server: Server) -> str:
    """A long task that the real server is at."""
    id = server.submit("real", **LONG)

    def runs() -> bool:
        task = server.task(id)
        assert task["status"] not in ENDS, task
        return task["status"] == "RUNNING"

    until(runs)
    return id


def ended(server: Server, **asked: Any) -> Any:
    return server.end_of(server.submit("real", **asked))


def works(pid: int) -> bool:
    """It exists, and is not a zombie that nobody has reaped yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return [pid for pid in found if works(pid)]


def processes_of_real(server: Server) -> list[int]:
    """The processes of the real server that rayreel has started, the first one first."""
    for pid in descendants(server.process.pid):
        if b"engine\0server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return descendants(pid)
    raise AssertionError(server.log.read_text())


def test_videos_are_what_was_asked_for(behind: Server):
    task, first = behind.make("real")
    assert (task["result"]["width"], task["result"]["height"]) == (64, 64)
    assert (task["result"]["frames"], task["result"]["fps"]) == (5, 8)
    with av.open(io.BytesIO(first), "r") as video:
        assert video.streams.video[0].average_rate == 8
    assert [frame.shape for frame in frames(first)] == 5 * [(64, 64, 3)]
    # The seed counts, and nothing else does.
    again, other = (frames(behind.make("real", seed=seed)[1]) for seed in (7, 8))
    assert all((one == two).all() for one, two in zip(frames(first), again, strict=True))
    assert (frames(first)[0] != other[0]).any()


def test_an_image_and_a_negative_prompt_and_a_scale_arrive(behind: Server, real: Real):
    plain = frames(behind.make("real", guidance=3.0)[1])
    for asked in ({"image": IMAGE}, {"negative_prompt": "blur"}, {"guidance": 6.0}):
        made = frames(behind.make("real", **({"guidance": 3.0} | asked))[1])
        # With an image, SGLang takes this model's own area and the image's aspect.
        is_other_size = made[0].shape != plain[0].shape
        assert is_other_size == (real.adapter == "sglang" and "image" in asked)
        assert is_other_size or any((a != b).any() for a, b in zip(plain, made, strict=True)), asked


def test_progress_is_that_of_the_server(behind: Server, real: Real):
    id = running(behind)
    seen: set[int] = set()

    def is_over() -> bool:
        task = behind.task(id)
        seen.add(task["progress"])
        return task["status"] in ENDS

    until(is_over)
    assert behind.task(id)["status"] == "SUCCEEDED"
    between = {percent for percent in seen if 0 < percent < 100}
    # vLLM-Omni has none to tell.
    assert (len(between) > 1) == (real.adapter == "sglang"), seen


def test_a_job_that_fails_says_why(behind: Server, real: Real):
    task = ended(behind, **real.fails)
    assert task["status"] == "FAILED"
    assert task["error"]["code"] == "engine_failed"
    assert real.says in task["error"]["message"]
    behind.make("real")


def test_a_request_that_the_server_refuses_is_not_tried_again(behind: Server, real: Real):
    if real.adapter == "sglang":
        pytest.skip("what SGLang refuses, rayreel does not let through")
    task = ended(behind, steps=201)
    assert task["status"] == "FAILED"
    assert task["error"]["code"] == "engine_refused"
    assert "less than or equal to 200" in task["error"]["message"]
    assert len(task["attempts"]) == 1


def test_a_cancel_ends_the_work_and_the_next_task_finds_a_new_server(behind: Server):
    behind.make("real")
    id = running(behind)
    before = processes_of_real(behind)
    behind.call(f"/v1/video/generations/{id}/cancel", {})
    assert behind.task(id)["status"] == "CANCELLED"
    behind.make("real")
    assert not [pid for pid in before if works(pid)]


def test_a_server_that_dies_is_started_again_for_the_same_task(behind: Server):
    behind.make("real")
    id = running(behind)
    os.kill(processes_of_real(behind)[0], signal.SIGKILL)
    task = behind.end_of(id)
    assert task["status"] == "SUCCEEDED", task
    assert len(task["attempts"]) == 2


def test_a_job_is_removed_from_a_server_that_stands(standing: Standing):
    standing.server.make("real")
    assert standing.jobs() == []


def test_a_cancel_leaves_a_server_that_stands_to_itself(standing: Standing):
    id = running(standing.server)
    until(lambda: len(standing.jobs()) == 1)
    standing.server.call(f"/v1/video/generations/{id}/cancel", {})
    assert standing.server.task(id)["status"] == "CANCELLED"
    standing.server.make("real")
    assert standing.jobs() == []
