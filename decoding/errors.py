"""The errors of this library: few classes, each message one line that says what was given and what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DecodingError",
    "DecodingWarning",
    "InputError",
    "ModelError",
    "OptionError",
    "nearest",
    "one_line",
]


class DecodingError(ValueError):
    """Base of every error that this library raises on purpose; its message is one line, whatever was quoted in it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class OptionError(DecodingError):
    """A hyper-parameter is out of range, or a generation option cannot be honoured by the strategy."""


class InputError(DecodingError):
    """The prompt, mask or cache given cannot be decoded from."""


class DecodingWarning(UserWarning):
    """Something went another way than asked for, and on."""


class ModelError(DecodingError):
    """The model, or the folder it should come from, cannot serve the strategy."""


def nearest(given: str, accepted: Iterable[str]) -> str:
    """The end of a message on an unknown name: the accepted ones that look like it, then all."""
    accepted = list(accepted)
    close = difflib.get_close_matches(given, accepted, n=2, cutoff=0.5)
    guess = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{guess} accepted: {', '.join(accepted)}"


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message, cut to ``limit`` characters; the name of the error where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
