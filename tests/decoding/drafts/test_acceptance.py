"""How often drafts are accepted."""

from __future__ import annotations

import pytest

from decoding.drafts.acceptance import FORGET, LATELY, PRIOR, Acceptance


def test_a_rate_begins_with_what_is_known_and_follows_what_is_seen() -> None:
    acceptance = Acceptance([0.25, 0.5])
    assert [acceptance.rate(kind) for kind in (0, 1, 2, 9)] == [0.25, 0.5, 0.5, 0.5]
    acceptance.add(0, [7], [7])
    assert acceptance.rate(0) == pytest.approx((PRIOR * 0.25 + 1) / (PRIOR + 1))
    acceptance.add(0, [7], [8])
    assert acceptance.rate(0) == pytest.approx((PRIOR * 0.25 + LATELY) / (PRIOR + LATELY + 1))
    assert acceptance.rate(1) == 0.5
    for _ in range(60):
        acceptance.add(0, [7], [7])
    assert 0.9 < acceptance.rate(0) < 1


def test_a_draft_behind_an_accepted_one_is_of_the_next_kind() -> None:
    """The one that is rejected tells, those behind it do not, and neither do tokens that were not drafted."""
    acceptance, alone = Acceptance([0.5, 0.5, 0.5]), Acceptance([0.5, 0.5, 0.5])
    acceptance.add(1, [1, 2, 3, 4, 5], [1, 2, 9, 4, 5])
    for kind, right in ((1, True), (2, True), (2, False)):
        alone.add(kind, [1], [1 if right else 2])
    assert [acceptance.rate(kind) for kind in range(3)] == [alone.rate(kind) for kind in range(3)]
    acceptance.add(1, [1, 2], [1])  # the text ended there
    alone.add(1, [1], [1])
    acceptance.add(2, [], [1])
    assert [acceptance.rate(kind) for kind in range(3)] == [alone.rate(kind) for kind in range(3)]


def test_what_is_no_longer_seen_is_forgotten() -> None:
    acceptance = Acceptance([1.0])
    for _ in range(20):
        acceptance.add(0, [1], [2])
    low = acceptance.rate(0)
    acceptance.forget()
    assert low < acceptance.rate(0) == pytest.approx(PRIOR / (PRIOR + FORGET * (PRIOR / low - PRIOR)))
    for _ in range(1000):
        acceptance.forget()
    assert acceptance.rate(0) > 0.99
