"""Kinds of logits processors, and processors for rows of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PrefixConstrainedLogitsProcessor
from transformers.generation import logits_process

from decoding.errors import OptionError
from decoding.generation.warpers import PLessLogitsWarper, TopNSigmaLogitsWarper
from decoding.transformers_private import allowed_tokens_function

__all__ = ["WARPERS", "ContrastProcessors", "per_length", "without_state"]

# From the first of these on, processors choose among the tokens that are left: they see logits, and no text.
WARPERS = (
    TopNSigmaLogitsWarper,
    PLessLogitsWarper,
    *(
        getattr(logits_process, name)
        for name in (
            "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TopHLogitsWarper", "MinPLogitsWarper",
            "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "LogitNormalization",
        )
        if hasattr(logits_process, name)
    ),
)  # fmt: skip

# Whisper's rule of time stamps: one is written where all of them together are likelier than any other token.
COMPARING = (logits_process.WhisperTimeStampLogitsProcessor,)
# Measures how likely it is that nobody speaks, and changes nothing.
LISTENING = (logits_process.WhisperNoSpeechDetection,)
UNLIKELY = -1e4  # a logit, which added up over all tokens stays less than 0

# Those of transformers that keep something of the tokens that they were given before.
STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "UnbatchedClassifierFreeGuidanceLogitsProcessor")


class ContrastProcessors:
    """The processors of a call, by what a contrast gives them.

    Args:
        processors: of the call.

    Attributes:
        warpers: those that choose among the plausible tokens.
    """

    def __init__(self, processors: Sequence[Any]) -> None:
        first = next((i for i, each in enumerate(processors) if isinstance(each, WARPERS)), len(processors))
        self._listening: list[Any] = [each for each in processors[:first] if isinstance(each, LISTENING)]
        acting = [each for each in processors[:first] if not isinstance(each, LISTENING)]
        self._comparing: list[Any] = [each for each in acting if isinstance(each, COMPARING)]
        self._acting: Any = LogitsProcessorList(
            _Grammar(each) if isinstance(each, COMPARING) else each for each in acting
        )
        self.warpers: Any = LogitsProcessorList(processors[first:])

    def __bool__(self) -> bool:
        """True where there is another than warpers."""
        return bool(self._acting or self._listening)

    def processed(
        self, input_ids: Tensor, scores: Tensor, plausible: Callable[[Tensor], Tensor], model_logits: Tensor
    ) -> Tensor:
        """(batch, vocab) the scores that processors have changed, of plausible tokens; -inf of the others.

        Args:
            input_ids: (batch, length) the text.
            scores: (batch, vocab) float32 of all tokens, plausible or not, which most processors act on.
            plausible: puts -inf where a token is not plausible. What compares probabilities of tokens is given the
                plausible ones alone: of the others the scores say nothing.
            model_logits: (batch, vocab) what the model says, for processors that only measure.
        """
        for measures in self._listening:
            measures(input_ids, model_logits.to(scores.device, torch.float32))
        scores = plausible(self._acting(input_ids, scores))
        for compares in self._comparing:
            scores = compares(input_ids, scores)
        return scores


class _Grammar:
    """A processor of time stamps without its comparison: what may not follow the text, whatever the scores are."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        words_likelier = torch.zeros_like(scores)
        words_likelier[:, self._processor.timestamp_begin :] = UNLIKELY
        return scores.masked_fill(self._processor(input_ids, words_likelier) == -torch.inf, -torch.inf)


def without_state(processors: Sequence[Any]) -> LogitsProcessorList:
    """Those of the processors that may be called again on the same text, without the samplers after them."""
    kept = LogitsProcessorList()
    for processor in processors:
        if not (isinstance(processor, WARPERS) or _keeps_state(processor)):
            kept.append(processor)
    return kept


def per_length(processors: LogitsProcessorList, lengths: Callable[[], Mapping[int, int]]) -> LogitsProcessorList:
    """Processors for a batch whose rows have several lengths: each row's scores are changed as after its own text.

    A processor is called once for each length that a row has, with every row at its place in the batch; of what it
    answers the rows of this length count. The others are cut to it, and those that are shorter, or of no account, have
    the text of one that counts: a processor that follows a grammar knows all that it is shown.

    Args:
        processors: of the call.
        lengths: tells how many of its tokens each row has that counts, by its index.

    Raises:
        OptionError: one that keeps a state of its own, at once or when it is found to.
    """
    for processor in processors:
        if _keeps_state(processor):
            raise _has_a_state(processor)
    return LogitsProcessorList(
        processor if isinstance(processor, WARPERS) else _PerLength(processor, lengths) for processor in processors
    )


def _keeps_state(processor: Any) -> bool:
    return type(processor).__name__ in STATEFUL or hasattr(processor, "session")


class _PerLength:
    def __init__(self, processor: Any, lengths: Callable[[], Mapping[int, int]]) -> None:
        self._processor = processor
        self._lengths = lengths
        self._known = type(processor).__module__.startswith("transformers.")
        self._by_row = isinstance(processor, PrefixConstrainedLogitsProcessor)  # whose function may know row and text

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        lengths = self._lengths()
        result = scores.clone()
        for length in sorted(set(lengths.values())):
            rows = [row for row, row_length in lengths.items() if row_length == length]
            if self._by_row:
                for row in rows:
                    result[row] = _constrained(self._processor, row, input_ids[row, :length], scores[row])
                continue
            shown = [row if lengths.get(row, 0) >= length else rows[0] for row in range(len(input_ids))]
            before = None if self._known else _state(self._processor)
            changed = self._processor(input_ids[shown, :length], scores.clone())
            if before is not None and _state(self._processor) != before:
                raise _has_a_state(self._processor)
            result[rows] = changed[rows]
        return result


def _constrained(processor: Any, row: int, text: Tensor, scores: Tensor) -> Tensor:
    """The scores (vocab,) of one row, constrained as at its place in the batch."""
    allowed = allowed_tokens_function(processor)
    alone = PrefixConstrainedLogitsProcessor(lambda _, own_text: allowed(row, own_text), 1)
    constrained: Tensor = alone(text[None], scores[None])[0]
    return constrained


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
