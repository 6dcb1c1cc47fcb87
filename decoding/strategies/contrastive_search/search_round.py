"""A round of speculative contrastive search: the candidates of its places, and a chain that the next round may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.generation.session import argmax_first
from decoding.strategies.contrastive_search.candidate_rule import Limits
from decoding.stream.output import ForwardOutput, at_tokens

__all__ = ["ChainAhead", "SearchRound"]


@dataclass
class ChainAhead:
    """The chain of the next round, read behind a candidate of each row.

    Attributes:
        tokens: (batch, n) of the chain; anything in a row that has none.
        candidate: (batch,) index of the candidate among all of its row, at the place behind the row's drafts.
        output: of the chain, once it has been read.
        slots: where the candidate is, in each row; the chain is in the slots behind it.
    """

    tokens: Tensor
    candidate: Tensor
    output: ForwardOutput | None = None
    slots: Sequence[int] = ()

    def output_for(self, drafts: Tensor, counts: Sequence[int], slots: Sequence[int]) -> ForwardOutput | None:
        """The output of a round's chain, where this is its chain in every row that has drafts; None where not.

        Args:
            drafts: (batch, n) of the round.
            counts: how many of them are drafts.
            slots: of the candidates that ended the round before.
        """
        n = drafts.shape[1]
        if self.output is None or n > self.tokens.shape[1]:
            return None
        behind = [count == 0 or slot == own for count, slot, own in zip(counts, slots, self.slots, strict=True)]
        columns, own_counts = torch.arange(n, device=drafts.device), torch.tensor(list(counts), device=drafts.device)
        same = (drafts == self.tokens[:, :n]) | (columns >= own_counts[:, None])
        return at_tokens(self.output, slice(n)) if all(behind) and bool(same.all()) else None


@dataclass
class SearchRound:
    """The candidates of each place of a round.

    Attributes:
        raw_logits: (batch, places, vocab) of the model.
        logits: processed.
        probabilities: (batch, places, k) of the candidates.
        tokens: likewise, their ids.
        limits: how many of them may be chosen, and how much their penalty weighs.
        hidden: (batch, places, k, dim) likewise, their hidden states.
        slots: (batch, places, k) likewise, where their keys and values are.
        leaves: (batch, leaves) indices, among all candidates of a row, of those that the second pass read.
        output: of the second pass.
        chain: of the first; None where there was none.
        ahead: what the second pass read for the next round; None for nothing.
        before: of the token before the first place; None after the prompt.
    """

    raw_logits: Tensor
    logits: Tensor
    probabilities: Tensor
    tokens: Tensor
    limits: Limits
    hidden: Tensor
    slots: Tensor
    leaves: Tensor
    output: ForwardOutput
    chain: ForwardOutput | None
    ahead: ChainAhead | None = None
    before: ForwardOutput | None = None

    def output_of(self, places: Tensor, branch: Tensor) -> ForwardOutput:
        """The output of one candidate of each row, (batch,) its place and its index there."""
        rows = torch.arange(len(places), device=places.device)
        matches = self.leaves == (places * self.tokens.shape[2] + branch)[:, None]
        index, is_leaf = argmax_first(matches), matches.any(1)

        def picked(of_leaves: Tensor, of_chain: Tensor | None) -> Tensor:
            own = rows.to(of_leaves.device)
            states = of_leaves[own, index.to(own.device)]
            if of_chain is not None and not bool(is_leaf.all()):
                last = of_chain.shape[1] - 1
                drafted = of_chain[own, places.clamp(max=last).to(own.device)]
                shape = (-1, *[1] * (states.dim() - 1))
                states = torch.where(is_leaf.to(own.device).view(shape), states, drafted)
            return states[:, None]

        leaf, chain = self.output, self.chain
        return ForwardOutput(
            picked(leaf.hidden, None if chain is None else chain.hidden),
            None if leaf.logits is None else picked(leaf.logits, None if chain is None else chain.logits),
            (),
            None
            if leaf.hidden_states is None
            else tuple(
                picked(states, None if chain is None or chain.hidden_states is None else chain.hidden_states[layer])
                for layer, states in enumerate(leaf.hidden_states)
            ),
        )
