"""Attention of a few query tokens, in torch and as a kernel, against the naive definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import DTYPES, dtype_id, poison_empty, relative_rmse, shape_id
from torch import Tensor

from decoding.kernels.few_query_attention import few_query_attention, few_query_attention_naive, seen_span

# One query; contrastive search with and without grouped heads; odd sizes, values narrower than keys; many queries.
SHAPES = [
    (1, 2, 2, 1, 33, 16, 16),
    (2, 4, 2, 4, 70, 32, 32),
    (1, 4, 4, 4, 200, 64, 64),
    (3, 6, 3, 3, 45, 24, 20),
    (1, 5, 1, 7, 19, 80, 96),
    (1, 8, 1, 9, 130, 16, 16),
    (1, 2, 1, 2, 300, 128, 128),
]
MASKS = ["none", "one", "of heads", "bool"]
# float32 sums in another order. Half-precision results are rounded (1.7e-3 in bfloat16; the interpreter truncates,
# 3.4e-3), and so are a kernel's weights before their product with the values.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 4e-3}
SPARE = 7  # slots of the cache after those that are read


def size_id(shape: tuple[int, ...]) -> str:
    return shape_id("BHGQSDV", shape)


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Draw query, keys and values laid out as by a model and its cache, and a mask; spare slots are NaN."""
    batch, heads, key_heads, tokens, slots, dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    def cached(width: int) -> Tensor:
        storage = torch.full((batch, key_heads, slots + SPARE, width), torch.nan, dtype=dtype, device=device)
        storage[:, :, :slots] = normal(batch, key_heads, slots, width)
        return storage[:, :, :slots]

    query = normal(batch, tokens, heads, dim).transpose(1, 2)
    if kind == "none":
        return query, cached(dim), cached(value_dim), None
    hidden = torch.rand(batch, heads if kind == "of heads" else 1, tokens, slots, generator=generator) < 0.4
    hidden[..., slots // 2] = False  # every query sees something
    if kind == "bool":
        return query, cached(dim), cached(value_dim), ~hidden.to(device)
    bias = normal(*hidden.shape).masked_fill_(hidden.to(device), torch.finfo(dtype).min)
    return query, cached(dim), cached(value_dim), bias


def expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    tensors = (None if x is None else x.cpu() for x in (query, key, value, mask))
    return few_query_attention_naive(*tensors, scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]], ids=size_id)
def test_the_torch_form_equals_the_naive_definition(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    inputs = problem(shape, dtype, kind, torch.device("cpu"))
    output = few_query_attention(*inputs, scale=0.3, backend="torch")
    assert output.dtype == dtype
    assert relative_rmse(output, expected(*inputs, scale=0.3)) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("tokens", [1, 4])
def test_long_caches_on_a_cpu_are_read_by_two_products(tokens: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from decoding.kernels.few_query_attention import eager

    monkeypatch.setattr(eager, "LONG", 100)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # must not run
    for heads in (3, 3 * 4 // tokens):
        inputs = problem((2, heads, 3, tokens, 120, 16, 24), torch.float32, kind, torch.device("cpu"))
        output = few_query_attention(*inputs)
        assert relative_rmse(output, expected(*inputs, scale=0.25)) < 2e-6


def test_uneven_rows_and_gradients_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from decoding.kernels.few_query_attention import eager

    monkeypatch.setattr(eager, "LONG", 100)
    monkeypatch.setattr(eager, "_attend_by_products", None)
    query, key, value, mask = problem((2, 3, 3, 4, 120, 16, 16), torch.float32, "one", torch.device("cpu"))
    reference = expected(query, key, value, mask, scale=0.25)
    apart = [torch.cat([x, x], dim=1)[:, :3] for x in (key, value)]
    assert relative_rmse(few_query_attention(query, *apart, mask), reference) < 2e-6
    query.requires_grad_()
    few_query_attention(query, key, value, mask).sum().backward()
    assert query.grad is not None


# Sizes of blocks come from the shape and from whether the dtype is float32; the two half-precision ones share a way.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in SHAPES),
        *((shape, torch.float16) for shape in SHAPES[::2]),
        *((shape, torch.bfloat16) for shape in SHAPES[1::2]),
    ],
    ids=lambda value: size_id(value) if isinstance(value, tuple) else dtype_id(value),
)
def test_the_kernel_equals_the_naive_definition(
    shape: tuple[int, ...], dtype: torch.dtype, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one split a block and with few, with a mask of all heads and of each; every dtype meets all."""
    place = SHAPES.index(shape), DTYPES.index(dtype)
    kind = "of heads" if sum(place) % 2 else "one"
    if (place[0] // 2 + place[1]) % 2:
        set_target_programs(3, monkeypatch)
    inputs = problem(shape, dtype, kind, kernel_device)
    with monkeypatch.context() as patch:
        poison_empty(patch)
        output = few_query_attention(*inputs, scale=0.3, backend="triton")
    assert output.dtype == dtype
    assert relative_rmse(output, expected(*inputs, scale=0.3)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("none", torch.bfloat16), ("bool", torch.float32)], ids=["none-bfloat16", "bool-float32"]
)
def test_the_kernel_takes_no_mask_and_bool_ones(dtype: torch.dtype, kind: str, kernel_device: torch.device) -> None:
    slots = 70 if dtype == torch.float32 else 290  # a few blocks
    inputs = problem((2, 6, 3, 2, slots, 40, 40), dtype, kind, kernel_device)
    output = few_query_attention(*inputs, backend="triton")
    assert relative_rmse(output, expected(*inputs, scale=40**-0.5)) < TOLERANCE[dtype]


# What a float mask hides is told by the least number of its dtype; a bool mask is the same whatever the others are in.
@pytest.mark.parametrize(
    ("of", "dtype"), [("bool", torch.float32), *(("float", dtype) for dtype in DTYPES)],
    ids=lambda value: value if isinstance(value, str) else dtype_id(value),
)  # fmt: skip
def test_the_kernel_reads_nothing_outside_the_span_of_a_row(
    of: str, dtype: torch.dtype, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with left padding, a sliding window, the unused end of a static cache, one slot, no slot."""
    set_target_programs(12, monkeypatch)
    slots = 90 if dtype == torch.float32 else 300  # blocks have 16 of them, or 128
    query, key, value, _ = problem((5, 2, 1, 3, slots, 32, 32), dtype, "none", kernel_device)
    seen = torch.zeros(5, 1, 3, slots, dtype=torch.bool)
    for row, (low, high) in enumerate([(0, slots), (slots // 2 - 13, slots), (5, slots - 21), (64, 65), (9, 9)]):
        seen[row, :, :, low:high] = True
        if high - low > 1:
            seen[row, 0, 1, low : high - 1] = torch.rand(high - low - 1) < 0.5  # the other tokens see all of it
    mask = seen if of == "bool" else torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    reference = expected(query[:4], key[:4], value[:4], mask[:4], scale=0.2)
    mask = mask.to(kernel_device)
    for row in range(5):
        unseen = ~seen[row].any(1)[0].to(kernel_device)
        key[row, :, unseen] = value[row, :, unseen] = torch.nan
    output = few_query_attention(query, key, value, mask, 0.2, seen_span(mask), backend="triton")
    assert relative_rmse(output[:4], reference) < TOLERANCE[dtype]
    assert output[4].eq(0).all()
    one = mask[:1].expand(1, 2, -1, -1)  # the span of one row serves all
    output = few_query_attention(query[:2], key[:1].expand(2, -1, -1, -1), value[:1].expand(2, -1, -1, -1), one, 0.2,
                                 seen_span(one), backend="triton")  # fmt: skip
    assert relative_rmse(output[:1], reference[:1]) < TOLERANCE[dtype]


@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, -torch.inf])
def test_a_query_that_sees_nothing_does_not_change_the_others(lowest: float, kernel_device: torch.device) -> None:
    inputs = problem((1, 2, 1, 3, 100, 16, 16), torch.float32, "one", kernel_device)
    reference = expected(*inputs, scale=0.25)
    assert inputs[3] is not None
    inputs[3][:, :, 1] = lowest
    output = few_query_attention(*inputs, backend="triton")
    assert output.isfinite().all()
    assert relative_rmse(output[:, :, ::2], reference[:, :, ::2]) < TOLERANCE[torch.float32]


def test_any_strides_are_read(kernel_device: torch.device) -> None:
    inputs = problem((2, 4, 2, 3, 70, 24, 24), torch.float16, "of heads", kernel_device)
    strided = [x if x is None else x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for x in inputs]
    output = few_query_attention(*strided, backend="triton")  # type: ignore[arg-type]
    assert output.equal(few_query_attention(*inputs, backend="triton"))


def set_target_programs(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the launcher split as if this many programs filled the GPU."""
    from decoding.kernels.few_query_attention import fused

    monkeypatch.setattr(fused, "FILLING", programs)


@pytest.mark.parametrize("of", ["bool", "float"])
def test_the_span_of_a_mask_is_from_the_first_seen_slot_to_the_last(of: str) -> None:
    seen = torch.zeros(3, 2, 2, 9, dtype=torch.bool)
    seen[0, 0, 1, 3] = seen[0, 1, 0, 5] = seen[1] = True
    mask = seen if of == "bool" else torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min) - 5
    start, end = seen_span(mask)
    assert (start.tolist(), end.tolist()) == ([3, 0, 9], [6, 9, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(2, 3, 6, 8)}, "heads a multiple of key heads"),
        ({"value": torch.zeros(2, 2, 5, 8)}, "got query (2, 4, 3, 8), key (2, 2, 6, 8), value (2, 2, 5, 8)"),
        ({"query": torch.zeros(2, 4, 3, 9)}, "got query (2, 4, 3, 9)"),
        (
            {"mask": torch.zeros(2, 2, 3, 6)},
            "mask must be (batch or 1, heads or 1, tokens, slots) with batch, heads, tokens, slots = (2, 4, 3, 6), got "
            "(2, 2, 3, 6)",
        ),
        ({"mask": torch.zeros(3, 6)}, "got (3, 6)"),
        ({"backend": "cuda"}, "backend must be one of auto, triton, torch, got 'cuda'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"query": torch.zeros(2, 4, 3, 8), "key": torch.zeros(2, 2, 6, 8), "value": torch.zeros(2, 2, 6, 8)}
    with pytest.raises(ValueError) as raised:
        few_query_attention(**{**arguments, **change})
    assert message in str(raised.value)
