"""Contrastive search behind a quantised cache against the same cache filled token by token, without branches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, tiny_model
from torch import Tensor
from transformers import QuantizedCache, cache_utils

import decoding
from decoding import ContrastiveSearch, DoLa, ModelError
from decoding.capabilities.capabilities import open_stream

ALPHA, K, STEPS, PROMPT = 0.6, 4, 5, 40
# Packed anew every 4 tokens, so that it happens within these few.
GROUPED = {"nbits": 4, "q_group_size": 8, "residual_length": 4}
CACHES = {
    "quanto": {"backend": "quanto", **GROUPED},
    "quanto-last-axis": {"backend": "quanto", **GROUPED, "axis_key": -1, "axis_value": -1},
    "hqq": {"backend": "hqq", **GROUPED},
    "hqq-axis-1": {"backend": "hqq", **GROUPED, "axis_key": 1, "axis_value": 1},
    "fp8": {"backend": "fp8"},
}


@pytest.fixture(scope="module", autouse=True)
def hqq_is_known() -> Iterator[None]:
    """Give transformers hqq, without which it was imported (tests/conftest.py)."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            from hqq.core.quantize import Quantizer
        except ImportError:
            pass
        else:
            patch.setattr(cache_utils, "HQQQuantizer", Quantizer, raising=False)
            patch.setattr(cache_utils, "is_hqq_available", lambda: True)
        yield


@pytest.fixture(scope="module", autouse=True)
def unpacked_without_a_compiler() -> Iterator[None]:
    """Unpack optimum-quanto's integers in torch: its C++ form makes the same ones, after a minute of compiling."""
    try:
        from optimum.quanto.library.extensions import get_extension
    except ImportError:
        yield
        return

    def unpack(packed: Tensor, bits: int) -> Tensor:
        return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])

    extension = get_extension("quanto_cpp")
    compiled, extension._lib = extension._lib, SimpleNamespace(unpack=unpack)
    yield
    extension._lib = compiled


def _settings(name: str) -> dict[str, Any]:
    """The cache's settings; the test is skipped where its packages are not installed."""
    if name == "fp8" and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("this transformers has no fp8 cache")
    if name != "fp8":
        pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[name.split("-")[0]])
    return dict(CACHES[name])


def _batch() -> tuple[Tensor, Tensor]:
    """Two prompts, the first left-padded."""
    ids = torch.randint(3, VOCAB, (2, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, :8] = mask[0, :8] = 0
    return ids, mask


@torch.no_grad()
def _read(model: Any, cache: QuantizedCache, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, new, dim) last hidden states and (batch, vocab) logits of the tokens that a cache has not taken yet: the
    prompt at once, then token by token.
    """
    mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = []
    while (start := cache.get_seq_length()) < ids.shape[1]:
        end = max(start + 1, PROMPT)
        output = model(
            ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions[:, start:end],
            past_key_values=cache, use_cache=True, output_hidden_states=True,
        )  # fmt: skip
        hidden.append(output.hidden_states[-1])
    return torch.cat(hidden, dim=1), output.logits[:, -1]


def _copied(cache: QuantizedCache) -> QuantizedCache:
    """A cache that holds the same: its layers write to no tensor that they have, they take a new one."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _searched(model: Any, settings: dict[str, Any], ids: Tensor, mask: Tensor) -> Tensor:
    """The tokens of contrastive search, every candidate of the batch read behind a copy of the cache of its text."""
    cache = QuantizedCache(config=model.config, **settings)
    history, logits = _read(model, cache, ids, mask)
    for _ in range(STEPS):
        probabilities, candidates = logits.softmax(-1).topk(K)
        padding = torch.nn.functional.pad(mask == 0, (0, history.shape[1] - PROMPT))
        scores = []
        for probability, token in zip(probabilities.T, candidates.T, strict=True):
            own, _ = _read(model, _copied(cache), torch.cat([ids, token[:, None]], dim=1), mask)
            likeness = torch.nn.functional.cosine_similarity(own, history, dim=-1).masked_fill(padding, -1)
            scores.append((1 - ALPHA) * probability - ALPHA * likeness.amax(1))
        best = torch.stack(scores, dim=1).argmax(1, keepdim=True)
        ids = torch.cat([ids, candidates.gather(1, best)], dim=1)
        states, logits = _read(model, cache, ids, mask)
        history = torch.cat([history, states], dim=1)
    return ids


@pytest.mark.parametrize(
    ("name", "cache"), [*(("qwen2", cache) for cache in CACHES), ("gpt2", "quanto"), ("gpt2", "hqq-axis-1")]
)
def test_tokens_are_those_of_the_same_cache_without_branches(name: str, cache: str) -> None:
    settings, model = _settings(cache), tiny_model(name)
    ids, mask = _batch()
    got = decoding.generate(
        model, input_ids=ids, attention_mask=mask, strategy=ContrastiveSearch(ALPHA, K), max_new_tokens=STEPS,
        cache_implementation="quantized", cache_config=settings,
    )  # fmt: skip
    assert got.tolist() == _searched(model, settings, ids, mask).tolist()


@pytest.mark.parametrize("cache", ["quanto", "hqq"])
def test_the_cache_that_comes_back_holds_the_text_and_no_candidate(cache: str) -> None:
    settings, model = _settings(cache), tiny_model("qwen2")
    ids, mask = _batch()
    output = decoding.generate(
        model, input_ids=ids, attention_mask=mask, strategy=ContrastiveSearch(ALPHA, K), max_new_tokens=STEPS,
        cache_implementation="quantized", cache_config=settings, return_dict_in_generate=True,
    )  # fmt: skip
    assert output.past_key_values.get_seq_length() == PROMPT + STEPS - 1
    _, logits = _read(model, QuantizedCache(config=model.config, **settings), output.sequences, mask)
    mask = torch.nn.functional.pad(mask, (0, STEPS), value=1)
    position = mask.sum(1, keepdim=True) - 1
    with torch.no_grad():
        onwards = model(
            output.sequences[:, -1:], attention_mask=mask, position_ids=position, past_key_values=output.past_key_values
        ).logits[:, -1]
    torch.testing.assert_close(onwards, logits, atol=1e-4, rtol=1e-3)  # float32, sums in another order


def test_early_exits_need_no_branches() -> None:
    settings, model = _settings("quanto"), tiny_model("qwen2")
    ids, mask = _batch()
    options: dict[str, Any] = {"cache_implementation": "quantized", "cache_config": settings, "max_new_tokens": 4}
    strategy = DoLa(layers=[1], alpha=1.0)  # only the most probable token is plausible: greedy search
    got = decoding.generate(model, input_ids=ids, attention_mask=mask, strategy=strategy, **options)
    greedy = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **options)
    assert got.tolist() == greedy.tolist()


def test_a_model_that_needs_forked_rows_is_refused() -> None:
    settings, (ids, mask) = _settings("quanto"), _batch()
    with pytest.raises(
        ModelError, match=r"needs tree attention, which BloomForCausalLM does not allow .* leave out cache_impl"
    ):
        decoding.generate(
            tiny_model("bloom"), input_ids=ids, attention_mask=mask, strategy=ContrastiveSearch(ALPHA, K),
            max_new_tokens=2, cache_implementation="quantized", cache_config=settings,
        )  # fmt: skip


def test_readings_of_its_own_do_not_take_the_cache_that_a_model_is_configured_with() -> None:
    model = tiny_model("qwen2")
    model.generation_config.cache_implementation = "quantized"
    model.generation_config.cache_config = _settings("quanto")
    assert not isinstance(open_stream(model, input_ids=_batch()[0]).cache, QuantizedCache)


def test_a_quantised_cache_is_not_rewound() -> None:
    model = tiny_model("qwen2")
    cache = QuantizedCache(config=model.config, **_settings("quanto"))
    stream = open_stream(model, input_ids=_batch()[0], past_key_values=cache)
    with pytest.raises(ModelError, match=r"rewind\(30\): a quantised cache has packed"):
        stream.rewind(30)
