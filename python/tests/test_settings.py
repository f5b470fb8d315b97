from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from rayreel import LoadFailed, settings


@dataclass(frozen=True)
class Sieve:
    kind: Literal["sieve"]
    width: float = 0.5
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True)
class Press:
    kind: Literal["press", "heavy-press"]
    file: str


@dataclass(frozen=True)
class Place:
    row: int = 0


@dataclass(frozen=True)
class Settings:
    tiling: bool = False
    shift: float | None = None
    dtype: Literal["auto", "float32"] = "auto"
    offload: bool | Literal["model"] = False
    threads: int = 1
    tool: Sieve | Press | None = None
    place: Place = Place()


def test_what_is_given_is_taken_and_the_rest_is_the_default():
    assert settings.read(Settings, {}) == Settings()
    given: dict[str, Any] = {"tiling": True, "shift": 12, "dtype": "float32", "offload": "model"}
    assert settings.read(Settings, given) == Settings(True, 12, "float32", "model")


def test_a_table_is_one_of_its_kinds():
    def tool(given: Any) -> Any:
        return settings.read(Settings, {"tool": given}).tool

    assert tool("sieve") == tool({"kind": "sieve"}) == Sieve("sieve")
    ratios = {"kind": "sieve", "width": 1, "ratios": [1, 0.5]}
    assert tool(ratios) == Sieve("sieve", 1, (1, 0.5))
    assert tool({"kind": "heavy-press", "file": "x"}) == Press("heavy-press", "x")
    assert settings.read(Settings, {"place": {"row": 2}}).place == Place(2)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tilling": True}, "there is no setting `tilling`; did you mean `tiling`?"),
        (
            {"xyz": 1},
            "there is no setting `xyz`; "
            "there is tiling, shift, dtype, offload, threads, tool, place",
        ),
        ({"tiling": 1}, "setting `tiling` must be true or false, not 1"),
        ({"shift": True}, "setting `shift` must be a number, not true"),
        ({"dtype": "fp8"}, 'setting `dtype` must be "auto" or "float32", not "fp8"'),
        ({"offload": "disk"}, 'setting `offload` must be true or false or "model", not "disk"'),
        ({"threads": 1.5}, "setting `threads` must be a whole number, not 1.5"),
        (
            {"tool": "seive"},
            'setting `tool` must be "sieve" or "press" or "heavy-press", not "seive"',
        ),
        (
            {"tool": {"width": 1}},
            'setting `tool.kind` is missing: "sieve" or "press" or "heavy-press"',
        ),
        (
            {"tool": {"kind": "hammer"}},
            'setting `tool.kind` must be "sieve" or "press" or "heavy-press", not "hammer"',
        ),
        (
            {"tool": {"kind": "sieve", "widht": 1}},
            "there is no setting `tool.widht`; did you mean `tool.width`?",
        ),
        (
            {"tool": {"kind": "sieve", "width": "1"}},
            'setting `tool.width` must be a number, not "1"',
        ),
        ({"tool": {"kind": "sieve", "ratios": 1}}, "setting `tool.ratios` must be a list, not 1"),
        (
            {"tool": {"kind": "sieve", "ratios": [1, "2"]}},
            'setting `tool.ratios[1]` must be a number, not "2"',
        ),
        ({"tool": "press"}, "setting `tool.file` is missing"),
        ({"place": 3}, "setting `place` must be a table, not 3"),
        ({"place": {"row": True}}, "setting `place.row` must be a whole number, not true"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], why: str):
    with pytest.raises(LoadFailed) as refused:
        settings.read(Settings, given)
    assert str(refused.value) == why
