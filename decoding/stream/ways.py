"""The ways of branching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from transformers.cache_utils import DynamicSlidingWindowLayer

from decoding.cache.growing import GrowingLayer, layers_of
from decoding.cache.quantised import is_quantised
from decoding.transformers_private import DummyLayer

if TYPE_CHECKING:
    from decoding.stream.stream import Stream

__all__ = ["Branching", "Way", "may_share"]

Way = Literal["shared prefix", "fork", "read anew"]


@dataclass(frozen=True)
class Branching:
    """Which way a model branches, and why no cheaper one or how close the check came.

    ``way`` is "shared prefix" (:mod:`decoding.stream.shared_prefix`), "fork" (:mod:`decoding.stream.forked_rows`) or "read anew"
    (:mod:`decoding.stream.recompute`), the cheapest that is right.
    """

    way: Way
    reason: str


def may_share(stream: Stream) -> bool:
    """Whether this stream's cache and arguments allow the shared prefix (the model may, a static cache does not)."""
    if stream.kwargs.get("position_ids") is None:
        return False
    if is_quantised(stream.cache):
        return True
    layers = layers_of(stream.cache)
    return all(
        isinstance(each, (GrowingLayer, DummyLayer)) or type(each) is DynamicSlidingWindowLayer for each in layers
    )
