"""Speculative contrastive search: two passes a round, whatever the number of drafts.

Contrastive search cannot check drafts in one pass: which candidates stand after a draft is known from the very pass
that reads it. The first pass reads a row's drafts as a chain. From its logits follow the candidates at every place, and
the second pass reads those that are no drafts, as leaves of one tree: each attends to the text, the drafts before it
and itself. Then choices are made place after place while they are the drafts. The candidate that ends a round has been
read already, so the next round begins where contrastive search would stand without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.generation.session import Processed, argmax_first
from decoding.kernels.candidates import top_candidates
from decoding.models.text_config import within_vocabulary
from decoding.strategies.contrastive_search.candidate_rule import CandidateRule, Limits
from decoding.strategies.contrastive_search.candidates import Candidates
from decoding.strategies.contrastive_search.history import HiddenHistory
from decoding.stream.output import ForwardOutput, at_token, joined_tokens
from decoding.stream.stream import Stream

__all__ = ["SpeculativeSearch"]


class SpeculativeSearch:
    """The rounds of a call.

    Args:
        stream: that has read the prompt.
        history: of its hidden states.
        rule: says how many candidates a place has, and how much their penalty weighs.
        logits: (batch, vocab) after the prompt.

    Attributes:
        logits: (batch, vocab) at the place that is looked at, before any processor.
        output: of the token before it.
    """

    def __init__(self, stream: Stream, history: HiddenHistory, rule: CandidateRule, logits: Tensor) -> None:
        self.stream = stream
        self.history = history
        self.logits = logits
        self.output = stream.prompt
        self._rule = rule
        self._rows = stream.separate_rows()
        history.separate_rows()
        assert history.row_lengths is not None
        self._stream_lengths, self._history_lengths = list(self._rows.lengths), list(history.row_lengths)
        self._begun_at = self._stream_lengths[0], self._history_lengths[0]
        self._round: _Round | None = None
        self._place = 0
        self._chosen_at = [0] * stream.batch  # the place of each row's last choice

    def candidates(self, processed: Processed) -> Candidates:
        """The candidates at the place that is looked at."""
        if self._round is None:
            self._round = self._read_candidates(self.logits[:, None], None, None, processed)
        found, place = self._round, self._place
        return Candidates(
            found.logits[:, place], found.probabilities[:, place], found.tokens[:, place], found.hidden[:, place],
            found.limits.alpha_at(place), found.limits.counts_at(place),
        )  # fmt: skip

    @torch.no_grad()
    def read(self, tokens: Tensor, processed: Processed) -> None:
        """Read drafts and candidates; see :meth:`decoding.generation.session.Session.read_drafts`.

        The first of the (batch, n) tokens is a candidate of the round before; where it is none (the pad of a row that
        has ended), the first candidate takes its place, as without drafts.
        """
        before = self._round
        assert before is not None, "read() without candidates()"
        self._rule.accept([place + 1 for place in self._chosen_at])
        rows = torch.arange(len(tokens), device=tokens.device)
        places = torch.tensor(self._chosen_at, device=tokens.device)
        is_candidate = before.limits.is_candidate(before.probabilities)[rows, places]
        branch = argmax_first((before.tokens[rows, places] == tokens[:, :1]) & is_candidate)
        chosen = before.output_of(places, branch)
        self._rows.keep_leaves(before.tokens[rows, places, branch], before.slots[rows, places, branch].tolist())
        self.history.append_to_rows(chosen.hidden)
        self._stream_lengths, self._history_lengths = list(self._rows.lengths), list(self.history.row_lengths or ())
        logits = self.stream.every_logit(chosen)  # (batch, 1, vocab)
        drafts = within_vocabulary(self.stream.model, tokens[:, 1:])
        chain = None
        if drafts.shape[1]:
            chain = self.stream.extend(drafts)
            logits = torch.cat([logits, self.stream.every_logit(chain)], dim=1)
        self._round = self._read_candidates(logits, drafts, chain, processed)
        self._round.before = chosen
        self._place = 0

    def go_to(self, place: int) -> None:
        """Look at the place after one of the tokens that were read last; places come in order."""
        found = self._round
        assert found is not None
        if place == 0:
            assert found.before is not None
            self.output = found.before
        else:
            assert found.chain is not None
            self.output = at_token(found.chain, place - 1)
            self.history.append_to_rows(self.output.hidden)
        self._place = place
        self.logits = found.raw_logits[:, place]

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first tokens of each row that were read last."""
        self._chosen_at = [max(count - 1, 0) for count in counts]
        self._rows.rewind([length - 1 + count for length, count in zip(self._stream_lengths, counts, strict=True)])
        self.history.rewind_rows(
            [length - 1 + count for length, count in zip(self._history_lengths, counts, strict=True)]
        )

    def rewind_to(self, tokens: int) -> None:
        """Forget what rows have read beyond this number of tokens after the prompt."""
        of_stream, of_history = self._begun_at
        self._rows.rewind([of_stream + tokens] * self.stream.batch)
        self.history.rewind_rows([of_history + tokens] * self.stream.batch)

    def _read_candidates(
        self, raw_logits: Tensor, drafts: Tensor | None, chain: ForwardOutput | None, processed: Processed
    ) -> _Round:
        """Find the candidates of every place, and read those that are no drafts.

        Args:
            raw_logits: (batch, places, vocab).
            drafts: (batch, places - 1) what the chain has read; None where it has read nothing.
            chain: its output.
            processed: see :meth:`read`.
        """
        batch, n = raw_logits.shape[:2]
        k, device = self._rule.most, self.stream.input_ids.device
        logits = processed(raw_logits.to(dtype=torch.float32, device=device, copy=True))
        distributions = logits.softmax(-1)
        probabilities, tokens = top_candidates(distributions, k)  # (batch, n, k)
        limits = self._rule.limits(distributions, probabilities)
        is_candidate = limits.is_candidate(probabilities)
        drafted = torch.zeros_like(is_candidate)
        reached = torch.ones(batch, n, dtype=torch.bool, device=device)
        if drafts is not None and chain is not None:
            drafted[:, :-1] = (tokens[:, :-1] == drafts[:, :, None]) & is_candidate[:, :-1]
            if self._rows.gave_nan:
                drafted[:, :-1] &= self._keep_numbers(chain).to(device)[..., None]
            reached[:, 1:] = (
                drafted[:, :-1].any(-1).cumprod(1).bool()
            )  # behind a draft that cannot be chosen is nothing
        wanted = (is_candidate & ~drafted & reached[:, :, None]).flatten(1)
        # Of captured passes each number of leaves would be another graph: these read all candidates always.
        most = n * k if self.stream.graph_steps is not None else int(wanted.sum(1).max())
        leaves = wanted.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        begin = torch.tensor(self._stream_lengths, device=device)[:, None]
        output = self._rows.read_leaves(
            within_vocabulary(self.stream.model, tokens.flatten(1).gather(1, leaves)), begin + leaves // k
        )
        if n > 1 and self._rows.gave_nan:
            output = self._read_by_place(torch.where(is_candidate, tokens, tokens[..., :1]), begin)
            leaves = torch.arange(n * k, device=device).expand(batch, -1)
        states = output.hidden
        hidden = states.new_zeros(batch, n * k, states.shape[2])
        hidden.scatter_(1, leaves.to(states.device)[:, :, None].expand_as(states), states)
        hidden = hidden.unflatten(1, (n, k))
        slots = torch.zeros(batch, n * k, dtype=torch.long, device=device)
        ends = torch.tensor(self._rows.lengths, device=device)[:, None]
        slots.scatter_(1, leaves, ends + torch.arange(leaves.shape[1], device=device).expand_as(leaves))
        slots = slots.unflatten(1, (n, k))
        if chain is not None:
            here = drafted[:, :-1].to(states.device)
            hidden[:, :-1] = torch.where(here[..., None], chain.hidden[:, :, None], hidden[:, :-1])
            slots[:, :-1] = torch.where(
                drafted[:, :-1], (begin + torch.arange(n - 1, device=device))[:, :, None], slots[:, :-1]
            )
        return _Round(raw_logits, logits, probabilities, tokens, limits, hidden, slots, leaves, output, chain)

    def _keep_numbers(self, chain: ForwardOutput) -> Tensor:
        """Forget the drafts of each row from the first whose state is NaN on; returns (batch, n) bool, the others."""
        kept = (~chain.hidden.isnan().any(-1)).cumprod(1).bool()
        counts = kept.sum(1).tolist()
        self._rows.rewind([length + n for length, n in zip(self._stream_lengths, counts, strict=True)])
        return kept

    def _read_by_place(self, tokens: Tensor, begin: Tensor) -> ForwardOutput:
        """Read (batch, places, k) leaves place by place, where one of them gave NaN: attention carries it to the others
        of its pass. Those of a place are read in one pass without drafts too, and places after it follow from them.

        Args:
            tokens: of each place.
            begin: (batch, 1) how many slots of its row the first place follows.
        """
        k = tokens.shape[2]
        return joined_tokens(
            [
                self._rows.read_leaves(
                    within_vocabulary(self.stream.model, tokens[:, place]), (begin + place).expand(-1, k), place * k
                )
                for place in range(tokens.shape[1])
            ]
        )


@dataclass
class _Round:
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
