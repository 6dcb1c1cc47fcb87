"""Exponentials and the logarithms of their sums, against float64."""

import pytest
import torch

from decoding.kernels.exponentials import SMALLEST_LOG, exp_of_logs, log_sum_exp

INF = torch.inf


@pytest.mark.parametrize("scale", [1.0, 40.0], ids=["narrow", "wider than float32's exponents"])
@pytest.mark.parametrize("kept", [1.0, 0.01], ids=["whole", "masked"])
def test_it_is_the_float64_sum(scale, kept):
    scores = torch.randn(3, 2, 5000, generator=torch.Generator().manual_seed(0)) * scale
    scores = scores.masked_fill(torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) >= kept, -INF)
    before = scores.clone()
    torch.testing.assert_close(log_sum_exp(scores), scores.double().logsumexp(-1).float(), rtol=1e-6, atol=1e-5)
    assert torch.equal(scores, before)


def test_a_row_that_only_repeats_its_largest_score():
    assert log_sum_exp(torch.zeros(1, 1000)).item() == pytest.approx(torch.tensor(1000.0).log().item())


@pytest.mark.parametrize(
    "row",
    [
        [-INF, -INF, -INF],
        [-INF, 3.0, -INF],
        [INF, 0.0, -INF],
        [torch.nan, 0.0, 1.0],
        [-3e38, -3e38, -INF],
        [3e38, 0.0, 1.0],
    ],
    ids=["all excluded", "one left", "infinite", "NaN", "very low", "very high"],
)
def test_rows_that_are_no_ordinary_scores(row):
    scores = torch.tensor([row, [1.0, 2.0, 3.0]])
    torch.testing.assert_close(log_sum_exp(scores), scores.logsumexp(-1), equal_nan=True)


def test_exponentials_are_no_subnormal_numbers():
    log_probs = torch.tensor([0.0, -1.0, -86.0, -90.0, -100.0, -INF])
    given = log_probs.clone()
    found = exp_of_logs(log_probs)
    torch.testing.assert_close(found, log_probs.double().exp().float(), rtol=1e-6, atol=2e-38)
    assert found.min().item() == pytest.approx(torch.tensor(SMALLEST_LOG).exp().item())
    assert found.min() >= torch.finfo(torch.float32).tiny
    assert torch.equal(log_probs, given)
