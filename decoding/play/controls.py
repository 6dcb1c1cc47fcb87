"""Sliders and fields for the parameters of strategies, made from their dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from decoding.errors import OptionError, nearest
from decoding.strategies.parameters_text import as_text, parameter_types
from decoding.strategies.registry import STRATEGIES, StrategySpec, example_of, parse_strategy

__all__ = ["Control", "controls_of", "offered_strategies", "offered_strategy", "spec_of", "summary_of"]

FINEST = 0.05  # the step of a slider from 0 to at most WIDE
WIDE = 5.0
NONE = "none"


@dataclass(frozen=True)
class Control:
    """What sets one parameter.

    Attributes:
        name: of the parameter.
        kind: "slider" of a number, "choice" among words, "flag" for true or false, "text" for all else.
        value: that it begins with, as a command line has it; "" where the strategy needs one and has no example.
        default: of the parameter, likewise; None where it has none.
        low, high, step: of a slider; every value of it is one that the strategy takes beside the defaults.
        choices: the words.
        hint: an example, for a parameter without a default; else "".
    """

    name: str
    kind: Literal["slider", "choice", "flag", "text"]
    value: str
    default: str | None
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    choices: tuple[str, ...] = ()
    hint: str = ""


def offered_strategies() -> list[str]:
    """The names of the strategies that continue a text alone, but for those of packages that cannot be imported."""
    names = []
    for name in STRATEGIES:
        with contextlib.suppress(OptionError):
            if getattr(STRATEGIES[name], "media", None) is None:
                names.append(name)
    return names


def offered_strategy(text: str | None) -> str:
    """The name of the strategy that was picked, or typed as commands take it.

    Raises:
        OptionError: it is none that a page offers; names the nearest ones and all.
    """
    text = (text or "").strip()
    offered = offered_strategies()
    if not text:
        raise OptionError(f"no strategy is chosen: expected one of {', '.join(offered)}")
    given, colon, _ = text.partition(":")
    name = given.strip().lower().replace("_", "-")
    if name in offered and not colon:
        return name
    if name in offered:
        raise OptionError(f"strategy {text!r}: its parameters have fields of their own here; expected {name} alone")
    if name in STRATEGIES:
        raise OptionError(
            f"strategy {name}: changes a prompt's images or sound, and this page has text alone; expected one of "
            f"{', '.join(offered)}"
        )
    raise OptionError(f"unknown strategy {given.strip()!r}{nearest(name, offered)}")


def summary_of(name: str) -> str:
    """The first sentence of a strategy's docstring."""
    paragraph = (inspect.getdoc(STRATEGIES[name]) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


@functools.cache
def controls_of(name: str) -> tuple[Control, ...]:
    """One control for each parameter of a strategy that a command line can set, in their order."""
    strategy_class = STRATEGIES[name]
    example = parse_strategy(example_of(name)).strategy
    hints = parameter_types(strategy_class)
    return tuple(
        _control(field, hints[field.name], example)
        for field in dataclasses.fields(strategy_class)
        if field.name in hints
    )


def spec_of(name: str, values: Mapping[str, str]) -> StrategySpec:
    """The strategy of a name with the values of its controls, as a command line would have them.

    Args:
        name: of the strategy.
        values: by the name of the parameter; those that are empty or the default are left out.

    Raises:
        OptionError: a value of another kind, out of range, or missing.
    """
    defaults = {control.name: control.default for control in controls_of(name)}
    for control in controls_of(name):
        if control.default is None and not values.get(control.name, "").strip():
            example = "" if control.hint.isupper() else f", for instance {control.hint}"
            raise OptionError(f"{name} needs {control.name}: fill in its field{example}")
    given = {
        parameter: text.strip() for parameter, text in values.items() if text.strip() not in ("", defaults[parameter])
    }
    return parse_strategy(name, given)


def _control(field: dataclasses.Field[Any], hint: Any, example: Any) -> Control:
    given = as_text(getattr(example, field.name))
    has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    default = given.lower() if given in ("None", "True", "False") else given
    if not has_default:
        words = str(field.metadata.get("example", ""))
        # An example in capitals says what to write: TEXT.
        return Control(field.name, "text", "" if words.isupper() else words, None, hint=words)
    if hint is bool:
        return Control(field.name, "flag", default, default)
    choices = _words(hint)
    if choices:
        return Control(field.name, "choice", default, default, choices=choices)
    slider = _slider(field, example) if hint in (int, float) else None
    return slider or Control(field.name, "text", default, default)


def _words(hint: Any) -> tuple[str, ...]:
    """The words that a hint allows, "none" first where it allows that; () where it allows anything else."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    if not words or any(kind is not type(None) and typing.get_origin(kind) is not Literal for kind in kinds):
        return ()
    return (*([NONE] if type(None) in kinds else []), *map(str, words))


def _slider(field: dataclasses.Field[Any], example: Any) -> Control | None:
    """A slider over values that the strategy takes: it is asked. None where it takes none but its default."""
    default = getattr(example, field.name)
    is_whole = isinstance(default, int)

    def takes(value: float) -> bool:
        try:
            dataclasses.replace(example, **{field.name: int(value) if is_whole else value})
        except OptionError:
            return False
        return True

    usual = max(default, *field.metadata.get("grid", ()), 0)
    if is_whole:
        step = 1.0
        low: float = _last(takes, default, 0)
        high: float = _last(takes, default, max(4 * usual, 10) if usual else 100)
    else:
        most = float(max(2 * usual, 1.0))
        step = FINEST if most <= WIDE else 0.5
        low = next((value for value in (-most, 0.0, step) if value <= default and takes(value)), default)
        high = next((value for value in (most, 1.0) if value >= default and takes(value)), default)
    if low == high or not takes(low + step):
        return None
    return Control(field.name, "slider", as_text(default), as_text(default), low, high, step)


def _last(takes: Callable[[int], bool], taken: int, end: int) -> int:
    """The last number that is taken on the way from one that is to ``end``, where all before it are taken too."""
    if takes(end):
        return end
    while abs(end - taken) > 1:
        middle = (taken + end) // 2
        taken, end = (middle, end) if takes(middle) else (taken, middle)
    return taken
