"""The settings of an engine: a dataclass, filled from the model's configuration.

A field may be a table: a dataclass of its own, or one of several, each with a field `kind` that
names it. Where a table needs no more than its kind, the kind alone may be given.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast

from rayreel.engine import LoadFailed

T = TypeVar("T")


def read(kind: type[T], given: Mapping[str, Any]) -> T:
    """The settings that are given, defaults for the others. Whatever is unknown, or not of its
    field's type, is a `LoadFailed` that says what is right."""
    return _read(kind, given, "")


def check(name: str, value: float | None, must: str, holds: Callable[[float], bool]) -> None:
    """Refuses a number that is out of its range, which `must` names: `be above 0`."""
    # What is no number is in no range.
    if value is not None and not (math.isfinite(value) and holds(value)):
        raise LoadFailed(f"setting `{name}` must {must}, not {json.dumps(value)}")


def at_least_0(name: str, value: float | None) -> None:
    check(name, value, "be at least 0", lambda number: number >= 0)


def _read(kind: type[T], given: Mapping[str, Any], prefix: str) -> T:
    assert dataclasses.is_dataclass(kind)
    types = typing.get_type_hints(kind)
    for name in given:
        if name not in types:
            close = difflib.get_close_matches(name, types, 1)
            hint = (
                f"did you mean `{prefix}{close[0]}`?" if close else f"there is {', '.join(types)}"
            )
            raise LoadFailed(f"there is no setting `{prefix}{name}`; {hint}")
    for field in dataclasses.fields(kind):
        required = (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
        if required and field.name not in given:
            raise LoadFailed(f"setting `{prefix}{field.name}` is missing")
    values = {name: _value(types[name], value, prefix + name) for name, value in given.items()}
    return cast(T, kind(**values))


def _value(hint: Any, value: Any, name: str) -> Any:
    wanted = _wanted(hint)
    for choice in wanted:
        if _is_list(choice):
            if isinstance(value, list):
                item = typing.get_args(choice)[0]
                items = enumerate(cast(list[Any], value))
                return tuple(_value(item, one, f"{name}[{index}]") for index, one in items)
        elif not _is_table(choice):
            if _fits(choice, value):
                return cast(Any, value)
        elif isinstance(value, Mapping):
            table = cast(Mapping[str, Any], value)
            kinds = _kinds(choice)
            if not kinds or table.get("kind") in kinds:
                return _read(choice, table, f"{name}.")
        elif isinstance(value, str) and value in _kinds(choice):
            return _read(choice, {"kind": value}, f"{name}.")
    kinds = [kind for choice in wanted for kind in _kinds(choice)]
    if kinds and isinstance(value, Mapping):
        table = cast(Mapping[str, Any], value)
        if "kind" not in table:
            raise LoadFailed(f"setting `{name}.kind` is missing: {_either(kinds)}")
        name, value, wanted = f"{name}.kind", table["kind"], kinds
    names = _either(wanted)
    raise LoadFailed(f"setting `{name}` must be {names}, not {json.dumps(value)}")


def _wanted(hint: Any) -> list[Any]:
    """The types and values that a field takes."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(hint) for choice in _wanted(part)]
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [] if hint is type(None) else [hint]


def _is_list(choice: Any) -> bool:
    return typing.get_origin(choice) is tuple


def _is_table(choice: Any) -> bool:
    return dataclasses.is_dataclass(choice)


def _kinds(choice: Any) -> list[str]:
    """What the `kind` of a table may be."""
    hints = typing.get_type_hints(choice) if _is_table(choice) else {}
    return _wanted(hints["kind"]) if "kind" in hints else []


def _fits(choice: Any, value: Any) -> bool:
    if not isinstance(choice, type):
        return type(value) is type(choice) and value == choice
    # A number without a fraction is one; a truth value is not.
    return type(value) is choice or (choice is float and type(value) is int)


def _either(choices: typing.Iterable[Any]) -> str:
    return " or ".join(_named(choice) for choice in choices)


def _named(choice: Any) -> str:
    names: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
    }
    if _is_list(choice):
        return "a list"
    if _is_table(choice):
        return _either(_kinds(choice)) or "a table"
    return names[choice] if isinstance(choice, type) else json.dumps(choice)
