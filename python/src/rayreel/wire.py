"""The engine protocol, version 1: one line of JSON each way between a worker and its engine.

The worker writes `Load`, `Request`, `Cancel` and `Exit`; the engine answers `Ready`, `Step`, `Done`
and `Error`. The tests compare each message with the golden files that the worker is tested against.
Fields that this version does not know are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

PROTOCOL = 1

MAX_LINE = 1 << 20
"""The longest line either side may write, in bytes, newline included."""

Role = Literal["video", "image", "thumbnail"]
Code = Literal["cancelled", "out_of_memory", "invalid_request", "load_failed", "failed"]


@dataclass(frozen=True)
class Lora:
    """The files of a LoRA: one for the model, or one for each of its two experts."""

    path: Path | None = None
    high: Path | None = None
    """Of the expert for high noise, the first one."""
    low: Path | None = None


@dataclass(frozen=True)
class LoraUse:
    """A LoRA that a request asks for."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class Load:
    """Which model to load, and how."""

    protocol: int
    model: str
    """Public name of the model."""
    checkpoint: Path | None = None
    """Directory of the weights, absolute."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The engine's own settings, from the model's configuration."""
    loras: Mapping[str, Lora] = field(default_factory=dict[str, Lora])
    """What requests may name."""


@dataclass(frozen=True)
class Request:
    """One output to generate. Every default is filled in."""

    id: str
    output_dir: Path
    """Directory, absolute and empty, into which the engine writes its files."""
    prompt: str
    width: int
    height: int
    frames: int
    """4n+1 for videos, 1 for a still."""
    fps: int
    steps: int
    """Denoising steps."""
    seed: int
    """0 to 2^64-1. Same seed, same request, same machine: same bytes."""
    format: str
    """Kind of the main file: `mp4`, `png` …"""
    negative_prompt: str = ""
    guidance: float | None = None
    """Classifier-free guidance scale; the engine's own default if None."""
    guidance_2: float | None = None
    """The same, of the second expert (low noise) of models that have two."""
    image: Path | None = None
    """First frame, a PNG or JPEG file."""
    last_image: Path | None = None
    """Last frame; never without `image`."""
    loras: tuple[LoraUse, ...] = ()
    """LoRAs of the model, by the names that it was loaded with."""


@dataclass(frozen=True)
class Cancel:
    """Stop the generation with this id within one step."""

    id: str


@dataclass(frozen=True)
class Exit:
    """Leave with exit status 0."""


ToEngine = Load | Request | Cancel | Exit


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    engine: str
    version: str
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class Step:
    """A step has ended."""

    id: str
    step: int
    steps: int
    stage: str


@dataclass(frozen=True)
class Output:
    """A file that the engine has written. The main one comes first."""

    path: str
    """Relative to the request's `output_dir`."""
    role: Role
    media_type: str
    width: int
    height: int
    frames: int = 1
    fps: int = 0


@dataclass(frozen=True)
class Done:
    """The files are written and closed."""

    id: str
    files: list[Output]
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    test_pattern: bool = False


@dataclass(frozen=True)
class Error:
    """The generation with this id failed; without an id, the load did."""

    id: str | None
    code: Code
    message: str
    retryable: bool


FromEngine = Ready | Step | Done | Error

_NAMES = {Ready: "ready", Step: "progress", Done: "done", Error: "error"}


def write(message: FromEngine) -> bytes:
    """A message as its line."""
    fields = asdict(message)
    if isinstance(message, Error) and message.id is None:
        del fields["id"]
    line = json.dumps({"type": _NAMES[type(message)], **fields}, allow_nan=False)
    return line.encode() + b"\n"


def forward(message: Load | Request) -> bytes:
    """What the worker has said as a line again, for another process of this engine."""
    fields = asdict(message)
    if isinstance(message, Load):
        value = {"type": "load", **fields}
    else:
        outer = {name: fields.pop(name) for name in ("id", "output_dir")}
        value = {"type": "generate", **outer, "request": fields}
    return json.dumps(value, default=str).encode() + b"\n"


class Invalid(Exception):
    """A line that is no message. `id` is that of the generation that it asks for, if it has one."""

    def __init__(self, message: str, id: str | None = None):
        super().__init__(message)
        self.id = id


def read(line: bytes) -> ToEngine:
    """The message of a line; raises `Invalid`."""
    try:
        value: Any = json.loads(line)
    except RecursionError:
        raise Invalid("the line is nested too deeply") from None
    except ValueError as error:
        raise Invalid(f"the line is not JSON: {error}") from None
    message = _Fields.of(value, "the line")
    kind = message.text("type")
    if kind == "load":
        checkpoint = message.optional("checkpoint", message.text)
        return Load(
            protocol=message.whole("protocol"),
            model=message.text("model"),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            settings=dict(message.inner("settings").values) if "settings" in message else {},
            loras=_registered(message) if "loras" in message else {},
        )
    if kind == "generate":
        id = message.text("id")
        try:
            return _request(id, message)
        except Invalid as error:
            raise Invalid(str(error), id) from None
    if kind == "cancel":
        return Cancel(message.text("id"))
    if kind == "exit":
        return Exit()
    raise Invalid(f"there is no message of type {_shown(kind)}")


def _registered(message: _Fields) -> dict[str, Lora]:
    loras: dict[str, Lora] = {}
    all = message.inner("loras")
    for name in all.values:
        files = all.inner(name)
        paths = {part: files.optional(part, files.text) for part in ("path", "high", "low")}
        given = {part: Path(path) for part, path in paths.items() if path is not None}
        if not given or ("path" in given and len(given) > 1):
            raise Invalid(f"`loras.{name}` must have a `path`, or `high` and `low`")
        loras[name] = Lora(**given)
    return loras


def _request(id: str, message: _Fields) -> Request:
    output_dir = Path(message.text("output_dir"))
    if not output_dir.is_absolute():
        raise Invalid("`output_dir` must be an absolute path")
    request = message.inner("request")
    image, last_image = (request.optional(n, request.text) for n in ("image", "last_image"))
    return Request(
        id=id,
        output_dir=output_dir,
        prompt=request.text("prompt"),
        negative_prompt=request.optional("negative_prompt", request.text) or "",
        width=request.whole("width"),
        height=request.whole("height"),
        frames=request.whole("frames"),
        fps=request.whole("fps"),
        steps=request.whole("steps"),
        guidance=request.optional("guidance", request.number),
        guidance_2=request.optional("guidance_2", request.number),
        seed=request.whole("seed", bits=64),
        format=request.text("format"),
        image=None if image is None else Path(image),
        last_image=None if last_image is None else Path(last_image),
        loras=tuple(
            LoraUse(lora.text("name"), lora.number("scale") if "scale" in lora else 1.0)
            for lora in (request.objects("loras") if "loras" in request else ())
        ),
    )


@dataclass(frozen=True)
class _Fields:
    """An object of JSON, read field by field."""

    values: dict[str, Any]
    prefix: str = ""

    @staticmethod
    def of(value: Any, what: str, prefix: str = "") -> _Fields:
        if not isinstance(value, dict):
            raise Invalid(f"{what} must be a JSON object")
        return _Fields(cast(dict[str, Any], value), prefix)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def optional(self, name: str, read: Any) -> Any:
        return read(name) if name in self else None

    def inner(self, name: str) -> _Fields:
        path = f"{self.prefix}{name}"
        return _Fields.of(self._get(name), f"`{path}`", f"{path}.")

    def objects(self, name: str) -> list[_Fields]:
        value = self._get(name)
        if not isinstance(value, list):
            raise self._refusal(name, "a list", value)
        path = f"{self.prefix}{name}"
        return [
            _Fields.of(item, f"`{path}[{index}]`", f"{path}[{index}].")
            for index, item in enumerate(cast(list[Any], value))
        ]

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self._refusal(name, "a string", value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._refusal(name, "text without halves of characters", value) from None
        if "\0" in value:
            raise self._refusal(name, "text without NUL", value)
        return value

    def whole(self, name: str, bits: int = 32) -> int:
        value = self._get(name)
        if type(value) is int and 0 <= value < 1 << bits:
            return value
        raise self._refusal(name, f"a whole number from 0 to {(1 << bits) - 1}", value)

    def number(self, name: str) -> float:
        value = self._get(name)
        if type(value) in (int, float) and abs(value) < 1e300:
            return float(value)
        raise self._refusal(name, "a number", value)

    def _get(self, name: str) -> Any:
        if name not in self.values:
            raise Invalid(f"`{self.prefix}{name}` is missing")
        return self.values[name]

    def _refusal(self, name: str, wanted: str, value: Any) -> Invalid:
        return Invalid(f"`{self.prefix}{name}` must be {wanted}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
