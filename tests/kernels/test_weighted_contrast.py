"""A weighted sum of readers against its definition in float64, and the measures that weights depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from decoding.kernels.contrast import divergence, entropy, weighted_contrast, weighted_contrast_naive

SHAPES = [(1, 7), (3, 100), (2, 3, 65)]


def _readers(count: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(4 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("form", ["logits", "log_probs"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    "weights",
    [(1.0,), (1.5, -0.5), (1.0, -0.7), (2.0, 1.0), (0.0, 1.0), (1.0, 0.5, -0.5), (0.3, 0.0, -1.0, 0.2), (-1.0, 2.0)],
)
def test_it_is_the_definition(weights: tuple[float, ...], alpha: float | None, form: str) -> None:
    for number, shape in enumerate(SHAPES):
        readers = _readers(len(weights), shape, seed=number)
        for temperatures in (None, [1.0, 0.5, 2.0, 1.0][: len(weights)]):
            found = weighted_contrast(readers, weights, form, temperatures, alpha)
            right = weighted_contrast_naive(readers, weights, form, temperatures, alpha)
            assert found.dtype == torch.float32
            # Scores of up to 100 in float32.
            torch.testing.assert_close(found.double(), right, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_computes_in_float32_whatever_it_is_given(dtype: torch.dtype) -> None:
    readers = _readers(3, (4, 65), dtype=dtype)
    found = weighted_contrast(readers, [1.5, -1.0, 0.5], "log_probs", alpha=0.1)
    right = weighted_contrast_naive([reader.float() for reader in readers], [1.5, -1.0, 0.5], "log_probs", alpha=0.1)
    torch.testing.assert_close(found.double(), right, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("form", ["logits", "log_probs"])
def test_weights_may_be_of_each_row(form: str) -> None:
    readers = _readers(3, (3, 65))
    weights: list[Any] = [torch.tensor([1.5, 1.0, 0.0]), torch.tensor([-0.5, 0.0, 2.0]), 0.25]
    found = weighted_contrast(readers, weights, form, alpha=0.05)
    torch.testing.assert_close(
        found.double(), weighted_contrast_naive(readers, weights, form, alpha=0.05), atol=2e-5, rtol=2e-5
    )
    for row in range(3):
        of_row = [float(w[row]) if isinstance(w, Tensor) else w for w in weights]
        alone = weighted_contrast([reader[row : row + 1] for reader in readers], of_row, form, alpha=0.05)
        torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["logits", "log_probs"])
@pytest.mark.parametrize("by_row", [False, True])
def test_infinities_are_as_the_docstring_says(by_row: bool, form: str) -> None:
    readers = [torch.zeros(1, 6) for _ in range(4)]
    for token, reader in enumerate(readers):
        reader[0, token] = -torch.inf  # token i is excluded by reader i
    readers[0][0, 5] = readers[2][0, 5] = -torch.inf
    weights: list[Any] = [1.0, 0.5, -0.5, 0.0]
    weights = [torch.tensor([weight]) for weight in weights] if by_row else weights
    scores = weighted_contrast(readers, weights, form)[0]
    assert scores[[0, 1, 5]].tolist() == [-torch.inf] * 3
    assert scores[2] == torch.inf
    assert scores[3:5].isfinite().all()
    anchor_without_weight = weighted_contrast(readers, [0.0, 1.0, 0.0, 0.0], form)[0]
    assert anchor_without_weight.isneginf().tolist() == [True, True, False, False, False, True]


def test_a_row_whose_plausible_tokens_are_all_excluded_takes_others() -> None:
    first, second = torch.tensor([[9.0, 0.0, 1.0]]), torch.tensor([[-torch.inf, 0.0, 0.0]])
    for weights in ([1.0, 1.0], [torch.tensor([1.0]), torch.tensor([1.0])]):
        found = weighted_contrast([first, second], weights, alpha=0.5)
        assert found.isfinite().tolist() == [[False, False, True]]
        torch.testing.assert_close(found.double(), weighted_contrast_naive([first, second], weights, alpha=0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.zeros(1, 3)], [1.0], "probs"), "form must be one of logits, log_probs, got 'probs'"),
        (([torch.zeros(1, 3)], [1.0, 2.0]), "1 readers, 2 weights and 1 temperatures"),
        (([], []), "0 readers, 0 weights and 0 temperatures"),
        (([torch.zeros(1, 3), torch.zeros(1, 4)], [1.0, -1.0]), r"reader 1 must be .* expert \(1, 3\), got \(1, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_contrast(*arguments)


def test_the_triton_backend_is_refused_where_there_is_no_such_form() -> None:
    with pytest.raises(ValueError, match=r"backend='triton'.*two readers"):
        weighted_contrast(_readers(3, (1, 7)), [1.0, 1.0, -1.0], backend="triton")


def test_entropy_and_divergence() -> None:
    p, q = (reader.double() for reader in _readers(2, (5, 40)))
    p[0, 3] = -torch.inf
    probabilities, others = p.softmax(-1), q.softmax(-1)
    mean = (probabilities + others) / 2
    half = torch.special.xlogy(probabilities, probabilities / mean) + others * (others / mean).log()
    torch.testing.assert_close(
        divergence(p, q).double(), half.sum(-1) / 2 / torch.tensor(2.0).double().log(), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        entropy(p).double(), -torch.special.xlogy(probabilities, probabilities).sum(-1), atol=1e-5, rtol=1e-5
    )
    assert divergence(p, p).tolist() == [0.0] * 5
    apart = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
    assert divergence(*apart).tolist() == [1.0]
