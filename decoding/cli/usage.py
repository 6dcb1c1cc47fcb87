"""Wrong command lines, explained in one line: what was given, and what is expected."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

import typer

from decoding.errors import nearest

__all__ = ["UsageError", "empty_path", "explain"]

# Old versions of typer raise click's error, new ones that of their own copy of click.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


def explain(error: Any, group: Any, arguments: Sequence[str]) -> str:
    """Return the message of a usage error.

    Args:
        error: a :data:`UsageError`.
        group: the whole command line, as ``typer.main.get_command`` returns it.
        arguments: the words that were given.
    """
    path, command, rest = _command(group, arguments)
    kind = type(error).__name__
    shown = f"{path} --help shows all options"
    option = getattr(error, "option_name", None)
    if kind == "NoSuchOption":
        names = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        close = difflib.get_close_matches(option, [*names, "--help"], n=1, cutoff=0.5)
        guess = f"did you mean {close[0]}? " if close else ""
        if any((parameter.metavar or "").startswith("-- ") for parameter in command.params):
            shown += "; options of the program that it runs go after --"
        return f"unknown option {option}; {guess}{shown}"
    parameter = getattr(error, "param", None) or _parameter(command, option)
    if kind == "MissingParameter" and parameter is not None:
        return f"{_named(parameter)} is missing: {path} needs it; {shown}"
    if parameter is not None and "does not take a value" in error.message:
        return f"{option}: takes no value; leave out what follows ="
    if kind == "BadOptionUsage" and parameter is not None:
        return f"{option}: expected {_expected(command, parameter)} after it"
    if kind == "BadParameter" and parameter is not None:
        given = _given(parameter, rest)
        return f"{parameter.opts[0]}{'' if given is None else f' {given!r}'}: expected {_expected(command, parameter)}"
    if hasattr(command, "commands"):
        word = next((word for word in rest if not word.startswith("-")), "")
        return f"unknown command {word!r}{nearest(word, command.commands)}"
    extra = re.search(r"unexpected extra argument\w*(?:\(s\))? \((.*)\)$", error.message)
    if extra is not None:
        return f"unexpected argument {extra[1]!r}: expected options alone, and quotes around a text of several words"
    return " ".join(error.format_message().split())


def empty_path(group: Any, arguments: Sequence[str]) -> str | None:
    """Return the message of an option that is to name a file or a folder and is given "", which pathlib takes for the
    working folder; None where there is no such option. Arguments as those of :func:`explain`.
    """
    if all(word.strip() and not word.endswith("=") for word in arguments):
        return None
    _, command, rest = _command(group, arguments)
    for parameter in command.params:
        empty = [value for value in _values(parameter, rest) if not value.strip()]
        if empty and "pathlib.Path" in str(_declared(command, parameter)):
            return f"{parameter.opts[0]} {empty[0]!r}: the name is empty; expected {parameter.metavar or 'a path'}"
    return None


def _command(group: Any, arguments: Sequence[str]) -> tuple[str, Any, list[str]]:
    """Find the command that was meant: its words, itself, and what follows them."""
    path, command, rest = "decoding", group, list(arguments)
    while hasattr(command, "commands"):
        word = next((word for word in rest if not word.startswith("-")), None)
        if word is None or word not in command.commands:
            break
        path, command, rest = f"{path} {word}", command.commands[word], rest[rest.index(word) + 1 :]
    return path, command, rest


def _parameter(command: Any, option: str | None) -> Any:
    return next(
        (parameter for parameter in command.params if option in (*parameter.opts, *parameter.secondary_opts)), None
    )


def _named(parameter: Any) -> str:
    """Write an option with its placeholder, ``--output DIR``, and an argument as its placeholder."""
    option = parameter.opts[0]
    return f"{option} {parameter.metavar or 'VALUE'}" if option.startswith("-") else str(parameter.metavar or option)


def _expected(command: Any, parameter: Any) -> str:
    """Say what values an option takes, from its declaration in the command's signature."""
    declared = _declared(command, parameter)
    values, info = get_args(declared)[:2] if get_origin(declared) is Annotated else (declared, None)
    kinds = {values, *get_args(values)}
    if not kinds & {int, float}:
        return str(parameter.metavar or "a value")
    low, high = getattr(info, "min", None), getattr(info, "max", None)
    number = "a number" if float in kinds else "a whole number"
    if low is None and high is None:
        return number
    return (
        f"{number} from {low:g}{'' if high is None else f' to {high:g}'}"
        if low is not None
        else f"{number} to {high:g}"
    )


def _declared(command: Any, parameter: Any) -> Any:
    """The annotation of an option in its command's signature; None of one that is not declared there (--help)."""
    declared = inspect.signature(command.callback, eval_str=True).parameters.get(parameter.name)
    return None if declared is None else declared.annotation


def _given(parameter: Any, words: Sequence[str]) -> str | None:
    """Find the value of an option among the words of the command line; the last, as the last one counts."""
    values = _values(parameter, words)
    return values[-1] if values else None


def _values(parameter: Any, words: Sequence[str]) -> list[str]:
    values = [value for option, value in itertools.pairwise(words) if option in parameter.opts]
    values += [word.partition("=")[2] for word in words if word.partition("=")[0] in parameter.opts and "=" in word]
    return values
