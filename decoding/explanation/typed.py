"""Dataclasses of plain values, made of what JSON holds or checked as they are: each value of the type of its field."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Union

from decoding.errors import OptionError, shown
from decoding.parameters import plain_number

__all__ = ["typed"]

WORDS = {
    int: "a whole number", float: "a finite number", str: "text", bool: "true or false", tuple: "a list",
    dict: "an object with names",
}  # fmt: skip


def typed(kind: Any, value: Any, where: str) -> Any:
    """A value of a type, made of plain values where it is not one yet.

    Args:
        kind: int, float, str, bool, a tuple of one kind, a mapping from names, a dataclass of such, or one of these
            and None.
        value: what was given: lists may stand for tuples, and mappings for dataclasses.
        where: names the value in messages.

    Raises:
        OptionError: the first value of another type, a field that is missing, or one that there is none of.
    """
    if typing.get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (choice for choice in typing.get_args(kind) if choice is not type(None))
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(tuple, value, where)
        of = typing.get_args(kind)[0]
        return tuple(typed(of, item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is not None:
        if not isinstance(value, Mapping):
            raise _wrong(dict, value, where)
        names, of = typing.get_args(kind)
        return {
            typed(names, name, f"a name in {where}"): typed(of, item, f"{where}.{name}") for name, item in value.items()
        }
    value = plain_number(value)
    if kind is float:
        is_one = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    else:
        is_one = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not is_one:
        raise _wrong(kind, value, where)
    return value


def _record(kind: Any, value: Any, where: str) -> Any:
    kinds, needed = _fields(kind)
    if isinstance(value, kind):
        value = {name: getattr(value, name) for name in kinds}
    if not isinstance(value, Mapping):
        raise _wrong(dict, value, where)
    for name in needed:
        if name not in value:
            raise OptionError(f"{where}: has no {name!r}; must have {', '.join(needed)}")
    for name in value:
        if name not in kinds:
            raise OptionError(f"{where}: has {shown(name)}, which is none of {', '.join(kinds)}")
    return kind(**{name: typed(kinds[name], item, f"{where}.{name}") for name, item in value.items()})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The type of each field of a dataclass, and the names of those that have no default."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    needed = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return {field.name: hints[field.name] for field in fields}, needed


def _wrong(kind: Any, value: Any, where: str) -> OptionError:
    return OptionError(f"{where}={shown(value)}: must be {WORDS[kind]}")
