"""Truncations against their definitions in plain Python and float64."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import DTYPES, dtype_id
from torch import Tensor

from decoding.kernels.truncation import p_less, top_n_sigma


def _top_n_sigma(logits: list[float], n: float) -> list[int]:
    finite = [logit for logit in logits if math.isfinite(logit)]
    limit = max(finite) - n * statistics.pstdev(finite)
    return [token for token, logit in enumerate(logits) if logit >= limit]


def _p_less(logits: list[float]) -> list[int]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    p = [weight / math.fsum(weights) for weight in weights]
    limit = min(math.fsum(share * share for share in p), max(p))
    return [token for token, share in enumerate(p) if share >= limit]


def _kept(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("vocab", [1, 7, 1003])
def test_masks_are_those_of_the_definitions(vocab: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (3 * torch.randn(2, 3, vocab, generator=generator)).to(dtype)
    logits[1, :, 1::3] = -torch.inf
    for row in ((i, j) for i in range(2) for j in range(3)):
        values = logits[row].double().tolist()
        for n in (0.0, 0.5, 1.0, 3.0):
            assert _kept(top_n_sigma(logits, n)[row]) == _top_n_sigma(values, n)
        assert _kept(p_less(logits)[row]) == _p_less(values)


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=9))
def test_the_largest_is_always_kept_and_a_shift_changes_nothing(values: list[int]) -> None:
    """Flat rows among them, whose Σ p² is the largest p itself."""
    logits = torch.tensor(values, dtype=torch.float32)
    for mask in (top_n_sigma, p_less):
        kept = mask(logits)
        assert kept[logits == logits.max()].all()
        assert kept.equal(mask(logits + 64))


def test_a_temperature_changes_what_p_less_keeps_and_not_what_top_n_sigma_does() -> None:
    logits = torch.randn(50, 400, generator=torch.Generator().manual_seed(1))
    assert top_n_sigma(logits / 4).equal(top_n_sigma(logits))
    assert p_less(logits / 4).sum() > p_less(logits).sum()


def test_a_flat_distribution_over_a_large_vocabulary_is_kept_whole() -> None:
    assert p_less(torch.zeros(1, 300_000)).all()
    assert top_n_sigma(torch.zeros(1, 300_000)).all()


@pytest.mark.parametrize("mask", [top_n_sigma, p_less])
def test_excluded_tokens_take_no_part_and_nan_stays(mask: object) -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5]])
    excluded = torch.cat([logits, torch.full((1, 5000), -torch.inf)], dim=1)
    assert mask(excluded)[:, :4].equal(mask(logits))  # type: ignore[operator]
    assert mask(torch.tensor([[-torch.inf, 1.0, -torch.inf]])).tolist()[0][1]  # type: ignore[operator]
    assert mask(torch.tensor([[1.0, torch.nan, 0.0]]))[0, 1]  # type: ignore[operator]
