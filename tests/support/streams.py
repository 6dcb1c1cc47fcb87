"""Streams whose way of branching a test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.stream.prepare import prepare_inputs
from decoding.stream.stream import Stream
from decoding.stream.ways import Branching, Way

__all__ = ["stream_with_way"]


def stream_with_way(model: Any, way: Way, restorable: bool = False, exits: Sequence[int] = (), **inputs: Any) -> Stream:
    """A stream that branches in this way, its prompt read."""
    ids, kwargs, config = prepare_inputs(model, **inputs)
    branching = Branching(way, "chosen by the test")
    stream = Stream(model, ids, kwargs, config, branching=branching, restorable=restorable, exits=exits)
    stream.prefill()
    return stream
