"""Parameters of strategies as text, for command lines and labels, and as JSON, for results and exported models."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, Union

from decoding.errors import OptionError
from decoding.strategies.contrast.prompt import Prompt
from decoding.strategies.contrast.reader_kinds import LastToken, OtherPrompt, Self
from decoding.strategies.contrast.terms import Terms

__all__ = ["as_json", "as_results", "as_text", "from_text", "model_name", "named_values", "parameter_types"]

_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Sequence: "numbers with commas between",
}


def parameter_types(strategy_class: type[Any]) -> dict[str, Any]:
    """The fields that a string can fill, with their types. The others (a tokenizer) have no place on a command line."""
    hints = typing.get_type_hints(strategy_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(strategy_class) if field.repr}


def from_text(name: str, text: str, hint: Any) -> Any:
    """The value that a text stands for, of the first type of a hint that the text can be.

    Raises:
        OptionError: the text is none of them.
    """
    kinds = _kinds(hint)
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        try:
            if kind in (int, float):
                return kind(text)
            if kind is Sequence:
                return tuple(_number(item) for item in text.replace(";", ",").split(","))
        except ValueError:
            continue
        if kind is str:
            return text
    expected = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
    raise OptionError(f"{name}={text!r}: must be {expected}{' or none' if type(None) in kinds else ''}")


def as_text(value: Any) -> str:
    """A value as a command line has it; of a model, its name."""
    if isinstance(value, (tuple, list)):
        return (";" if any(isinstance(item, str) for item in value) else ",").join(map(str, value))
    if inspect.isfunction(value):
        return model_name(value)
    return model_name(value) if hasattr(value, "get_output_embeddings") else str(value)


def as_json(name: str, value: Any) -> Any:
    """A value as a file has it that it is read from again.

    Raises:
        OptionError: a value that cannot be written (a model).
    """

    def path_only(other: Any) -> str:
        if isinstance(other, PurePath):
            return str(other)
        raise OptionError(f"{name}={other!r} cannot be written to a file; must be text, numbers or lists of them")

    return _plain(value, "text", path_only)


def named_values(option: str, pairs: Sequence[str], example: str) -> dict[str, str]:
    """Return the ``name=value`` strings of a repeatable option as a dictionary.

    Args:
        option: as the command line has it, for messages.
        pairs: its strings.
        example: of one, for messages.

    Raises:
        OptionError: a string without ``=``, or a name given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise OptionError(f"{option} {pair!r}: expected name=value, for instance {example}")
        if name in values:
            raise OptionError(f"{option} {name}: given twice")
        values[name] = value
    return values


def as_results(value: Any) -> Any:
    """A value as results have it; of what JSON does not have (a model), its name.

    Hashes of configurations are taken of this: a change of it makes other samples of all that were evaluated.
    """
    return _plain(value, "prompt", model_name)


def model_name(model: Any) -> str:
    """The name that a model was loaded by, or else that of its class; of a function, its module and name."""
    if inspect.isfunction(model):
        return f"{model.__module__}.{model.__qualname__}"
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def _plain(value: Any, prompt_key: str, other: Callable[[Any], Any]) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Prompt):
        return {prompt_key: _plain(value.text, prompt_key, other)}
    if isinstance(value, OtherPrompt):
        return {"instead": _plain(value.text, prompt_key, other)}
    if isinstance(value, (LastToken, Self)):
        return str(value)
    if isinstance(value, Terms):
        return [[_plain(term.reader, prompt_key, other), term.weight, term.role] for term in value.terms]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, prompt_key, other) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, prompt_key, other) for item in value]
    if hasattr(value, "tolist"):  # a tensor
        return value.tolist()
    return other(value)


def _kinds(hint: Any) -> list[Any]:
    """The types that a hint allows, text last: any text would be one."""
    if hint is Any:
        return [type(None), str]
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        kinds = [kind for option in typing.get_args(hint) for kind in _kinds(option)]
    elif origin is Literal:
        kinds = [str]
    else:
        kinds = [origin or hint]
    return sorted(kinds, key=lambda kind: kind is str)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
