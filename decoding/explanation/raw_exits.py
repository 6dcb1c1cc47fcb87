"""Tells of lower layers that say next to nothing, since their states do not pass the final norm."""

from __future__ import annotations

from decoding.explanation.records import Explanation, Step
from decoding.strategies.contrast.parts import is_exit_name
from decoding.strategies.registry import StrategySpec

__all__ = ["note_on_raw_exits"]

SURE = 0.99  # a layer that gives one token so much tells little of the others


def note_on_raw_exits(spec: StrategySpec, explanation: Explanation) -> str:
    """A sentence where the lower layers of a strategy are read without the final norm, and give nearly everything to
    one token at most of the steps; "" elsewhere.

    Args:
        spec: the strategy that made the text.
        explanation: of the text.
    """
    if getattr(spec.strategy, "final_norm", True):
        return ""
    exits = [name for name in explanation.readers if is_exit_name(name)]
    sure = sum(_is_sure(step, exits) for step in explanation.steps)
    if not sure or 2 * sure < len(explanation.steps):
        return ""
    return (
        f"At {sure} of {len(explanation.steps)} tokens a lower layer gives one token {SURE:.0%} or more, and tells "
        "little: it is read without the final norm. final_norm=true reads it with the norm."
    )


def _is_sure(step: Step, exits: list[str]) -> bool:
    """True where a layer with a weight, or one of all where none has a weight (SLED's), is sure: its most probable
    token is among the candidates.
    """
    weighed = [name for name in exits if step.weights.get(name)] or exits
    return any(candidate.probability_of(name) >= SURE for name in weighed for candidate in step.candidates)
