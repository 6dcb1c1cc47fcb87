"""The divergence of layers, and the choice among them, against the naive definition, in torch and as kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import assert_equals_definition, draw_logits, logits_id
from torch import Tensor

from decoding.kernels.layer_divergence import KINDS, layer_divergence, layer_divergence_naive

# The interpreter computes both sides of tl.where: inf - inf, or NaN that a row ignores, where the other is taken.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]

SHAPES = [(2, 1003, 3), (1, 2048, 1), (1, 2100, 9), (5, 515, 2), (2, 3, 700, 2)]  # batch, (time,) vocab, layers


def _logits(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Draw logits of the final layer and of the premature ones, in rows with NaN between them."""
    *rows, vocab, layers = shape
    generator = torch.Generator().manual_seed(sum(shape))
    logits = draw_logits(1 + layers, *rows, vocab, generator=generator, scale=scale).to(device, dtype)[..., :vocab]
    return logits[0], logits[1:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), (SHAPES[0], torch.float16), (SHAPES[4], torch.bfloat16)],
    ids=logits_id,
)
def test_equals_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, backend: str, device: torch.device
) -> None:
    final, premature = _logits(shape, dtype, device)
    divergences, chosen = layer_divergence(final, premature, kind, backend=backend)
    definition = layer_divergence_naive(final, premature, kind)
    assert_equals_definition(divergences, definition)
    assert chosen.tolist() == definition.argmax(0).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_too_small_for_float32_count_by_their_logarithms(
    kind: str, backend: str, device: torch.device
) -> None:
    final, premature = _logits((2, 600, 3), torch.float32, device, scale=60.0)
    assert_equals_definition(
        layer_divergence(final, premature, kind, backend=backend)[0], layer_divergence_naive(final, premature, kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_tokens(kind: str, backend: str, device: torch.device) -> None:
    """A token that both layers exclude adds nothing, even a whole block of them; one that one layer excludes may."""
    final, premature = _logits((2, 3100, 4), torch.float32, device)
    final[:, 1024:2048], premature[..., 1024:2048] = -torch.inf, -torch.inf
    final[1, 3] = -torch.inf
    premature[2, 0, 7] = -torch.inf
    divergences, chosen = layer_divergence(final, premature, kind, backend=backend)
    definition = layer_divergence_naive(final, premature, kind)
    assert_equals_definition(divergences, definition)
    assert chosen.tolist() == definition.argmax(0).tolist()
    assert chosen.tolist() == ([2, 0] if kind == "dola" else chosen.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_of_equal_layers_is_chosen(kind: str, backend: str, device: torch.device) -> None:
    final, premature = _logits((3, 700, 5), torch.float32, device)
    premature = premature.clone()
    premature[0] = final
    premature[2:] = premature[2]
    premature[1, 0] = final[0]  # rows differ: in the first one the equal layers are farthest
    divergences, chosen = layer_divergence(final, premature, kind, backend=backend)
    assert torch.equal(divergences[2], divergences[4])
    assert chosen.tolist() == divergences.cpu().double().argmax(0).tolist()
    assert chosen[0] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_do_not_diverge(kind: str, backend: str, device: torch.device) -> None:
    final, _ = _logits((3, 2500, 1), torch.float32, device)
    divergences, chosen = layer_divergence(final, torch.stack([final, final + 5.0]), kind, backend=backend)
    torch.testing.assert_close(divergences, torch.zeros_like(divergences), atol=1e-5, rtol=0)
    assert set(chosen.tolist()) <= {0, 1}


def test_one_layer_for_the_batch_is_that_of_the_mean(backend: str, device: torch.device) -> None:
    final, premature = _logits((4, 2, 300, 6), torch.float32, device)
    divergences, chosen = layer_divergence(final, premature, per_row=False, backend=backend)
    expected = layer_divergence_naive(final, premature).mean(1).argmax(0)  # of each time
    assert chosen.tolist() == [expected.tolist()] * 4
    chosen_per_row = layer_divergence(final, premature, backend=backend)[1]
    assert chosen_per_row.tolist() == divergences.argmax(0).tolist() != chosen.tolist()


@pytest.mark.parametrize(("kind", "dtype"), [(KINDS[0], torch.float32), (KINDS[1], torch.bfloat16)], ids=logits_id)
def test_each_row_chooses_among_its_candidates_as_alone(
    kind: str, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    final, premature = _logits((2, 3, 1500, 10), dtype, device)
    final[..., :4] = premature[..., :4] = -torch.inf
    candidates = torch.rand(10, 2, 3, generator=torch.Generator().manual_seed(5)).to(device) < 0.4
    candidates[9] |= ~candidates.any(0)
    premature[~candidates] = torch.nan
    divergences, chosen = layer_divergence(final, premature, kind, backend=backend, candidates=candidates)
    definition = layer_divergence_naive(final, premature, kind, candidates)
    assert_equals_definition(divergences, definition)
    assert chosen.tolist() == definition.argmax(0).tolist()
    assert not divergences[~candidates].isfinite().any()
    for row in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        numbers = candidates[:, *row].nonzero().flatten()
        alone = layer_divergence(final[*row], premature[numbers][:, *row], kind, backend=backend)
        assert chosen[*row] == numbers[alone[1]]
        # The sums of a row alone are over blocks of another size.
        torch.testing.assert_close(divergences[numbers][:, *row], alone[0], atol=1e-6, rtol=1e-5)


def test_a_row_without_candidates_chooses_some_layer(backend: str, device: torch.device) -> None:
    final, premature = _logits((3, 700, 5), torch.float32, device)
    candidates = torch.ones(5, 3, dtype=torch.bool, device=device)
    candidates[:, 1] = False
    chosen = layer_divergence(final, premature, backend=backend, candidates=candidates)[1]
    every = layer_divergence(final, premature, backend=backend)[1]
    assert 0 <= chosen[1] < 5
    assert chosen[[0, 2]].tolist() == every[[0, 2]].tolist()


def test_one_layer_for_the_batch_is_a_candidate_of_every_row(backend: str, device: torch.device) -> None:
    final, premature = _logits((3, 300, 4), torch.float32, device)
    final[0, 5] = -torch.inf  # all divergences of this row are infinite
    final[1:, 5] = premature[:, 1:, 5] = -torch.inf
    means = layer_divergence_naive(final[1:], premature[:, 1:]).mean(1)
    candidates = torch.ones(4, 3, dtype=torch.bool, device=device)
    candidates[int(means.argmax()), 2] = False
    chosen = layer_divergence(final[1:], premature[:, 1:], "dola", False, backend, candidates=candidates[:, 1:])[1]
    assert chosen.tolist() == [int(means.masked_fill(~candidates.all(1), -torch.inf).argmax())] * 2
    with_infinite = layer_divergence(final, premature, "dola", False, backend, candidates=candidates)[1]
    assert candidates[with_infinite].all()


def test_without_rows_the_divergences_are_empty(backend: str, device: torch.device) -> None:
    divergences, chosen = layer_divergence(
        torch.zeros(0, 9, device=device), torch.zeros(2, 0, 9, device=device), backend=backend
    )
    assert (divergences.shape, chosen.shape) == ((2, 0), (0,))


F = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer_divergence(F, F), "final and premature must be (..., vocab) and (layers, ..., vocab)"),
        (lambda: layer_divergence(F, F), "got (2, 3) and (2, 3)"),
        (lambda: layer_divergence(F, F[None][:0]), "at least one layer"),
        (lambda: layer_divergence(F, F[None], "kl"), "kind must be one of dola, jensen-shannon, got 'kl'"),
        (
            lambda: layer_divergence(F, F[None], candidates=torch.ones(2, 1, dtype=torch.bool)),
            "candidates must be one bool for each layer and row, (1, 2) on cpu, got torch.bool (2, 1) on cpu",
        ),
        (lambda: layer_divergence(F, F[None], candidates=torch.ones(1, 2)), "got torch.float32 (1, 2) on cpu"),
        (
            lambda: layer_divergence(F, F[None], backend="cuda"),
            "backend must be one of auto, triton, torch, got 'cuda'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)
