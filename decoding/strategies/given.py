"""A strategy as callers give it: an object, its text, or what ``parse_strategy`` made of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decoding.errors import OptionError, shown
from decoding.generation.strategy import Strategy
from decoding.strategies.baselines import Baseline
from decoding.strategies.registry import STRATEGIES, StrategySpec, parse_strategy

__all__ = ["GivenStrategy", "given_strategy"]

GivenStrategy = Strategy | Baseline | StrategySpec | str
"""What every public function takes that takes a strategy."""


def given_strategy(strategy: Any, settings: Mapping[str, str] | None = None) -> StrategySpec:
    """The strategy or baseline that was given, and its name.

    Args:
        strategy: a strategy, a baseline, either as text (``"dola:layers=2"``), or a :class:`StrategySpec`.
        settings: parameters as text, which have priority over those in a strategy's text.

    Raises:
        OptionError: something else, or text that names no strategy.
    """
    if isinstance(strategy, str):
        return parse_strategy(strategy, settings)
    if isinstance(strategy, (Strategy, Baseline)):
        return StrategySpec(STRATEGIES.name_of(type(strategy)) or strategy.name, strategy)
    if isinstance(strategy, StrategySpec) and isinstance(strategy.strategy, (Strategy, Baseline)):
        return strategy
    raise OptionError(
        f"strategy={shown(strategy)}: must be a strategy such as decoding.DoLa(), or one as text, such as 'greedy' or "
        "'dola:alpha=0.2'"
    )
