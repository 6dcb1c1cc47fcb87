"""Checks of the values of transformers' generation options, one a kind of value. Nothing here needs model code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from decoding.drafts.options import check_draft_tokens as draft_tokens
from decoding.drafts.options import check_drafts as drafts
from decoding.errors import OptionError, nearest, shown
from decoding.parameters import plain_number, require_choice, require_count, require_number, require_range

__all__ = [
    "Check", "any_number", "biases", "cache", "choice", "count", "draft_tokens", "drafts", "early_stopping", "flag",
    "growth", "number", "one_token", "settings", "share", "share_above_0", "strings", "temperatures", "token",
    "token_or_none", "tokens", "tokens_or_none", "whole", "words",
]  # fmt: skip

Check = Callable[[str, Any], None]
"""Raises OptionError, with a name and what is accepted, unless the value is one of the kind."""


LARGEST_COUNT = 2**31 - 1  # far beyond any that fits into memory


def number(low: float, open_: bool = False) -> Check:
    return lambda name, value: require_number(name, value, low, open_)


def temperatures(name: str, value: Any) -> None:
    """One, or several that are tried in turn."""
    for item in value if isinstance(value, (list, tuple)) and value else [value]:
        require_number(name, item, 0.0)


def share(name: str, value: Any) -> None:
    require_range(name, value, 0.0, 1.0)


def share_above_0(name: str, value: Any) -> None:
    require_range(name, value, 0.0, 1.0)
    require_number(name, value, 0.0, open_=True)


def count(low: int) -> Check:
    return lambda name, value: require_count(name, value, low, high=LARGEST_COUNT)


def any_number(name: str, value: Any) -> None:
    require_range(name, value, -1e9, 1e9)


def whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(f"{name}={shown(value)}: must be a whole number")


def choice(*choices: str) -> Check:
    return lambda name, value: require_choice(name, value, choices)


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={shown(value)}: must be true or false")


def early_stopping(name: str, value: Any) -> None:
    if not isinstance(value, bool) and value != "never":
        raise OptionError(f"{name}={shown(value)}: must be true, false or never")


def token(name: str, value: Any) -> None:
    for token in [value] if not isinstance(value, (list, tuple)) else value or [None]:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise OptionError(f"{name}={shown(value)}: must be a token's number, or several with commas between")


def token_or_none(name: str, value: Any) -> None:
    """One that a call in Python gives: transformers takes a number below 0 for a token that never comes."""
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(item, int) or isinstance(item, bool) or abs(item) > LARGEST_COUNT:
            raise OptionError(f"{name}={shown(value)}: must be a token's number, or a list of them")


def tokens_or_none(name: str, value: Any) -> None:
    """Several of these, in a list."""
    if not isinstance(value, (list, tuple)):
        raise OptionError(f"{name}={shown(value)}: must be a list of tokens' numbers")
    token_or_none(name, value)


def one_token(name: str, value: Any) -> None:
    if isinstance(value, (list, tuple)):
        raise OptionError(f"{name}={shown(value)}: must be one token's number")
    token(name, value)


def tokens(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        raise OptionError(f"{name}={shown(value)}: must be tokens' numbers with commas between")
    token(name, value)


def growth(name: str, value: Any) -> None:
    start, factor = value if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)
    is_start = isinstance(start, int) and not isinstance(start, bool) and start >= 0
    is_factor = isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 < factor < float("inf")
    if not is_start or not is_factor:
        raise OptionError(f"{name}={shown(value)}: must be a number of tokens and a factor above 0, such as 30,1.05")


def words(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(word, (list, tuple)) for word in value):
        raise OptionError(f"{name}={shown(value)}: must be lists of tokens' numbers, such as [[5], [6, 7]]")
    for word in value:
        tokens(name, word)


def biases(name: str, value: Any) -> None:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    for pair in pairs if isinstance(pairs, (list, tuple)) and pairs else [None]:
        tokens_of, bias = pair if isinstance(pair, (list, tuple)) and len(pair) == 2 else (None, None)
        if not isinstance(bias, float) or math.isnan(bias):
            raise OptionError(f"{name}={shown(value)}: must be pairs of tokens and a bias, such as [[[5, 6], -10.0]]")
        tokens(name, tokens_of)


def settings(accepted: Mapping[str, Check]) -> Check:
    """Return the check of an option that is an object of settings.

    Args:
        accepted: its keys, and the check of each value.
    """

    def check(name: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise OptionError(f"{name}={shown(value)}: must be a JSON object, of {', '.join(accepted)}")
        for key, item in value.items():
            if key not in accepted:
                raise OptionError(f"{name}: has no key {key!r}{nearest(str(key), accepted)}")
            accepted[key](f"{name}: {key}", plain_number(item))

    return check


def cache(name: str, value: Any) -> None:
    caches = ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "quantized")
    if value not in caches:
        raise OptionError(f"{name}={shown(value)}{nearest(str(value), caches)}")


def strings(name: str, value: Any) -> None:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not strings or not all(isinstance(s, str) and s for s in strings):
        raise OptionError(f'{name}={shown(value)}: must be a text, or texts such as ["\\n", "Q:"]')
