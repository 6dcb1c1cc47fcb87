"""What a call with drafts gives out: the values of each step of each row, and the tokens that a streamer is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.generation.loop import Record
from decoding.generation.row_texts import RowTexts
from decoding.generation.session import Session

__all__ = ["RowRecords", "Streamed"]


class RowRecords:
    """The values of each step of each row that ``return_dict_in_generate`` asks for."""

    def __init__(self, config: GenerationConfig, rows: int, encoder_decoder: bool) -> None:
        self._whole = Record(config, encoder_decoder)
        self.steps: list[list[tuple[Any, Any]]] = [[] for _ in range(rows)]  # logits, hidden states
        self._scores: list[Tensor] = []  # of each step that a row has come to, (batch, vocab)

    @property
    def keeps_scores(self) -> bool:
        return self._whole.scores is not None

    def step(self, active: Sequence[int], session: Session, scores: Tensor | None) -> None:
        """Keep one step of some rows."""
        logits = session.logits.float() if self._whole.logits is not None else None
        states = session.output.hidden_states if self._whole.hidden_states is not None else None
        for row in active:
            if scores is not None and self.keeps_scores:
                self._keep_scores(row, len(self.steps[row]), scores[row])
            self.steps[row].append(
                (
                    None if logits is None else logits[row].clone(),
                    None if states is None else tuple(layer[row].clone() for layer in states),
                )
            )

    def _keep_scores(self, row: int, step: int, scores: Tensor) -> None:
        """Keep the scores (vocab,) of a row's step; rows that have not come to it have those of the first that has."""
        if step == len(self._scores):
            self._scores.append(scores.repeat(len(self.steps), 1))
        else:
            self._scores[step][row] = scores

    def scores(self, steps: int) -> Any:
        """The scores of so many steps, as stopping criteria are given them; None where they are not kept."""
        return tuple(self._scores[:steps]) if self.keeps_scores else None

    def output(self, sequences: Tensor, steps: int, cache: Any, encoder_outputs: Any) -> Any:
        """The output object that ``model.generate`` would return."""
        whole = self._whole
        if whole.scores is not None:
            whole.scores = tuple(self._scores[:steps])
        for step in range(steps):
            logits, states = zip(*(row[step] for row in self.steps), strict=True)
            if whole.logits is not None:
                whole.logits += (torch.stack(logits),)
            if whole.hidden_states is not None:
                whole.hidden_states += (tuple(torch.stack(layer) for layer in zip(*states, strict=True)),)
        return whole.output(sequences, cache, encoder_outputs)


class Streamed:
    """Gives a streamer what it gets without drafts: one row's tokens as they come, whole runs at once; those of several
    rows step by step, as soon as every row has its token.
    """

    def __init__(self, streamer: Any, texts: RowTexts) -> None:
        self._streamer = streamer
        self._texts = texts
        self._put = texts.prompt_length

    def end(self, total: int) -> None:
        """Put what is left, and end."""
        self.until(total)
        if self._streamer is not None:
            self._streamer.end()

    def until(self, end: int) -> None:
        """Put the tokens of every row up to a column."""
        if self._streamer is None:
            return
        new = self._texts.cut(end)[:, self._put :].cpu()
        self._put = max(self._put, end)
        if len(new) == 1:
            if new.shape[1]:
                self._streamer.put(new[0])
            return
        for column in new.T:
            self._streamer.put(column)
