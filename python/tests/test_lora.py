"""LoRAs of both engines on diffusers, with tiny random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")
pytest.importorskip("peft", reason="peft is not installed")

import torch
from safetensors import torch as tensors

import tiny_checkpoints
from rayreel import Engine
from rayreel.engines import lora
from rayreel.engines.stable_diffusion import StableDiffusion
from rayreel.engines.wan import Wan
from tests.worker import InProcess, Message

Checkpoint = Callable[[str], Path]

# Their types do not survive a strict check.
save: Any = getattr(tensors, "save_file")  # noqa: B009
read: Any = getattr(tensors, "load_file")  # noqa: B009


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    files = {
        name: folder / f"{name}.safetensors"
        for name in ("anime", "film", "still", "strange", "wide", "torn")
    }
    tiny_checkpoints.write_lora("wan-t2v", files["anime"], seed=1)
    tiny_checkpoints.write_lora("wan-t2v", files["film"], seed=2)
    tiny_checkpoints.write_lora("stable-diffusion", files["still"], seed=3)
    layer = "transformer.nowhere.lora"
    save({f"{layer}_{part}.weight": torch.ones(4, 4) for part in "AB"}, files["strange"])
    wide = {name: torch.ones([2 * n for n in t.shape]) for name, t in read(files["anime"]).items()}
    save(wide, files["wide"])
    files["torn"].write_bytes(files["anime"].read_bytes()[:1000])
    files["pickled"] = folder / "pickled.bin"
    files["missing"] = folder / "missing.safetensors"
    return files


class Made(InProcess):
    """A worker whose engine has a model and LoRAs; what it makes lies in folders of their own."""

    def __init__(self, engine: Engine, checkpoint: Path, loras: Message, place: Path):
        self.engine: Any = engine
        self._place = place
        self._count = 0
        super().__init__(engine)
        self.say({"type": "load", "protocol": 1, "model": "m", "checkpoint": str(checkpoint),
                  "loras": loras})  # fmt: skip
        ready = self.hear()
        assert ready is not None
        assert ready["type"] == "ready", ready
        self._format: Message = (
            {"format": "png", "frames": 1} if isinstance(engine, StableDiffusion) else {}
        )

    def ask(self, *loras: tuple[str, float], **request: Any) -> Message:
        self._count += 1
        asked = [{"name": name, "scale": scale} for name, scale in loras]
        place = self._place / str(self._count)
        return self.generate(place, **self._format, loras=asked, **request)[0]

    def make(self, *loras: tuple[str, float], **request: Any) -> bytes:
        done = self.ask(*loras, **request)
        assert done["type"] == "done", done
        return (self._place / str(self._count) / done["files"][0]["path"]).read_bytes()


def registered(files: dict[str, Path]) -> Message:
    loras: Message = {name: {"path": str(path)} for name, path in files.items()}
    loras["v1.5"] = {"high": str(files["anime"]), "low": str(files["film"])}
    return loras


@pytest.fixture(scope="module")
def wan(checkpoint: Checkpoint, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("wan")
    return Made(Wan(), checkpoint("wan-t2v"), registered(files), place)


@pytest.fixture(scope="module")
def still(checkpoint: Checkpoint, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("still")
    return Made(StableDiffusion(), checkpoint("stable-diffusion"), registered(files), place)


def test_a_lora_changes_what_is_made_and_nothing_of_what_is_made_without_it(wan: Made):
    without = wan.make()
    anime = wan.make(("anime", 1.0))
    assert anime != without
    assert wan.make() == without
    assert wan.make(("anime", 0.0)) == without
    assert wan.make(("anime", 1.0)) == anime
    assert wan.make(("anime", 0.5)) not in (anime, without)
    # Minus signs are for those who want less of it.
    assert wan.make(("anime", -1.0)) not in (anime, without)


def test_two_loras_work_at_once(wan: Made):
    anime, film = wan.make(("anime", 1.0)), wan.make(("film", 1.0))
    both = wan.make(("anime", 1.0), ("film", 1.0))
    assert len({anime, film, both}) == 3
    assert wan.make(("film", 1.0), ("anime", 1.0)) == both
    assert wan.make(("anime", 1.0), ("film", 0.0)) == anime
    assert wan.make(("film", 1.0)) == film


def test_each_expert_has_its_file(wan: Made):
    pipe = wan.engine.pipe
    wan.make(("v1.5", 0.5))

    def weights(model: Any) -> list[Any]:
        return [
            value
            for name, value in model.state_dict().items()
            if f"blocks.0.attn1.to_q.lora_A.{model.active_adapters()[0]}" in name
        ]

    key = "transformer.blocks.0.attn1.to_q.lora_A.weight"
    for model, name in ((pipe.transformer, "anime"), (pipe.transformer_2, "film")):
        (loaded,) = weights(model)
        path = next(p["path"] for n, p in registered_paths(wan).items() if n == name)
        assert torch.equal(loaded, read(path)[key])


def registered_paths(made: Made) -> Message:
    files = made.engine.loras._registered
    return {name: {"path": str(files[name].path)} for name in ("anime", "film")}


def test_one_file_is_for_both_experts(wan: Made):
    wan.make(("anime", 1.0))
    pipe = wan.engine.pipe
    assert pipe.transformer.active_adapters() == pipe.transformer_2.active_adapters()


def test_a_prompt_that_is_kept_goes_with_any_lora(wan: Made):
    first = wan.make(("anime", 1.0), prompt="a heron")
    wan.make(prompt="a heron")
    assert wan.make(("anime", 1.0), prompt="a heron") == first


def test_files_are_read_once_and_the_least_used_go(
    checkpoint: Checkpoint,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(lora.Loras.__init__, "__defaults__", (1,))
    made = Made(Wan(), checkpoint("wan-t2v"), registered(files), tmp_path)
    loaded = made.engine.loras._loaded
    without, anime = made.make(), made.make(("anime", 1.0))
    adapter = loaded["anime"]
    assert made.make(("anime", 1.0)) == anime
    assert loaded["anime"] == adapter
    # More than are kept may be asked for at once.
    both = made.make(("anime", 1.0), ("film", 1.0))
    assert set(loaded) == {"anime", "film"}
    made.make(("film", 1.0))
    assert set(loaded) == {"film"}
    assert adapter not in made.engine.pipe.transformer.peft_config
    weights = [name for name in made.engine.pipe.transformer.state_dict() if adapter in name]
    assert weights == []
    assert made.make() == without
    assert made.make(("anime", 1.0)) == anime
    assert made.make(("anime", 1.0), ("film", 1.0)) == both


def test_when_memory_has_run_out_they_are_loaded_again(wan: Made):
    anime = wan.make(("anime", 1.0))

    def run_out(_model: Any, _args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    wan.engine.pipe.transformer.register_forward_pre_hook(run_out)
    assert wan.ask(("anime", 1.0))["code"] == "out_of_memory"
    assert wan.make(("anime", 1.0)) == anime


@pytest.mark.parametrize(
    ("loras", "why"),
    [
        ([("unknown", 1.0)], "there is no LoRA `unknown`; there is anime, film, missing, "),
        ([("anime", 1.0), ("anime", 0.5)], "the LoRA `anime` is asked for twice"),
    ],
)
def test_what_can_not_be_asked_for_is_refused(wan: Made, loras: list[tuple[str, float]], why: str):
    error = wan.ask(*loras)
    assert error["code"] == "invalid_request"
    assert error["message"].startswith(why)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "there is no such file"),
        ("pickled", "it must be a .safetensors file"),
        ("torn", ""),
        ("strange", ""),
        ("wide", ""),
        ("still", "nothing in it belongs to this model"),
    ],
)
def test_a_file_that_can_not_be_used_is_named(
    wan: Made, files: dict[str, Path], name: str, why: str
):
    without = wan.make()
    error = wan.ask((name, 1.0))
    assert (error["type"], error["code"], error["retryable"]) == ("error", "failed", False), error
    assert error["message"].startswith(f"the LoRA `{name}` can't be used: {files[name]}: {why}")
    # It leaves nothing behind.
    assert wan.make() == without
    wan.make(("anime", 1.0))


def test_a_model_with_one_expert_takes_one_file(
    checkpoint: Checkpoint, files: dict[str, Path], tmp_path: Path
):
    path = tmp_path / "5b.safetensors"
    tiny_checkpoints.write_lora("wan-ti2v", path)
    loras = registered(files) | {"5b": {"path": str(path)}}
    made = Made(Wan(), checkpoint("wan-ti2v"), loras, tmp_path)
    without = made.make()
    assert made.make(("5b", 1.0)) != without
    error = made.ask(("v1.5", 1.0))
    assert error["message"].startswith("the LoRA `v1.5` has files for two experts")
    assert made.make() == without


def test_stills_take_loras(still: Made):
    without = still.make()
    drawn = still.make(("still", 1.0))
    assert drawn != without
    assert still.make(("still", 0.0)) == still.make() == without
    assert still.make(("still", 1.0)) == drawn
    assert "nothing in it belongs to this model" in still.ask(("anime", 1.0))["message"]


def test_without_peft_it_is_said_what_to_install(wan: Made, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    wan.engine.loras._loaded.pop("film", None)
    error = wan.ask(("film", 1.0))
    assert error["message"] == "LoRAs need peft: install it with `pip install peft`"
