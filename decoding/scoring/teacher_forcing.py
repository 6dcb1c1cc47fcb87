"""Whole texts under a contrast strategy, teacher-forced: every reader reads them in one pass, without a cache.

``decoding.score`` is for continuations of one prompt, which it reads once; here texts have nothing in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError, ModelError, OptionError
from decoding.models.adapters import MixedRows, expert_adapter, unwrapped
from decoding.models.devices import input_device
from decoding.models.forward_errors import forward_pass, not_a_number
from decoding.models.hooks import collect_inputs, collect_outputs
from decoding.models.inputs import context_of
from decoding.models.structure import inspect_model
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.contrast.fusable import by_weights
from decoding.strategies.contrast.readers import Reader, ReaderLogits, with_prefix

__all__ = ["longest_text", "teacher_forced"]

# Logits held at once are kept below this many numbers.
NUMBERS_AT_ONCE = 2**26


@torch.no_grad()
def teacher_forced(model: Any, input_ids: Tensor, strategy: ContrastStrategy, floor: float = -1000.0) -> Tensor:
    """Log-scores of every token after every position of whole texts.

    A row's scores do not depend on the other rows, nor on what stands behind a position: rows of several lengths are
    filled up on the right with any tokens.

    Args:
        model: a decoder-only transformers model.
        input_ids: (batch, length), length >= 1.
        strategy: with its tokenizer, where it has texts of its own.
        floor: the score of a token that is not plausible, as in :func:`decoding.score`.

    Returns:
        (batch, length, vocab) float32, the log-softmax of the strategy's scores over its plausible tokens; those of row
        r at position t are of the token behind ``input_ids[r, : t + 1]``.

    Raises:
        OptionError: an amateur that reads from the prompt's last token on: a whole text has no prompt.
        InputError: texts that are longer than :func:`longest_text`.
        ModelError: an encoder-decoder, or a reader whose logits are NaN.
    """
    model = unwrapped(model)
    if model.config.is_encoder_decoder:
        raise ModelError(f"{type(model).__name__} is an encoder-decoder; accepted for scoring are decoder-only models")
    batch, length = input_ids.shape
    readers = strategy.readers(model, batch)
    for reader in readers:
        if reader.from_last_token:
            raise OptionError(
                f"the {reader.role} reads from the prompt's last token on, and a whole text has no prompt: accepted is "
                "amateur_context='full'"
            )
    room = _room(model, readers)
    if room is not None and length > room:
        raise InputError(f"texts of {length} tokens: the readers of this strategy have room for {room}")
    voices: dict[str, ReaderOutput] = {}
    for group in by_weights(readers):
        voices |= _read(model, group, input_ids.tolist())
    vocab = model.config.get_text_config(decoder=True).vocab_size
    planes = sum(1 + len(reader.exits) for reader in readers)
    step = max(1, NUMBERS_AT_ONCE // (vocab * planes))
    scores = torch.empty(batch, length, vocab, device=input_ids.device)
    for row in range(batch):
        for start in range(0, length, step):
            end = min(start + step, length)
            heard = {role: voice.heard(row, start, end, strategy.exit_norm) for role, voice in voices.items()}
            given = strategy.contrast(heard).masked[0]
            scores[row, start:end] = given.log_softmax(-1).clamp_min(floor)
    return scores


def longest_text(model: Any, strategy: ContrastStrategy) -> int | None:
    """How many tokens a text may have, so that every reader has room for it behind what it reads before.

    None where no config says.
    """
    model = unwrapped(model)
    return _room(model, strategy.readers(model, 1))


def _room(model: Any, readers: Sequence[Reader]) -> int | None:
    rooms = [
        context - max(map(len, reader.prefix or [()]))
        for reader in readers
        if (context := context_of(reader.model or model)) is not None
    ]
    return min(rooms, default=None)


@dataclass(frozen=True)
class ReaderOutput:
    """What one reader has to say of every text, before the head.

    Attributes:
        role: what the strategy calls it.
        model: whose head it speaks with.
        hidden: of each row (length, dim), after the final norm.
        exits: of each lower layer that it leaves at, and of each row (length, dim), before any final norm.
        logits: of each row (length, vocab), where the head cannot be applied apart; None otherwise.
    """

    role: str
    model: Any
    hidden: list[Tensor]
    exits: list[list[Tensor]]
    logits: list[Tensor] | None

    def heard(self, row: int, start: int, end: int, final_norm: bool) -> ReaderLogits:
        """Logits (1, end - start, vocab) of a row between two positions."""
        found = inspect_model(self.model)
        hidden = self.hidden[row][start:end]
        final = found.logits(self.model, hidden) if self.logits is None else self.logits[row][start:end]
        if bool(final.amax(-1).isnan().any()):
            raise not_a_number(self.model, self.role, row)
        if not self.exits:
            return ReaderLogits(final[None])
        early = torch.stack([states[row][start:end].to(hidden.device) for states in self.exits])
        lower = found.exit_logits(self.model, early, final_norm)
        return ReaderLogits(final[None], lower[:, None])


def _read(expert: Any, group: list[Reader], texts: list[list[int]]) -> dict[str, ReaderOutput]:
    """Let readers with the same weights read the texts, each behind its own prefix, in one forward pass."""
    model = group[0].model or expert
    batch, length = len(texts), len(texts[0])
    rows = [with_prefix(reader, text, row, model) for reader in group for row, text in enumerate(texts)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=input_device(model))
    found = inspect_model(model)
    exits = sorted({exit_ for reader in group for exit_ in reader.exits})
    with (
        forward_pass(model, len(rows), width, 0),
        _adapters(model, group, batch),
        collect_inputs(found.layers_before(model, exits)) as states,
    ):
        hidden, logits = _forward(model, ids)

    def own(reader: int, along: Tensor) -> list[Tensor]:
        """The positions of the text in each of a reader's rows: the prefix stands before them."""
        numbers = range(reader * batch, (reader + 1) * batch)
        return [along[row, len(rows[row]) - length : len(rows[row])] for row in numbers]

    voices = {}
    for i, reader in enumerate(group):
        leaving = [own(i, states[exits.index(exit_)]) for exit_ in reader.exits]
        voices[reader.role] = ReaderOutput(
            reader.role, model, own(i, hidden), leaving, None if logits is None else own(i, logits)
        )
    return voices


def _forward(model: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Hidden states (rows, width, dim) after the final norm, and the logits where the head cannot be applied apart."""
    found = inspect_model(model)
    inputs = {"input_ids": ids, "use_cache": False}
    if found.separable:
        return found.forward_backbone(model, inputs).last_hidden_state, None
    with collect_outputs(found.backbone) as seen:
        logits = model(**inputs, return_dict=True).logits
    return seen[-1].last_hidden_state, logits


@contextmanager
def _adapters(model: Any, group: list[Reader], batch: int) -> Iterator[None]:
    """Forward passes in this context read each row with its reader's adapter."""
    amateur = next((reader.adapter for reader in group if reader.adapter is not None), None)
    if amateur is None:
        yield
        return
    own = expert_adapter(model, amateur)
    rows = MixedRows(model, [reader.adapter or own for reader in group for _ in range(batch)])
    try:
        with rows.reading():
            yield
    finally:
        rows.release()
