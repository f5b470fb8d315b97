"""The engines behind the real server: `rayreel serve` runs them as a model's `command`.

The program is that which `RAYREEL` names, or `target/release/rayreel`; without it they are skipped.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

import av
from PIL import Image

from tests.worker import SOURCES, WAIT, until

RAYREEL = Path(
    os.environ.get("RAYREEL", Path(__file__).parents[2] / "target/release/rayreel")
).absolute()

pytestmark = pytest.mark.skipif(not RAYREEL.exists(), reason=f"there is no {RAYREEL}")

ENDS = {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}

MODEL = """
[models.{name}]
command = [{python}, "-m", "rayreel", "{engine}"]
checkpoint = {checkpoint}
images = "{images}"
grace_seconds = 30
settings = {settings}
limits = {{ multiple = {multiple}, max_frames = 81 }}
defaults = {{ size = "64x64", frames = 5, fps = 8, steps = 4 }}
"""

PNG = io.BytesIO()
Image.linear_gradient("L").convert("RGB").save(PNG, "PNG")
IMAGE = f"data:image/png;base64,{base64.b64encode(PNG.getvalue()).decode()}"


class Server:
    def __init__(self, folder: Path, checkpoint: Callable[[str], Path]):
        models = [
            ("t2v", "wan", "wan-t2v", "none", 16, "{}"),
            ("i2v", "wan", "wan-i2v", "first-last", 16, "{}"),
            ("ti2v", "wan", "wan-ti2v", "first", 32, "{}"),
            ("sd", "stable-diffusion", "stable-diffusion", "first", 8, "{}"),
            ("broken", "wan", "wan-t2v", "none", 16, "{ offlod = true }"),
        ]
        config = "[retry]\nmax_failures = 1\n"
        for name, engine, kind, images, multiple, settings in models:
            config += MODEL.format(
                name=name, engine=engine, images=images, multiple=multiple, settings=settings,
                python=json.dumps(sys.executable), checkpoint=json.dumps(str(checkpoint(kind))),
            )  # fmt: skip
        (folder / "rayreel.toml").write_text(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{address}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAYREEL")}
        # The engine gets what begins with PYTHON.
        environment["PYTHONPATH"] = str(SOURCES)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [RAYREEL, "--config", folder / "rayreel.toml", "serve", "--listen", address,
                 "--data", folder / "data"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.call("/readyz"))
        except OSError:
            return False

    def call(self, path: str, body: Any = None, method: str | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return answer.read()

    def submit(self, model: str, **asked: Any) -> str:
        asked = {"model": model, "prompt": "a red fox", "seed": 7} | asked
        return json.loads(self.call("/v1/video/generations", asked))["id"]

    def task(self, id: str) -> Any:
        return json.loads(self.call(f"/v1/video/generations/{id}"))

    def end_of(self, id: str) -> Any:
        deadline = time.monotonic() + 5 * WAIT
        while (task := self.task(id))["status"] not in ENDS:
            assert time.monotonic() < deadline, (task, self.log.read_text())
            time.sleep(0.1)
        return task

    def make(self, model: str, **asked: Any) -> tuple[Any, bytes]:
        id = self.submit(model, **asked)
        task = self.end_of(id)
        assert task["status"] == "SUCCEEDED", (task, self.log.read_text())
        return task, self.call(f"/v1/video/generations/{id}/content")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]):
    server = Server(tmp_path_factory.mktemp("server"), checkpoint)
    yield server
    server.process.terminate()
    server.process.wait(WAIT)


def probe(file: bytes, tmp_path: Path) -> tuple[str, int, int, int]:
    path = tmp_path / "video.mp4"
    path.write_bytes(file)
    if shutil.which("ffprobe"):
        words = ["ffprobe", "-v", "error", "-count_frames", "-of", "json", "-show_streams"]
        stream = json.loads(subprocess.check_output([*words, str(path)]))["streams"][0]
        return (
            stream["codec_name"],
            stream["width"],
            stream["height"],
            int(stream["nb_read_frames"]),
        )
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        return stream.codec_context.name, stream.width, stream.height, stream.frames


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("t2v", {"frames": 17}),
        ("i2v", {"frames": 17, "image": IMAGE}),
        ("i2v", {"frames": 17, "image": IMAGE, "last_image": IMAGE}),
        ("ti2v", {"frames": 17}),
        ("ti2v", {"frames": 17, "image": IMAGE}),
    ],
)
def test_a_video_comes_out_and_the_same_again(
    server: Server, tmp_path: Path, model: str, asked: dict[str, Any]
):
    task, file = server.make(model, **asked)
    assert probe(file, tmp_path) == ("h264", 64, 64, 17)
    assert task["result"]["frames"] == 17
    assert "thumbnail_url" in task["result"]
    assert server.make(model, **asked)[1] == file


def test_stills_come_out(server: Server):
    asked = {"format": "png", "size": "128x64"}
    text = server.make("sd", **asked)[1]
    picture = server.make("sd", **asked, image=IMAGE)[1]
    for file in (text, picture):
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size) == ("PNG", (128, 64))
    assert text != picture


def test_a_request_that_the_model_can_not_do_fails_with_the_reason(server: Server):
    task = server.end_of(server.submit("i2v"))
    assert task["status"] == "FAILED"
    assert task["error"]["code"] == "engine_refused"
    assert "give `image`" in task["error"]["message"]


def test_a_model_that_can_not_be_loaded_fails_with_the_reason(server: Server):
    task = server.end_of(server.submit("broken"))
    assert task["status"] == "FAILED"
    assert "did you mean `offload`?" in task["error"]["message"]


def test_a_cancel_leaves_the_engine_warm(server: Server):
    server.make("t2v")
    started = server.log.read_text().count("engine started")
    id = server.submit("t2v", frames=81, steps=100, size="256x256")

    def denoising() -> bool:
        return server.task(id)["progress"] > 0

    until(denoising)
    server.call(f"/v1/video/generations/{id}/cancel", {})
    assert server.task(id)["status"] == "CANCELLED"
    server.make("t2v")
    log = server.log.read_text()
    assert log.count("engine started") == started, log
