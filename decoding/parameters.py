"""Checks of hyper-parameters, and their values as plain Python numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError

__all__ = [
    "plain_number",
    "plain_numbers",
    "require_choice",
    "require_count",
    "require_number",
    "require_range",
    "store_plain_numbers",
]


def plain_number(value: Any) -> Any:
    """A NumPy number or a tensor without dimensions as a Python number; anything else as it is.

    A number in half or single precision becomes the shortest decimal that rounds to it: ``np.float32(0.6)`` is 0.6.
    """
    if getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    try:
        number = value.item()
    except (RuntimeError, NotImplementedError):  # a tensor without data
        return value
    precision = str(value.dtype).removeprefix("torch.")
    if isinstance(number, float) and precision in ("float16", "float32"):
        import numpy as np

        return float(str(np.dtype(precision).type(number)))
    return number


def plain_numbers(values: Any) -> Any:
    """A list, array or tensor of one dimension as a list of :func:`plain_number`; anything else as it is."""
    if len(getattr(values, "shape", ())) == 1 or isinstance(values, (list, tuple)):
        return [plain_number(value) for value in values]
    return values


def store_plain_numbers(instance: Any) -> None:
    """Replace the NumPy numbers among the fields of a dataclass by Python's, so that equal values have one form."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        plain = plain_number(value)
        if plain is not value:
            object.__setattr__(instance, field.name, plain)


def require_range(name: str, value: Any, low: float, high: float) -> None:
    """Raise OptionError unless low <= value <= high."""
    value = plain_number(value)
    if not _is_number(value) or not low <= value <= high:
        raise OptionError(f"{name}={value!r}: must be a number from {low:g} to {high:g}")


def require_number(name: str, value: Any, low: float, open_: bool = False) -> None:
    """Raise OptionError unless low <= value, or low < value where ``open_``, and value is finite."""
    value = plain_number(value)
    if not _is_number(value) or not low <= value < float("inf") or (open_ and value == low):
        limit = f"above {low:g}" if open_ else f"from {low:g} up"
        raise OptionError(f"{name}={value!r}: must be a number {limit}")


def require_count(name: str, value: Any, low: int, note: str = "") -> None:
    """Raise OptionError unless value is a whole number from low up."""
    value = plain_number(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise OptionError(f"{name}={value!r}: must be a whole number from {low}{note}")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise OptionError unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{name}={value!r}: must be {' or '.join(choices)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
