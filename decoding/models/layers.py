"""Lower layers by number or by share of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.errors import ModelError, OptionError, shown
from decoding.models.layer_numbers import layer_numbers, matching_numbers, require_layers
from decoding.models.structure import inspect_model
from decoding.parameters import plain_numbers

__all__ = ["chosen_layers", "depth_of", "exits_of", "matching_exits"]


def depth_of(model: Any) -> int:
    """The number of a model's decoder layers.

    Raises:
        ModelError: they were not found.
    """
    layers = inspect_model(model).layers
    if layers is None:
        raise ModelError(f"{type(model).__name__}: its decoder layers were not found")
    return len(layers)


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


def exits_of(model: Any, layers: Sequence[int | float]) -> tuple[int, ...]:
    """Exits of a model, ascending: numbers of layers, for layers given as numbers or as shares of its depth.

    Raises:
        OptionError: beyond the model's last layer but one.
        ModelError: the model's lower layers cannot be read.
    """
    exits = layer_numbers(layers, depth_of(model))
    inspect_model(model).layers_before(model, exits)
    return exits


def matching_exits(model: Any, exits: Sequence[int], other: Any) -> tuple[int, ...]:
    """The exits of another model at the same shares of its depth, one for each of ``exits``."""
    matching = matching_numbers(exits, depth_of(model), depth_of(other))
    inspect_model(other).layers_before(other, matching)
    return matching
