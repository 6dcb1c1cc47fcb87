"""Intervals and tests against scipy, which works them out in its own way."""

from dataclasses import astuple

import numpy as np
import pytest
import scipy.stats

from decoding.evals.engine import statistics
from decoding.evals.engine.statistics import (
    EXACT,
    bootstrap_figure,
    bootstrap_means,
    holm,
    mcnemar,
    paired_differences,
    sign_flip,
)

# Two bootstraps of 10,000 resamples differ by chance: the ends of a 95% interval by about 3% of its half width.
WITHIN = 0.1


@pytest.mark.parametrize("kind", ["shares", "numbers", "skewed"])
def test_intervals_of_means_are_those_of_scipy(kind: str) -> None:
    generator = np.random.default_rng(5)
    values = {
        "shares": (generator.random(80) < 0.3).astype(float),
        "numbers": generator.normal(3, 2, 50),
        "skewed": generator.exponential(1, 120),
    }[kind]
    (ours,) = bootstrap_means(values[:, None])
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    half = (theirs.high - theirs.low) / 2
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=WITHIN * half)
    assert ours.high == pytest.approx(theirs.high, abs=WITHIN * half)


def test_paired_differences_are_those_of_scipy() -> None:
    generator = np.random.default_rng(6)
    one = generator.normal(0.3, 1, (60, 2))
    other = one + generator.normal(-0.2, 0.5, (60, 2))
    for column, ours in enumerate(paired_differences(one, other)):
        theirs = scipy.stats.bootstrap(
            (one[:, column], other[:, column]),
            lambda a, b, axis: (a - b).mean(axis),
            paired=True, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip
        half = (theirs.high - theirs.low) / 2
        assert ours.value == pytest.approx((one - other)[:, column].mean())
        assert ours.low == pytest.approx(theirs.low, abs=WITHIN * half)
        assert ours.high == pytest.approx(theirs.high, abs=WITHIN * half)
        assert ours.mcnemar_p is None
        assert (ours.better, ours.worse) == ((one > other)[:, column].sum(), (one < other)[:, column].sum())
        # The test's p and that of a t-test agree on normal differences of this many documents.
        t_test = scipy.stats.ttest_rel(one[:, column], other[:, column]).pvalue
        assert ours.p == pytest.approx(t_test, rel=0.6, abs=2e-3)


def test_mcnemar_is_the_binomial_test_of_the_documents_that_differ() -> None:
    for better in range(0, 40, 3):
        for worse in range(0, 40, 4):
            right = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
            assert mcnemar(better, worse) == pytest.approx(right)
    assert mcnemar(400, 417) == pytest.approx(scipy.stats.binomtest(400, 817).pvalue)
    one, other = np.array([[1.0], [1], [1], [0], [1]]), np.array([[0.0], [0], [0], [1], [1]])
    assert paired_differences(one, other)[0].mcnemar_p == pytest.approx(scipy.stats.binomtest(3, 4).pvalue)


def test_no_difference_is_none() -> None:
    values = np.random.default_rng(0).random((30, 1))
    (same,) = paired_differences(values, values)
    assert (same.value, same.low, same.high, same.p, same.better, same.worse) == (0, 0, 0, 1, 0, 0)


def test_the_same_seed_gives_the_same_interval_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((37, 3))
    whole = bootstrap_means(values, seed=4)
    assert bootstrap_means(values, seed=5) != whole
    (first,) = bootstrap_means(values[:, :1], seed=4)  # of a column, whatever stands beside it
    assert astuple(first) == pytest.approx(astuple(whole[0]))
    monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 37 * 100)
    for cut, uncut in zip(bootstrap_means(values, seed=4), whole, strict=True):
        assert astuple(cut) == pytest.approx(astuple(uncut))


def test_a_figure_that_is_no_mean_is_worked_out_on_resampled_documents() -> None:
    values = np.random.default_rng(3).exponential(1, 100)
    ours = bootstrap_figure(lambda indices: float(np.median(values[indices])), 100, resamples=2000)
    theirs = scipy.stats.bootstrap((values,), np.median, method="percentile", rng=np.random.default_rng(1))
    half = (theirs.confidence_interval.high - theirs.confidence_interval.low) / 2
    assert ours.value == np.median(values)
    # A median jumps from one document to the next.
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.3 * half)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.3 * half)


def test_documents_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\) and baseline \(2, 1\)"):
        paired_differences(np.zeros((3, 1)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="with at least one document"):
        bootstrap_means(np.zeros((0, 2)))


@pytest.mark.parametrize("documents", [1, 2, 3, 5, 8, 10])
def test_the_sign_flip_test_is_that_of_scipy(documents: int) -> None:
    generator = np.random.default_rng(documents)
    gains = np.concatenate(
        [generator.normal(0.5, 1, (documents, 3)), generator.integers(-2, 3, (documents, 3))], axis=1
    )
    for column, p in zip(gains.T, sign_flip(gains), strict=True):
        if documents > 1:  # scipy's needs two
            theirs = scipy.stats.permutation_test(
                (column,), lambda values, axis: values.sum(axis), permutation_type="samples", n_resamples=np.inf
            ).pvalue
            assert p == pytest.approx(theirs)
        assert p >= 2.0 ** (1 - documents)


def test_documents_that_do_not_differ_carry_no_significance() -> None:
    gains = np.zeros((100, 2))
    gains[:5] = 1.0, -0.3
    assert sign_flip(gains) == [2**-4, 2**-4]
    assert sign_flip(np.zeros((3, 1))) == [1.0]


def test_drawn_signs_come_near_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.random.default_rng(1).normal(0.5, 1, (14, 4))
    whole = sign_flip(gains)
    monkeypatch.setattr(statistics, "EXACT", 13)
    drawn = sign_flip(gains, seed=3)
    assert drawn != whole
    assert drawn == pytest.approx(whole, abs=4 * np.sqrt(0.25 / 10_000))
    monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 14 * 100)
    assert sign_flip(gains, seed=3) == drawn


# No true difference: normal, heavy tails, shares of few values, and 0 or 1, of which most documents are alike.
NULLS = {
    "normal": lambda generator, size: generator.normal(0, 1, size),
    "heavy tails": lambda generator, size: generator.standard_t(2, size),
    "few values": lambda generator, size: generator.integers(-2, 3, size).astype(float),
    "0 or 1": lambda generator, size: generator.choice([-1.0, 0.0, 0.0, 1.0], size),
}


@pytest.mark.parametrize("documents", [1, 2, 3, 4, 5, 10, 30])
@pytest.mark.parametrize("kind", NULLS)
def test_without_a_difference_stars_are_as_rare_as_they_say(kind: str, documents: int) -> None:
    trials = 2000
    gains = NULLS[kind](np.random.default_rng(documents), (documents, trials))
    p = np.array(sign_flip(gains, resamples=1000))
    for level in (0.05, 0.01):
        # Three standard deviations of the share of trials; drawn signs are the same in all of them.
        assert (p < level).mean() <= level + 3 * np.sqrt(level * (1 - level) / trials)
    if documents <= 5:
        assert (p >= 2.0 ** (1 - documents)).all()  # 1, 1/2, 1/4, 1/8, 1/16: no star
    elif kind == "normal":
        assert (p < 0.05).mean() > 0.03  # nor is it shy


def test_a_true_difference_is_found() -> None:
    gains = np.random.default_rng(2).normal(1, 1, (30, 200))
    assert (np.array(sign_flip(gains)) < 0.01).mean() > 0.95
    assert max(sign_flip(np.ones((EXACT + 1, 1)))) < 0.001


def test_holms_correction_is_that_of_the_book() -> None:
    # Holm 1979's procedure by hand: the smallest of four times 4, the next times 3, ..., never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holms_correction_holds_over_a_table() -> None:
    """Tables of 20 comparisons without a difference have a star in at most 5% of cases."""
    gains = np.random.default_rng(4).normal(0, 1, (12, 200 * 20))
    tables = np.array(sign_flip(gains)).reshape(200, 20)
    assert np.mean([min(row) < 0.05 for row in tables]) > 0.4
    assert np.mean([min(holm(row.tolist())) < 0.05 for row in tables]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
