"""The sums that one pass keeps: they give what looking at every pair gives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from isotropy_oracle import contributions, mean_cosines

from decoding.evals.isotropy.sample import TextSample
from decoding.evals.isotropy.sums import CosineSums, MomentSums, pooled

CPU = torch.device("cpu")


def texts_of(lengths: list[int], dim: int = 7, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, dim, generator=generator, dtype=torch.float64) + 0.4 for length in lengths]


def summed(texts: list[torch.Tensor], batch: int) -> CosineSums:
    sums = CosineSums(texts[0].shape[1], CPU)
    for start in range(0, len(texts), batch):
        group = texts[start : start + batch]
        width = max(map(len, group))
        hidden = torch.full((len(group), width, texts[0].shape[1]), 1e6, dtype=torch.float64)  # padding that would show
        kept = torch.zeros(len(group), width, dtype=torch.bool)
        for row, text in enumerate(group):
            hidden[row, : len(text)], kept[row, : len(text)] = text, True
        sums.add(hidden, kept)
    return sums


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(1, 8), st.integers(0, 100))
def test_sums_give_the_means_over_all_pairs(lengths, batch, seed):
    texts = texts_of([*lengths, 2], seed=seed)
    sums = summed(texts, batch)
    within, across = mean_cosines([text.numpy() for text in texts])
    assert sums.within().value == pytest.approx(within, abs=1e-12)
    assert sums.across() == pytest.approx(across, abs=1e-12)
    np.testing.assert_allclose(sums.shares().numpy(), contributions([text.numpy() for text in texts]), atol=1e-12)


def test_zero_vectors_have_cosine_0():
    text = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])
    assert summed([text, text], 2).within().value == pytest.approx(1 / 3)  # one pair of three is alike
    assert summed([torch.zeros(2, 2), torch.zeros(3, 2)], 2).across() == 0


def test_without_pairs_there_is_no_mean():
    assert summed(texts_of([5]), 1).across() is None
    assert summed(texts_of([5]), 1).shares() is None
    assert summed(texts_of([1, 1]), 2).within() is None


def test_the_interval_holds_the_mean_of_the_population_as_often_as_it_says():
    def sample(count: int, seed: int) -> CosineSums:
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randn(count, 1, 3, generator=generator) + 1  # texts differ, tokens of a text are alike
        return_value = CosineSums(3, CPU)
        kept = torch.rand(count, 10, generator=generator) < 0.7
        return_value.add(offsets + 0.5 * torch.randn(count, 10, 3, generator=generator), kept)
        return return_value

    truth = sample(200_000, 0).within().value
    hits = 0
    for seed in range(1, 301):
        interval = sample(80, seed).within()
        hits += interval.low <= truth <= interval.high
    assert 0.90 <= hits / 300 <= 0.985  # 95%, give or take three deviations of 300 draws


@pytest.mark.parametrize("offset", [0.0, 300.0], ids=["centred", "far"])
def test_moments_are_those_of_all_states(offset):
    states = torch.cat(texts_of([400, 300, 5], dim=11)) * torch.arange(1, 12) + offset
    sums = MomentSums(11, CPU)
    for batch in states.float().split(97):
        sums.add(batch)
    sums.add(states[:0].float())
    moments = sums.moments()
    assert moments.count == 705
    # float32 products of states that are shifted first: the covariance keeps six digits however far the mean is
    torch.testing.assert_close(moments.mean, states.mean(0), rtol=1e-5, atol=1e-5)
    expected = torch.from_numpy(np.cov(states.float().double().T.numpy(), bias=True))
    torch.testing.assert_close(moments.covariance, expected, rtol=1e-4, atol=1e-4)


def test_pooled_moments_are_those_of_the_samples_together():
    parts = [texts_of([30])[0] * 2 - 1, texts_of([70], seed=1)[0] + 5]
    both = []
    for part in parts:
        sums = MomentSums(7, CPU)
        sums.add(part)
        both.append(sums.moments())
    together = pooled(both)
    states = torch.cat(parts)
    torch.testing.assert_close(together.mean, states.mean(0))
    torch.testing.assert_close(together.covariance, torch.cov(states.T, correction=0))


@given(st.permutations(range(12)), st.integers(5, 40))
def test_the_sample_depends_on_the_texts_alone_and_keeps_to_its_size(order, size):
    lengths = [1 + (3 * place) % 5 for place in range(12)]

    def kept(places):
        sample = TextSample(size, seed=3)
        for place in places:
            if sample.wants(place):
                sample.add(place, [torch.full((lengths[place], 1), float(place)), torch.zeros(lengths[place], 2)])
        return [int(text[0]) for text in sample.layer(0)]

    found = kept(order)
    assert found == kept(range(12))
    assert sum(lengths[place] for place in found) <= size
    assert found


def test_the_sample_is_complete_where_all_fits_and_drawn_at_random_where_not():
    def sample(size, seed):
        sample = TextSample(size, seed)
        for place in range(400):
            if sample.wants(place):
                sample.add(place, [torch.full((1, 1), float(place))])
        return sorted(int(text[0]) for text in sample.layer(0))

    assert sample(400, 0) == list(range(400))
    drawn = [sample(100, seed) for seed in range(20)]
    assert all(len(places) == 100 for places in drawn)
    # The mean place of 100 of 400 drawn at random is 199.5 with a deviation of 10; of 20 draws, 2.2.
    assert np.mean(drawn) == pytest.approx(199.5, abs=7)
