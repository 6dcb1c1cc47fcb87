"""Frustratingly simple decoding in its n-gram form (Yang et al., LREC-COLING 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.generation.candidates import TopKStrategy
from decoding.generation.score_parts import ScoreParts, candidate_parts
from decoding.generation.session import StreamSession
from decoding.kernels.candidates import top_candidates
from decoding.parameters import require_count, require_range
from decoding.strategies.stream_strategy import StreamStrategy
from decoding.stream.stream import Stream

__all__ = ["FSD"]


@dataclass(frozen=True)
class FSD(TopKStrategy, StreamStrategy):
    """Frustratingly simple decoding: among the k most probable tokens, the one that an n-gram model of the text so far
    expects least.

    The token chosen is the argmax over the top k of (1 - α)·p(v | x) - α·r(v | x): p is the full-vocabulary softmax of
    the logits after all processors, and r the probability of v in a smoothed n-gram model of prompt and generated
    tokens. For the orders i = n, ..., 1 whose context (the last i - 1 tokens) v has followed before, longest first, r
    sums w_i·q_i(v): q_i = c(context, v) / (c(context) + 1), c(context) how often any token has followed it, and
    q_1 = c(v) / length without the 1. The first w is β, each further one (1 - β) times the last, and w_1 is what is
    left of 1. No candidate is read ahead, so a step costs what one of greedy search does.

    Source: Yang et al., "A Frustratingly Simple Decoding Method for Neural Text Generation", 2305.12675; the smoothing
    is that of the authors' code. A context longer than the text counts as unseen, where that code has no penalty at
    all: this is ours.

    Tokens whose processed logit is -inf (bad words, a prefix constraint, top-p) are never chosen. With
    ``do_sample=True`` the token is drawn from the softmax of the k scores over ``temperature``, as in
    :class:`decoding.ContrastiveSearch`.

    Args:
        penalty_alpha: α in [0, 1], weight of the penalty; 0 is greedy search. The authors' code has 0.65 for English.
        top_k: k >= 1, number of candidates; 1 is greedy search. The authors' code has 3 for English.
        n: the longest n-gram, at least 1; the paper uses 3.
        beta: β in [0, 1], share of the longest context that is found; the paper uses 0.9.

    Raises:
        OptionError: a value out of range, or k beyond the model's vocabulary (when a call begins).

    Example:
        >>> decoding.generate(model, **inputs, strategy=FSD(), max_new_tokens=64)
    """

    penalty_alpha: float = field(default=0.65, metadata={"grid": (0.45, 0.65)})
    top_k: int = field(default=3, metadata={"grid": (3, 5)})
    n: int = 3
    beta: float = 0.9
    name: ClassVar[str] = "fsd"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("n", self.n, 1)
        require_range("beta", self.beta, 0.0, 1.0)

    def session_on(self, stream: Stream) -> FSDSession:
        """The session of one call."""
        return FSDSession(self, stream)


class FSDSession(StreamSession):
    """One call of FSD: a stream, and n-grams that are counted in the text at each step."""

    def __init__(self, strategy: FSD, stream: Stream) -> None:
        super().__init__(stream)
        self.strategy = strategy

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """Scores of the k candidates, -inf elsewhere."""
        logits, candidates, _, _, scores = self._scored_candidates(input_ids, logits_processor)
        return torch.full_like(logits, -torch.inf).scatter_(1, candidates, scores)

    def score_parts(self, input_ids: Tensor, logits_processor: Any) -> ScoreParts:
        """The scores, and of each candidate its probability and its penalty."""
        logits, candidates, probabilities, penalty, scores = self._scored_candidates(input_ids, logits_processor)
        return candidate_parts(
            logits, candidates, probabilities, penalty, scores, self.strategy.penalty_alpha, self.logits
        )

    def _scored_candidates(
        self, input_ids: Tensor, logits_processor: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The processed logits (batch, vocab), and of the candidates (batch, k) their ids, probabilities, penalties and
        scores.
        """
        alpha, n, beta = self.strategy.penalty_alpha, self.strategy.n, self.strategy.beta
        logits = self.processed_logits(input_ids, logits_processor)
        probabilities, candidates = top_candidates(logits.softmax(-1), self.strategy.top_k)
        penalty = ngram_penalty(self.text(input_ids), candidates, n, beta)
        scores = (1 - alpha) * probabilities - alpha * penalty
        scores = scores.masked_fill(logits.gather(1, candidates) == -torch.inf, -torch.inf)
        return logits, candidates, probabilities, penalty, scores


def ngram_penalty(text: Tensor, candidates: Tensor, n: int, beta: float) -> Tensor:
    """(batch, k) float32 probability of candidates in the n-gram model of a text.

    Args:
        text: (batch, length) token ids; negative where a row has no token, which is before its first only.
        candidates: (batch, k) token ids.
        n: the longest n-gram.
        beta: β, share of the longest context that is found.
    """
    length = text.shape[1]
    matches = candidates[:, :, None] == text[:, None, :]  # (batch, k, length)
    follows = text >= 0  # (batch, length), where the tokens before are the context: the empty one at first
    counts, totals = [matches.sum(-1)], [follows.sum(-1, keepdim=True).clamp(min=1)]
    for back in range(1, min(n, length)):
        last = text[:, -back, None]
        same = (text[:, :-back] == last) & (last >= 0)
        follows = follows & torch.nn.functional.pad(same, (back, 0))
        counts.append((matches & follows[:, None]).sum(-1))
        totals.append(follows.sum(-1, keepdim=True) + 1)
    penalty = torch.zeros(candidates.shape, dtype=torch.float32, device=text.device)
    rest = torch.ones_like(penalty)
    for order in reversed(range(len(counts))):
        share = counts[order].float() / totals[order]
        if order == 0:
            return penalty + rest * share
        penalty += rest * beta * share
        rest = torch.where(counts[order] > 0, rest * (1 - beta), rest)
    return penalty
