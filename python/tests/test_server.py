"""The engines behind the real server: `rayreel serve` runs them as a model's `command`.

The program is that which `RAYREEL` names, or `target/release/rayreel`; without it they are skipped.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

import av
from PIL import Image

from tests.service import RAYREEL, Server
from tests.worker import until

pytestmark = pytest.mark.skipif(not RAYREEL.exists(), reason=f"there is no {RAYREEL}")

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]):
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
    server = Server(tmp_path_factory.mktemp("server"), config)
    yield server
    server.stop()


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
