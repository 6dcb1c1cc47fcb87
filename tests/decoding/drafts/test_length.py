"""How many drafts a round asks for."""

from __future__ import annotations

import pytest

from decoding.drafts import length as module
from decoding.drafts.length import FIRST, LONGEST, LONGEST_PAUSE, MEASURED, PAUSE, DraftLength


class _Clock:
    """A clock that moves when it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def round(self, length: DraftLength, cost: float, accepted: float) -> int:
        """One round whose time is a token's and ``cost`` for each draft; ``accepted`` is the share of its drafts."""
        drafts = length.begin()
        self.now += 1.0 + cost * drafts
        length.end([drafts], [int(accepted * drafts)])
        return drafts


def test_a_fixed_number(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, length = _Clock(monkeypatch), DraftLength(3)
    assert {clock.round(length, 5.0, share) for share in (0.0, 1.0, 0.3) * 20} == {3}


def test_more_where_all_are_accepted_and_fewer_where_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, length = _Clock(monkeypatch), DraftLength(None)
    assert length.begin() == FIRST
    numbers = [clock.round(length, 0.01, 1.0) for _ in range(12)]
    assert max(numbers) == LONGEST
    numbers = [clock.round(length, 0.001, 0.2) for _ in range(40)]
    assert 1 <= min(number for number in numbers if number) <= 4


def test_no_drafts_where_they_do_not_pay_and_another_try_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, length = _Clock(monkeypatch), DraftLength(None)
    numbers = [clock.round(length, 0.5, 0.0) for _ in range(400)]
    assert sum(number > 0 for number in numbers) < 400 / LONGEST_PAUSE + 12
    assert any(numbers[: MEASURED + 3 * PAUSE])
    assert any(numbers[-2 * LONGEST_PAUSE :])
    numbers = [clock.round(length, 0.001, 1.0) for _ in range(200)]  # now they pay
    assert sum(number > 0 for number in numbers[-50:]) > 40


def test_ranks_that_must_agree_do_not_look_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, length = _Clock(monkeypatch), DraftLength(None, timed=False)
    assert all(clock.round(length, 9.0, 0.0) > 0 for _ in range(60))


def test_a_round_whose_rows_had_no_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, length = _Clock(monkeypatch), DraftLength(None)
    for _ in range(50):  # lookup finds nothing
        assert length.begin() == FIRST
        clock.now += 1.0
        length.end([0, 0], [0, 0])
    length.end([], [])  # all rows had ended
