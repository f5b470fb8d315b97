from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from rayreel import LoadFailed, settings


@dataclass(frozen=True)
class Settings:
    tiling: bool = False
    shift: float | None = None
    dtype: Literal["auto", "float32"] = "auto"
    offload: bool | Literal["model"] = False
    threads: int = 1


def test_what_is_given_is_taken_and_the_rest_is_the_default():
    assert settings.read(Settings, {}) == Settings()
    given: dict[str, Any] = {"tiling": True, "shift": 12, "dtype": "float32", "offload": "model"}
    assert settings.read(Settings, given) == Settings(True, 12, "float32", "model")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tilling": True}, "there is no setting `tilling`; did you mean `tiling`?"),
        ({"xyz": 1}, "there is no setting `xyz`; there is tiling, shift, dtype, offload, threads"),
        ({"tiling": 1}, "setting `tiling` must be true or false, not 1"),
        ({"shift": True}, "setting `shift` must be a number, not true"),
        ({"dtype": "fp8"}, 'setting `dtype` must be "auto" or "float32", not "fp8"'),
        ({"offload": "disk"}, 'setting `offload` must be true or false or "model", not "disk"'),
        ({"threads": 1.5}, "setting `threads` must be a whole number, not 1.5"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], why: str):
    with pytest.raises(LoadFailed) as refused:
        settings.read(Settings, given)
    assert str(refused.value) == why
