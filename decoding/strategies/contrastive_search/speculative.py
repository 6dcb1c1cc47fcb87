"""Speculative contrastive search: one or two passes a round, whatever the number of drafts.

Contrastive search cannot check drafts in one pass: which candidates stand after a draft is known from the very pass
that reads it. The first pass reads a row's drafts as a chain. From its logits follow the candidates at every place, and
the second pass reads those that are no drafts, as leaves of one tree: each attends to the text, the drafts before it
and itself. Then choices are made place after place while they are the drafts. The candidate that ends a round has been
read already, so the next round begins where contrastive search would stand without drafts.

The second pass reads the chain of the next round too, behind the end that the drafts themselves foretell: all of them
are accepted, and the token that the proposer has after them ends the round. These tokens stand in the row's next slots
as the chain does, so where the round ends so, the next one's first pass has been run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.errors import ModelError
from decoding.generation.session import Further, Processed, argmax_first
from decoding.kernels.candidates import top_candidates
from decoding.models.text_config import within_vocabulary
from decoding.strategies.contrastive_search.candidate_rule import CandidateRule
from decoding.strategies.contrastive_search.candidates import Candidates
from decoding.strategies.contrastive_search.history import HiddenHistory
from decoding.strategies.contrastive_search.search_round import ChainAhead, SearchRound
from decoding.stream.output import ForwardOutput, at_token, at_tokens, joined_tokens
from decoding.stream.separate_rows import SeparateRows
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
        rows = stream.separate_rows()
        if not isinstance(rows, SeparateRows):
            raise ModelError(
                f"drafts: {type(stream.model).__name__} is an encoder-decoder, whose candidates cannot be read side by "
                "side; take a strategy without branches, or leave drafts out"
            )
        self._rows = rows
        history.separate_rows()
        assert history.row_lengths is not None
        self._stream_lengths, self._history_lengths = list(self._rows.lengths), list(history.row_lengths)
        self._begun_at = self._stream_lengths[0], self._history_lengths[0]
        self._round: SearchRound | None = None
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
    def read(self, tokens: Tensor, processed: Processed, further: Further | None = None) -> None:
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
        slots = before.slots[rows, places, branch].tolist()
        self._rows.keep_leaves(before.tokens[rows, places, branch], slots)
        self.history.append_to_rows(chosen.hidden)
        self._stream_lengths, self._history_lengths = list(self._rows.lengths), list(self.history.row_lengths or ())
        logits = self.stream.every_logit(chosen)  # (batch, 1, vocab)
        drafts = within_vocabulary(self.stream.model, tokens[:, 1:])
        chain = None
        if drafts.shape[1]:
            counts = [drafts.shape[1]] * len(tokens) if further is None else further.counts
            chain = None if before.ahead is None else before.ahead.output_for(drafts, counts, slots)
            if chain is None:
                chain = self.stream.extend(drafts)
            else:
                self._rows.keep_following(drafts)
            logits = torch.cat([logits, self.stream.every_logit(chain)], dim=1)
        self._round = self._read_candidates(logits, drafts, chain, processed, further)
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
        self,
        raw_logits: Tensor,
        drafts: Tensor | None,
        chain: ForwardOutput | None,
        processed: Processed,
        further: Further | None = None,
    ) -> SearchRound:
        """Find the candidates of every place, and read those that are no drafts, with a chain behind one of them.

        Args:
            raw_logits: (batch, places, vocab).
            drafts: (batch, places - 1) what the chain has read; None where it has read nothing.
            chain: its output.
            processed: see :meth:`read`.
            further: likewise.
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
        begin = torch.tensor(self._stream_lengths, device=device)[:, None]
        ahead = None
        if drafts is not None and chain is not None:
            counts = self._keep_drafts(chain, n - 1, further)
            is_draft = torch.arange(n - 1, device=device) < torch.tensor(counts, device=device)[:, None]
            drafted[:, :-1] = (tokens[:, :-1] == drafts[:, :, None]) & (is_candidate[:, :-1] & is_draft[..., None])
            # Behind a draft that cannot be chosen is nothing.
            reached[:, 1:] = drafted[:, :-1].any(-1).cumprod(1).bool()
            if further is not None and counts == list(further.counts):
                ahead = self._chain_ahead(further, tokens, is_candidate, reached)
        wanted = is_candidate & ~drafted & reached[:, :, None]
        output, leaves, slots = self._read_leaves(tokens, wanted, begin, ahead)
        if n > 1 and self._rows.gave_nan:
            ahead = None
            output = self._read_by_place(torch.where(is_candidate, tokens, tokens[..., :1]), begin)
            leaves = torch.arange(n * k, device=device).expand(batch, -1)
            slots = torch.tensor(self._rows.lengths, device=device)[:, None] + leaves
        states = output.hidden
        hidden = states.new_zeros(batch, n * k, states.shape[2])
        hidden.scatter_(1, leaves.to(states.device)[:, :, None].expand_as(states), states)
        hidden = hidden.unflatten(1, (n, k))
        slots = torch.zeros(batch, n * k, dtype=torch.long, device=device).scatter_(1, leaves, slots)
        slots = slots.unflatten(1, (n, k))
        if chain is not None:
            here = drafted[:, :-1].to(states.device)
            hidden[:, :-1] = torch.where(here[..., None], chain.hidden[:, :, None], hidden[:, :-1])
            slots[:, :-1] = torch.where(
                drafted[:, :-1], (begin + torch.arange(n - 1, device=device))[:, :, None], slots[:, :-1]
            )
        return SearchRound(
            raw_logits, logits, probabilities, tokens, limits, hidden, slots, leaves, output, chain, ahead
        )

    def _read_leaves(
        self, tokens: Tensor, wanted: Tensor, begin: Tensor, ahead: ChainAhead | None
    ) -> tuple[ForwardOutput, Tensor, Tensor]:
        """Read candidates as leaves, and a chain behind one of them, whose output is put into ``ahead``.

        Args:
            tokens: (batch, places, k) of all candidates.
            wanted: likewise, bool: the candidates that must be read.
            begin: (batch, 1) how many slots of its row the first place follows.
            ahead: the chain; None for none.

        Returns:
            The output of the leaves, (batch, leaves) their indices among all candidates of a row, and their slots.
        """
        k, device = tokens.shape[2], tokens.device
        flat, rank = tokens.flatten(1), wanted.flatten(1).int()
        first = None if ahead is None else ahead.candidate[:, None]
        if first is not None:
            rank = (rank + 1).scatter(1, first, 0)  # it is read before the others, with the chain behind it
        # Of captured passes each number of leaves would be another graph: these read all candidates always.
        most = int((rank == rank.new_tensor(1 if first is None else 2)).sum(1).max())
        if self.stream.graph_steps is not None:
            most = flat.shape[1] - (first is not None)
        leaves = rank.argsort(dim=1, descending=True, stable=True)[:, :most]
        ends = torch.tensor(self._rows.lengths, device=device)[:, None]
        ids, after = flat.gather(1, leaves), begin + leaves // k
        run = 0
        if ahead is not None and first is not None:
            run = 1 + ahead.tokens.shape[1]
            ids = torch.cat([flat.gather(1, first), ahead.tokens, ids], dim=1)
            after = torch.cat([ends + torch.arange(run, device=device), after], dim=1)
        output = self._rows.read_leaves(within_vocabulary(self.stream.model, ids), after)
        slots = ends + run + torch.arange(leaves.shape[1], device=device).expand_as(leaves)
        if ahead is not None and first is not None:
            ahead.output, ahead.slots = at_tokens(output, slice(1, run)), list(self._rows.lengths)
            output = at_tokens(output, slice(1), slice(run, None))
            leaves, slots = torch.cat([first, leaves], dim=1), torch.cat([ends, slots], dim=1)
        return output, leaves, slots

    def _chain_ahead(
        self, further: Further, tokens: Tensor, is_candidate: Tensor, reached: Tensor
    ) -> ChainAhead | None:
        """The chain of the next round; None where it would be read in vain in some row, which needs a first pass then.

        Args:
            further: proposes it.
            tokens: (batch, places, k) the candidates.
            is_candidate: likewise, bool, which of them may be chosen.
            reached: (batch, places) bool, the places all of whose drafts may be chosen.
        """
        batch, n, k = tokens.shape
        device, captured = tokens.device, self.stream.graph_steps is not None
        rows, places = torch.arange(batch, device=device), torch.tensor(list(further.counts), device=device)
        possible = bool(reached[rows, places].all())
        found = further.propose() if (possible or captured) and any(further.counts) else None
        if found is None:
            return None
        branch, chain = torch.zeros_like(places), tokens.new_zeros(batch, 0)
        possible &= any(count > 1 for count in found.counts)
        if possible:
            ends = (tokens[rows, places] == found.tokens[:, :1].to(device)) & is_candidate[rows, places]
            branch, chain = argmax_first(ends), found.tokens[:, 1:].to(device)
            matched = ends.any(1).tolist()
            possible = all(is_end or count < 2 for is_end, count in zip(matched, found.counts, strict=True))
        if captured:  # passes of two sizes: tokens of no meaning fill them up
            chain = torch.nn.functional.pad(chain[:, : n - 1], (0, max(n - 1 - chain.shape[1], 0)))
        elif not possible:
            return None
        return ChainAhead(within_vocabulary(self.stream.model, chain), places * k + branch)

    def _keep_drafts(self, chain: ForwardOutput, n: int, further: Further | None) -> list[int]:
        """Forget what stands behind each row's drafts, from the first whose state is NaN on; returns their numbers.

        Args:
            chain: that was read.
            n: tokens of it.
            further: tells how many of these are drafts; None where all are.
        """
        counts = [n] * self.stream.batch if further is None else list(further.counts)
        if self._rows.gave_nan:
            numbers = (~chain.hidden.isnan().any(-1)).cumprod(1).sum(1).tolist()
            counts = [min(pair) for pair in zip(counts, numbers, strict=True)]
        self._rows.rewind([length + count for length, count in zip(self._stream_lengths, counts, strict=True)])
        return counts

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
