"""The errors of this library: few classes, each message one line that names what was given and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "DecodingError",
    "DecodingWarning",
    "InputError",
    "ModelError",
    "OptionError",
    "nearest",
    "one_line",
    "shown",
]


class DecodingError(ValueError):
    """Base of every error that this library raises on purpose; its message is one line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class OptionError(DecodingError):
    """A hyper-parameter is out of range, or a generation option cannot be honoured by the strategy."""


class InputError(DecodingError):
    """The prompt, mask or cache given cannot be decoded from."""


class DecodingWarning(UserWarning):
    """A call went on in another way than was asked for."""


class ModelError(DecodingError):
    """The model, or the folder that it should come from, does not fit the call."""


def nearest(given: str, known: Iterable[str], heading: str = "expected one of") -> str:
    """The end of a message on an unknown name: known names that look like it, then all.

    Args:
        given: the unknown name.
        known: the names that there are.
        heading: stands before all names.
    """
    known = list(map(str, known))
    close = difflib.get_close_matches(given, known, n=2, cutoff=0.5)
    guess = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{guess} {heading} {', '.join(known)}" if known else guess.rstrip(";")


def shown(value: Any, limit: int = 80) -> str:
    """A value as a message quotes it: its ``repr`` in one line, cut to ``limit`` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message, cut to ``limit`` characters; the name of the error where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
