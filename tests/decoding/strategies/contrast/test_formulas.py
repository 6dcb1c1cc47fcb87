"""The contrastive family's maths against each formula written out token by token in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoding import ContextAware, DoLa, OptionError
from decoding.kernels.contrast import contrast_log_probs, contrast_logits, fuse_by_entropy, fuse_statically, plausible
from decoding.kernels.layer_divergence import layer_divergence
from decoding.strategies.contrast.readers import EXPERT, ReaderLogits

SHAPES = [(1, 7), (3, 50), (2, 4, 33)]


def _logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _probs(row: Tensor) -> list[float]:
    weights = [math.exp(x - max(row.tolist())) for x in row.tolist()]
    return [weight / sum(weights) for weight in weights]


def _context_aware(with_context: Tensor, without: Tensor, alpha: float) -> Tensor:
    """The scores of the strategy of this name."""
    logits = {"expert in context": ReaderLogits(with_context), EXPERT: ReaderLogits(without)}
    return ContextAware([5], alpha).contrast(logits, torch.empty(*without.shape[:-1], 0)).scores


def _rows(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.double().reshape(-1, tensor.shape[-1]) for tensor in tensors), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7, 1.0])
def test_plausible_tokens_have_alpha_of_the_best_probability(shape: tuple[int, ...], alpha: float) -> None:
    logits = _logits(*shape)
    for (row,), kept in zip(_rows(logits), plausible(logits, alpha).reshape(-1, shape[-1]).tolist(), strict=True):
        probs = _probs(row)
        assert kept == [p >= alpha * max(probs) for p in probs]


def test_excluded_tokens_are_not_plausible_and_the_best_always_is() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [2.0, 2.0, -torch.inf]])
    assert plausible(logits, 0.0).tolist() == [[True, False, True], [True, True, False]]
    assert plausible(logits, 1.0).tolist() == [[False, False, True], [True, True, False]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contrasts_are_their_formulas(shape: tuple[int, ...]) -> None:
    expert, amateur = _logits(*shape), _logits(*shape, seed=1)
    by_logits, aware = contrast_logits(expert, amateur, 0.5), _context_aware(expert, amateur, 0.5)
    by_log_probs = contrast_log_probs(expert, amateur, 0.8, amateur_temperature=0.5)
    assert torch.equal(by_logits, aware)
    for e, a, logits, log_probs in _rows(expert, amateur, by_logits, by_log_probs):
        p_e, p_a = _probs(e), _probs(a / 0.5)
        torch.testing.assert_close(logits, 1.5 * e - 0.5 * a, atol=1e-5, rtol=1e-5)
        expected = torch.tensor([math.log(x) - 0.8 * math.log(y) for x, y in zip(p_e, p_a, strict=True)])
        torch.testing.assert_close(log_probs.float(), expected, atol=1e-4, rtol=1e-5)


def test_no_weight_on_the_amateur_leaves_the_expert_as_it_is() -> None:
    expert, amateur = _logits(2, 40), _logits(2, 40, seed=1)
    assert torch.equal(contrast_logits(expert, amateur, 0.0), expert)
    assert torch.equal(contrast_log_probs(expert, amateur, 0.0), expert.log_softmax(-1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_divergences_are_their_formulas(shape: tuple[int, ...]) -> None:
    final, premature = _logits(*shape), torch.stack([_logits(*shape, seed=seed) for seed in (1, 2, 3)])
    for kind in ("dola", "jensen-shannon"):
        for layer, given_layer in zip(premature, layer_divergence(final, premature, kind)[0], strict=True):
            for (n, j), value in zip(_rows(final, layer), given_layer.reshape(-1).tolist(), strict=True):
                p, q = _probs(n), _probs(j)
                m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
                pairs = [(m, p), (m, q)] if kind == "dola" else [(p, m), (q, m)]
                expected = 0.5 * sum(sum(x * math.log(x / y) for x, y in zip(*pair, strict=True)) for pair in pairs)
                assert value == pytest.approx(expected, abs=2e-5)


def test_the_two_divergences_choose_differently_often_enough_to_matter() -> None:
    final, premature = _logits(400, 30), torch.stack([_logits(400, 30, seed=seed) for seed in range(1, 6)])
    chosen = [layer_divergence(final, premature, kind)[0].argmax(0) for kind in ("dola", "jensen-shannon")]
    assert 0.02 < float((chosen[0] != chosen[1]).float().mean()) < 0.6


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.floats(0.1, 20.0), st.integers(0, 999))
def test_divergences_are_zero_for_equal_distributions_and_positive_otherwise(
    vocab: int, scale: float, seed: int
) -> None:
    final, other = scale * _logits(3, vocab, seed=seed), scale * _logits(3, vocab, seed=seed + 1)
    for kind in ("dola", "jensen-shannon"):
        value = layer_divergence(final, torch.stack([final + 5.0, other]), kind)[0]
        assert value.isfinite().all()
        torch.testing.assert_close(value[0], torch.zeros(3), atol=1e-5, rtol=0)
        assert (value[1] > -1e-6).all()


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(OptionError, match="divergence='kl': must be dola or jensen-shannon"):
        DoLa(divergence="kl")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fusions_are_their_formulas(shape: tuple[int, ...]) -> None:
    final, lower = _logits(*shape), torch.stack([_logits(*shape, seed=seed) for seed in (1, 2)])
    torch.testing.assert_close(fuse_statically(final, lower, 0.3), final + 0.3 * (lower[0] + lower[1]) / 2)
    assert torch.equal(fuse_statically(final, lower, 0.0), final)
    expert = torch.stack([_logits(*shape, seed=seed) for seed in (5, 6, 7)]).log_softmax(-1)
    fused = fuse_by_entropy(final, lower, expert)
    for parts in _rows(final, lower[0], lower[1], *expert, fused):
        contrasts, log_probs, value = parts[:3], parts[3:6], parts[6]
        weights = [math.exp(sum(math.exp(x) * x for x in row.tolist())) for row in log_probs]
        expected = sum(w / sum(weights) * contrast for w, contrast in zip(weights, contrasts, strict=True))
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


def test_half_precision_logits_are_widened_first() -> None:
    expert, amateur = _logits(2, 30).bfloat16(), _logits(2, 30, seed=1).bfloat16()
    assert torch.equal(contrast_logits(expert, amateur, 0.5), contrast_logits(expert.float(), amateur.float(), 0.5))
    assert layer_divergence(expert, amateur[None])[0].dtype == torch.float32
