"""Texts that strategies put beside prompts (a context, guidance, an amateur's prompt), as callers give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from decoding.errors import OptionError, shown
from decoding.parameters import plain_numbers

__all__ = ["by_row", "check_text", "least_rows", "texts_of"]

Item = TypeVar("Item")


def texts_of(text: Any, what: str) -> tuple[list[str | Sequence[int]], bool]:
    """Return the texts that are given, each text or token ids, and whether they are one a row.

    Args:
        text: text or token ids, or a sequence of one of these a row.
        what: names it in messages.

    Raises:
        OptionError: something else, or a text that is empty or blank, which would change nothing.
    """
    text = _plain(text)
    if _is_text(text):
        _refuse_blank(text, what)
        return [text], False
    if isinstance(text, Sequence) and not isinstance(text, bytes) and len(text) > 0:
        texts = [_plain(item) for item in text]
        if all(map(_is_text, texts)):
            for row, item in enumerate(texts):
                _refuse_blank(item, f"{what} of row {row}")
            return texts, True
    raise OptionError(f"{what}: {shown(text)} must be text, token ids, or one of these a row")


def by_row(texts: Sequence[Item], rows: int, what: str) -> list[Item]:
    """Give each row its text: one for all rows, one a row, or one a prompt, where a prompt has several rows.

    Raises:
        OptionError: another number of texts.
    """
    if len(texts) == 1:
        return [*texts] * rows
    if not texts or rows % len(texts):
        raise OptionError(f"{what}: {len(texts)} texts for {rows} rows; give one for all or one a row")
    return [text for text in texts for _ in range(rows // len(texts))]


def check_text(text: Any, tokenizer: Any, what: str) -> None:
    """Raise OptionError where text is given without the tokenizer that it needs, or what is given is no text."""
    if tokenizer is None and any(isinstance(text, str) for text in texts_of(text, what)[0]):
        raise OptionError(f"{what} is text: pass tokenizer=..., or give token ids")


def least_rows(*texts: Any) -> int:
    """Return the number of rows of the smallest batch that texts fit, each one for all rows or one a row.

    Args:
        texts: as :func:`texts_of` takes them; None is no text.

    Raises:
        OptionError: see :func:`texts_of`.
    """
    given = [texts_of(text, "text") for text in texts if text is not None]
    return math.lcm(*(len(rows) for rows, per_row in given if per_row))


def _plain(text: Any) -> Any:
    """Text as it is; lists, arrays and tensors as lists."""
    if not (hasattr(text, "tolist") and hasattr(text, "shape")):
        return plain_numbers(text)
    try:
        return text.tolist()
    except (RuntimeError, NotImplementedError):  # a tensor without data
        return text


def _is_text(text: Any) -> bool:
    if isinstance(text, (list, tuple)):
        return all(isinstance(token, int) and not isinstance(token, bool) for token in text)
    return isinstance(text, str)


def _refuse_blank(text: str | Sequence[int], what: str) -> None:
    if not (text.strip() if isinstance(text, str) else text):
        raise OptionError(f"{what} is empty ({text!r}) and would change nothing: give at least one word or token")
