"""What a round with drafts costs."""

from __future__ import annotations

import random

import pytest

from decoding.drafts.round_cost import CHECK, KNOWN, LATELY, LEAST, MOST, RoundCost


def test_what_is_known_beforehand() -> None:
    cost = RoundCost(0.25)
    assert cost.of(0) == 1
    # A pass over 4, 8 and 17 tokens, on the two machines of docs/drafts.md.
    for tokens, least, most in ((4, 1.15, 1.45), (8, 1.25, 1.7), (17, 1.85, 2.05)):
        assert least < RoundCost(0.0).of(tokens - 1) < most
    assert cost.of(4) == pytest.approx(RoundCost(0.0).of(4) + 4 * 0.25)
    assert RoundCost(0.25, 2.0).of(4) - 1 == pytest.approx(2 * (cost.of(4) - 1))


def test_rows_and_readers_make_a_pass_wider() -> None:
    alone, two = RoundCost(0.0), RoundCost(0.0, widths=lambda drafts: [2 * (drafts + 1)])
    assert two.of(0) == 1
    assert two.of(1) > alone.of(1)
    # Two rows with n drafts cost two tokens more for each; one of them is read without drafts too.
    assert two.of(3) - two.of(2) == pytest.approx(2 * (alone.of(3) - alone.of(2)) / 1.045)
    apart = RoundCost(0.0, widths=lambda drafts: [drafts + 1] * 2)  # a second pass, of drafts and without
    assert apart.of(5) == pytest.approx(alone.of(5))


def test_a_pass_that_has_no_quick_form_costs_more() -> None:
    cost = RoundCost(0.0, widths=lambda drafts: [2 * (drafts + 1)], few=16)
    everywhere = RoundCost(0.0, widths=lambda drafts: [2 * (drafts + 1)])
    assert cost.of(7) == everywhere.of(7)
    assert cost.of(8) > everywhere.of(8) + 0.3


def test_a_narrower_round_is_not_cheaper_than_one_without_drafts() -> None:
    assert RoundCost(0.0, widths=lambda drafts: [2] if drafts else [4]).of(3) > 1


def test_one_kind_of_rounds_tells_nothing() -> None:
    cost = RoundCost(0.0)
    for _ in range(9):
        cost.add(3, 70.0)
    assert cost.correction == 1.0
    cost = RoundCost(0.0)
    for _ in range(9):
        cost.add(0, 70.0)
    assert cost.correction == 1.0


@pytest.mark.parametrize("true", [0.2, 1.0, 3.0])
def test_the_clock_corrects_it_as_far_as_both_kinds_were_seen(true: float) -> None:
    cost, right = RoundCost(0.1), RoundCost(0.1, true)
    for seen in range(1, 2 * LATELY):
        drafts = seen % 5 + 1
        cost.add(0, 0.02)
        cost.add(drafts, 0.02 * right.of(drafts))
        weight = min(seen, LATELY)
        assert cost.correction == pytest.approx((KNOWN + weight * true) / (KNOWN + weight))
    assert abs(cost.correction - true) < 0.1 * max(true, 1)


def test_a_busy_machine_and_rounds_that_prepare_something() -> None:
    """A third of the rounds take many times as long, and the first of each kind; the first alone is bounded."""
    draw, cost, right = random.Random(0), RoundCost(0.0), RoundCost(0.0, 1.5)
    cost.add(0, 1.0)
    cost.add(4, 300.0)
    assert cost.correction <= (KNOWN + MOST) / (KNOWN + 1)
    for _ in range(40):
        for drafts in (0, 4):
            cost.add(drafts, right.of(drafts) * (draw.choice([3, 9]) if draw.random() < 0.3 else 1))
    assert cost.correction == pytest.approx(1.5, abs=0.2)


def test_now_and_then_a_round_without_drafts_is_wanted() -> None:
    cost, wanted = RoundCost(0.0), []
    for turn in range(16 * CHECK):
        plain = cost.wants_plain()
        cost.add(0 if plain else 4, 1.0)
        wanted += [turn] if plain else []
    assert wanted == [CHECK, 3 * CHECK + 1, 7 * CHECK + 2, 15 * CHECK + 3]
    cost = RoundCost(0.0)
    assert not any(cost.add(turn % 4, 1.0) or cost.wants_plain() for turn in range(99))


def test_what_drafts_cost_once_is_forgotten_without_them() -> None:
    """A correction that no draft pays by would otherwise stay for good: nothing would correct it."""
    cost = RoundCost(0.0, MOST)
    for _ in range(300):
        cost.add(0, 1.0)
    assert 1 < cost.correction < 1.5
    quick = RoundCost(0.0, LEAST)
    for _ in range(300):
        quick.add(0, 1.0)
    assert 0.9 < quick.correction < 1
