"""The ways of branching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decoding.cache.layer_kinds import can_share_prefix
from decoding.cache.quantised import is_quantised
from decoding.stream.state import BatchState

__all__ = ["Branching", "Way", "may_share_prefix"]

Way = Literal["shared prefix", "fork", "recompute"]


@dataclass(frozen=True)
class Branching:
    """The way in which a model branches, and the reason: why no cheaper one, or how close the check came.

    ``way`` is "shared prefix" (:mod:`decoding.stream.shared_prefix`), "fork" (:mod:`decoding.stream.forked_rows`) or
    "recompute" (:mod:`decoding.stream.recompute`), the cheapest that is right.
    """

    way: Way
    reason: str


def may_share_prefix(state: BatchState) -> bool:
    """True where a stream's cache and arguments allow the shared prefix (the model may, a static cache does not)."""
    if state.kwargs.get("position_ids") is None:
        return False
    return is_quantised(state.cache) or can_share_prefix(state.cache)
