"""Lower layers by number or by share of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.errors import ModelError
from decoding.models.layer_numbers import layer_numbers, matching_numbers
from decoding.models.structure import inspect_model

__all__ = ["depth_of", "exits_of", "matching_exits"]


def depth_of(model: Any) -> int:
    """The number of a model's decoder layers.

    Raises:
        ModelError: they were not found.
    """
    layers = inspect_model(model).layers
    if layers is None:
        raise ModelError(f"{type(model).__name__}: its decoder layers were not found")
    return len(layers)


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
