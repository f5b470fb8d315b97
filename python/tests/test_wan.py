"""`wan`, with real diffusers and tiny random weights, on the CPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

import av
import numpy as np
import torch
from PIL import Image

from rayreel.engines.wan import NEGATIVE_PROMPT, Wan
from tests.worker import InProcess, Message, generate

Checkpoint = Callable[[str], Path]


class Loaded(InProcess):
    """A worker whose engine has a model."""

    def __init__(self, checkpoint: Path, **settings: Any):
        self.engine = Wan()
        super().__init__(self.engine)
        ready = self.load(checkpoint, **settings)
        assert ready["type"] == "ready", ready
        self.version = ready["version"]

    def make(self, directory: Path, **request: Any) -> tuple[list[Message], bytes]:
        """The files of a request that succeeds, and the bytes of the first one."""
        done, _ = self.generate(directory, **request)
        assert done["type"] == "done", done
        return done["files"], (directory / done["files"][0]["path"]).read_bytes()


@pytest.fixture(scope="module")
def t2v(checkpoint: Checkpoint):
    return Loaded(checkpoint("wan-t2v"))


@pytest.fixture(scope="module")
def i2v(checkpoint: Checkpoint):
    return Loaded(checkpoint("wan-i2v"))


@pytest.fixture(scope="module")
def ti2v(checkpoint: Checkpoint):
    return Loaded(checkpoint("wan-ti2v"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("images")
    ramp = np.linspace(0, 255, 96 * 80 * 3).astype(np.uint8).reshape(80, 96, 3)
    first, last = folder / "first.png", folder / "last.jpg"
    Image.fromarray(ramp).save(first)
    Image.fromarray(255 - ramp).save(last)
    return str(first), str(last)


def frames_of(path: Path) -> list[bytes]:
    """A digest of each frame."""
    with av.open(str(path)) as film:
        frames = film.decode(video=0)
        return [
            hashlib.sha256(frame.to_ndarray(format="rgb24").tobytes()).digest() for frame in frames
        ]


class Calls:
    """Counts how often a model is asked."""

    def __init__(self, model: Any, then: Callable[[int], None] = lambda _: None):
        self.count = 0
        self.timesteps: list[float] = []

        def called(_model: Any, _args: Any, values: dict[str, Any]) -> None:
            self.count += 1
            if "timestep" in values:
                self.timesteps.append(float(values["timestep"].flatten()[-1]))
            then(self.count)

        self._hook = model.register_forward_pre_hook(called, with_kwargs=True)

    def __enter__(self):
        return self

    def __exit__(self, *_: Any):
        self._hook.remove()


def test_text_becomes_a_video(t2v: Loaded, tmp_path: Path):
    assert t2v.version.startswith("diffusers 0.")
    done, progress = t2v.generate(tmp_path, frames=17)
    video, thumbnail = done["files"]
    assert video == {
        "path": "video.mp4", "role": "video", "media_type": "video/mp4",
        "width": 64, "height": 64, "frames": 17, "fps": 8,
    }  # fmt: skip
    assert (thumbnail["role"], thumbnail["path"]) == ("thumbnail", "thumbnail.png")
    with av.open(str(tmp_path / "video.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", Fraction(8))
        assert (stream.width, stream.height, stream.frames) == (64, 64, 17)
    # The index comes first, so that it plays while it downloads.
    file = (tmp_path / "video.mp4").read_bytes()
    assert file.index(b"moov") < file.index(b"mdat")
    stages = list(dict.fromkeys(message["stage"] for message in progress))
    assert stages[-1] == "encode"
    assert set(stages) <= {"encode_prompt", "denoise", "decode", "encode"}
    assert {"encode_prompt_ms", "denoise_ms", "decode_ms", "encode_ms"} <= done["metrics"].keys()


def test_every_step_of_every_stage_is_told(
    t2v: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rayreel.Progress.BETWEEN_STEPS", 0)
    monkeypatch.setattr("rayreel.Progress.BETWEEN_STAGES", 0)
    _, progress = t2v.generate(tmp_path, frames=9, steps=3)
    told = [(m["stage"], m["step"], m["steps"]) for m in progress]
    expected = [("encode_prompt", 0, 1)]
    expected += [("denoise", step, 3) for step in range(4)]
    expected += [("decode", frame, 3) for frame in range(3)]
    expected += [("encode", frame, 9) for frame in range(1, 10)]
    assert told == expected


def test_tiles_count_as_steps_of_the_decoder(
    t2v: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rayreel.Progress.BETWEEN_STEPS", 0)
    vae = t2v.engine.pipe.vae
    vae.enable_tiling(32, 32, 24, 24)
    try:
        _, progress = t2v.generate(tmp_path, frames=5, width=64, height=32, steps=1)
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_height = vae.tile_sample_min_width = 256
    decoded = [m for m in progress if m["stage"] == "decode"]
    # Two latent frames in two by three tiles.
    assert {m["steps"] for m in decoded} == {12}
    assert decoded[-1]["step"] == 11


def test_a_seed_gives_the_same_video_again_and_another_seed_another(t2v: Loaded, tmp_path: Path):
    _, first = t2v.make(tmp_path / "1", seed=7)
    _, again = t2v.make(tmp_path / "2", seed=7)
    t2v.make(tmp_path / "3", seed=(1 << 64) - 1)
    assert first == again
    assert frames_of(tmp_path / "1/video.mp4") != frames_of(tmp_path / "3/video.mp4")


def test_a_seed_means_the_same_to_another_process(
    t2v: Loaded, checkpoint: Checkpoint, tmp_path: Path
):
    _, first = t2v.make(tmp_path / "1")
    _, again = Loaded(checkpoint("wan-t2v")).make(tmp_path / "2")
    assert first == again


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue whale"}, {"negative_prompt": "rain"}, {"guidance": 9.0}, {"steps": 5},
    ],
)  # fmt: skip
def test_what_is_asked_for_changes_the_video(t2v: Loaded, tmp_path: Path, change: Message):
    t2v.make(tmp_path / "1")
    t2v.make(tmp_path / "2", **change)
    assert frames_of(tmp_path / "1/video.mp4") != frames_of(tmp_path / "2/video.mp4")


def test_the_second_expert_takes_over_at_the_boundary(t2v: Loaded, tmp_path: Path):
    pipe = t2v.engine.pipe
    with Calls(pipe.transformer) as high, Calls(pipe.transformer_2) as low:
        t2v.make(tmp_path, steps=8)
    boundary = 0.875 * 1000
    # Twice a step: with the prompt, and with the negative one.
    assert high.count + low.count == 16
    assert high.count >= 2
    assert low.count >= 2
    assert min(high.timesteps) >= boundary > max(low.timesteps)


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ({}, {}, (4.0, 3.0)),
        ({}, {"guidance": 6.0}, (6.0, 6.0)),
        ({"guidance": 5.0}, {}, (5.0, 5.0)),
        ({"guidance_2": 2.0}, {}, (4.0, 2.0)),
        ({"guidance": 5.0, "guidance_2": 2.0}, {"guidance": 6.0}, (6.0, 2.0)),
        ({"guidance_2": 2.0}, {"guidance_2": 7.0}, (4.0, 7.0)),
        ({"guidance_2": 2.0}, {"guidance": 6.0, "guidance_2": 7.0}, (6.0, 7.0)),
    ],
)
def test_each_expert_has_its_guidance(
    t2v: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Message,
    asked: Message,
    expected: tuple[float, float],
):
    import dataclasses

    monkeypatch.setattr(
        t2v.engine, "settings", dataclasses.replace(t2v.engine.settings, **settings)
    )
    scales: list[tuple[float, float]] = []

    def look(_: int) -> None:
        pipe = t2v.engine.pipe
        scales.append((pipe._guidance_scale, pipe._guidance_scale_2))

    with Calls(t2v.engine.pipe.transformer, look):
        t2v.make(tmp_path, **asked)
    assert set(scales) == {expected}


def test_without_guidance_no_negative_prompt_is_drawn(t2v: Loaded, tmp_path: Path):
    pipe = t2v.engine.pipe
    with Calls(pipe.transformer) as high, Calls(pipe.transformer_2) as low:
        t2v.make(tmp_path, guidance=1.0, steps=4)
    assert high.count + low.count == 4


@pytest.mark.parametrize(
    ("scales", "guided"),
    [
        ((1.0, 6.0), "transformer_2"), ((0.0, 6.0), "transformer_2"),
        ((6.0, 1.0), "transformer"), ((6.0, 0.0), "transformer"),
    ],
)  # fmt: skip
def test_one_expert_may_be_guided_and_the_other_one_not(
    t2v: Loaded,
    tmp_path: Path,
    scales: tuple[float, float],
    guided: str,
):
    def latents(folder: str, guidance: float, guidance_2: float) -> dict[str, list[Any]]:
        """What each expert's passes start from."""
        seen: dict[str, list[Any]] = {"transformer": [], "transformer_2": []}
        hooks: list[Any] = []
        for name, inputs in seen.items():

            def look(_model: Any, _args: Any, values: Any, inputs: list[Any] = inputs) -> None:
                inputs.append(values["hidden_states"].clone())

            model = getattr(t2v.engine.pipe, name)
            hooks.append(model.register_forward_pre_hook(look, with_kwargs=True))
        t2v.make(tmp_path / folder, steps=6, guidance=guidance, guidance_2=guidance_2)
        for hook in hooks:
            hook.remove()
        return seen

    both, none = latents("1", *scales), latents("2", 1.0, 1.0)
    if guided == "transformer_2":
        # Up to the boundary nothing has changed; beyond it the guidance shows.
        start, end = both["transformer_2"][0], both["transformer_2"][-1]
        assert torch.allclose(start, none["transformer_2"][0], atol=1e-4)
        assert not torch.allclose(end, none["transformer_2"][-1], atol=1e-3)
    else:
        assert not torch.allclose(both["transformer"][-1], none["transformer"][-1], atol=1e-3)
        named = latents("3", scales[0], 1.0)
        assert torch.allclose(both["transformer_2"][-1], named["transformer_2"][-1], atol=1e-4)


def test_prompts_are_read_once(t2v: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Calls(t2v.engine.pipe.text_encoder) as reads:
        t2v.make(tmp_path / "1", prompt="a heron", negative_prompt="fog", steps=1)
        assert reads.count == 2
        t2v.make(tmp_path / "2", prompt="a heron", negative_prompt="fog", steps=1)
        t2v.make(tmp_path / "3", prompt="fog", negative_prompt="a heron", steps=1)
        assert reads.count == 2
        t2v.make(tmp_path / "4", prompt="a stork", negative_prompt="fog", steps=1)
        assert reads.count == 3
    assert frames_of(tmp_path / "1/video.mp4") == frames_of(tmp_path / "2/video.mp4")
    kept = t2v.engine._prompts  # pyright: ignore[reportPrivateUsage]
    assert "fog" in kept
    assert not any(tensor.requires_grad for tensor in kept.values())
    monkeypatch.setattr("rayreel.engines.wan.PROMPTS_KEPT", 2)
    t2v.make(tmp_path / "5", prompt="a crane", negative_prompt="haze", steps=1)
    assert set(kept) == {"a crane", "haze"}


def test_what_wan_was_trained_to_avoid_is_avoided_unless_the_model_says_otherwise(
    t2v: Loaded, checkpoint: Checkpoint, tmp_path: Path
):
    _, silent = t2v.make(tmp_path / "1")
    _, named = t2v.make(tmp_path / "2", negative_prompt=NEGATIVE_PROMPT)
    assert silent == named
    other = Loaded(checkpoint("wan-t2v"), negative_prompt="")
    other.make(tmp_path / "3")
    assert frames_of(tmp_path / "1/video.mp4") != frames_of(tmp_path / "3/video.mp4")


def test_an_image_becomes_the_first_frame_of_a_video(
    i2v: Loaded, images: tuple[str, str], tmp_path: Path
):
    first, last = images
    with Calls(i2v.engine.pipe.transformer) as high, Calls(i2v.engine.pipe.transformer_2) as low:
        files, one = i2v.make(tmp_path / "1", image=first)
    assert files[0]["frames"] == 5
    assert min(high.timesteps) >= 900 > max(low.timesteps)
    _, again = i2v.make(tmp_path / "2", image=first)
    assert one == again
    i2v.make(tmp_path / "3", image=last)
    i2v.make(tmp_path / "4", image=first, last_image=last)
    films = [tuple(frames_of(tmp_path / str(n) / "video.mp4")) for n in (1, 3, 4)]
    assert len(set(films)) == 3


def test_the_images_are_cut_to_size_and_stand_at_both_ends(
    i2v: Loaded, images: tuple[str, str], tmp_path: Path
):
    given: list[Any] = []

    def look(_model: Any, args: Any) -> None:
        given.extend(args[0][0].unbind(1))

    hook = i2v.engine.pipe.vae.encoder.register_forward_pre_hook(look)
    i2v.make(tmp_path, image=images[0], last_image=images[1], frames=9)
    hook.remove()
    assert len(given) == 9
    for frame, path in ((given[0], images[0]), (given[8], images[1])):
        # 96 by 80, of which the middle is taken.
        expected = np.asarray(Image.open(path).resize((64, 64), 4, box=(8, 0, 88, 80)))
        drawn = ((frame.permute(1, 2, 0) + 1) * 127.5).numpy()
        assert np.abs(drawn - expected).mean() < 4
    assert all(bool((frame == 0).all()) for frame in given[1:8])


def test_one_model_takes_text_alone_or_an_image(
    ti2v: Loaded, images: tuple[str, str], tmp_path: Path
):
    files, text = ti2v.make(tmp_path / "1", width=64, height=96)
    assert (files[0]["width"], files[0]["height"]) == (64, 96)
    # Often: the encoder's bytes once depended on what lay in memory.
    for again in range(8):
        assert ti2v.make(tmp_path / f"again-{again}", width=64, height=96)[1] == text
    ti2v.make(tmp_path / "3", width=64, height=96, image=images[0])
    _, first = ti2v.make(tmp_path / "4", width=64, height=96, image=images[1])
    _, second = ti2v.make(tmp_path / "5", width=64, height=96, image=images[1])
    assert first == second
    films = [tuple(frames_of(tmp_path / str(n) / "video.mp4")) for n in (1, 3, 4)]
    assert len(set(films)) == 3


def test_a_still_is_a_video_of_one_frame(t2v: Loaded, tmp_path: Path):
    files, file = t2v.make(tmp_path, format="png", frames=1)
    assert (files[0]["path"], files[0]["role"]) == ("image.png", "image")
    assert file.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("model", "request_", "why"),
    [
        ("t2v", {"width": 72}, "width and height are multiples of 16, not 72x64"),
        ("ti2v", {"height": 80}, "width and height are multiples of 32, not 64x80"),
        ("ti2v", {"guidance_2": 3.0}, "this model has one expert: leave out `guidance_2`"),
        ("t2v", {"width": 0}, "width and height are multiples of 16, not 0x64"),
        ("t2v", {"frames": 6}, "frames is 4n+1, not 6"),
        ("t2v", {"format": "png"}, "a still has 1 frame, not 5"),
        ("t2v", {"format": "gif", "frames": 1}, "a still is one of png, jpeg, webp, not gif"),
        ("t2v", {"guidance": -0.5}, "guidance is at least 0, not -0.5"),
        ("t2v", {"guidance_2": -2.0}, "guidance_2 is at least 0, not -2"),
        ("t2v", {"steps": 0}, "steps and fps are at least 1"),
        ("t2v", {"image": "FIRST"}, "this model makes videos of text alone: leave out `image`"),
        ("i2v", {}, "this model makes videos of images: give `image`"),
        ("i2v", {"image": "/nowhere.png"}, "image can't be read: "),
        ("i2v", {"image": "FIRST", "last_image": "TEXT"}, "last_image can't be read: "),
        ("i2v", {"image": "FIRST", "last_image": "FIRST", "frames": 1}, "last_image needs"),
        ("ti2v", {"image": "FIRST", "last_image": "FIRST"}, "this model can't be given its last"),
    ],
)
def test_what_a_model_can_not_do_is_said(
    request: pytest.FixtureRequest,
    images: tuple[str, str],
    tmp_path: Path,
    model: str,
    request_: Message,
    why: str,
):
    paths = {"FIRST": images[0], "TEXT": __file__}
    asked = {name: paths.get(str(value), value) for name, value in request_.items()}
    worker: Loaded = request.getfixturevalue(model)
    error, _ = worker.generate(tmp_path, "task/1", **asked)
    assert error["message"].startswith(why), error
    assert (error["code"], error["retryable"]) == ("invalid_request", False)


@pytest.mark.parametrize("at", [1, 2, 5, 16])
def test_a_cancel_stops_within_a_step(t2v: Loaded, tmp_path: Path, at: int):
    pipe = t2v.engine.pipe
    calls: list[int] = []

    def cancel(count: int) -> None:
        calls.append(count)
        if len(calls) == at:
            t2v.stop()

    with Calls(pipe.transformer, cancel), Calls(pipe.transformer_2, cancel):
        t2v.say(generate(tmp_path, steps=8))
        error, _ = t2v.end_of()
    assert (error["type"], error["code"]) == ("error", "cancelled")
    # The call that was under way is the last one: less than a step.
    assert len(calls) == at
    assert list(tmp_path.iterdir()) == []
    assert t2v.generate(tmp_path)[0]["type"] == "done"


def test_a_cancel_stops_the_decoder(t2v: Loaded, tmp_path: Path):
    def cancel(count: int) -> None:
        if count == 2:
            t2v.stop()

    with Calls(t2v.engine.pipe.vae.decoder, cancel) as decoded:
        t2v.say(generate(tmp_path, frames=33, steps=1))
        error, _ = t2v.end_of()
    assert error["code"] == "cancelled"
    # The hook of the engine comes before that of the test, and asks at the next frame.
    assert decoded.count <= 2
    assert t2v.generate(tmp_path)[0]["type"] == "done"


def test_when_memory_runs_out_the_pipeline_is_freed_and_loaded_again(
    checkpoint: Checkpoint, tmp_path: Path
):
    worker = Loaded(checkpoint("wan-t2v"))
    _, before = worker.make(tmp_path / "1")

    def run_out(count: int) -> None:
        if count == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 81.00 GiB.")

    import weakref

    model = weakref.ref(worker.engine.pipe.transformer)
    with Calls(worker.engine.pipe.transformer_2, run_out):
        error, _ = worker.generate(tmp_path / "2", steps=8)
    assert (error["code"], error["retryable"]) == ("out_of_memory", True)
    assert error["message"].startswith("CUDA out of memory. Tried to allocate")
    assert worker.engine.pipe is None
    assert model() is None
    done, progress = worker.generate(tmp_path / "3")
    assert progress[0]["stage"] == "load"
    assert "load_ms" in done["metrics"]
    assert (tmp_path / "3/video.mp4").read_bytes() == before


def wrapped() -> OSError:
    """As diffusers passes on what it could not load."""
    error = OSError("Unable to load weights from checkpoint file")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(12, "Cannot allocate memory"),
        # As safetensors has it, which is written in Rust.
        OSError("Cannot allocate memory (os error 12)"),
        RuntimeError("unable to mmap 81 bytes from file <x>: Cannot allocate memory (12)"),
        MemoryError(),
        wrapped(),
    ],
)
def test_memory_may_run_out_while_the_pipeline_is_loaded_again(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    worker = Loaded(checkpoint("wan-ti2v"))
    worker.engine.free()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("diffusers.WanPipeline.from_pretrained", fail)
        told, _ = worker.generate(tmp_path / "1")
    assert (told["code"], told["retryable"]) == ("out_of_memory", True), told
    assert told["message"].endswith(
        "; try a smaller size or fewer frames; "
        "settings that help: `offload`, `vae_tiling`, `quantisation`"
    )
    assert worker.generate(tmp_path / "2")[0]["type"] == "done"


def test_a_load_that_takes_long_is_heard(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    # A tiny model has few bytes to move.
    monkeypatch.setattr("rayreel.engines.loading.EVERY", 0.001)
    monkeypatch.setattr("rayreel.engines.loading.LEAST", 0)
    monkeypatch.setattr("rayreel.Progress.BETWEEN_STEPS", 0)
    worker = Loaded(checkpoint("wan-ti2v"))
    assert "rayreel: still loading, for 0 s\n" in capfd.readouterr().err
    worker.engine.free()
    _, progress = worker.generate(tmp_path)
    # Again, while a task waits for it: of a task, progress is the sign.
    assert [message["stage"] for message in progress[:3]] == ["load"] * 3
    worker.engine.free()
    worker.say(generate(tmp_path))
    worker.stop()
    assert worker.end_of()[0]["code"] == "cancelled"


def test_pixels_that_are_no_numbers_are_no_video(t2v: Loaded, tmp_path: Path):
    def poison(_model: Any, _args: Any, output: Any) -> Any:
        return output * float("nan")

    hook = t2v.engine.pipe.vae.decoder.register_forward_hook(poison)
    error, _ = t2v.generate(tmp_path)
    hook.remove()
    assert (error["code"], error["retryable"]) == ("failed", False)
    for part in ("no numbers", "`dtype`", "guidance", "`flow_shift`"):
        assert part in error["message"]


@pytest.mark.parametrize(
    ("damage", "settings", "why"),
    [
        ("missing", {}, "there is no directory"),
        ("empty", {}, "has no model_index.json"),
        ("torn index", {}, "model_index.json can't be read"),
        ("no boundary", {}, "but its model_index.json has no `boundary_ratio`"),
        ("no weights", {}, "can't be loaded: "),
        ("other kind", {}, "holds a StableDiffusionPipeline; `wan` runs WanPipeline and"),
        ("", {"dtype": "fp8"}, "setting `dtype` must be"),
        ("", {"offlod": True}, "there is no setting `offlod`; did you mean `offload`?"),
        ("", {"device": "cuda:93"}, "setting `device`: `cuda:93` can't be used"),
        ("", {"device": "abacus"}, "setting `device`: `abacus` can't be used"),
        ("", {"device": "meta"}, "setting `device`: `meta` can't be used"),
        ("", {"device": "cpu", "offload": True}, "setting `offload` needs a GPU whose memory it "),
        ("", {"flow_shift": 0}, "setting `flow_shift` must be above 0, not 0"),
        ("", {"flow_shift": -3.5}, "setting `flow_shift` must be above 0, not -3.5"),
        ("", {"flow_shift": float("nan")}, "setting `flow_shift` must be above 0, not NaN"),
        ("", {"guidance": -1}, "setting `guidance` must be at least 0, not -1"),
        ("", {"guidance_2": -1}, "setting `guidance_2` must be at least 0, not -1"),
        (
            "",
            {"attention": "_native_cudnn"},
            'setting `attention`: "_native_cudnn" can\'t be used on',
        ),
        ("", {"attention": "flash"}, 'setting `attention`: "flash" can\'t be used on cpu with fl'),
    ],
)
def test_what_can_not_be_loaded_is_said(
    checkpoint: Checkpoint, tmp_path: Path, damage: str, settings: Message, why: str
):
    place = tmp_path / "checkpoint"
    if damage != "missing":
        shutil.copytree(checkpoint("wan-t2v"), place)
    index = place / "model_index.json"
    if damage == "empty":
        index.unlink()
    elif damage == "torn index":
        index.write_text(index.read_text()[:100])
    elif damage == "no weights":
        (place / "transformer_2/diffusion_pytorch_model.safetensors").unlink()
    elif damage in ("no boundary", "other kind"):
        values = json.loads(index.read_text())
        changes = {
            "no boundary": ("boundary_ratio", None),
            "other kind": ("_class_name", "StableDiffusionPipeline"),
        }
        values |= [changes[damage]]
        index.write_text(json.dumps(values))
    worker = InProcess(Wan())
    error = worker.load(place, **settings)
    assert (error["type"], error["code"]) == ("error", "load_failed"), error
    assert why in error["message"], error


def test_backends_of_attention_are_listed(checkpoint: Checkpoint):
    message = InProcess(Wan()).load(checkpoint("wan-ti2v"), attention="telepathy")["message"]
    assert message.startswith('setting `attention`: there is no "telepathy"; there is flash, ')
    assert " native, " in message
    assert " _" not in message


def test_a_model_without_a_checkpoint_can_not_be_loaded():
    assert "needs a `checkpoint`" in InProcess(Wan()).load()["message"]


@pytest.mark.parametrize(
    ("kind", "settings", "shift"),
    [
        ("wan-t2v", {}, 12),
        ("wan-i2v", {}, 5),
        ("wan-ti2v", {}, 5),
        ("wan-t2v", {"flow_shift": 3}, 3),
    ],
)
def test_the_schedule_is_that_of_the_task(
    checkpoint: Checkpoint, kind: str, settings: Message, shift: float
):
    assert Loaded(checkpoint(kind), **settings).engine.pipe.scheduler.config.flow_shift == shift


def test_settings_of_the_pipeline_are_obeyed(checkpoint: Checkpoint, tmp_path: Path):
    worker = Loaded(
        checkpoint("wan-t2v"), vae_tiling=True, attention="native", dtype="bfloat16", device="cpu"
    )
    pipe = worker.engine.pipe
    assert pipe.vae.use_tiling
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert worker.generate(tmp_path)[0]["type"] == "done"
