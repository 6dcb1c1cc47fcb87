"""The fields of a request that asks for a strategy: their names, and values that are given as text."""

from __future__ import annotations

from typing import Any

from decoding.parameters import plain_numbers, require_flag

__all__ = ["GROUP", "PLAIN", "STRATEGY", "VLLMS_OWN", "as_list", "as_number", "flag"]

STRATEGY = "strategy"  # the key that names it
PLAIN = "none"  # the model's own logits
# The key that tells the sampler's processor which group a request belongs to, and its place in it.
GROUP = "_group"
# What vLLM itself puts beside a request's fields.
VLLMS_OWN = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")


def as_number(value: Any) -> Any:
    """A number given as text as a number; anything else as it is."""
    if not isinstance(value, str):
        return value
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def as_list(value: Any) -> Any:
    """Layers given as text with commas, or as one number, as a list; anything else as it is."""
    if isinstance(value, str):
        value = [as_number(item.strip()) for item in value.replace(";", ",").split(",") if item.strip()]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    return plain_numbers(value)


def flag(name: str, value: Any) -> bool:
    """True or False, which the fields of a request have as 1 and 0 or as text too.

    Raises:
        OptionError: anything else.
    """
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    require_flag(name, value)
    return bool(value)
