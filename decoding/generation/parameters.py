"""Checks of hyper-parameters, shared by every strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError

__all__ = ["require_choice", "require_count", "require_number", "require_range"]


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise OptionError unless low <= value <= high."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise OptionError(f"{name}={value!r}: must be a number from {low:g} to {high:g}")


def require_number(name: str, value: float, low: float, open_: bool = False) -> None:
    """Raise OptionError unless low <= value, or low < value where ``open_``, and value is finite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value < float("inf") or (open_ and value == low):
        limit = f"above {low:g}" if open_ else f"from {low:g} up"
        raise OptionError(f"{name}={value!r}: must be a number {limit}")


def require_count(name: str, value: int, low: int, note: str = "") -> None:
    """Raise OptionError unless value is a whole number from low up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise OptionError(f"{name}={value!r}: must be a whole number from {low}{note}")


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise OptionError unless value is one of the choices."""
    if value not in choices:
        raise OptionError(f"{name}={value!r}: must be {' or '.join(choices)}")
