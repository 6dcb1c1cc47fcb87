"""pass@k against counting every choice of k samples."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.errors import DecodingError
from decoding.evals.metrics.passing import mean_pass_at_k, pass_at_k


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8))
def test_it_is_the_share_of_choices_with_a_passing_sample(outcomes, k):
    if k > len(outcomes):
        with pytest.raises(DecodingError, match="must be 1 to"):
            pass_at_k(len(outcomes), sum(outcomes), k)
        return
    choices = list(combinations(outcomes, k))
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_it_does_not_overflow():
    assert pass_at_k(10_000, 5_000, 100) == 1
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)


def test_the_mean_is_over_problems_not_samples():
    assert mean_pass_at_k([[True], [False, False, False]], 1) == 0.5


def test_what_is_not_accepted():
    for samples, passed, k in [(3, 4, 1), (3, -1, 1), (3, 0, 0)]:
        with pytest.raises(DecodingError):
            pass_at_k(samples, passed, k)
    with pytest.raises(DecodingError, match="no problem"):
        mean_pass_at_k([], 1)
