"""Messages of calls that cannot go well; a model that is repaired is inspected again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, random_ids, tiny_model
from tiny_strategies import ADAPTER, EXAMPLES, adapted
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

import decoding
from decoding import ContrastiveDecoding, ContrastiveSearch, DoLa, InputError, ModelError, OptionError, Prompt
from decoding.capabilities.branching import branching_of
from decoding.models.structure import inspect_model

CONTEXT = 128  # of the tiny models


def _with(place: int, token: int) -> Tensor:
    ids = random_ids(2, 6)
    ids[1, place] = token
    return ids


def _mask(**changes: Any) -> Tensor:
    mask = torch.ones(2, 6, dtype=torch.long)
    for row, values in changes.items():
        mask[int(row[-1])] = values
    return mask


CALLS: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], str]] = {
    "token-past-the-vocabulary": (
        lambda: {"input_ids": _with(4, VOCAB)}, InputError, rf"token {VOCAB} \(row 1, place 4\) .* 0 to {VOCAB - 1}"
    ),
    "negative-token": (lambda: {"input_ids": _with(0, -1)}, InputError, r"token -1 \(row 1, place 0\)"),
    "no-row": (lambda: {"input_ids": random_ids(0, 6)}, InputError, "empty"),
    "floats": (lambda: {"input_ids": random_ids(2, 6).float()}, InputError, r"input_ids \(2, 6\) of float32"),
    "mask-too-narrow": (
        lambda: {"input_ids": random_ids(2, 6), "attention_mask": _mask()[:, 1:]}, InputError, r"\(2, 6\).* 5 places"
    ),
    "mask-of-twos": (
        lambda: {"input_ids": random_ids(2, 6), "attention_mask": _mask(row1=2)},
        InputError,
        r"row 1 holds other numbers",
    ),
    "mask-of-nothing": (
        lambda: {"input_ids": random_ids(2, 6), "attention_mask": _mask(row1=0)}, InputError, r"row 1 is all padding"
    ),
    "cache-of-an-encoder-decoder": (
        lambda: {"input_ids": random_ids(2, 6), "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())},
        InputError, "is a EncoderDecoderCache",
    ),
    "every-token-excluded": (
        lambda: {"input_ids": random_ids(2, 6), "suppress_tokens": list(range(VOCAB))}, OptionError,
        r"no token is left to choose at step 0 \(row 0\)",
    ),
    "every-token-excluded-of-a-draw": (
        lambda: {"input_ids": random_ids(2, 6), "suppress_tokens": list(range(VOCAB)), "do_sample": True}, OptionError,
        r"no token is left to choose at step 0 \(row 0\)",
    ),
    "ranks-without-a-group": (
        lambda: {"input_ids": random_ids(2, 6), "synced_gpus": True}, OptionError, "no process group"
    ),
}  # fmt: skip


# Inputs are checked before a strategy sees them: each call with a strategy that branches, with a contrast, and on a
# model with adapters. Tokens are chosen by each session: calls that leave none to choose, greedily and in draws by
# turns, with every strategy.
REFUSED = [(name, strategy) for name in CALLS for strategy in ("contrastive-search", "contrastive-decoding", ADAPTER)]
CHOOSING = [name for name in CALLS if name.startswith("every-token")]
REFUSED += [
    (CHOOSING[turn % len(CHOOSING)], strategy)
    for turn, strategy in enumerate(EXAMPLES)
    if (CHOOSING[0], strategy) not in REFUSED
]


@pytest.mark.parametrize(("name", "strategy"), REFUSED)
def test_a_call_that_cannot_go_well(name: str, strategy: str) -> None:
    arguments, error, message = CALLS[name]
    model = tiny_model("llama")
    with pytest.raises(error, match=message) as refusal:
        decoding.generate(
            adapted(model) if strategy == ADAPTER else model,
            **arguments(), strategy=EXAMPLES[strategy](), max_new_tokens=4,
        )  # fmt: skip
    assert "\n" not in str(refusal.value)


def test_a_text_that_outgrows_learned_positions() -> None:
    with pytest.raises(ModelError, match=rf"its context is {CONTEXT} tokens: ask for fewer new ones"):
        decoding.generate(
            tiny_model("gpt2"), random_ids(1, CONTEXT - 3), strategy=ContrastiveSearch(), max_new_tokens=8
        )


@pytest.mark.parametrize("token", [-1, VOCAB, 10**6])
def test_a_prompt_of_an_amateur_with_tokens_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(InputError, match=rf"the amateur's prompt has token {token}"):
        decoding.generate(
            tiny_model("llama"), random_ids(2, 6), strategy=ContrastiveDecoding(Prompt([5, token])), max_new_tokens=4
        )


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("way", ["facade", "processor"])
def test_nan_logits_are_no_text(way: str, sample: bool) -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch()
    decoding.generate(model, random_ids(2, 6), strategy=strategy, max_new_tokens=2)
    model.model.norm.weight.data[0] = torch.nan
    if way == "facade":
        with pytest.raises(ModelError, match=r"gave NaN logits at step 0 \(row 0\)"):
            decoding.generate(model, random_ids(2, 6), strategy=strategy, max_new_tokens=4, do_sample=sample)
    else:
        processor = strategy.logits_processor(model)
        with pytest.raises(InputError, match=r"the scores given to the processor are NaN \(row 0\)"):
            model.generate(random_ids(2, 6), logits_processor=[processor], max_new_tokens=4, do_sample=sample, top_k=0)


def test_rows_that_have_ended_need_no_token() -> None:
    """Row 0 ends at its first token; from then on processors may leave it nothing."""
    model, ids = tiny_model("llama"), random_ids(2, 6)
    free = decoding.generate(model, ids, strategy=ContrastiveSearch(), max_new_tokens=5)
    end = free[0, 6].item()
    assert end not in free[1, 6:]

    def nothing_for_row_0(given: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        if given.shape[1] > 6:
            scores[0] = -torch.inf
        return scores

    options = {"eos_token_id": end, "pad_token_id": 0, "max_new_tokens": 5, "logits_processor": [nothing_for_row_0]}
    for more in ({}, {"do_sample": True, "top_k": 0, "temperature": 1e-4}):
        tokens = decoding.generate(model, ids, strategy=ContrastiveSearch(top_k=4), **options, **more)
        assert tokens[0, 6:].tolist() == [end, 0, 0, 0, 0]


def test_a_model_that_is_repaired_is_inspected_again() -> None:
    model, ids = tiny_model("llama"), random_ids(2, 6)
    whole = model.model.norm.weight.data.clone()
    model.model.norm.weight.data[0] = torch.nan
    for strategy in (ContrastiveSearch(), DoLa([1])):
        with pytest.raises(ModelError, match="NaN"):
            decoding.generate(model, ids, strategy=strategy, max_new_tokens=4)
    model.model.norm.weight.data.copy_(whole)
    assert branching_of(model).way == "shared prefix"
    assert inspect_model(model).separable
    decoding.generate(model, ids, strategy=DoLa([1]), max_new_tokens=4)


@pytest.mark.parametrize("moment", range(12))
def test_memory_that_ends_while_a_model_is_inspected_is_not_taken_for_a_property_of_the_model(moment: int) -> None:
    model, ids, passes = tiny_model("llama"), random_ids(2, 6), [0]

    def fail(*_: Any) -> None:
        passes[0] += 1
        if passes[0] == moment + 1:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tri"
            )

    handle = model.model.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="ran out of memory on"):
        decoding.generate(model, ids, strategy=ContrastiveSearch(), max_new_tokens=8)
    handle.remove()
    new = tiny_model("llama")
    assert branching_of(model).way == "shared prefix"
    assert (inspect_model(model).head_transform, inspect_model(model).separable) == (
        inspect_model(new).head_transform,
        inspect_model(new).separable,
    )


@pytest.mark.parametrize("name", ["llama", "bloom", "t5"])
def test_a_model_cut_to_fewer_layers_than_its_config_counts(name: str) -> None:
    model, ids = tiny_model(name), random_ids(2, 6)
    decoder = model.get_decoder()
    layers = next(child for child in decoder.children() if isinstance(child, torch.nn.ModuleList))
    decoding.generate(model, ids, strategy=ContrastiveSearch(), max_new_tokens=4)
    del layers[-1]
    one = decoding.generate(model, ids, strategy=ContrastiveSearch(top_k=1), max_new_tokens=4)
    assert one.tolist() == model.generate(ids, max_new_tokens=4, do_sample=False).tolist()
    decoding.generate(model, ids, strategy=ContrastiveSearch(), max_new_tokens=4)
