"""`stable-diffusion`, with real diffusers and tiny random weights, on the CPU."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

import numpy as np
import torch
from PIL import Image

from rayreel.engines.stable_diffusion import StableDiffusion
from tests.worker import InProcess, Message, generate

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def worker(checkpoint: Checkpoint):
    worker = InProcess(StableDiffusion())
    ready = worker.load(checkpoint("stable-diffusion"), strength=0.5)
    assert ready["type"] == "ready", ready
    return worker


def make(worker: InProcess, directory: Path, **request: Any) -> bytes:
    """The bytes of a still that is asked for."""
    asked: Message = {"format": "png", "frames": 1} | request
    done, _ = worker.generate(directory, "task/1", **asked)
    assert done["type"] == "done", done
    return (directory / done["files"][0]["path"]).read_bytes()


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "input.png"
    Image.new("RGB", (100, 50), (200, 30, 30)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("format", "media_type", "pillow"),
    [("png", "image/png", "PNG"), ("jpeg", "image/jpeg", "JPEG"), ("webp", "image/webp", "WEBP")],
)
def test_text_becomes_a_still(
    worker: InProcess, tmp_path: Path, format: str, media_type: str, pillow: str
):
    done, _ = worker.generate(tmp_path, format=format, frames=1, width=400, height=64, steps=2)
    still, thumbnail = done["files"]
    assert still == {
        "path": f"image.{format}", "role": "image", "media_type": media_type,
        "width": 400, "height": 64, "frames": 1, "fps": 0,
    }  # fmt: skip
    with Image.open(tmp_path / still["path"]) as image:
        assert (image.format, image.size) == (pillow, (400, 64))
    assert (thumbnail["role"], thumbnail["width"], thumbnail["height"]) == ("thumbnail", 320, 51)
    assert {"denoise_ms", "decode_ms", "encode_ms"} <= done["metrics"].keys()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_what_loses_a_little_shows_the_same(worker: InProcess, tmp_path: Path, format: str):
    """The files show what the one without loss shows."""
    make(worker, tmp_path / "1")
    make(worker, tmp_path / "2", format=format)
    exact = np.asarray(Image.open(tmp_path / "1/image.png").convert("L"), dtype=int)
    drawn = np.asarray(Image.open(tmp_path / f"2/image.{format}").convert("L"), dtype=int)
    # Brightness, of noise: its colours are what such files save on.
    assert np.abs(exact - drawn).mean() < 6


def test_a_seed_gives_the_same_still_again(worker: InProcess, tmp_path: Path):
    first = make(worker, tmp_path / "1")
    assert make(worker, tmp_path / "2") == first
    others: list[Message] = [{"seed": 8}, {"prompt": "x"}, {"guidance": 2.0}, {"steps": 5}]
    others += [{"negative_prompt": "fog"}]
    for number, other in enumerate(others, 3):
        assert make(worker, tmp_path / str(number), **other) != first, other


def test_a_picture_is_drawn_again(worker: InProcess, tmp_path: Path, image: str):
    first = make(worker, tmp_path / "1", image=image)
    assert make(worker, tmp_path / "2", image=image) == first
    assert make(worker, tmp_path / "3") != first
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), (10, 200, 30)).save(other)
    assert make(worker, tmp_path / "4", image=str(other)) != first


@pytest.mark.parametrize(("steps", "made"), [(8, 4), (1, 1)])
def test_of_the_steps_the_strength_says_how_many_are_made(
    worker: InProcess,
    tmp_path: Path,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    made: int,
):
    monkeypatch.setattr("rayreel.Progress.BETWEEN_STEPS", 0)
    monkeypatch.setattr("rayreel.Progress.BETWEEN_STAGES", 0)
    asked: Message = {"format": "png", "frames": 1, "steps": steps, "image": image}
    _, progress = worker.generate(tmp_path, "task/1", **asked)
    told = [(m["step"], m["steps"]) for m in progress if m["stage"] == "denoise"]
    assert told[-1] == (made, made)


@pytest.mark.parametrize("steps", [1, 3, 49, 98])
def test_of_any_number_of_steps_one_is_made(
    checkpoint: Checkpoint, tmp_path: Path, image: str, steps: int
):
    engine = StableDiffusion()
    worker = InProcess(engine)
    worker.load(checkpoint("stable-diffusion"), strength=0.001)
    made: list[int] = []

    def called(_model: Any, _args: Any) -> None:
        made.append(1)

    engine.pipe.unet.register_forward_pre_hook(called)
    make(worker, tmp_path / "out", image=image, steps=steps, guidance=1.0)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"format": "mp4"}, "this model makes stills: ask for 1 frame, in png, jpeg, webp"),
        ({"frames": 5}, "this model makes stills"),
        ({"width": 65}, "width and height are multiples of 8, not 65x64"),
        ({"image": "/nowhere.png"}, "image can't be read"),
        ({"last_image": "/nowhere.png"}, "this model knows no last frame"),
        ({"steps": 0}, "steps is at least 1"),
        ({"guidance": -0.5}, "guidance is at least 0, not -0.5"),
        ({"guidance_2": 3.0}, "this model has one expert: leave out `guidance_2`"),
    ],
)
def test_what_it_can_not_do_is_said(worker: InProcess, tmp_path: Path, request_: Message, why: str):
    asked: Message = {"format": "png", "frames": 1} | request_
    error, _ = worker.generate(tmp_path, "task/1", **asked)
    assert error["code"] == "invalid_request"
    assert error["message"].startswith(why)


def test_a_cancel_stops_within_a_step(checkpoint: Checkpoint, tmp_path: Path):
    engine = StableDiffusion()
    worker = InProcess(engine)
    worker.load(checkpoint("stable-diffusion"))
    calls: list[int] = []

    def cancel(_model: Any, _args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            worker.stop()

    engine.pipe.unet.register_forward_pre_hook(cancel)
    worker.say(generate(tmp_path, format="png", frames=1, steps=8))
    assert worker.end_of()[0]["code"] == "cancelled"
    assert len(calls) == 2


def test_when_memory_runs_out_the_pipeline_is_freed_and_loaded_again(
    checkpoint: Checkpoint, tmp_path: Path
):
    engine = StableDiffusion()
    worker = InProcess(engine)
    worker.load(checkpoint("stable-diffusion"))

    def run_out(_model: Any, _args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    engine.pipe.vae.decoder.register_forward_pre_hook(run_out)
    error, _ = worker.generate(tmp_path, format="png", frames=1)
    assert error["code"] == "out_of_memory"
    assert engine.pipe is None
    assert make(worker, tmp_path / "again").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"strength": 0.0}, "setting `strength` must be above 0, and at most 1, not 0.0"),
        ({"strength": 1.5}, "setting `strength` must be above 0, and at most 1, not 1.5"),
        ({"guidance": -1}, "setting `guidance` must be at least 0, not -1"),
        (
            {"attention": "native"},
            "setting `attention`: this model has no choice of it; leave it out",
        ),
    ],
)
def test_settings_out_of_their_range_are_refused(
    checkpoint: Checkpoint, settings: Message, why: str
):
    error = InProcess(StableDiffusion()).load(checkpoint("stable-diffusion"), **settings)
    assert (error["code"], error["message"]) == ("load_failed", why)


@pytest.fixture
def strict(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint with a safety checker, which holds back what is less like its concepts than
    nothing can be: everything."""
    diffusers: Any = importlib.import_module("diffusers")
    transformers: Any = importlib.import_module("transformers")
    checkers: Any = importlib.import_module("diffusers.pipelines.stable_diffusion.safety_checker")
    small: dict[str, int] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 16}
    checker = checkers.StableDiffusionSafetyChecker(
        transformers.CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)
    )
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("stable-diffusion"))
    extractor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pipe.register_modules(safety_checker=checker, feature_extractor=extractor)
    pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(tmp_path / "strict")
    return tmp_path / "strict"


def test_what_a_safety_checker_holds_back_is_no_picture(strict: Path, image: str, tmp_path: Path):
    worker = InProcess(StableDiffusion())
    assert worker.load(strict)["type"] == "ready"
    of_text: Message = {"format": "png", "frames": 1}
    for request in (of_text, of_text | {"image": image}):
        error, _ = worker.generate(tmp_path / "out", "task/1", **request)
        assert (error["code"], error["retryable"]) == ("failed", False)
        assert error["message"].startswith("the model's safety checker has held back the picture")
        assert list((tmp_path / "out").iterdir()) == []


def test_it_keeps_no_more_than_the_picture_in_memory(worker: InProcess, tmp_path: Path):
    """What a generation needs is given back before the next one."""
    make(worker, tmp_path / "1")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    before = tensors()
    for number in range(2, 5):
        make(worker, tmp_path / str(number))
    assert tensors() <= before
    assert np.asarray(Image.open(tmp_path / "4/image.png")).shape == (64, 64, 3)
