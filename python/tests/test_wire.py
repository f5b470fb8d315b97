"""The messages, against the golden files that the worker is tested against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from rayreel import wire

GOLDEN = Path(__file__).parents[2] / "crates/domain/golden/engine"
ID = "task_01980f2a-6c1e-7b3a-9d53-2f1f0c9b7a11/1"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def read(name: str) -> wire.ToEngine:
    return wire.read(json.dumps(golden(name)).encode())


TO_ENGINE: dict[str, wire.ToEngine] = {
    "load": wire.Load(
        protocol=1,
        model="wan2.2-t2v-a14b",
        checkpoint=Path("/models/Wan2.2-T2V-A14B-Diffusers"),
        settings={"dtype": "bfloat16", "offload": True, "flow_shift": 12.0},
    ),
    "generate": wire.Request(
        id=ID,
        output_dir=Path("/var/lib/rayreel/scratch/task_01980f2a-6c1e-7b3a-9d53-2f1f0c9b7a11-1"),
        prompt="a red fox running through snow, 雪地里奔跑的红狐狸",
        negative_prompt="blurry, low quality",
        width=832,
        height=480,
        frames=49,
        fps=16,
        steps=20,
        guidance=4.5,
        seed=18446744073709551615,
        format="mp4",
        image=Path("/var/lib/rayreel/scratch/inputs/first-frame.png"),
    ),
    "load-loras": wire.Load(
        protocol=1,
        model="wan2.2-t2v-a14b",
        checkpoint=Path("/models/Wan2.2-T2V-A14B-Diffusers"),
        loras={
            "anime": wire.Lora(
                high=Path("/models/loras/anime-high.safetensors"),
                low=Path("/models/loras/anime-low.safetensors"),
            ),
            "film-grain": wire.Lora(Path("/models/loras/film-grain.safetensors")),
        },
    ),
    "generate-loras": wire.Request(
        id=ID,
        output_dir=Path("/var/lib/rayreel/scratch/task_01980f2a-6c1e-7b3a-9d53-2f1f0c9b7a11-1"),
        prompt="a red fox running through snow",
        width=832,
        height=480,
        frames=49,
        fps=16,
        steps=20,
        guidance=4.0,
        guidance_2=3.0,
        seed=7,
        format="mp4",
        loras=(wire.LoraUse("anime", 0.8), wire.LoraUse("film-grain", -1.5)),
    ),
    "cancel": wire.Cancel(ID),
    "exit": wire.Exit(),
}

FROM_ENGINE: dict[str, wire.FromEngine] = {
    "ready": wire.Ready(engine="diffusers", version="0.1.0"),
    "progress": wire.Step(ID, step=7, steps=20, stage="denoise"),
    "done": wire.Done(
        ID,
        files=[
            wire.Output("video.mp4", "video", "video/mp4", 832, 480, 49, 16),
            wire.Output("thumbnail.png", "thumbnail", "image/png", 320, 185),
        ],
        metrics={"denoise_ms": 200.25, "encode_ms": 250.5},
        test_pattern=True,
    ),
    "error": wire.Error(
        ID,
        "out_of_memory",
        "the GPU has 23.6 GiB, and 31.0 GiB are needed for 81 frames of 1280x720",
        retryable=True,
    ),
    "error_load": wire.Error(
        None,
        "load_failed",
        "/models/Wan2.2-T2V-A14B-Diffusers has no model_index.json",
        retryable=False,
    ),
}


@pytest.mark.parametrize("name", TO_ENGINE)
def test_a_message_to_an_engine_is_read_as_in_its_file(name: str):
    assert read(name) == TO_ENGINE[name]


@pytest.mark.parametrize(
    "name", [file.stem for kind in ("load", "generate") for file in GOLDEN.glob(f"{kind}*.json")]
)
def test_what_is_passed_on_to_another_process_is_read_as_it_came(name: str):
    message = read(name)
    assert isinstance(message, (wire.Load, wire.Request))
    assert wire.read(wire.forward(message)) == message


def test_a_last_image_comes_beside_the_first():
    request = read("generate_last_image")
    assert isinstance(request, wire.Request)
    assert request.last_image == Path("/var/lib/rayreel/scratch/inputs/last-frame.png")


def test_a_lora_has_its_full_scale_unless_the_request_says_otherwise():
    message = golden("generate-loras")
    del message["request"]["loras"][1]["scale"]
    request = wire.read(json.dumps(message).encode())
    assert isinstance(request, wire.Request)
    assert [lora.scale for lora in request.loras] == [0.8, 1.0]


@pytest.mark.parametrize("name", FROM_ENGINE)
def test_a_message_from_an_engine_is_written_as_in_its_file(name: str):
    line = wire.write(FROM_ENGINE[name])
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == golden(name)


def test_every_file_and_every_message_is_in_the_lists():
    found = {path.stem for path in GOLDEN.iterdir()}
    assert found == {*TO_ENGINE, *FROM_ENGINE, "generate_last_image"}
    assert {type(m) for m in TO_ENGINE.values()} == set(get_args(wire.ToEngine))
    assert {type(m) for m in FROM_ENGINE.values()} == set(get_args(wire.FromEngine))


@pytest.mark.parametrize("name", TO_ENGINE)
def test_unknown_fields_are_ignored(name: str):
    message = golden(name) | {"surprise": {"of": ["a", "later", "version"]}}
    if "request" in message:
        message["request"]["surprise"] = 1
    assert wire.read(json.dumps(message).encode()) == TO_ENGINE[name]


def test_what_may_be_left_out_has_its_default():
    message = golden("generate")
    for name in ("negative_prompt", "guidance", "image"):
        del message["request"][name]
    request = wire.read(json.dumps(message).encode())
    assert isinstance(request, wire.Request)
    left_out = (request.negative_prompt, request.guidance, request.image, request.last_image)
    assert left_out == ("", None, None, None)
    assert (request.guidance_2, request.loras) == (None, ())
    assert wire.read(b'{"type":"load","protocol":1,"model":"m"}') == wire.Load(1, "m")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"Traceback (most recent call last):", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"type":"exit"', "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "`type` is missing"),
        (b'{"type":7}', "`type` must be a string, not 7"),
        (b'{"type":"sing"}', 'no message of type "sing"'),
        (b'{"type":"cancel"}', "`id` is missing"),
        (b'{"type":"cancel","id":null}', "`id` must be a string"),
        (b'{"type":"load","protocol":"1","model":"m"}', "`protocol` must be a whole number"),
        (b'{"type":"load","protocol":true,"model":"m"}', "`protocol` must be a whole number"),
        (b'{"type":"load","protocol":1,"model":"m","settings":[]}', "`settings` must be"),
        (b'{"type":"load","protocol":1,"model":"m","loras":{"a":"b"}}', "`loras.a` must be a JSON"),
        (b'{"type":"load","protocol":1,"model":"m","loras":{"a":{}}}', "`loras.a` must have a"),
        (b'{"type":"load","protocol":1,"model":"m","loras":{"a":{"low":7}}}', "`loras.a.low` must"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_with_the_reason(line: bytes, why: str):
    with pytest.raises(wire.Invalid, match=why) as refused:
        wire.read(line)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("width", "832", "`request.width` must be a whole number from 0 to 4294967295"),
        ("width", 832.5, "`request.width` must be a whole number"),
        ("frames", -1, "`request.frames` must be a whole number"),
        ("seed", 1 << 64, "`request.seed` must be a whole number from 0 to 18446744073709551615"),
        ("guidance", float("nan"), "`request.guidance` must be a number"),
        ("guidance", 10**400, "`request.guidance` must be a number"),
        ("guidance", "4", "`request.guidance` must be a number"),
        ("prompt", "\ud800", "`request.prompt` must be text without halves"),
        ("image", "a\0b", "`request.image` must be text without NUL"),
        ("prompt", None, "`request.prompt` must be a string"),
        ("guidance_2", "3", "`request.guidance_2` must be a number"),
        ("loras", {}, "`request.loras` must be a list"),
        ("loras", ["anime"], "`request.loras[0]` must be a JSON object"),
        ("loras", [{"name": "anime"}, {"scale": 1}], "`request.loras[1].name` is missing"),
        ("loras", [{"name": "a", "scale": "1"}], "`request.loras[0].scale` must be a number"),
    ],
)
def test_a_request_that_is_wrong_is_refused_under_its_id(field: str, value: Any, why: str):
    message = golden("generate")
    message["request"][field] = value
    with pytest.raises(wire.Invalid) as refused:
        wire.read(json.dumps(message).encode())
    assert str(refused.value).startswith(why)
    assert refused.value.id == ID
