"""The settings of an engine: a dataclass, filled from the model's configuration."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from rayreel.engine import LoadFailed

T = TypeVar("T")


def read(kind: type[T], given: Mapping[str, Any]) -> T:
    """The settings that are given, defaults for the others. Whatever is unknown, or not of its
    field's type, is a `LoadFailed` that says what is right."""
    types = typing.get_type_hints(kind)
    for name, value in given.items():
        if name not in types:
            close = difflib.get_close_matches(name, types, 1)
            hint = f"did you mean `{close[0]}`?" if close else f"there is {', '.join(types)}"
            raise LoadFailed(f"there is no setting `{name}`; {hint}")
        wanted = _wanted(types[name])
        if not any(_fits(choice, value) for choice in wanted):
            names = " or ".join(_named(choice) for choice in wanted)
            raise LoadFailed(f"setting `{name}` must be {names}, not {json.dumps(value)}")
    settings = kind(**given)
    assert dataclasses.is_dataclass(settings)
    return settings


def _wanted(hint: Any) -> list[Any]:
    """The types and values that a field takes."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(hint) for choice in _wanted(part)]
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [] if hint is type(None) else [hint]


def _fits(choice: Any, value: Any) -> bool:
    if not isinstance(choice, type):
        return type(value) is type(choice) and value == choice
    # A number without a fraction is one; a truth value is not.
    return type(value) is choice or (choice is float and type(value) is int)


def _named(choice: Any) -> str:
    names: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
    }
    return names[choice] if isinstance(choice, type) else json.dumps(choice)
