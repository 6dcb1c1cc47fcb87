"""Continuing many prompts: in batches where nothing is drawn, one by one from its own seed where tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decoding.api import generate_with
from decoding.errors import InputError
from decoding.models.devices import input_device
from decoding.models.inputs import context_of
from decoding.strategies.registry import StrategySpec
from decoding.text import new_text

__all__ = ["Writer", "Written"]


@dataclass(frozen=True)
class Written:
    """What a strategy made of a prompt: its text up to the first stop string, and the tokens it took."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Writer:
    """A model that continues prompts.

    Attributes:
        model: a generating transformers model.
        tokenizer: its tokenizer.
        max_new_tokens: at most.
        stop: texts end before the first of these strings.
    """

    model: Any
    tokenizer: Any
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    def write(self, choice: StrategySpec, prompts: Sequence[str], seeds: Sequence[int]) -> list[Written]:
        """A continuation of each prompt.

        Args:
            choice: how to choose tokens.
            prompts: texts to continue.
            seeds: of the random draws, one for each prompt, so that none depends on its neighbours.

        Raises:
            InputError: a prompt that leaves no room for the new tokens in the model's context.
        """
        rows = [self._encoded(prompt) for prompt in prompts]
        if not choice.is_stochastic:
            return self._written(choice, rows)
        written = []
        for row, seed in zip(rows, seeds, strict=True):
            torch.manual_seed(seed)
            written += self._written(choice, [row])
        return written

    def _encoded(self, prompt: str) -> list[int]:
        ids = list(self.tokenizer(prompt)["input_ids"])
        context = context_of(self.model)
        new = 0 if self.model.config.is_encoder_decoder else self.max_new_tokens
        if not ids or (context is not None and len(ids) + new > context):
            raise InputError(
                f"the prompt has {len(ids)} tokens; with {new} new ones it must fit the model's context of {context}, "
                "and not be empty"
            )
        return ids

    def _written(self, choice: StrategySpec, rows: list[list[int]]) -> list[Written]:
        width = max(map(len, rows))
        pad = next((each for each in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if each is not None), 0)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=input_device(self.model))
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=input_device(self.model)
        )
        stopping = {"stop_strings": list(self.stop), "tokenizer": self.tokenizer} if self.stop else {}
        sequences = generate_with(
            choice, self.model, input_ids=ids, attention_mask=mask, max_new_tokens=self.max_new_tokens, **stopping
        ).cpu()
        written = []
        for row, sequence in zip(rows, sequences, strict=True):
            start = 0 if self.model.config.is_encoder_decoder else width - len(row)
            text, tokens = new_text(self.model, self.tokenizer, sequence[start:], len(row))
            ends = [text.find(each) for each in self.stop if each in text]
            written.append(Written(text[: min(ends)] if ends else text, tokens))
        return written
