"""Logits processors of calls with drafts: each row's scores are changed as after its own text, whatever rows accept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scripted_drafts import drafted
from tiny_models import VOCAB, left_padded, random_prompt, tiny_model
from tiny_strategies import DISTINCT, EXAMPLES
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, WatermarkingConfig
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

import decoding
from decoding import ContrastiveSearch, OptionError
from decoding.generation.processors import per_length
from decoding.strategies.model_logits import ModelLogits

NEW = 8
PROMPTS = [random_prompt(5, 1), random_prompt(9, 2), random_prompt(3, 3), random_prompt(7, 4)]
STRATEGIES: dict[str, Callable[[], Any]] = {"greedy": ModelLogits, **{name: EXAMPLES[name] for name in DISTINCT}}
del STRATEGIES["amateur-adapter"]
STRATEGIES = {name: functools.cache(make) for name, make in STRATEGIES.items()}  # a new amateur would be checked again


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def _same(model: Any, strategy: Any, rows: int, seed: int = 0, **options: Any) -> None:
    """Hold a call with drafts to the call without, several times; some drafts are wrong, and rows come apart."""
    inputs = left_padded(PROMPTS[:rows])
    options = {"strategy": strategy, "max_new_tokens": NEW, "do_sample": False, **options}
    expected = decoding.generate(model, **inputs, **options)
    tokens, proposer = drafted(model, expected, inputs, script={"wrong": 0.25, "seed": seed}, **options)
    assert torch.equal(tokens, expected)
    assert any(max(taken) > 1 for taken in proposer.taken)
    if rows > 1:
        assert any(len(set(taken)) > 1 for taken in proposer.taken)


def _parity(prompt_length: int) -> Callable[[int, Tensor], list[int]]:
    """A constraint of each row's own, which knows only the texts that it allows."""

    def allowed(row: int, text: Tensor) -> list[int]:
        new = text.tolist()[prompt_length:]
        for i, token in enumerate(new):
            if token % 3 != (row + i) % 3:
                raise KeyError(f"row {row} has {new}")
        return [token for token in range(3, VOCAB) if token % 3 == (row + len(new)) % 3]

    return allowed


def _options(name: str, tokens: Tensor) -> dict[str, Any]:
    """Options under which a call chooses other tokens than these, (batch, new)."""
    common = tokens.flatten().tolist()
    return {
        "repetition penalty": {"repetition_penalty": 1.8},
        "n-grams": {"no_repeat_ngram_size": 2},
        "bad words": {"bad_words_ids": [[common[1]], [common[3], common[4]]]},
        "no end yet": {"min_new_tokens": 5, "eos_token_id": [common[1], common[2]], "pad_token_id": 0},
        "end": {"forced_eos_token_id": 7},
        "bias": {"sequence_bias": [[[common[0]], -9.0], [[common[2], common[3]], -9.0], [[11], 2.0]]},
        "watermark": {"watermarking_config": WatermarkingConfig(bias=4.0)},
        "suppressed": {"suppress_tokens": common[2:5], "begin_suppress_tokens": common[:1]},
        "decay": {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": 9, "pad_token_id": 0},
    }[name]


NAMES = [
    "repetition penalty", "n-grams", "bad words", "no end yet", "end", "bias", "watermark", "suppressed", "decay",
]  # fmt: skip


PLAIN: dict[tuple[str, int], Tensor] = {}  # what strategies write after the first prompts without processors


# In a batch, after every place that contrastive search looks at ahead, and in one of the other two sessions. Alone only
# contrastive search needs anything: of one processor that looks at the text, and of one that counts new tokens.
@pytest.mark.parametrize(
    ("name", "rows"), [*((name, 4) for name in NAMES), *((name, 1) for name in ("n-grams", "no end yet"))]
)
def test_processors_see_each_row_s_own_text(model: Any, name: str, rows: int) -> None:
    inputs = left_padded(PROMPTS[:rows])
    batched = (ModelLogits, STRATEGIES["contrastive-decoding"])[NAMES.index(name) % 2]
    for strategy in (*([batched()] if rows > 1 else []), ContrastiveSearch()):
        kind = type(strategy).__name__, rows
        if kind not in PLAIN:
            PLAIN[kind] = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW, do_sample=False)
        options = _options(name, PLAIN[kind][:, inputs["input_ids"].shape[1] :])
        _same(model, strategy, rows, **options)


# What processors are shown is the loop's. A session of each kind meets both of the next, alone and in a batch; other
# strategies, which give the loop their scores, one of them.
KINDS = ["greedy", "contrastive-decoding", "contrastive-search"]
OTHERS = [name for name in STRATEGIES if name not in KINDS]


@pytest.mark.parametrize(
    ("name", "rows"), [*((name, rows) for name in KINDS for rows in (1, 4)), *((name, 4) for name in OTHERS[::2])]
)
def test_a_constraint_is_shown_only_what_it_allows(model: Any, name: str, rows: int) -> None:
    """Though drafts break it, rows come apart, and contrastive search processes places that are not reached."""
    allowed = _parity(left_padded(PROMPTS[:rows])["input_ids"].shape[1])
    _same(model, STRATEGIES[name](), rows, prefix_allowed_tokens_fn=allowed)


TEMPERATURE, NUCLEUS, TOP_K, MIN_P = {"temperature": 0.6, "top_k": 0}, {"top_p": 0.7}, {"top_k": 4}, {"min_p": 0.1}
# Every session divides by the temperature in its own place; what warpers are shown is the loop's.
WARPED: list[tuple[str, int, dict[str, Any]]] = [
    ("greedy", 4, TEMPERATURE), ("greedy", 4, NUCLEUS), ("greedy", 1, TOP_K),
    ("contrastive-decoding", 4, TEMPERATURE), ("contrastive-decoding", 4, TOP_K), ("contrastive-decoding", 1, NUCLEUS),
    ("contrastive-search", 4, TEMPERATURE), ("contrastive-search", 4, MIN_P), ("contrastive-search", 1, TEMPERATURE),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "options"), WARPED, ids=lambda value: str(value))
def test_warpers(model: Any, name: str, rows: int, options: dict[str, Any]) -> None:
    _same(model, STRATEGIES[name](), rows, do_sample=True, seeds=[3, 5, 8, 13][:rows], **options)


def test_warpers_of_greedy_search_change_nothing(model: Any) -> None:
    _same(model, ModelLogits(), 4, top_k=3, temperature=0.5)


class _Grammar(LogitsProcessor):
    """A processor of the user's, without a state, that fails at what it has never allowed."""

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for text in input_ids.tolist():
            if any(token % 2 != i % 2 for i, token in enumerate(text[self.prompt_length :])):
                raise KeyError(f"not of this grammar: {text}")
        odd = torch.arange(scores.shape[1]) % 2 != (input_ids.shape[1] - self.prompt_length) % 2
        return scores.masked_fill(odd, -torch.inf)


@pytest.mark.parametrize(
    ("name", "rows"), [*((name, rows) for name in KINDS for rows in (1, 4)), *((name, 4) for name in OTHERS[1::2])]
)
def test_a_processor_of_the_user_s_that_follows_a_grammar(model: Any, name: str, rows: int) -> None:
    grammar = _Grammar(left_padded(PROMPTS[:rows])["input_ids"].shape[1])
    _same(model, STRATEGIES[name](), rows, logits_processor=LogitsProcessorList([grammar]))


def test_a_function_of_the_user_s(model: Any) -> None:
    def by_length(input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, input_ids.shape[1] % 5 :: 5] -= 8.0  # in place, as transformers allows
        return scores

    for strategy, rows in ((ModelLogits(), 1), (ModelLogits(), 4), (ContrastiveSearch(), 4)):
        _same(model, strategy, rows, logits_processor=LogitsProcessorList([by_length]))


class _Counter(LogitsProcessor):
    """Forbids another token at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        return scores.index_fill(1, torch.arange(self.calls % 7, VOCAB, 7), -torch.inf)


class _Collector(LogitsProcessor):
    """Forbids what it has seen at the end of the texts, in a tensor that it writes to."""

    def __init__(self) -> None:
        self.seen = torch.zeros(VOCAB, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen[input_ids[:, -1]] = True
        return scores.masked_fill(self.seen, -torch.inf)


@pytest.mark.parametrize(
    ("make", "names"), [(_Counter, ["greedy", "contrastive-decoding", "fsd"]), (_Collector, ["context-aware", "dola"])]
)
def test_a_processor_with_a_state(model: Any, make: Callable[[], Any], names: list[str]) -> None:
    inputs = left_padded(PROMPTS[:1])
    for name in names:
        strategy = STRATEGIES[name]()
        common = {"strategy": strategy, "max_new_tokens": NEW, "do_sample": False}
        expected = decoding.generate(model, **inputs, logits_processor=LogitsProcessorList([make()]), **common)
        tokens, _ = drafted(model, expected, inputs, logits_processor=LogitsProcessorList([make()]), **common)
        assert torch.equal(tokens, expected)
    for rows, strategy in ((2, ModelLogits()), (2, STRATEGIES["lol"]()), (1, ContrastiveSearch())):
        with pytest.raises(OptionError, match=f"drafts: {make.__name__} keeps a state"):
            decoding.generate(
                model, **left_padded(PROMPTS[:rows]), strategy=strategy, drafts="prompt-lookup", max_new_tokens=NEW,
                do_sample=False, logits_processor=LogitsProcessorList([make()]),
            )  # fmt: skip


def test_stateful_processors_of_transformers_are_refused_by_name(model: Any) -> None:
    from transformers import SynthIDTextWatermarkingConfig

    synth = SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3)
    common = {"drafts": "prompt-lookup", "max_new_tokens": 4, "pad_token_id": 0}
    for name, options in {
        "SynthIDTextWatermarkLogitsProcessor": {"watermarking_config": synth, "do_sample": True},
        "UnbatchedClassifierFreeGuidanceLogitsProcessor": {"guidance_scale": 1.5, "do_sample": False},
    }.items():
        with pytest.raises(OptionError, match=f"drafts: {name} keeps a state of the tokens"):
            decoding.generate(model, **left_padded(PROMPTS[:2]), **options, **common)
        with pytest.raises(OptionError, match=f"drafts: {name} keeps a state of the tokens"):
            decoding.generate(model, **left_padded(PROMPTS[:1]), strategy=ContrastiveSearch(), **options, **common)


def test_classifier_free_guidance_follows_one_row(model: Any) -> None:
    _same(model, ModelLogits(), 1, guidance_scale=1.5)


def test_a_strategy_as_a_processor_has_a_state(model: Any) -> None:
    inputs = left_padded(PROMPTS[:2])
    processor = ContrastiveSearch().logits_processor(model, attention_mask=inputs["attention_mask"])
    with pytest.raises(OptionError, match="drafts: StrategyLogitsProcessor keeps a state"):
        decoding.generate(
            model, **inputs, drafts="prompt-lookup", logits_processor=LogitsProcessorList([processor]), max_new_tokens=3
        )


def test_rows_of_each_length_are_processed_once() -> None:
    calls: list[list[list[int]]] = []

    def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(input_ids.tolist())
        return scores + input_ids.shape[1]

    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 10], [11, 0, 0, 0]])
    lengths = {0: 4, 1: 2, 2: 4}
    changed = per_length(LogitsProcessorList([processor]), lambda: lengths)(ids, torch.zeros(4, 2))
    # The last row does not count: it is as it was, and is not shown.
    assert changed.tolist() == [[4, 4], [2, 2], [4, 4], [0, 0]]
    assert calls == [
        [[1, 2], [5, 6], [7, 8], [5, 6]],
        [[1, 2, 3, 4], [1, 2, 3, 4], [7, 8, 9, 10], [1, 2, 3, 4]],
    ]


def test_kinds_that_are_refused_at_once(model: Any) -> None:
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model)
    with pytest.raises(OptionError, match="UnbatchedClassifierFreeGuidanceLogitsProcessor"):
        per_length(LogitsProcessorList([guidance]), dict)


def test_no_token_left_is_one_line(model: Any) -> None:
    def nothing(input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf) if input_ids.shape[1] > 11 else scores

    for strategy in (ModelLogits(), STRATEGIES["contrastive-decoding"](), ContrastiveSearch()):
        inputs = left_padded(PROMPTS[:2])
        options = {"logits_processor": LogitsProcessorList([nothing]), "max_new_tokens": 8, "do_sample": False}
        messages = []
        free = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=8, do_sample=False)
        for call in (
            lambda: decoding.generate(model, **inputs, strategy=strategy, **options),  # noqa: B023
            lambda: drafted(model, free, inputs, strategy=strategy, script={"wrong": 0.0}, **options),  # noqa: B023
        ):
            with pytest.raises(OptionError, match=r"no token is left to choose at step 3 \(row 0\)") as error:
                call()
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_options_of_a_config(model: Any) -> None:
    inputs = left_padded(PROMPTS)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, repetition_penalty=1.5, no_repeat_ngram_size=3)
    expected = decoding.generate(model, **inputs, strategy=ModelLogits(), generation_config=config)
    config.drafts, config.draft_tokens = "exit:2", 3
    assert torch.equal(decoding.generate(model, **inputs, generation_config=config), expected)
