"""Texts as callers give them to a metric: a list of texts, or one text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from decoding.errors import InputError

__all__ = ["as_list", "as_texts"]


def as_list(texts: Any, what: str) -> list[Any]:
    """A list of what stands for texts, whose members are not checked; see :func:`as_texts`."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, Mapping)) or getattr(texts, "ndim", 1) == 0:
        raise InputError(f"{what}: expected a list of texts, not {texts!r}")
    return list(texts)


def as_texts(texts: Any, what: str = "texts") -> list[str]:
    """A list of texts; one text alone is a list of one, not a list of its letters.

    Args:
        texts: one text, or texts in a list, an array, a column of a table, ...
        what: names them in messages.

    Raises:
        InputError: something else, or something else among them.
    """
    texts = as_list(texts, what)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise InputError(f"{what}: number {number} is {text!r}, where a text is expected")
    return texts
