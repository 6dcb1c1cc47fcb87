"""How many drafts a round reads: a fixed number, or the one that gives most tokens for what the round costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence

from decoding.drafts.acceptance import Acceptance
from decoding.drafts.experience import Experience
from decoding.drafts.proposer import Drafts, Proposer
from decoding.drafts.round_cost import RoundCost, one_row
from decoding.models.small_batch_linear import preparations

__all__ = ["DraftLength"]

LONGEST = 16
FIRST = 4  # drafts beyond those accepted of late that who drafts at a cost is asked for


class DraftLength:
    """The number n of drafts of each round, which maximises E(n) / c(n); 0 where drafts do not pay.

    E(n) = 1 + a_1 + a_1·a_2 + ... + a_1···a_n is the expected number of tokens of a row, where a_i is the rate at which
    drafts of the kind of its i-th draft are accepted (:class:`Acceptance`): of one kind (1 - a^(n+1)) / (1 - a), eq. 1
    of Leviathan et al., 2211.17192. c(n) is the cost of the round (:class:`RoundCost`). In a batch E is the sum over
    the rows: the pass is as wide as its longest row, whatever the others have.

    Of a proposer whose drafts cost nothing the longest are asked for, and n of them are read. All are compared with
    what is chosen, so a text that begins to copy is seen while no drafts are read.

    Args:
        fixed: n; None for the best.
        proposer: of the drafts.
        timed: whether the clock corrects the costs. Ranks that must run the same passes cannot go by it.
        experience: of earlier calls, which this one adds to when it is closed; None for none.
        widths: see :class:`RoundCost`; one pass over one row, unless it is given.
        few: likewise.
    """

    def __init__(
        self,
        fixed: int | None,
        proposer: Proposer,
        timed: bool = True,
        experience: Experience | None = None,
        widths: Callable[[int], Sequence[int]] = one_row,
        few: int | None = None,
    ) -> None:
        self._fixed = fixed
        self._timed = timed
        self._experience = experience
        known = None if experience is None else experience.last
        self._acceptance, correction = known or (Acceptance(proposer.rates), 1.0)
        self._acceptance = copy.deepcopy(self._acceptance)
        self._cost = RoundCost(proposer.cost, correction, widths, few)
        self._proposed: dict[int, tuple[int, list[int]]] = {}  # the kind and the drafts of each row
        self._began = 0.0
        self._prepared = preparations()

    def begin(self) -> int:
        """The number of drafts to ask for in the round that begins; its time counts from here."""
        self._began, self._prepared = time.perf_counter(), preparations()
        if self._fixed is not None:
            return self._fixed
        if not self._cost.draft:
            return LONGEST
        most = FIRST + int(self._acceptance.accepted(0))
        return self._without_a_check(self._best([(0, min(most, LONGEST))]))

    def cut(self, drafts: Drafts, rows: Sequence[int]) -> Drafts:
        """Those of the drafts that are worth reading.

        Args:
            drafts: that were proposed.
            rows: that have not ended.
        """
        if self._fixed is not None:
            return drafts
        tokens = drafts.tokens.tolist()
        self._proposed = {row: (drafts.kind(row), tokens[row][: drafts.counts[row]]) for row in rows}
        if self._cost.draft:
            return drafts
        n = self._best([(kind, len(proposed)) for kind, proposed in self._proposed.values()])
        return drafts.part(0, [self._without_a_check(n)] * len(drafts.counts))

    def next_if_accepted(self, drafts: Drafts) -> int:
        """The number of drafts of the next round, if all of this round's are accepted, and the token behind them is
        what was proposed there.
        """
        if self._fixed is not None:
            return self._fixed
        return self._best([(drafts.kind(row) + drafts.counts[row] + 1, LONGEST) for row in self._proposed])

    def end(self, drafts: Drafts, chosen: Mapping[int, Sequence[int]]) -> None:
        """Take in a round.

        Args:
            drafts: that were read.
            chosen: the tokens of each row that had not ended.
        """
        if self._fixed is not None or not chosen:
            return
        self._acceptance.forget()
        for row, tokens in chosen.items():
            self._acceptance.add(*self._proposed[row], tokens)
        if self._timed and preparations() == self._prepared:
            self._cost.add(drafts.tokens.shape[1], time.perf_counter() - self._began)

    def close(self) -> None:
        """Keep what was learnt."""
        if self._experience is not None and self._fixed is None:
            self._experience.last = self._acceptance, self._cost.correction

    def _best(self, rows: Sequence[tuple[int, int]]) -> int:
        """The best number of drafts for rows, each with the kind of its first draft and the number that it has."""
        reached = [1.0] * len(rows)  # the probability that a row's drafts up to the n-th are all accepted
        expected = best = float(len(rows))
        found = 0
        for n in range(1, max((count for _, count in rows), default=0) + 1):
            for i, (kind, count) in enumerate(rows):
                reached[i] = reached[i] * self._acceptance.rate(kind + n - 1) if n <= count else 0.0
            expected += sum(reached)
            if expected / self._cost.of(n) > best:
                found, best = n, expected / self._cost.of(n)
        return found

    def _without_a_check(self, drafts: int) -> int:
        return 0 if drafts and self._timed and self._cost.wants_plain() else drafts
