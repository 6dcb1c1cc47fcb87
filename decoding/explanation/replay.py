"""A call of ``generate`` whose tokens are known: the session of a strategy reads them, and its scores are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.errors import InputError
from decoding.generation.caller import arguments_of_generate
from decoding.generation.processors import without_state
from decoding.generation.score_parts import ScoreParts
from decoding.generation.session import Session, most_probable
from decoding.generation.strategy import Strategy, check_generation_config
from decoding.models.forward_errors import within_memory
from decoding.models.inputs import check_inputs
from decoding.models.segments import of_segment
from decoding.transformers_private import optimized_for_decode

__all__ = ["Looked", "Replay", "Watcher", "not_after_prompt"]

# Logits of one pass are below this many numbers, and it has at most this many tokens.
NUMBERS_AT_ONCE = 2**24
TOKENS_AT_ONCE = 256


@dataclass(frozen=True)
class Looked:
    """What is seen before a token of the text.

    Attributes:
        column: of the token.
        parts: the scores there.
        greedy: (batch,) the tokens that greedy search would choose.
        temperature: that the scores are divided by where tokens are drawn; 1 where they are not.
        rows: that go on.
    """

    column: int
    parts: ScoreParts
    greedy: Tensor
    temperature: float
    rows: list[int]


class Watcher(Protocol):
    """What is shown a text as it is read."""

    def begin(self, is_padding: Tensor, ends: Sequence[int]) -> None:
        """Take what the call knows of the rows.

        Args:
            is_padding: (batch, length) bool, of the prompt.
            ends: the column after the last token of each row.
        """

    def look(self, looked: Looked) -> None:
        """Take what is seen before a token."""


@dataclass(frozen=True)
class Replay(Strategy):
    """A strategy in a call whose tokens are known.

    Args:
        strategy: that chose them.
        text: (batch, length) as ``generate`` returned it, the prompt included.
        watcher: is shown each new token, while a row goes on.
    """

    strategy: Strategy
    text: Tensor
    watcher: Watcher

    def __post_init__(self) -> None:
        pass  # what the base checks are parameters, and these are the strategy's

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the strategy, for messages."""
        return self.strategy.name

    @property
    def replaces_language(self) -> bool:
        """True where the strategy's readers do."""
        return self.strategy.replaces_language

    def with_tokenizer(self, tokenizer: Any) -> Replay:
        """The strategy with the tokenizer of its texts."""
        return replace(self, strategy=self.strategy.with_tokenizer(tokenizer))

    def session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
    ) -> Session:
        """Open the strategy's session."""
        return self.strategy.session(model, input_ids, model_kwargs, generation_config, restorable)

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """Read the text, in place of a decoding method: ``generate`` hands over its processors and prepared inputs.

        Raises:
            InputError: the text does not begin with the prompt, or has more tokens than the call makes.
        """
        given = arguments_of_generate().get("given", {})
        for name in ("synced_gpus", "streamer"):
            model_kwargs.pop(name, None)
        check_generation_config(self.name, generation_config)
        given, model_kwargs = of_segment(model, given), of_segment(model, model_kwargs)
        check_inputs(model, input_ids, model_kwargs)
        self.strategy.check(model)
        text = self.text.to(input_ids.device)
        _check_prompt(text, input_ids, generation_config)
        mask = model_kwargs.get("decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask")
        is_padding = torch.zeros_like(input_ids, dtype=torch.bool)
        if mask is not None and mask.shape == input_ids.shape:
            is_padding = mask.to(is_padding.device) == 0
        ends = _ends(text, input_ids.shape[1], generation_config)
        self.watcher.begin(is_padding, ends)
        if text.shape[1] == input_ids.shape[1]:
            return text
        processors, temperature = self.strategy.split_temperature(logits_processor)
        temperature = temperature if generation_config.do_sample else 1.0
        with within_memory(model, f"{text.shape[0]} rows of {text.shape[1]} tokens"):
            session = self.strategy.opener(given)(model, input_ids, model_kwargs, generation_config, restorable=False)
            try:
                with optimized_for_decode(model):
                    _Reader(session, text, ends, processors, temperature, self.watcher).read(input_ids.shape[1])
            finally:
                session.release()
        return text


class _Reader:
    """One session that reads a text."""

    def __init__(
        self, session: Session, text: Tensor, ends: list[int], processors: Any, temperature: float, watcher: Watcher
    ) -> None:
        self._session = session
        self._text = text
        self._ends = ends
        self._processors = processors
        self._again: Any = without_state(processors)
        self._temperature = temperature
        self._watcher = watcher
        self._may_advance = True  # whether the last tokens are among those that may be chosen
        self._readers = 1

    def read(self, column: int) -> None:
        """Look at every token from a column on; where the session can, many are read in one pass."""
        session, text, end = self._session, self._text, max(self._ends)
        reads_ahead = session.reads_known_text
        self._look(column)
        if reads_ahead:
            session.begin_drafts()
        numbers = len(text) * session.logits.shape[-1] * self._readers
        most = max(1, min(TOKENS_AT_ONCE, NUMBERS_AT_ONCE // numbers))
        while column + 1 < end:
            if not reads_ahead:
                (session.advance if self._may_advance else session.follow)(text[:, column])
                column += 1
                self._look(column)
                continue
            n = min(most, end - 1 - column)
            session.read_drafts(text[:, column : column + n], lambda logits: logits)
            for slot in range(n):
                column += 1
                session.at(slot, self._rows(column), [column] * len(text))
                self._look(column)
            session.accept([n] * len(text))

    def _rows(self, column: int) -> list[int]:
        """The rows that go on at a column."""
        return [row for row, end in enumerate(self._ends) if column < end]

    def _look(self, column: int) -> None:
        before, tokens, rows = self._text[:, :column], self._text[:, column], self._rows(column)
        parts = self._session.score_parts(before, self._processors)
        self._readers = len(parts.readers)
        logits = self._session.logits.to(before.device, torch.float32, copy=True)
        greedy = most_probable(self._again(before, logits)).clamp(min=0)
        self._watcher.look(Looked(column, parts, greedy, self._temperature, rows))
        may_be_chosen = parts.scores.gather(1, tokens[:, None].clamp(max=parts.scores.shape[1] - 1))[:, 0] > -torch.inf
        self._may_advance = bool(may_be_chosen[rows].all())


def not_after_prompt(text: Tensor, prompt: Tensor) -> InputError:
    """The error for a text (batch, length) that does not begin with its prompt (batch, length)."""
    return InputError(
        f"sequences {tuple(text.shape)}: must be those that generate returned for this prompt "
        f"{tuple(prompt.shape)}, which they begin with"
    )


def _check_prompt(text: Tensor, prompt: Tensor, config: GenerationConfig) -> None:
    length = prompt.shape[1]
    if len(text) != len(prompt) or text.shape[1] < length or not text[:, :length].equal(prompt):
        raise not_after_prompt(text, prompt)
    if text.shape[1] > int(config.max_length):
        raise InputError(
            f"sequences have {text.shape[1] - length} new tokens, and a call with these arguments makes at most "
            f"{int(config.max_length) - length}: give what generate was given when it made them"
        )


def _ends(text: Tensor, start: int, config: GenerationConfig) -> list[int]:
    """The column after the last token of each row: its end token, where it has one after its prompt."""
    given = config.eos_token_id
    ends = set() if given is None else {given} if isinstance(given, int) else set(given)
    return [
        next((column + 1 for column, token in enumerate(row) if column >= start and token in ends), len(row))
        for row in text.tolist()
    ]
