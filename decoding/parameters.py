"""Checks of hyper-parameters, and their values as plain Python numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError, shown

__all__ = [
    "LARGEST",
    "plain_number",
    "plain_numbers",
    "require_choice",
    "require_count",
    "require_flag",
    "require_number",
    "require_range",
    "store_plain_numbers",
]


LARGEST = 3.4028234663852886e38  # of float32, in which scores are computed


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
        raise OptionError(f"{name}={shown(value)}: must be a number from {low:g} to {high:g}")


def require_number(name: str, value: Any, low: float, open_: bool = False) -> None:
    """Raise OptionError unless low <= value, or low < value where ``open_``, and value is finite in float32."""
    value = plain_number(value)
    if not _is_number(value) or not low <= value <= LARGEST or (open_ and value == low):
        limit = f"above {low:g}" if open_ else f"from {low:g} up"
        if _is_number(value) and value > LARGEST:
            limit += f", and at most {LARGEST:g}, the largest of float32"
        raise OptionError(f"{name}={shown(value)}: must be a number {limit}")


def require_count(name: str, value: Any, low: int, note: str = "", high: int | None = None) -> None:
    """Raise OptionError unless value is a whole number from low up, or to high where that is given."""
    value = plain_number(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not is_count or (high is not None and value > high):
        limit = "" if high is None else f" to {high}"
        raise OptionError(f"{name}={shown(value)}: must be a whole number from {low}{limit}{note}")


def require_flag(name: str, value: Any) -> None:
    """Raise OptionError unless value is True or False."""
    if not isinstance(plain_number(value), bool):
        raise OptionError(f"{name}={shown(value)}: must be True or False")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise OptionError unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{name}={shown(value)}: must be {' or '.join(choices)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
