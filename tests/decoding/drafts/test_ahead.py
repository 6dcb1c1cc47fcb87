"""Drafts of the next round: which rows have them, and what the others have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.drafts.ahead import DraftsAhead
from decoding.drafts.prompt_lookup import PromptLookup
from decoding.drafts.proposer import Drafts, Proposer, drafts_of

CPU = torch.device("cpu")


class _Counting(Proposer):
    """Proposes the numbers that follow; drawn, with a distribution that tells them."""

    def __init__(self, drawn: bool = False) -> None:
        self.asked: list[list[int]] = []
        self._drawn = drawn

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        self.asked.append(list(most))
        return self._with_distributions([[*range(100, 100 + n)] for n in most])

    def propose_behind(
        self, texts: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], most: Sequence[int]
    ) -> Drafts:
        last = [[*text, *more][-1] for text, more in zip(texts, behind, strict=True)]
        return self._with_distributions(
            [[*range(token + 1, token + 1 + n)] for token, n in zip(last, most, strict=True)]
        )

    def _with_distributions(self, rows: Sequence[Sequence[int]]) -> Drafts:
        drafts = drafts_of(rows, CPU)
        if not self._drawn or not drafts.tokens.shape[1]:
            return drafts
        return Drafts(drafts.tokens, drafts.counts, torch.nn.functional.one_hot(drafts.tokens, 200).float())


def _rows(drafts: Drafts) -> list[list[int]]:
    return [row[:count] for row, count in zip(drafts.tokens.tolist(), drafts.counts, strict=True)]


def _told(probabilities: Tensor | None) -> Tensor:
    assert probabilities is not None
    return probabilities.argmax(-1)


def test_rows_whose_text_went_on_as_guessed_have_what_was_proposed_ahead() -> None:
    for drawn in (False, True):
        proposer = _Counting(drawn)
        ahead = DraftsAhead(proposer)
        texts = [[1], [11], [21], [31]]
        drafts = drafts_of([[2, 3], [12], [], [32]], CPU)
        found = ahead.further(texts, drafts, [3, 3, 2, 0])
        assert found is not None
        assert _rows(found) == [[4, 5, 6, 7], [13, 14, 15, 16], [22, 23, 24], []]
        # As guessed; another end; as guessed, with fewer drafts wanted; nothing was proposed.
        after = [[1, 2, 3, 4], [11, 12, 14], [21, 22], [31, 32]]
        round_drafts = ahead.propose(after, [3, 3, 1, 4])
        assert _rows(round_drafts) == [[5, 6, 7], [100, 101, 102], [23], [100, 101, 102, 103]]
        assert proposer.asked == [[0, 3, 0, 4]]
        if drawn:
            counted = torch.arange(4) < torch.tensor(round_drafts.counts)[:, None]
            assert torch.equal(_told(round_drafts.probabilities)[counted], round_drafts.tokens[counted])
        # They are those of the next round alone.
        assert _rows(ahead.propose(after, [1, 1, 1, 1])) == [[100]] * 4


def test_a_row_that_wants_none_has_none() -> None:
    ahead = DraftsAhead(_Counting())
    ahead.further([[1], [11]], drafts_of([[2], [12]], CPU), [2, 2])
    assert _rows(ahead.propose([[1, 2, 3], [11, 12, 13]], [0, 2])) == [[], [14, 15]]
    ahead.further([[1], [11]], drafts_of([[2], [12]], CPU), [2, 2])
    assert ahead.propose([[1, 2, 3], [11, 12, 13]], [0, 0]).tokens.shape == (2, 0)


def test_proposers_with_passes_of_their_own_are_not_asked_ahead() -> None:
    class Costly(_Counting):
        propose_behind = Proposer.propose_behind  # type: ignore[assignment]

    ahead = DraftsAhead(Costly())
    assert ahead.further([[1]], drafts_of([[2]], CPU), [2]) is None
    assert _rows(ahead.propose([[1, 2, 3]], [2])) == [[100, 101]]


def test_lookup_behind_a_text_that_may_not_come_to_be() -> None:
    lookup = PromptLookup([[], []], CPU)
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert _rows(lookup.propose([text, text], [2, 0])) == [[3, 4], []]
    found = lookup.propose_behind([text, text], [[3, 4], [3, 9]], [3, 3])
    assert _rows(found) == [[5, 6, 7], []]
    assert _rows(lookup.propose_behind([text, text], [[], [3]], [1, 0])) == [[3], []]
    # What did not come to be is not found again.
    assert _rows(lookup.propose([[*text, 8, 3, 9], [*text, 8, 2, 3]], [2, 2])) == [[], [4, 5]]
