"""Terms of a weighted contrast that are given as text, and their roles: no model code is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError, nearest, shown

__all__ = ["require_role", "role_of_term", "terms_in_text"]

# A weight begins the text, or follows a sign between spaces: a prompt may have a product such as 3*4 in it.
WRITTEN = re.compile(r"(?:^\s*([+-]?)\s*|\s([+-])\s+)(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*\*")


def terms_in_text(text: str, expected: str) -> list[tuple[str, float]]:
    """The readers that a text names, each with its weight.

    Args:
        text: such as "1.5*expert - 0.5*instead:TEXT".
        expected: what the error says that it must be.

    Raises:
        OptionError: no weight begins it.
    """
    starts = list(WRITTEN.finditer(text))
    if not starts or text[: starts[0].start()].strip():
        raise OptionError(f"terms={shown(text)}: {expected}")
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return [
        (text[start.end() : end].strip(" "), float(start[3]) * (-1 if "-" in (start[1], start[2]) else 1))
        for start, end in zip(starts, ends, strict=True)
    ]


def role_of_term(number: int) -> str:
    """The role of a term that is given none, by its number among the terms, from 1."""
    return f"reader {number}"


def require_role(name: str, value: Any, roles: Sequence[str]) -> None:
    """Raise OptionError unless a parameter is the role of a reader.

    Args:
        name: of the parameter.
        value: given.
        roles: of the readers.
    """
    if not isinstance(value, str) or value not in roles:
        raise OptionError(f"{name}={shown(value)}: no reader has this role{nearest(str(value), roles)}")
