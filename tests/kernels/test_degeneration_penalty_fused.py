"""The degeneration penalty's kernels against its naive definition, with NaN in every slot outside the bounds."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, TOLERANCE, dtype_id, relative_rmse, shape_id
from torch import Tensor

from decoding.kernels.degeneration_penalty import (
    append,
    degeneration_penalty,
    degeneration_penalty_naive,
    inverse_norms,
)

# One slot; one tile and a little; odd sizes; the largest k that one program holds, and one more than that.
SHAPES = [
    (1, 1, 1, 32),
    (2, 5, 33, 48),
    (1, 4, 64, 128),
    (3, 3, 17, 33),
    (1, 5, 20, 301),
    (1, 64, 18, 32),
    (2, 65, 9, 40),
]
SPARE = 7  # slots of capacity past the length


def problem(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw candidates, history and inverse norms; spare slots after the length are NaN."""
    batch, k, slots, dim = shape
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randn(batch, k, dim, generator=generator).to(device, dtype)
    history = torch.full((batch, slots + SPARE, dim), torch.nan, dtype=dtype, device=device)
    history[:, :slots] = torch.randn(batch, slots, dim, generator=generator)
    norms = inverse_norms(history)
    norms[:, slots:] = torch.nan
    return candidates, history, norms


# Tiles are cut by the shape, and by whether the dtype is float32.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in SHAPES),
        *((shape, torch.float16) for shape in SHAPES[::2]),
        *((shape, torch.bfloat16) for shape in SHAPES[1::2]),
    ],
    ids=lambda value: shape_id("BKSD", value) if isinstance(value, tuple) else dtype_id(value),
)
def test_equals_the_naive_definition(
    shape: tuple[int, int, int, int], dtype: torch.dtype, kernel_device: torch.device
) -> None:
    candidates, history, norms = problem(shape, dtype, kernel_device)
    penalty, repeated = degeneration_penalty(
        candidates, history, norms, length=shape[2], backend="triton", positions=True
    )
    expected, slots = degeneration_penalty_naive(candidates.cpu(), history.cpu(), length=shape[2])
    assert relative_rmse(penalty, expected) < TOLERANCE[dtype]
    assert repeated.cpu().equal(slots)
    assert penalty.equal(degeneration_penalty(candidates, history, norms, length=shape[2], backend="triton"))


@pytest.mark.parametrize("slots", [16, 32, 64], ids=lambda slots: f"S{slots}")
def test_tiles_of_every_size(slots: int, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-precision histories that are long enough for 16, 32 and 64 slots a tile."""
    from decoding.kernels.degeneration_penalty import fused

    monkeypatch.setattr(fused, "TARGET_TILES", 3)
    length = 3 * slots + 1
    candidates, history, norms = problem((1, 3, length, 48), torch.bfloat16, kernel_device)
    tile_max, _ = fused.tile_cosines(candidates, history, norms, None, length)
    assert tile_max.shape == (1, 3, 4)  # three whole tiles and the rest
    arguments = candidates, history, norms, torch.tensor([slots + 1], device=kernel_device), length
    penalty, repeated = degeneration_penalty(*arguments, backend="triton", positions=True)
    expected, slots_of_definition = degeneration_penalty_naive(
        candidates.cpu(), history.cpu(), torch.tensor([slots + 1]), length=length
    )
    assert relative_rmse(penalty, expected) < TOLERANCE[torch.bfloat16]
    assert repeated.cpu().equal(slots_of_definition)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_slots_outside_a_row_are_not_read(dtype: torch.dtype, kernel_device: torch.device) -> None:
    candidates, history, norms = problem((5, 3, 37, 40), dtype, kernel_device)
    starts, ends = [0, 15, 16, 36, 5], [37, 16, 33, 37, 5]  # within a tile, across tiles, one slot, nothing
    expected, slots = degeneration_penalty_naive(
        candidates.cpu(), history.cpu(), torch.tensor(starts), torch.tensor(ends)
    )
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        history[row, :start] = history[row, end:] = torch.nan
        norms[row, :start] = norms[row, end:] = torch.nan
    bounds = torch.tensor(starts, device=kernel_device), torch.tensor(ends, dtype=torch.int32, device=kernel_device)
    penalty, repeated = degeneration_penalty(candidates, history, norms, *bounds, backend="triton", positions=True)
    assert relative_rmse(penalty, expected) < TOLERANCE[dtype]
    assert repeated.cpu().equal(slots)
    assert penalty[4].eq(0).all()
    assert repeated[4].eq(-1).all()


def test_zero_vectors_have_similarity_zero(kernel_device: torch.device) -> None:
    candidates, history, norms = problem((2, 3, 20, 48), torch.float32, kernel_device)
    history[0, :20], candidates[1, 1] = 0, 0
    norms = inverse_norms(history)
    penalty, repeated = degeneration_penalty(candidates, history, norms, length=20, backend="triton", positions=True)
    assert penalty[0].eq(0).all()
    assert repeated[0].eq(0).all()
    assert penalty[1, 1] == 0
    assert penalty.isfinite().all()
    empty = torch.tensor([0, 20], device=kernel_device)  # a zero candidate of a row that starts where it ends
    assert degeneration_penalty(candidates, history, norms, empty, empty, backend="triton").eq(0).all()


def test_the_first_of_equal_slots_is_returned(kernel_device: torch.device) -> None:
    candidates, history, norms = problem((1, 2, 50, 32), torch.float32, kernel_device)
    history[0, [19, 20, 40]] = 2 * candidates[0, 0]  # in two tiles of 16, twice in one of them
    norms = inverse_norms(history)
    penalty, repeated = degeneration_penalty(candidates, history, norms, length=50, backend="triton", positions=True)
    assert repeated[0, 0] == 19
    torch.testing.assert_close(penalty[0, 0].item(), 1.0)


def test_any_strides_are_read(kernel_device: torch.device) -> None:
    candidates, history, norms = problem((3, 4, 21, 36), torch.float16, kernel_device)
    expected, _ = degeneration_penalty_naive(candidates.cpu(), history.cpu(), length=21)

    def strided(states: Tensor) -> Tensor:
        return states.permute(2, 0, 1).contiguous().permute(1, 2, 0)

    norms = norms.t().contiguous().t()
    penalty = degeneration_penalty(strided(candidates), strided(history), norms, length=21, backend="triton")
    assert relative_rmse(penalty, expected) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("dim", [33, 64])
def test_append_writes_its_slots_only(dim: int, dtype: torch.dtype, kernel_device: torch.device) -> None:
    hidden, history, norms = problem((2, 3, 6, dim), dtype, kernel_device)
    hidden[1, 1] = 0
    states = history.clone()
    append(history, norms, hidden, 6, backend="triton")
    assert history[:, 6:9].equal(hidden)
    assert history[:, :6].equal(states[:, :6])
    assert history[:, 9:].isnan().all()
    torch.testing.assert_close(norms[:, :9], inverse_norms(history[:, :9]), rtol=1e-5, atol=0)
    assert norms[:, 9:].isnan().all()
    assert norms[1, 7] == 0
