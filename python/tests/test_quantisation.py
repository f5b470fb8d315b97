"""Quantised weights: really fewer bits, and almost the same result."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

import av
import numpy as np
import torch
from PIL import Image

from rayreel import Engine
from rayreel.engines.stable_diffusion import StableDiffusion
from rayreel.engines.wan import Wan
from tests.worker import InProcess, Message

Checkpoint = Callable[[str], Path]

STILL: Message = {"format": "png", "frames": 1}


class Made(NamedTuple):
    prediction: Any
    """Of the denoiser, when it is first asked."""
    frames: Any
    """0 to 255."""


class Quantised(InProcess):
    def __init__(self, engine: Engine, checkpoint: Path, quantisation: Any = None):
        self.engine: Any = engine
        super().__init__(engine)
        settings = {} if quantisation is None else {"quantisation": quantisation}
        ready = self.load(checkpoint, **settings)
        assert ready["type"] == "ready", ready

    def make(self, place: Path, **request: Any) -> Made:
        pipe = self.engine.pipe
        said: list[Any] = []

        def listen(_model: Any, _args: Any, output: Any) -> None:
            said.append(output[0].detach().float().clone())

        denoiser = getattr(pipe, "transformer", None) or pipe.unet
        hook = denoiser.register_forward_hook(listen)
        done, _ = self.generate(place, **request)
        hook.remove()
        assert done["type"] == "done", done
        path = place / done["files"][0]["path"]
        if path.suffix == ".png":
            return Made(said[0], np.asarray(Image.open(path), dtype=float))
        with av.open(str(path)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        return Made(said[0], np.stack(frames).astype(float))


def apart(some: Any, others: Any) -> float:
    """0: the same; above 1: they have nothing to do with each other."""
    return float((some - others).norm() / others.norm())


def differ(some: Any, others: Any) -> float:
    """Of 255, on average."""
    return float(np.abs(some - others).mean())


def linear_bytes(model: Any) -> int:
    """Of all its linear layers, as they lie in memory."""

    def size(weight: Any) -> int:
        if hasattr(weight, "__tensor_flatten__"):
            names, _ = weight.__tensor_flatten__()
            return sum(size(getattr(weight, name)) for name in names)
        return weight.numel() * weight.element_size()

    return sum(
        size(layer.weight) for layer in model.modules() if isinstance(layer, torch.nn.Linear)
    )


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory):
    worker = Quantised(Wan(), checkpoint("wan-t2v"))
    place = tmp_path_factory.mktemp("plain")
    made, other = worker.make(place / "1"), worker.make(place / "2", seed=8)
    assert apart(made.prediction, other.prediction) > 0.5
    assert differ(made.frames, other.frames) > 1
    return worker, made


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("int8", 0.02), ("float8", 0.06), ("int8-dynamic", 0.03)]
)
def test_eight_bits_show_almost_the_same(
    checkpoint: Checkpoint,
    tmp_path: Path,
    plain: tuple[Quantised, Made],
    kind: str,
    tolerance: float,
):
    pytest.importorskip("torchao", reason="torchao is not installed")
    worker = Quantised(Wan(), checkpoint("wan-t2v"), kind)
    for name in ("transformer", "transformer_2"):
        ours, full = getattr(worker.engine.pipe, name), getattr(plain[0].engine.pipe, name)
        assert linear_bytes(ours) < linear_bytes(full) * 0.6
    encoders = [made.engine.pipe.text_encoder for made in (worker, plain[0])]
    assert linear_bytes(encoders[0]) == linear_bytes(encoders[1])
    made = worker.make(tmp_path / "1")
    assert 0 < apart(made.prediction, plain[1].prediction) < tolerance
    assert differ(made.frames, plain[1].frames) < 0.8
    assert differ(made.frames, worker.make(tmp_path / "2").frames) == 0


def prompt(worker: Quantised) -> Any:
    (embedding,) = (e for text, e in worker.engine._prompts.items() if text == "a red fox")
    return embedding


def test_the_text_encoder_may_be_quantised_too(
    checkpoint: Checkpoint, tmp_path: Path, plain: tuple[Quantised, Made]
):
    pytest.importorskip("torchao", reason="torchao is not installed")
    worker = Quantised(Wan(), checkpoint("wan-t2v"), {"kind": "int8", "text_encoder": True})
    encoders = [made.engine.pipe.text_encoder for made in (worker, plain[0])]
    assert linear_bytes(encoders[0]) < linear_bytes(encoders[1]) * 0.8
    made = worker.make(tmp_path)
    assert differ(made.frames, plain[1].frames) < 0.8
    assert 0 < apart(prompt(worker), prompt(plain[0])) < 0.05


def test_stills_are_quantised(checkpoint: Checkpoint, tmp_path: Path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    place = checkpoint("stable-diffusion")
    full = Quantised(StableDiffusion(), place)
    worker = Quantised(StableDiffusion(), place, "int8")
    assert linear_bytes(worker.engine.pipe.unet) < linear_bytes(full.engine.pipe.unet)
    expected, made = full.make(tmp_path / "1", **STILL), worker.make(tmp_path / "2", **STILL)
    assert 0 < apart(made.prediction, expected.prediction) < 0.02
    assert differ(made.frames, expected.frames) < 1
    assert differ(full.make(tmp_path / "3", **STILL, seed=8).frames, expected.frames) > 10


def test_a_lora_goes_with_quantised_weights(checkpoint: Checkpoint, tmp_path: Path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    import tiny_checkpoints

    file = tmp_path / "anime.safetensors"
    tiny_checkpoints.write_lora("wan-t2v", file)
    worker = InProcess(Wan())
    worker.say({"type": "load", "protocol": 1, "model": "m",
                "checkpoint": str(checkpoint("wan-t2v")), "settings": {"quantisation": "int8"},
                "loras": {"anime": {"path": str(file)}}})  # fmt: skip
    assert (worker.hear() or {})["type"] == "ready"

    def make(number: int, *loras: Message) -> bytes:
        done, _ = worker.generate(tmp_path / str(number), loras=list(loras))
        assert done["type"] == "done", done
        return (tmp_path / str(number) / "video.mp4").read_bytes()

    without = make(1)
    assert make(2, {"name": "anime"}) != without
    assert make(3) == without


def write_gguf(model: Any, path: Path) -> None:
    """As the programs that quantise Wan do: under its authors' names, the large weights in Q8_0."""
    gguf: Any = importlib.import_module("gguf")
    names = {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "attn1": "self_attn", "attn2": "cross_attn", ".to_out.0.": ".o.", ".to_q.": ".q.",
        ".to_k.": ".k.", ".to_v.": ".v.", "proj_out": "head.head", "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2", "norm2": "norm#", "norm3": "norm2", "norm#": "norm3",
    }  # fmt: skip
    writer = gguf.GGUFWriter(str(path), "wan")
    for key, weight in model.state_dict().items():
        name = "head.modulation" if key == "scale_shift_table" else key
        name = name.replace("scale_shift_table", "modulation")
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        values = weight.float().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0
        if weight.ndim == 2 and weight.shape[1] % 32 == 0 and name.startswith("blocks"):
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def files(plain: tuple[Quantised, Made], tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("gguf", reason="gguf is not installed")
    folder = tmp_path_factory.mktemp("gguf")
    pipe = plain[0].engine.pipe
    for name in ("transformer", "transformer_2"):
        write_gguf(getattr(pipe, name), folder / f"{name}.gguf")
    return folder


def test_denoisers_come_from_gguf_files(
    checkpoint: Checkpoint, tmp_path: Path, plain: tuple[Quantised, Made], files: Path
):
    how = {"kind": "gguf"} | {n: str(files / f"{n}.gguf") for n in ("transformer", "transformer_2")}
    worker = Quantised(Wan(), checkpoint("wan-t2v"), how)
    for name in ("transformer", "transformer_2"):
        ours, full = getattr(worker.engine.pipe, name), getattr(plain[0].engine.pipe, name)
        assert linear_bytes(ours) < linear_bytes(full)
    made = worker.make(tmp_path)
    assert 0 < apart(made.prediction, plain[1].prediction) < 0.02
    assert differ(made.frames, plain[1].frames) < 0.8


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("int4", 'setting `quantisation` must be "int8" or "float8" or '),
        ("gguf", "setting `quantisation.transformer` is missing"),
        ("float8-dynamic", "setting `quantisation`: float8-dynamic needs a GPU"),
        (
            {"kind": "gguf", "transformer": "{files}/transformer.gguf"},
            "setting `quantisation.transformer_2` is missing: this model has two experts",
        ),
        (
            {"kind": "gguf", "transformer": "/nowhere", "transformer_2": "/nowhere"},
            "setting `quantisation.transformer`: there is no file /nowhere",
        ),
        (
            {"kind": "gguf", "transformer": "a.gguf", "transformer_2": "b.gguf"},
            "setting `quantisation.transformer` must be an absolute path, not a.gguf",
        ),
        (
            {"kind": "gguf", "transformer": "{files}/torn", "transformer_2": "{files}/torn"},
            "setting `quantisation.transformer`: ",
        ),
    ],
)
def test_what_can_not_be_quantised_is_said(checkpoint: Checkpoint, files: Path, how: Any, why: str):
    (files / "torn").write_bytes((files / "transformer.gguf").read_bytes()[:2000])
    how = json.loads(json.dumps(how).replace("{files}", str(files)))
    error = InProcess(Wan()).load(checkpoint("wan-t2v"), quantisation=how, device="cpu")
    assert (error["type"], error["code"]) == ("error", "load_failed"), error
    assert error["message"].startswith(why), error


@pytest.mark.parametrize(
    ("kind", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes"), ("gguf", "gguf")]
)
def test_what_is_not_installed_is_named(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
):
    monkeypatch.setattr("rayreel.engines.quantisation.importlib.util.find_spec", lambda _: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    how = {"kind": kind} | ({"transformer": "/x"} if kind == "gguf" else {})
    error = InProcess(Wan()).load(checkpoint("wan-t2v"), quantisation=how)
    assert error["message"] == (
        f"setting `quantisation`: {kind} needs {package}: install it with `pip install {package}`"
    )
