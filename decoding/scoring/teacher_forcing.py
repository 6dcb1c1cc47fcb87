"""Whole texts under a contrast strategy, teacher-forced: every reader reads them in one pass, without a cache.

``decoding.score`` is for continuations of one prompt, which it reads once; here texts have no common prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError, OptionError
from decoding.generation.unpadded_text import last_prefixes
from decoding.models.devices import input_device
from decoding.models.forward_errors import not_a_number
from decoding.models.inputs import context_of
from decoding.models.text_config import vocab_size
from decoding.models.wrappers import require_decoder_only, unwrapped
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.contrast.reader_group import ReaderHead, row_variants
from decoding.strategies.contrast.readers import Reader, ReaderLogits, by_weights, prompt_read
from decoding.stream.forward import ForwardPasses
from decoding.stream.output import ForwardOutput

__all__ = ["longest_text", "teacher_forced"]

# Logits of one matrix product are below this many numbers.
NUMBERS_AT_ONCE = 2**26


@torch.no_grad()
def teacher_forced(model: Any, input_ids: Tensor, strategy: ContrastStrategy, floor: float = -1000.0) -> Tensor:
    """Log-scores of every token after every position of whole texts.

    A row's scores do not depend on the other rows, nor on the tokens after a position: rows of several lengths are
    filled up on the right with any tokens.

    Args:
        model: a decoder-only transformers model.
        input_ids: (batch, length), length >= 1.
        strategy: with its tokenizer, where it has texts.
        floor: the score of a token that is not plausible, as in :func:`decoding.score`.

    Returns:
        (batch, length, vocab) float32, the log-softmax of the strategy's scores over its plausible tokens; those of row
        r at position t are of the token after ``input_ids[r, : t + 1]``. Where a reader reads a chat with its text as
        system message, the positions before the first message that it shares with the text mean nothing.

    Raises:
        OptionError: a reader that reads from the prompt's last token on, or another prompt: a whole text has none. Or a
            measure at each token, as of a gate by quantile, of a reader with a system message.
        InputError: texts that are longer than :func:`longest_text`.
        ModelError: an encoder-decoder, or a reader whose logits are NaN.
    """
    model = unwrapped(model)
    require_decoder_only(model, "scores of whole texts")
    batch, length = input_ids.shape
    readers = strategy.readers(model, batch)
    for reader in readers:
        if reader.from_last_token or reader.prompt is not None:
            read = "from the prompt's last token on" if reader.from_last_token else "another prompt"
            raise OptionError(
                f"the {reader.role} reads {read}, and a whole text has no prompt: score continuations of a prompt "
                "(decoding.score), or let the reader read the whole text (an amateur with amateur_context='full')"
            )
        if reader.change is not None:
            raise OptionError(f"the {reader.role} reads other inputs beside the text, and scoring has texts only")
        if reader.system is not None and reader.role in strategy.measured_roles:
            raise OptionError(
                f"the {reader.role} reads its text as a chat's system message, so what {strategy.name} measures at the "
                "first tokens of a whole text means nothing: score continuations of a prompt (decoding.score)"
            )
    longest = _longest(model, readers)
    if longest is not None and length > longest:
        raise InputError(f"texts of {length} tokens: must be at most {longest}, to fit the contexts of all readers")
    groups = [_read(model, group, input_ids.tolist()) for group in by_weights(readers)]
    vocab = vocab_size(model)
    planes = sum(1 + len(reader.exits) for reader in readers)
    step = max(1, NUMBERS_AT_ONCE // (vocab * planes))
    scores = torch.empty(batch, length, vocab, dtype=torch.float32, device=input_ids.device)
    measures = torch.empty(length if strategy.measured_roles else 0, dtype=torch.float32, device=input_ids.device)
    for row in range(batch):
        for start in range(0, length, step):
            end = min(start + step, length)
            logits: dict[str, ReaderLogits] = {}
            for group in groups:
                logits |= group.reader_logits(row, start, end, strategy.exit_norm)
            prefixes = last_prefixes(input_ids[row, :end], end - start)
            positions = torch.arange(start, end, device=input_ids.device)
            here = strategy
            if strategy.measured_roles:
                measures[start:end] = strategy.measure(logits)[0]
                here = strategy.after(last_prefixes(measures[:end], end - start, torch.nan)[None])
            contrast = here.contrast_at(logits, prefixes[None], positions[None])
            scores[row, start:end] = contrast.masked[0].log_softmax(-1).clamp_min(floor)
    return scores


def longest_text(model: Any, strategy: ContrastStrategy) -> int | None:
    """The number of tokens that a text may have, so that it fits every reader's context with the reader's own text.

    None where no config has a limit.
    """
    model = unwrapped(model)
    return _longest(model, strategy.readers(model, 1))


def _longest(model: Any, readers: Sequence[Reader]) -> int | None:
    lengths = [
        context - max(max(map(len, reader.prefix or [()])), reader.system.most_added() if reader.system else 0)
        for reader in readers
        if (context := context_of(reader.model or model)) is not None
    ]
    return min(lengths, default=None)


@dataclass(frozen=True)
class _GroupOutput:
    """The forward pass of a group of readers over whole texts, before the head.

    Attributes:
        head: of the readers, with one row of each.
        output: of the pass; row ``i·batch + r`` is the text of row r as reader i has it.
        batch: number of texts.
        starts: for each row of the output, the position of its text's first token: after the reader's prefix. Below 0
            where a reader's system message is shorter than a chat template's default one.
    """

    head: ReaderHead
    output: ForwardOutput
    batch: int
    starts: Sequence[int]

    def reader_logits(self, row: int, start: int, end: int, final_norm: bool) -> Mapping[str, ReaderLogits]:
        """Logits (1, end - start, vocab) of every reader on a text between two positions.

        Raises:
            ModelError: the final logits of a reader are NaN.
        """

        def positions(states: Tensor) -> Tensor:
            rows = range(row, len(self.starts), self.batch)
            places = torch.arange(start, end, device=states.device)
            return torch.stack([states[i, (places + self.starts[i]).clamp(min=0)] for i in rows])

        exits = [positions(states) for states in self.output.exits]
        logits = None if self.output.logits is None else positions(self.output.logits)
        by_role = self.head.reader_logits(positions(self.output.hidden), exits, logits, final_norm)
        for role, reader_logits in by_role.items():
            if bool(reader_logits.final.amax(-1).isnan().any()):
                raise not_a_number(self.head.model, role, row)
        return by_role


def _read(expert: Any, group: list[Reader], texts: list[list[int]]) -> _GroupOutput:
    """Read the texts as readers with the same weights, each after its own prefix, in one forward pass.

    This is not a stream: rows are padded on the right, so that no row needs a mask, and all positions are wanted.
    """
    model = group[0].model or expert
    batch, length = len(texts), len(texts[0])
    rows = [prompt_read(reader, text, row, model) for reader in group for row, text in enumerate(texts)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=input_device(model))
    variants = row_variants(model, group, group, batch) if group[0].model is None else None
    exits = tuple(sorted({exit_ for reader in group for exit_ in reader.exits}))
    passes = ForwardPasses(model, exits, variants)
    output, _ = passes.run({"input_ids": ids, "use_cache": False}, len(rows), 0, every_logit=True)
    head = ReaderHead(model, passes.structure, group, 1)
    return _GroupOutput(head, output, batch, [len(row) - length for row in rows])
