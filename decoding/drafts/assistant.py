"""Drafts by a smaller reader: an assistant with the same tokens, the amateur, or an exit of the model itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoding.drafts.lower_texts import LowerTexts
from decoding.drafts.proposer import Drafts, Proposer
from decoding.drafts.texts_read import TextsRead
from decoding.models.devices import broadcast_from_rank0

__all__ = ["Assistant"]

SURE = 0.4  # probability below which a draft is the last: what follows would seldom be reached


class Assistant(Proposer):
    """Proposes what a model would say, most probable token after token, or drawn.

    Args:
        texts: read by the model that drafts.
        vocab: tokens of the model that is drafted for.
        temperature: of the distributions that drafts are drawn from, which come with them; None takes the most probable
            tokens.
        until_unsure: whether to stop a row behind a token of small probability.
        cost: of a draft, in steps of the model that is drafted for.
    """

    def __init__(
        self,
        texts: TextsRead | LowerTexts,
        vocab: int,
        temperature: float | None = None,
        until_unsure: bool = True,
        cost: float = 1.0,
    ) -> None:
        self.cost = cost
        self._texts = texts
        self._vocab = vocab
        self._temperature = temperature
        self._until_unsure = until_unsure

    @torch.no_grad()
    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        """Read what is new of each text, then draft; see :meth:`Proposer.propose`."""
        stream = self._texts.stream
        device = stream.input_ids.device
        n = max(most)
        if n == 0:
            return Drafts(torch.zeros(len(texts), 0, dtype=torch.long, device=device), [0] * len(texts))
        logits = self._texts.catch_up(texts, most)
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
                chosen = broadcast_from_rank0(stream.model, torch.multinomial(probabilities, num_samples=1)[:, 0])
                missing = self._vocab - probabilities.shape[1]
                distributions.append(torch.nn.functional.pad(probabilities, (0, missing)))
            tokens.append(chosen)
            # Of what is known before the next token is drawn, so that drafts are drawn from their distributions still.
            sure = (probabilities.amax(-1) >= SURE).tolist() if self._until_unsure else [True] * len(texts)
            going = [goes_on and is_number for goes_on, is_number in zip(going, numbers.tolist(), strict=True)]
            drawn = chosen.tolist()
            for row in range(len(texts)):
                if going[row]:
                    counts[row] = drafted
                    going[row] = sure[row] and drafted < most[row]
            if not any(going):
                break
            logits = self._texts.read([[token] if goes_on else [] for token, goes_on in zip(drawn, going, strict=True)])
        return Drafts(torch.stack(tokens, dim=1), counts, torch.stack(distributions, dim=1) if distributions else None)

    def release(self) -> None:
        """Free the stream, where nobody else reads with it."""
        self._texts.release()
