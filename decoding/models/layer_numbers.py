"""Which lower layers are meant, by the depth of a model alone: no model code is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError, shown
from decoding.parameters import plain_numbers

__all__ = ["chosen_layers", "deco_layers", "dola_layers", "layer_numbers", "matching_numbers", "require_layers"]


def chosen_layers(layers: Any) -> tuple[int | float, ...] | None:
    """The layers of a strategy's parameter ``layers``, as numbers or shares; None where it leaves them to the strategy.

    Raises:
        OptionError: they are none, or no numbers or shares.
    """
    if layers is None:
        return None
    given = plain_numbers(layers)
    given = [given] if isinstance(given, (int, float)) else given
    require_layers("layers", given)
    if not given:
        raise OptionError(f"layers={shown(layers)}: must be at least one layer, or None for the strategy's own choice")
    return tuple(given)


def layer_numbers(layers: Sequence[int | float], depth: int) -> tuple[int, ...]:
    """Numbers of layers, ascending, of layers given as numbers or as shares of the depth; see ``require_layers``."""
    return tuple(sorted({n if isinstance(n, int) else min(round(n * depth), depth - 1) for n in layers}))


def matching_numbers(exits: Sequence[int], depth: int, other_depth: int) -> tuple[int, ...]:
    """Numbers of layers at the same shares of another model's depth, one for each of ``exits``."""
    return tuple(min(round(exit_ / depth * other_depth), other_depth - 1) for exit_ in exits)


def dola_layers(bucket: str, depth: int, tied: bool) -> tuple[int, ...]:
    """DoLa's candidate layers, ascending, as transformers 4.55.4 has them: every second layer of one half.

    Args:
        bucket: "low" or "high" half; of 20 layers at either end beyond 40 layers.
        depth: the model's number of layers.
        tied: embeddings are tied: the low half begins with layer 2.
    """
    start = 0 if not tied else (2 if depth > 2 else depth - 1)
    if bucket == "high":
        return tuple(range(depth // 2 if depth <= 40 else depth - 20, depth, 2))
    if start == depth // 2:
        return (start,)
    return tuple(range(start, depth // 2 if depth <= 40 else 20, 2))


def deco_layers(depth: int) -> tuple[int, ...]:
    """DeCo's lower layers, ascending: from 20/32 to 28/32 of the depth, the layers of its paper's models of 32."""
    first, last = (min(round(share * depth), depth - 1) for share in (20 / 32, 28 / 32))
    return tuple(range(first, last + 1))


def require_layers(name: str, layers: Sequence[int | float]) -> None:
    """Raise OptionError unless each is a whole number from 0 or a fraction between 0 and 1."""
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise OptionError(
            f"{name}={shown(layers)}: expected numbers of layers or shares of the depth, such as [16, 0.5]"
        )
    for layer in layers:
        is_number = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
        if not is_number and not (isinstance(layer, float) and 0 < layer < 1):
            raise OptionError(
                f"{name}={shown(list(layers))}: expected numbers of layers from 0, such as 16, or shares of the depth "
                "between 0 and 1, such as 0.5"
            )
