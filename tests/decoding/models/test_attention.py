"""The attention of few query tokens as models call it, against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from decoding.models import attention
from decoding.models.attention import grouped_heads

MASKS = ["none", "one", "of heads", "bool"]


@pytest.fixture(autouse=True)
def _short_caches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    attention.install_attention()
    monkeypatch.setattr(attention, "LONG", 0)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Registers another ``sdpa`` for the time of a test."""
    return lambda function: monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", function)


def test_a_streams_first_pass_registers_it(registered: Callable[[Any], None]) -> None:
    registered(sdpa_attention_forward)
    with grouped_heads():
        pass
    assert AttentionInterface()["sdpa"] is attention._attention


def test_an_attention_that_the_user_registered_stays(registered: Callable[[Any], None]) -> None:
    def mine() -> None: ...

    registered(mine)
    with grouped_heads():
        assert AttentionInterface()["sdpa"] is mine


def _problem(heads: int, key_heads: int, tokens: int, kind: str) -> tuple[Any, Tensor, Tensor, Tensor, Tensor | None]:
    """Module, query, key, value and mask of two rows over 11 slots."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, tokens, heads, 8, generator=generator).transpose(1, 2)
    key, value = (torch.randn(2, key_heads, 15, 8, generator=generator)[:, :, :11] for _ in range(2))
    module = SimpleNamespace(num_key_value_groups=heads // key_heads, is_causal=True)
    hidden = torch.rand(2, heads if kind == "of heads" else 1, tokens, 11, generator=generator) < 0.4
    hidden[..., 3] = False
    if kind == "none":
        return module, query, key, value, None
    if kind == "bool":
        return module, query, key, value, ~hidden
    return module, query, key, value, torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_it_is_transformers_own_attention(heads: int, key_heads: int, tokens: int, kind: str) -> None:
    problem = _problem(heads, key_heads, tokens, kind)
    expected, _ = sdpa_attention_forward(*problem, scaling=0.3)
    with grouped_heads():
        output, weights = AttentionInterface()["sdpa"](*problem, scaling=0.3, dropout=0.0)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    assert weights is None
    assert output.is_contiguous()


@pytest.mark.parametrize(("tokens", "kind"), [(4, "one"), (4, "of heads"), (4, "bool"), (1, "none"), (1, "bool")])
def test_keys_and_values_are_not_repeated_for_the_heads_of_a_group(
    tokens: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((query.shape, key.shape))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with grouped_heads():
        AttentionInterface()["sdpa"](*_problem(6, 2, tokens, kind), scaling=0.3)
    assert seen == [((2, 2, 3 * tokens, 8), (2, 2, 11, 8))]


@pytest.mark.parametrize(
    "option",
    [
        {"position_bias": torch.zeros(1, 6, 4, 11)},
        {"dropout": 0.5},
        {"softcap": 3.0},
    ],
)
def test_what_it_does_not_know_is_left_to_transformers(option: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "few_query_attention", None)
    called = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *args, **kwargs: called.append(kwargs))
    with grouped_heads():
        AttentionInterface()["sdpa"](*_problem(6, 2, 4, "one"), **option)
    AttentionInterface()["sdpa"](*_problem(6, 2, 4, "one"))  # nor what is outside of a stream's passes
    assert called == [option, {}]


def test_a_piece_of_text_is_left_to_transformers_causal_attention() -> None:
    problem = _problem(6, 2, 4, "none")
    problem = (*problem[:2], *(tensor[:, :, :4] for tensor in problem[2:4]), None)
    expected, _ = sdpa_attention_forward(*problem)
    with grouped_heads():
        output, _ = AttentionInterface()["sdpa"](*problem)
    assert output.equal(expected)


def test_gradients_flow_whichever_backend_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "choose", lambda *_: "triton")
    module, query, key, value, mask = _problem(6, 2, 4, "one")
    query = query.contiguous().requires_grad_()
    with grouped_heads():
        AttentionInterface()["sdpa"](module, query, key, value, mask)[0].sum().backward()
    assert query.grad is not None


def test_the_kernel_is_given_what_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(backend: str) -> Any:
        return lambda query, *_: asked.append(backend) or query

    monkeypatch.setattr(attention, "choose", lambda *_: "triton")
    monkeypatch.setattr(attention, "few_query_attention", watched("triton"))
    monkeypatch.setattr(attention, "few_query_attention_eager", watched("torch"))
    for tokens, dim, dtype in [
        (4, 8, torch.float32),
        (4, 8, torch.float64),
        (4, 257, torch.float32),
        (33, 8, torch.float32),
    ]:
        query, key = torch.zeros(1, 4, tokens, dim, dtype=dtype), torch.zeros(1, 2, 40, dim, dtype=dtype)
        with grouped_heads():
            AttentionInterface()["sdpa"](None, query, key, key, torch.zeros(1, 1, tokens, 40, dtype=dtype))
    assert asked == ["triton", "torch", "torch", "torch"]


@pytest.mark.parametrize(("backend", "made"), [("triton", "seen_span"), ("torch", "grouped_mask")])
def test_what_is_made_of_a_mask_is_made_once_for_all_layers(
    backend: str, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, masks = getattr(attention, made), []

    def watched(mask: Tensor, *given: int) -> Any:
        masks.append(mask)
        return compute(mask, *given)

    monkeypatch.setattr(attention, made, watched)
    monkeypatch.setattr(attention, "choose", lambda *_: backend)
    monkeypatch.setattr(attention, "few_query_attention", lambda query, *_: query)
    _, query, key, value, mask = problem = _problem(6, 2, 4, "one")
    assert mask is not None
    for _ in range(2):  # passes; what a mask holds may change from one to the next
        with grouped_heads():
            for same_mask in (mask, mask[:], mask.clone(), mask):
                AttentionInterface()["sdpa"](problem[0], query, key, value, same_mask)
    assert len(masks) == 4
