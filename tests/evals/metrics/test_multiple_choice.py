"""MC1, MC2 and MC3 against exact arithmetic, the public scripts' formulas, and where those underflow."""

import math
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.evals.metrics.multiple_choice import mc1, mc2, mc3

scores = st.lists(st.floats(-3000, 0), min_size=1, max_size=8)


def exact_mc2(true, false):
    """The figure with as many digits and as wide an exponent as it needs."""
    with localcontext() as context:
        context.prec, context.Emin = 60, -(10**6)
        first, second = (sum(Decimal(score).exp() for score in given) for given in (true, false))
        return first / (first + second)


def test_by_hand():
    assert mc1(-1.0, [-2.0, -3.0]) == 1
    assert mc1(-1.0, [-1.0, -3.0]) == 0  # a tie is no preference
    assert mc3([-1.0, -2.0, -4.0], [-2.0, -3.0]) == pytest.approx(1 / 3)
    assert mc2([math.log(0.3), math.log(0.1)], [math.log(0.4)]) == pytest.approx(0.5)


@given(scores, scores)
def test_mc2_is_exact_at_every_length(true, false):
    # The sum of up to 16 terms, each rounded to 2⁻⁵³ of itself, and the error of exp at up to 3000: about 1e-12.
    assert mc2(true, false) == pytest.approx(float(exact_mc2(true, false)), rel=1e-11, abs=1e-300)


@given(scores, scores)
def test_the_figures_say_the_same(true, false):
    wins = [mc1(score, false) for score in true]
    assert mc3(true, false) == sum(wins) / len(wins)
    assert 0 <= mc2(true, false) <= 1
    assert mc2(true, false) + mc2(false, true) == pytest.approx(1)


def test_answers_whose_probability_is_0_in_float64_count():
    true, false = [-800.0, -801.0], [-800.0, -802.0]
    assert math.exp(max(true)) == 0  # what the public scripts would sum
    assert mc2(true, false) == pytest.approx((1 + math.exp(-1)) / (2 + math.exp(-1) + math.exp(-2)), rel=1e-14)
    assert mc2([-2000.0], [-1000.0]) == 0
    assert mc2([-1000.0], [-2000.0]) == 1


def test_minus_infinity_is_no_probability():
    assert mc1(-math.inf, [-1.0]) == 0
    assert mc2([-math.inf, -1.0], [-1.0]) == 0.5
    assert mc3([-1.0], [-math.inf]) == 1
    with pytest.raises(ValueError, match="not defined"):
        mc2([-math.inf], [-math.inf])


@pytest.mark.parametrize("figure", [lambda t, f: mc1(t[0] if t else 0.0, f), mc2, mc3])
@pytest.mark.parametrize(("true", "false"), [([-1.0], []), ([-1.0], [math.nan]), ([math.inf], [-1.0])])
def test_what_is_no_score(figure, true, false):
    with pytest.raises(ValueError, match=r"expected|must be"):
        figure(true, false)
