"""AUROC against counting every pair, thresholds against trying many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.evals.metrics.discrimination import auroc, best_threshold

scores = st.lists(st.sampled_from([-3.0, -1.5, -1.0, 0.0, 2.0]), min_size=1, max_size=9)


@given(scores, scores)
def test_it_is_the_share_of_pairs_in_order(high, low):
    pairs = [1 if one > other else 0.5 if one == other else 0 for one in high for other in low]
    assert auroc(high, low) == pytest.approx(sum(pairs) / len(pairs))


def test_nothing_to_compare_tells_nothing():
    assert auroc([], [1.0]) == auroc([1.0], []) == 0.5


def test_the_best_threshold_has_the_fewest_errors() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        high, low = (np.round(generator.normal(shift, 1, generator.integers(0, 9)), 1) for shift in (0.5, 0.0))
        if not len(high) + len(low):
            continue
        threshold = best_threshold(high, low)
        tried = [threshold, *np.arange(-5.025, 5, 0.05)]
        errors = [sum(score <= t for score in high) + sum(score > t for score in low) for t in tried]
        assert errors[0] == min(errors)
        assert best_threshold(high + 8, low + 8) == pytest.approx(threshold + 8)
    assert best_threshold([3.0], [1.0]) == 2.0
    assert best_threshold([-4.0, 2.0], [-1.0]) == 0.5  # as good as below -4
    assert best_threshold([5.0, 6.0], []) == 4.0
