"""Caches of `wan`: less is computed, and no generation sees what another one left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

from rayreel.engines.wan import Wan
from tests.worker import Child, InProcess, Message, generate

Checkpoint = Callable[[str], Path]

LOOSE: dict[str, Any] = {
    "first-block": {"kind": "first-block", "threshold": 100.0},
    "taylorseer": {"kind": "taylorseer", "interval": 3, "warmup": 1},
    "magcache": {"kind": "magcache", "ratios": [1, 0.9], "ratios_2": [1, 0.9, 0.8],
                 "threshold": 100.0},
    "sea": {"kind": "sea", "threshold": 100.0},
}  # fmt: skip
"""Each so that it leaves out what it can."""

TIGHT: dict[str, Any] = {
    "first-block": {"kind": "first-block", "threshold": 0.0},
    "taylorseer": {"kind": "taylorseer", "interval": 1},
    "magcache": {"kind": "magcache", "ratios": [0.9], "ratios_2": [0.8], "threshold": 0.0},
    "sea": {"kind": "sea", "threshold": 0.0},
}  # fmt: skip
"""Each so that it leaves out nothing."""

STEPS = 12


class Cached(InProcess):
    def __init__(self, checkpoint: Path, place: Path, cache: Any = None):
        self.engine = Wan()
        self._place, self._made = place, 0
        super().__init__(self.engine)
        ready = self.load(checkpoint, **({} if cache is None else {"cache": cache}))
        assert ready["type"] == "ready", ready

    def ask(self, **request: Any) -> Message:
        self._made += 1
        return generate(self._place / str(self._made), steps=STEPS, **request)

    def make(self, **request: Any) -> bytes:
        self.say(self.ask(**request))
        done, _ = self.end_of()
        assert done["type"] == "done", done
        return (self._place / str(self._made) / "video.mp4").read_bytes()

    def computed(self, then: Callable[[int], None] = lambda _: None) -> list[int]:
        """Counts, for each expert, how often its last block is really computed."""
        pipe = self.engine.pipe
        experts = [model for model in (pipe.transformer, pipe.transformer_2) if model is not None]
        counts = [0] * len(experts)

        def watch(index: int) -> Callable[..., None]:
            def called(*_: Any) -> None:
                counts[index] += 1
                then(sum(counts))

            return called

        for index, model in enumerate(experts):
            # A cache replaces the block, and with it what is asked inside.
            model.blocks[-1].attn1.register_forward_pre_hook(watch(index))
        return counts


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory):
    worker = Cached(checkpoint("wan-t2v"), tmp_path_factory.mktemp("plain"))
    counts = worker.computed()
    return worker.make(), counts


@pytest.mark.parametrize("kind", LOOSE)
def test_a_loose_cache_computes_less_in_both_experts(
    checkpoint: Checkpoint, tmp_path: Path, plain: tuple[bytes, list[int]], kind: str
):
    film, full = plain
    worker = Cached(checkpoint("wan-t2v"), tmp_path, LOOSE[kind])
    counts = worker.computed()
    assert worker.make() != film
    assert sum(full) == 2 * STEPS
    for ours, all in zip(counts, full, strict=True):
        assert 2 <= ours < all, (counts, full)


@pytest.mark.parametrize("kind", TIGHT)
def test_a_tight_cache_changes_nothing(
    checkpoint: Checkpoint, tmp_path: Path, plain: tuple[bytes, list[int]], kind: str
):
    worker = Cached(checkpoint("wan-t2v"), tmp_path, TIGHT[kind])
    counts = worker.computed()
    assert worker.make() == plain[0]
    assert counts == plain[1]


@pytest.mark.parametrize("kind", LOOSE)
def test_a_generation_sees_nothing_of_another_one(
    checkpoint: Checkpoint, tmp_path: Path, kind: str
):
    worker = Cached(checkpoint("wan-t2v"), tmp_path, LOOSE[kind])
    first = worker.make()
    worker.make(seed=8, width=96, frames=9)
    assert worker.make() == first


@pytest.mark.parametrize("kind", LOOSE)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_generation_sees_nothing_of_a_cancelled_one(
    checkpoint: Checkpoint, tmp_path: Path, kind: str, call: int
):
    """Cancelled between the prompt and the negative one, and between two steps."""
    worker = Cached(checkpoint("wan-t2v"), tmp_path, LOOSE[kind])
    first = worker.make()

    def stop(_model: Any, _args: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            worker.stop()

    calls: list[int] = []
    hook = worker.engine.pipe.transformer.blocks[0].attn1.register_forward_pre_hook(stop)
    worker.say(worker.ask(seed=8))
    assert worker.end_of()[0]["code"] == "cancelled"
    hook.remove()
    assert worker.make() == first


def test_steps_may_be_fewer_than_a_cache_warms_up_for(checkpoint: Checkpoint, tmp_path: Path):
    for kind, cache in LOOSE.items():
        worker = Cached(checkpoint("wan-t2v"), tmp_path / kind, cache)
        for steps in (1, 2):
            done, _ = worker.generate(tmp_path / kind / f"short-{steps}", steps=steps)
            assert done["type"] == "done", (kind, done)


@pytest.mark.parametrize("kind", ["first-block", "taylorseer", "magcache"])
def test_videos_of_images_are_cached_too(checkpoint: Checkpoint, tmp_path: Path, kind: str):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "image.png")
    worker = Cached(checkpoint("wan-i2v"), tmp_path, LOOSE[kind])
    counts = worker.computed()
    first = worker.make(image=str(tmp_path / "image.png"))
    assert sum(counts) < 2 * STEPS
    assert worker.make(image=str(tmp_path / "image.png")) == first


def test_the_model_with_one_expert_is_cached_with_and_without_an_image(
    checkpoint: Checkpoint, tmp_path: Path
):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "image.png")
    cache = {"kind": "magcache", "ratios": [1, 0.9], "threshold": 100.0}
    worker = Cached(checkpoint("wan-ti2v"), tmp_path, cache)
    counts = worker.computed()
    text = worker.make()
    assert sum(counts) < 2 * STEPS
    worker.make(image=str(tmp_path / "image.png"))
    assert worker.make() == text


def test_ratios_are_measured_and_written_to_the_log(
    checkpoint: Checkpoint,
    tmp_path: Path,
    plain: tuple[bytes, list[int]],
    capsys: pytest.CaptureFixture[str],
):
    cache = {"kind": "magcache", "calibrate": True}
    worker = Cached(checkpoint("wan-t2v"), tmp_path, cache)
    assert worker.make() == plain[0]
    assert capsys.readouterr().out.count("Calibration Complete") == 4


@pytest.mark.parametrize(
    ("kind", "cache", "why"),
    [
        ("wan-t2v", "fastercache", 'setting `cache` must be "first-block" or "taylorseer" or '),
        ("wan-t2v", {"threshold": 1}, "setting `cache.kind` is missing"),
        (
            "wan-t2v",
            {"kind": "first-block", "treshold": 1},
            "there is no setting `cache.treshold`; did you mean `cache.threshold`?",
        ),
        (
            "wan-t2v",
            {"kind": "first-block", "threshold": -1},
            "setting `cache.threshold` must be at least 0, not -1",
        ),
        ("wan-t2v", {"kind": "sea", "threshold": -1}, "setting `cache.threshold` must be at least"),
        ("wan-t2v", {"kind": "sea", "max_skip": -1}, "setting `cache.max_skip` must be at least 0"),
        ("wan-t2v", {"kind": "sea", "order": 2}, "setting `cache.order` must be 0 or 1"),
        (
            "wan-t2v",
            {"kind": "magcache", "calibrate": True, "max_skip": -1},
            "setting `cache.max_skip` must be at least 0, not -1",
        ),
        ("wan-t2v", "magcache", "setting `cache.ratios` is missing; `calibrate = true` writes"),
        (
            "wan-t2v",
            {"kind": "magcache", "ratios": [1]},
            "setting `cache.ratios_2` is missing; `calibrate = true` writes",
        ),
        (
            "wan-ti2v",
            {"kind": "magcache", "ratios": [1], "ratios_2": [1]},
            "setting `cache.ratios_2` is for models with two experts",
        ),
        (
            "wan-t2v",
            {"kind": "taylorseer", "interval": 0},
            "setting `cache.interval` must be at least 1",
        ),
        ("wan-i2v", "sea", "setting `cache.kind` can't be sea: it is for models that take text"),
    ],
)
def test_what_can_not_be_set_is_said(checkpoint: Checkpoint, kind: str, cache: Any, why: str):
    error = InProcess(Wan()).load(checkpoint(kind), cache=cache)
    assert (error["type"], error["code"]) == ("error", "load_failed"), error
    assert error["message"].startswith(why), error


@pytest.mark.parametrize(("kind", "threshold"), [("first-block", 0.1), ("sea", 0.5)])
def test_the_ranks_of_a_gang_leave_out_the_same_steps(
    checkpoint: Checkpoint,
    tmp_path: Path,
    plain: tuple[bytes, list[int]],
    kind: str,
    threshold: float,
):
    cache = {"kind": kind, "threshold": threshold}
    alone = Cached(checkpoint("wan-t2v"), tmp_path / "alone", cache)
    counts = alone.computed()
    film = alone.make()
    assert 4 < sum(counts) < sum(plain[1]), "it depends on what has changed"
    gang = Child("-m", "rayreel", "wan")
    ready = gang.load(checkpoint("wan-t2v"), ulysses=2, cache=cache)
    assert ready["type"] == "ready", ready
    done, _ = gang.generate(tmp_path / "gang", steps=STEPS)
    assert done["type"] == "done", done
    assert (tmp_path / "gang/video.mp4").read_bytes() == film
    gang.say({"type": "exit"})
    assert gang.status() == 0


def test_what_does_not_work_in_a_gang_is_said_at_once(checkpoint: Checkpoint):
    gang = Child("-m", "rayreel", "wan")
    answer = gang.load(checkpoint("wan-t2v"), ulysses=2, cache=LOOSE["magcache"])
    assert answer["code"] == "load_failed"
    assert "can't be magcache together with `ulysses`" in answer["message"]
    # It ends by itself, with its ranks.
    gang.status()
