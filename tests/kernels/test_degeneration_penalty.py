"""The degeneration penalty against its naive definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import dtype_id, relative_rmse, shape_id

from decoding.kernels.degeneration_penalty import (
    append,
    degeneration_penalty,
    degeneration_penalty_naive,
    inverse_norms,
)

# Sums over the dimension are float32. Half-precision inputs are the same numbers for both forms, so the bound holds for
# them too.
TOLERANCE = 2e-6
SHAPES = [(1, 1, 1, 32), (1, 4, 33, 48), (3, 5, 17, 7), (2, 9, 130, 64), (2, 3, 2500, 8)]


def _random(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batch, k, length, dim = shape
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randn(batch, k, dim, generator=generator).to(dtype)
    return candidates, torch.randn(batch, length, dim, generator=generator).to(dtype)


# Half-precision histories are widened alike, in chunks where they are long.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in SHAPES),
        (SHAPES[2], torch.float16),
        (SHAPES[3], torch.bfloat16),
        (SHAPES[4], torch.float16),
    ],
    ids=lambda value: shape_id("BKSD", value) if isinstance(value, tuple) else dtype_id(value),
)
def test_equals_the_naive_definition(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    candidates, history = _random(shape, dtype)
    penalty = degeneration_penalty(candidates, history, inverse_norms(history))
    assert penalty.dtype == torch.float32
    expected, _ = degeneration_penalty_naive(candidates, history)
    assert relative_rmse(penalty, expected) < TOLERANCE


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_slots_outside_a_row_are_not_read(data: st.DataObject) -> None:
    batch, k, capacity, dim = (data.draw(st.integers(1, high)) for high in (4, 5, 40, 16))
    candidates, history = _random((batch, k, capacity, dim), torch.float32, seed=data.draw(st.integers(0, 999)))
    ends = data.draw(st.lists(st.integers(1, capacity), min_size=batch, max_size=batch))
    starts = [data.draw(st.integers(0, end - 1)) for end in ends]
    norms = inverse_norms(history)
    expected, slots = degeneration_penalty_naive(candidates, history, torch.tensor(starts), torch.tensor(ends))
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        history[row, :start] = history[row, end:] = float("nan")
        norms[row, :start] = norms[row, end:] = float("nan")
    bounds = torch.tensor(starts), torch.tensor(ends)
    penalty, repeated = degeneration_penalty(candidates, history, norms, *bounds, positions=True)
    torch.testing.assert_close(penalty, expected, atol=1e-5, rtol=1e-5)
    if dim > 1:  # in one dimension every cosine is 1 or -1, and rounding decides which equal one comes first
        assert repeated.equal(slots)


def test_zero_vectors_have_similarity_zero() -> None:
    candidates, history = _random((1, 3, 6, 8), torch.float32)
    history[0, 2], candidates[0, 1] = 0, 0
    penalty = degeneration_penalty(candidates, history, inverse_norms(history))
    assert penalty.isfinite().all()
    assert penalty[0, 1] == 0
    only_zero = torch.zeros(1, 1, 8)
    assert degeneration_penalty(candidates, only_zero, inverse_norms(only_zero)).eq(0).all()


def test_a_token_seen_before_has_penalty_one_and_its_opposite_minus_one() -> None:
    candidates, history = _random((1, 2, 1, 16), torch.float32)
    candidates[0, 0], candidates[0, 1] = 3 * history[0, 0], -2 * history[0, 0]
    penalty = degeneration_penalty(candidates, history, inverse_norms(history))
    torch.testing.assert_close(penalty, torch.tensor([[1.0, -1.0]]))


def test_no_history_is_no_penalty() -> None:
    candidates, history = _random((2, 3, 4, 8), torch.float32)
    penalty, repeated = degeneration_penalty(candidates, history, inverse_norms(history), length=0, positions=True)
    assert penalty.eq(0).all()
    assert repeated.eq(-1).all()


def test_append_writes_states_and_inverse_norms_in_place() -> None:
    hidden, history = _random((2, 3, 8, 16), torch.float16)
    hidden[1, 2] = 0
    before, norms = history.clone(), inverse_norms(history)
    append(history, norms, hidden, 4)
    assert history[:, 4:7].equal(hidden)
    assert history[:, :4].equal(before[:, :4])
    assert history[:, 7:].equal(before[:, 7:])
    torch.testing.assert_close(norms, inverse_norms(history))
    assert norms[1, 6] == 0
    with pytest.raises(ValueError, match=r"at must be from 0 to 5 for 3 states in a history of 8 slots, got 6"):
        append(history, norms, hidden, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": torch.zeros(2, 4, 9)}, "with the same batch and dim, got (2, 3, 8) and (2, 4, 9)"),
        (
            {"history_inverse_norms": torch.zeros(2, 5)},
            "history_inverse_norms must be (batch, capacity) = (2, 4), got (2, 5)",
        ),
        ({"backend": "cuda"}, "backend must be one of auto, triton, torch, got 'cuda'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "candidates": torch.zeros(2, 3, 8),
        "history": torch.zeros(2, 4, 8),
        "history_inverse_norms": torch.zeros(2, 4),
    }
    with pytest.raises(ValueError) as raised:
        degeneration_penalty(**{**arguments, **change})  # type: ignore[arg-type]
    assert message in str(raised.value)
