"""Kinds of logits processors, and processors for rows of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from decoding.errors import OptionError

__all__ = ["WARPERS", "per_length"]

# From the first of these on, processors choose among the tokens that are left: they see logits, and no text.
WARPERS = tuple(
    getattr(logits_process, name)
    for name in (
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TopHLogitsWarper", "MinPLogitsWarper",
        "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "LogitNormalization",
    )
    if hasattr(logits_process, name)
)  # fmt: skip

# Those of transformers that keep something of the tokens that they were given before.
STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "UnbatchedClassifierFreeGuidanceLogitsProcessor")


def per_length(processors: LogitsProcessorList, lengths: Callable[[], Sequence[int]]) -> LogitsProcessorList:
    """Processors for a batch whose rows have several lengths: each row's scores are changed as after its own text.

    A processor is called once for each length that a row has, with all rows cut (or filled) to it, so that it finds
    each row at its place in the batch; of what it answers the rows of this length count.

    Args:
        processors: of the call.
        lengths: tells how many of its tokens each row has.

    Raises:
        OptionError: one that keeps a state of its own, at once or when it is found to.
    """
    for processor in processors:
        if type(processor).__name__ in STATEFUL or hasattr(processor, "session"):
            raise _has_a_state(processor)
    return LogitsProcessorList(
        processor if isinstance(processor, WARPERS) else _PerLength(processor, lengths) for processor in processors
    )


class _PerLength:
    def __init__(self, processor: Any, lengths: Callable[[], Sequence[int]]) -> None:
        self._processor = processor
        self._lengths = lengths
        self._known = type(processor).__module__.startswith("transformers.")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        lengths = self._lengths()
        result = scores
        for length in sorted(set(lengths)):
            before = None if self._known else _state(self._processor)
            changed = self._processor(input_ids[:, :length], scores.clone())
            if before is not None and _state(self._processor) != before:
                raise _has_a_state(self._processor)
            rows = torch.tensor([row_length == length for row_length in lengths], device=scores.device)
            result = torch.where(rows[:, None], changed, result)
        return result


def _state(processor: Any) -> list[tuple[str, int, Any]]:
    """What a processor holds, as far as it can be told apart cheaply."""
    held = getattr(processor, "__dict__", {})
    return [
        (name, id(value), value._version if isinstance(value, Tensor) else _size(value)) for name, value in held.items()
    ]


def _size(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _has_a_state(processor: Any) -> OptionError:
    return OptionError(
        f"drafts: {type(processor).__name__} keeps a state of the tokens that it saw, and rows of a batch accept "
        "different numbers of drafts: give it one row, or leave one of them out"
    )
