"""AUROC against counting every pair."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.evals.metrics.discrimination import auroc

scores = st.lists(st.sampled_from([-3.0, -1.5, -1.0, 0.0, 2.0]), min_size=1, max_size=9)


@given(scores, scores)
def test_it_is_the_share_of_pairs_in_order(high, low):
    pairs = [1 if one > other else 0.5 if one == other else 0 for one in high for other in low]
    assert auroc(high, low) == pytest.approx(sum(pairs) / len(pairs))


def test_nothing_to_compare_tells_nothing():
    assert auroc([], [1.0]) == auroc([1.0], []) == 0.5
