"""How many drafts a round reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from decoding.drafts import length as module
from decoding.drafts.experience import Experience, experience_of
from decoding.drafts.length import FIRST, LONGEST, DraftLength
from decoding.drafts.proposer import Drafts, Proposer, drafts_of

CPU = torch.device("cpu")
RIGHT, WRONG = 1, 2  # tokens


class _Proposer(Proposer):
    """Proposes nothing by itself: rounds are told what was proposed."""

    def __init__(self, rates: Sequence[float] = (0.1, 0.5, 0.9), cost: float = 0.0) -> None:
        self.rates, self.cost = rates, cost

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
        raise NotImplementedError


class _Clock:
    """A clock that moves when it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    return _Clock(monkeypatch)


def _round(
    length: DraftLength, right: Sequence[int], kinds: Sequence[int] | None = None, clock: _Clock | None = None,
    cost: float = 0.045, has: int = LONGEST,
) -> int:  # fmt: skip
    """A round of rows whose drafts are right up to a place; returns how many are read, each at a cost."""
    most = min(length.begin(), has)
    proposed = drafts_of([[RIGHT] * most for _ in right], CPU, kinds)
    drafts = length.cut(proposed, range(len(right)))
    chosen = {}
    for row, n in enumerate(right):
        accepted = min(n, drafts.counts[row])
        # Behind what was read the text goes on as it was proposed, where that was right.
        chosen[row] = [RIGHT] * accepted + [RIGHT if accepted < n else WRONG]
    read = drafts.tokens.shape[1]
    if clock is not None:
        clock.now += 1 + (0.3 + cost * read if read else 0)
    length.end(drafts, chosen)
    return read


def test_a_fixed_number(clock: _Clock) -> None:
    length = DraftLength(3, _Proposer())
    assert {_round(length, [right], [0], clock, 5.0) for right in (0, 3, 1) * 20} == {3}
    assert length.next_if_accepted(drafts_of([[1, 2, 3]], CPU)) == 3


@pytest.mark.parametrize("cost", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_the_number_that_gives_most_tokens_for_its_cost(rate: float, cost: float) -> None:
    """Against eq. 1 of 2211.17192, written out."""

    def pace(n: int) -> float:
        return (1 - rate ** (n + 1)) / (1 - rate) / (1.2 + (0.045 + cost) * n) if n else 1.0

    length = DraftLength(None, _Proposer([rate], cost), timed=False)
    n = length.begin() if cost else length.cut(drafts_of([[RIGHT] * LONGEST], CPU), [0]).tokens.shape[1]
    assert n == max(range((FIRST if cost else LONGEST) + 1), key=pace)


@pytest.mark.parametrize("kinds", [[0], [1], [2], [2, 0], [0, 0, 0, 1], [2, 2, 1]])
def test_kinds_and_the_rows_of_a_batch(kinds: list[int]) -> None:
    """The pass is as wide as its longest row; the first row has three drafts, the others as many as are asked for."""
    rates, counts = [0.1, 0.5, 0.8], [3, *[LONGEST] * (len(kinds) - 1)]

    def pace(n: int) -> float:
        tokens = 0.0
        for kind, count in zip(kinds, counts, strict=True):
            of_drafts = [rates[min(kind + place, 2)] for place in range(min(n, count))]
            tokens += 1 + sum(math.prod(of_drafts[:reached]) for reached in range(1, len(of_drafts) + 1))
        return tokens / (1.2 + 0.045 * n if n else 1.0)

    n = max(range(LONGEST + 1), key=pace)
    assert (n == 0) == (kinds == [0])
    length = DraftLength(None, _Proposer(rates), timed=False)
    length.begin()
    proposed = [[RIGHT] * count for count in counts]
    assert length.cut(drafts_of(proposed, CPU, kinds), range(len(kinds))).counts == [min(n, c) for c in counts]
    # A row that has ended weighs nothing.
    drafts = length.cut(drafts_of([*proposed, [RIGHT] * 9], CPU, [*kinds, 2]), range(len(kinds)))
    assert drafts.tokens.shape[1] == min(n, max(counts))


def test_a_text_that_never_copies_has_hardly_any_drafts() -> None:
    length = DraftLength(None, _Proposer([0.5, 0.5]), timed=False)
    read = [_round(length, [0]) for _ in range(100)]
    assert sum(number > 0 for number in read) <= 2
    assert not any(read[2:])


def test_a_text_that_begins_to_copy_is_seen_without_drafts() -> None:
    length = DraftLength(None, _Proposer([0.5, 0.5]), timed=False)
    for _ in range(100):
        _round(length, [0])
    read = [_round(length, [LONGEST]) for _ in range(20)]
    assert read[0] == 0
    assert all(read[8:])
    assert read[-1] > 8


def test_who_drafts_at_a_cost_is_tried_now_and_then() -> None:
    length = DraftLength(None, _Proposer([1.0], 0.1), timed=False)
    read = [_round(length, [0]) for _ in range(400)]
    assert read[0] == FIRST
    assert 2 <= sum(number > 0 for number in read[10:]) <= 11
    read = [_round(length, [LONGEST]) for _ in range(100)]
    assert all(read[-30:])
    assert max(read) > FIRST
    hopeless = DraftLength(None, _Proposer([1.0], 1.0), timed=False)
    assert not any(_round(hopeless, [LONGEST]) for _ in range(50))


def test_what_rounds_take_counts(clock: _Clock) -> None:
    for cost, pays in ((0.001, True), (0.6, False)):
        length = DraftLength(None, _Proposer([0.7]))
        read = [_round(length, [1], [0], clock, cost) for _ in range(200)]
        assert 0 in read[:40]  # once, to know what it takes
        assert (sum(number > 0 for number in read[-50:]) > 40) == pays


def test_a_round_in_which_something_was_prepared_has_no_time(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first passes of each width measure products: drafts would seem to cost what that takes."""
    prepared = iter(range(1000))
    experience = Experience()
    length = DraftLength(None, _Proposer([0.7]), experience=experience)
    monkeypatch.setattr("decoding.drafts.length.preparations", lambda: next(prepared))
    for _ in range(20):
        _round(length, [1], [0], clock, 5.0)
    length.close()
    assert experience.last is not None
    assert experience.last[1] == 1.0
    monkeypatch.setattr("decoding.drafts.length.preparations", lambda: 0)
    for _ in range(200):
        _round(length, [1], [0], clock, 5.0)
    length.close()
    assert experience.last[1] > 2


def test_ranks_that_must_agree_do_not_look_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    for seconds in (0.0, 0.1, 9.0):
        clock, length = _Clock(monkeypatch), DraftLength(None, _Proposer([0.6]), timed=False)
        numbers.append([_round(length, [turn % 4], [0], clock, seconds) for turn in range(80)])
    assert numbers[0] == numbers[1] == numbers[2]
    assert any(numbers[0])


def test_rows_without_drafts_and_rounds_without_rows() -> None:
    length = DraftLength(None, _Proposer(), timed=False)
    for _ in range(5):  # lookup finds nothing
        assert length.begin() == LONGEST
        drafts = length.cut(drafts_of([[], []], CPU, [0, 0]), [0, 1])
        assert drafts.tokens.shape == (2, 0)
        length.end(drafts, {0: [5], 1: [6]})
    length.begin()
    length.end(length.cut(drafts_of([[], []], CPU, [0, 0]), []), {})  # all rows had ended


def test_the_round_behind_one_that_is_accepted_whole() -> None:
    length = DraftLength(None, _Proposer(), timed=False)
    length.begin()
    drafts = length.cut(drafts_of([[RIGHT] * 3], CPU, [1]), [0])
    assert drafts.counts[0] > 0
    alone = DraftLength(None, _Proposer(), timed=False)
    assert length.next_if_accepted(drafts) == _round(alone, [0], [2])


def test_a_call_begins_with_what_the_last_one_learnt(clock: _Clock) -> None:
    experience = Experience()
    length = DraftLength(None, _Proposer([0.6]), experience=experience)
    first = [_round(length, [0], [0], clock) for _ in range(30)]
    assert any(first)
    assert experience.last is None  # until it ends
    length.close()
    kept: Any = experience.last
    before = kept[0].rate(0), kept[1]
    length = DraftLength(None, _Proposer([0.6]), experience=experience)
    assert not any(_round(length, [0], [0], clock) for _ in range(3))
    assert (kept[0].rate(0), kept[1]) == before  # calls do not see each other before they end
    fixed = DraftLength(3, _Proposer([0.6]), experience=experience)
    _round(fixed, [3], [0], clock)
    fixed.close()
    assert experience.last is kept


def test_experience_is_of_a_model_and_a_kind_of_calls() -> None:
    one, other = tiny_model("llama"), tiny_model("gpt2")
    assert experience_of(one, "a") is experience_of(one, "a")
    assert experience_of(one, "a") is not experience_of(one, "b")
    assert experience_of(one, "a") is not experience_of(other, "a")
