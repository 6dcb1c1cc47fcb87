"""The choice among candidates, in torch and as a kernel, against its naive definition."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import shape_id
from torch import Tensor

from decoding.kernels.backend import BackendError
from decoding.kernels.degeneration_penalty import inverse_norms
from decoding.kernels.selection import select, select_naive

VOCAB = 300
SHAPES = [(1, 1, 1, 32), (2, 5, 33, 48), (3, 4, 20, 33), (1, 70, 18, 40)]


def problem(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Draw the tensors that ``select`` takes but for bounds; slots past the length are NaN."""
    batch, k, slots, dim = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, VOCAB, generator=generator)
    probabilities, candidates = logits.softmax(-1).topk(k)
    history = torch.full((batch, slots + 5, dim), torch.nan)
    history[:, :slots] = torch.randn(batch, slots, dim, generator=generator)
    hidden = torch.randn(batch, k, dim, generator=generator)
    named = {
        "logits": logits, "probabilities": probabilities, "candidates": candidates, "hidden": hidden.to(dtype),
        "history": history.to(dtype), "history_inverse_norms": inverse_norms(history.to(dtype)),
    }  # fmt: skip
    return {name: value.to(device) for name, value in named.items()}


def expect(arguments: dict[str, Tensor], alpha: float | Tensor, **bounds: object) -> tuple[Tensor, Tensor, Tensor]:
    """Return the choice of the naive definition."""
    tensors = {name: value.cpu() for name, value in arguments.items() if name != "history_inverse_norms"}
    return select_naive(**tensors, penalty_alpha=alpha, **bounds)  # type: ignore[arg-type]


# The weight is a factor of what was computed before; a dtype decides how states are multiplied, in blocks of a shape.
@pytest.mark.parametrize(
    ("shape", "alpha", "dtype"),
    [
        *((shape, 0.6, torch.float32) for shape in SHAPES),
        (SHAPES[1], 0.0, torch.bfloat16),
        (SHAPES[2], 1.0, torch.float32),
        (SHAPES[3], 0.6, torch.bfloat16),
    ],
    ids=lambda value: shape_id("BKSD", value) if isinstance(value, tuple) else str(value).removeprefix("torch."),
)
def test_equals_the_naive_definition(
    shape: tuple[int, int, int, int], alpha: float, dtype: torch.dtype, backend: str, kernel_device: torch.device
) -> None:
    arguments = problem(shape, kernel_device, dtype)
    chosen = select(**arguments, penalty_alpha=alpha, length=shape[2], backend=backend)
    token, branch, score = expect(arguments, alpha, length=shape[2])
    assert chosen.token.cpu().equal(token)
    assert chosen.branch.cpu().equal(branch)
    # float32 sums in the order in which a GPU's tensor cores add up half-precision products
    torch.testing.assert_close(chosen.score.cpu(), score, rtol=1e-5, atol=1e-5)


def test_each_row_has_its_own_bounds(backend: str, kernel_device: torch.device) -> None:
    arguments = problem((3, 4, 30, 32), kernel_device)
    start, length = torch.tensor([0, 17, 4]), torch.tensor([30, 18, 4])  # the last has no history: the most probable
    token, branch, _ = expect(arguments, 0.6, start=start, length=length)
    for row in range(3):
        for name in ("history", "history_inverse_norms"):
            arguments[name][row, : start[row]] = arguments[name][row, length[row] :] = torch.nan
    bounds = {"start": start.to(kernel_device), "length": length.to(kernel_device)}
    chosen = select(**arguments, **bounds, penalty_alpha=0.6, backend=backend)
    assert chosen.token.cpu().equal(token)
    assert chosen.branch.cpu().equal(branch)
    assert chosen.branch[2] == 0


@pytest.mark.parametrize("shape", [(3, 7, 20, 33), (1, 15, 33, 48)], ids=lambda shape: shape_id("BKSD", shape))
def test_each_row_has_its_own_weight_and_number_of_candidates(
    shape: tuple[int, int, int, int], backend: str, kernel_device: torch.device
) -> None:
    arguments = problem(shape, kernel_device)
    alpha, counts = torch.tensor([1.0, 0.3, 0.0])[: shape[0]], torch.tensor([2, 7, 1])[: shape[0]]
    for row, count in enumerate(counts.tolist()):
        arguments["probabilities"][row, count:] = 0.9  # it would be chosen, were it a candidate
    token, branch, score = expect(arguments, alpha, length=shape[2], counts=counts)
    of_rows = {"penalty_alpha": alpha.to(kernel_device), "counts": counts.to(kernel_device)}
    chosen = select(**arguments, **of_rows, length=shape[2], backend=backend)
    assert chosen.token.cpu().equal(token)
    assert chosen.branch.cpu().equal(branch)
    assert (branch < counts).all()
    torch.testing.assert_close(chosen.score.cpu(), score, rtol=1e-5, atol=1e-5)


def test_the_lowest_token_id_of_equal_scores_is_chosen(backend: str, kernel_device: torch.device) -> None:
    """The argmax over the whole vocabulary would choose the same token."""
    arguments = problem((1, 4, 20, 32), kernel_device)
    arguments["candidates"] = torch.tensor([[9, 7, 8, 3]], device=kernel_device)
    arguments["probabilities"] = torch.tensor([[0.2, 0.2, 0.2, 0.1]], device=kernel_device)
    arguments["hidden"] = arguments["hidden"][:, :1].expand(-1, 4, -1)
    chosen = select(**arguments, penalty_alpha=0.6, length=20, backend=backend)
    assert chosen.token.tolist() == [7]
    assert chosen.branch.tolist() == [1]


def test_a_token_whose_logit_is_minus_infinity_is_never_chosen(backend: str, kernel_device: torch.device) -> None:
    arguments = problem((2, 4, 20, 32), kernel_device)
    candidates = arguments["candidates"]
    arguments["logits"].scatter_(1, candidates[:, :3], -torch.inf)
    arguments["logits"][1].fill_(-torch.inf)  # no candidate may be chosen: still a token of the vocabulary
    chosen = select(**arguments, penalty_alpha=0.6, length=20, backend=backend)
    assert chosen.token[0] == candidates[0, 3]
    assert chosen.token[1] == candidates[1].min()
    assert chosen.score[1] == -torch.inf


def test_a_row_of_nan_still_gets_one_of_its_candidates(backend: str, kernel_device: torch.device) -> None:
    arguments = problem((2, 4, 20, 32), kernel_device)
    arguments["probabilities"][0] = torch.nan
    chosen = select(**arguments, penalty_alpha=0.6, length=20, backend=backend)
    assert chosen.token[0] in arguments["candidates"][0]
    assert chosen.token[1].cpu() == expect(arguments, 0.6, length=20)[0][1]


def test_more_candidates_than_the_kernel_holds(kernel_device: torch.device) -> None:
    arguments = problem((1, 1, 3, 32), kernel_device)
    arguments["logits"] = torch.randn(1, 2000, device=kernel_device)
    arguments["probabilities"], arguments["candidates"] = arguments["logits"].softmax(-1).topk(1025)
    arguments["hidden"] = torch.randn(1, 1025, 32, device=kernel_device)
    token, _, _ = expect(arguments, 0.6, length=3)
    assert select(**arguments, penalty_alpha=0.6, length=3).token.cpu().equal(token)
    with pytest.raises(BackendError, match="candidates must be at most 1024 a row, got 1025"):
        select(**arguments, penalty_alpha=0.6, length=3, backend="triton")


def test_arguments_that_do_not_fit_are_refused() -> None:
    arguments = problem((2, 3, 4, 8), torch.device("cpu"))
    arguments["probabilities"] = arguments["probabilities"][:, :2]
    with pytest.raises(ValueError, match=r"probabilities must be \(batch, k\) = \(2, 3\), got \(2, 3\) and \(2, 2\)"):
        select(**arguments, penalty_alpha=0.6)
    arguments = problem((2, 3, 4, 8), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"counts must be one for each row, \(2,\), got \(3,\)"):
        select(**arguments, penalty_alpha=0.6, counts=torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"penalty_alpha must be one for each row, \(2,\), got \(1,\)"):
        select(**arguments, penalty_alpha=torch.ones(1))
