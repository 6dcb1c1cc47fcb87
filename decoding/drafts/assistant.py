"""Drafts by a smaller reader: an assistant with the same tokens, the amateur, or an exit of the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.drafts.proposer import Drafts, Proposer
from decoding.models.devices import broadcast_from_rank0
from decoding.models.text_config import within_vocabulary
from decoding.stream.stream import Stream

__all__ = ["Assistant"]

SURE = 0.4  # probability below which a draft is the last: what follows would seldom be reached


class Assistant(Proposer):
    """Proposes what a model would say, most probable token after token, or drawn.

    Args:
        stream: of the model, which has read each row's prompt; its rows are separated.
        prompts: tokens of each text that the stream has read.
        vocab: tokens of the model that is drafted for.
        temperature: of the distributions that drafts are drawn from, which come with them; None takes the most probable
            tokens.
        until_unsure: whether to stop a row behind a token of small probability.
    """

    def __init__(
        self,
        stream: Stream,
        prompts: Sequence[Sequence[int]],
        vocab: int,
        temperature: float | None = None,
        until_unsure: bool = True,
    ) -> None:
        self.stream = stream
        self._rows = stream.separate_rows()
        self._read = [list(prompt) for prompt in prompts]  # of each text
        self._before = [slots - len(read) for slots, read in zip(self._rows.lengths, self._read, strict=True)]
        self._vocab = vocab
        self._temperature = temperature
        self._until_unsure = until_unsure

    @torch.no_grad()
    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        """Read what is new of each text, then draft; see :meth:`Proposer.propose`."""
        device = self.stream.input_ids.device
        n = max(most)
        if n == 0:
            return Drafts(torch.zeros(len(texts), 0, dtype=torch.long, device=device), [0] * len(texts))
        logits = self._catch_up(texts, most)
        counts = [0] * len(texts)
        going = [count > 0 for count in most]
        tokens, distributions = [], []
        for drafted in range(1, n + 1):
            probabilities = (logits.float()[:, : self._vocab] / (self._temperature or 1.0)).softmax(-1)
            numbers = ~probabilities.isnan().any(-1)  # a row without any gets no draft
            probabilities = torch.where(numbers[:, None], probabilities, 1 / probabilities.shape[1])
            if self._temperature is None:
                chosen = probabilities.argmax(-1)
            else:
                chosen = broadcast_from_rank0(self.stream.model, torch.multinomial(probabilities, num_samples=1)[:, 0])
                missing = self._vocab - probabilities.shape[1]
                distributions.append(torch.nn.functional.pad(probabilities, (0, missing)))
            tokens.append(chosen)
            # Of what is known before the next token is drawn, so that drafts are drawn from their distributions still.
            sure = (probabilities.amax(-1) >= SURE).tolist() if self._until_unsure else [True] * len(texts)
            going = [goes_on and is_number for goes_on, is_number in zip(going, numbers.tolist(), strict=True)]
            for row, token in enumerate(chosen.tolist()):
                if going[row]:
                    counts[row] = drafted
                    going[row] = sure[row] and drafted < most[row]
                    if going[row]:
                        self._read[row].append(token)
            if not any(going):
                break
            logits = self._logits(self._step(chosen), [0] * len(texts))
        return Drafts(torch.stack(tokens, dim=1), counts, torch.stack(distributions, dim=1) if distributions else None)

    def release(self) -> None:
        """Free the stream."""
        self.stream.release()

    def _catch_up(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Tensor:
        """Forget drafts that were not kept, read what is new, and return the logits (batch, vocab) after it."""
        unread: list[list[int]] = []
        for row, text in enumerate(texts):
            read = self._read[row]
            if most[row]:
                same = _shared(read, text)
                del read[min(same, len(text) - 1) :]  # the last is read in any case: its logits are wanted
                unread.append(list(text[len(read) :]))
                read.extend(unread[-1])
            else:
                unread.append([])
        width = max(map(len, unread))
        before = [slots - len(new) for slots, new in zip(self._slots(), unread, strict=True)]
        self._rows.rewind(before)
        padded = [[*new, *[0] * (width - len(new))] for new in unread]
        output = self.stream.extend(self.stream.readable(padded))
        self._rows.rewind(self._slots())
        return self._logits(output, [max(len(new) - 1, 0) for new in unread])

    def _step(self, chosen: Tensor) -> Any:
        output = self.stream.extend(within_vocabulary(self.stream.model, chosen)[:, None])
        self._rows.rewind(self._slots())
        return output

    def _slots(self) -> list[int]:
        """The slots of each row that hold what was read of its text."""
        return [before + len(read) for before, read in zip(self._before, self._read, strict=True)]

    def _logits(self, output: Any, places: Sequence[int]) -> Tensor:
        rows = torch.arange(len(places), device=output.hidden.device)
        index = torch.tensor(places, device=output.hidden.device)
        if output.logits is not None:
            return output.logits[rows, index]
        return self.stream.structure.logits(self.stream.model, output.hidden[rows, index])


def _shared(read: Sequence[int], text: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    shared = min(len(read), len(text))
    if list(read[:shared]) == list(text[:shared]):
        return shared
    return next(i for i in range(shared) if read[i] != text[i])
