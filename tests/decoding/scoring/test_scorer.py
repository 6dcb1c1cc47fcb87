"""Scores of many prompts and strategies from few passes, against recomputation of each token by itself."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import contrast_oracle as oracle
import peft
import pytest
import torch
from tiny_models import VOCAB, tiny_model
from torch import Tensor

from decoding import LOL, ContextAware, ContrastiveDecoding, DoLa, InputError, ModelError, OptionError, Scorer
from decoding.capabilities.capabilities import open_stream
from decoding.models.wrappers import unwrapped
from decoding.strategies.registry import parse_strategy
from decoding.stream.token_tree import TokenTree

_model = functools.cache(tiny_model)  # a new one would be checked again
PREFIX, GUIDE = [1, 7, 31, 12, 5], [9, 40, 17, 23]
SETTINGS = {
    "amateur_weight": 0.8, "lower_amateur_weight": 0.6, "fusion_weight": 0.7, "fusion": "static",
    "refocus_weight": 0.5, "alpha": 0.05,
}  # fmt: skip


def drawn(seed: int, count: int) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


# Prompts that begin alike, answers that begin alike, one that is another's beginning, and one of a single token.
ASKED = [
    (drawn(1, 4), [drawn(2, 6), [*drawn(2, 3), *drawn(3, 2)], drawn(2, 2), drawn(4, 1)]),
    ([*drawn(1, 2), *drawn(5, 3)], [drawn(6, 5), drawn(6, 5)[:1]]),
    ([], [drawn(7, 3), drawn(8, 1)]),
]


def with_adapter(name: str) -> Any:
    torch.manual_seed(5)
    config = peft.LoraConfig(r=4, target_modules="all-linear", exclude_modules=["lm_head"])
    model = peft.get_peft_model(tiny_model(name), config, adapter_name="liar")
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return unwrapped(model.eval())


def merged(model: Any) -> Any:
    other = copy.deepcopy(model)
    for layer in list(other.modules()):
        if hasattr(layer, "lora_A"):
            layer.merge(adapter_names=["liar"])
    return other


def family(model: Any, adapter: str | None, expert: oracle.Reader, amateur: oracle.Reader, other: Any) -> Any:
    """Strategies that share readers in every way, and what each should score after a text."""
    reader = oracle.Reader(other)

    def last(of: oracle.Reader, text: list[int]) -> Tensor:
        return of.logits(text)[-1]

    def behind(text: list[int]) -> list[int]:
        return [text[0], *GUIDE, *text[1:]]

    liar: Any = adapter or other
    lies = amateur if adapter else reader

    def lol(text: list[int]) -> Tensor:
        early = [(expert.early(text, 1, True)[-1], lies.early(text, 1, True)[-1])]
        return oracle.lol(last(expert, text), last(lies, text), early, last(expert, behind(text)), SETTINGS)

    def dola(text: list[int]) -> Tensor:
        return oracle.dola(last(expert, text), [expert.early(text, layer, False)[-1] for layer in (1, 2)], 0.05, "dola")

    cases: list[tuple[Any, Callable[[list[int]], Tensor]]] = [
        (None, lambda text: last(expert, text)),
        (DoLa([1, 2], alpha=0.05), dola),
        (LOL(liar, [1], guidance=GUIDE, **SETTINGS), lol),
        (
            ContextAware(GUIDE, alpha=0.7),
            lambda text: oracle.context_aware(last(expert, behind(text)), last(expert, text), 0.7),
        ),
        (
            ContrastiveDecoding(other),
            lambda text: oracle.contrastive_decoding(last(expert, text), last(reader, text), 0.1, 0.5, "logits"),
        ),
    ]
    return cases


@pytest.mark.parametrize(
    ("name", "max_branch_tokens"),
    [("gpt2", 512), ("gemma2", 512), ("mistral-sliding", 12), ("bloom", 12), ("llama with LoRA", 512),
     ("llama with LoRA", 12)],
)  # fmt: skip
def test_strategies_scored_together_are_each_scored_by_itself(name: str, max_branch_tokens: int) -> None:
    lora = name.endswith("LoRA")
    model = with_adapter("llama") if lora else _model(name)
    expert = oracle.Reader(_model(name.partition(" ")[0]))
    amateur = oracle.Reader(merged(model)) if lora else expert
    other = _model(name.partition(" ")[0], seed=7)
    cases = family(model, "liar" if lora else None, expert, amateur, other)
    with Scorer(model, PREFIX, [strategy for strategy, _ in cases], max_branch_tokens=max_branch_tokens) as scorer:
        for _ in range(2):  # nothing of one call is left in the next
            scored = scorer.score(ASKED)
    for (prompt, continuations), by_strategy in zip(ASKED, scored, strict=True):
        for (strategy, scores_of), scores in zip(cases, by_strategy, strict=True):
            for continuation, of_tokens in zip(continuations, scores, strict=True):
                for normalized, given in ((True, of_tokens.normalized), (strategy is None, of_tokens.raw)):
                    right = oracle.per_token(scores_of, [*PREFIX, *prompt], continuation, normalized)
                    torch.testing.assert_close(given, torch.tensor(right), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mamba", "llama", "mistral-sliding"])
def test_a_model_that_cannot_go_back_is_read_in_its_own_way(name: str) -> None:
    model = tiny_model(name)
    reader = oracle.Reader(model)
    with Scorer(model, [*PREFIX, *drawn(9, 8)], [None, ContextAware(GUIDE)]) as scorer:
        scored = scorer.score(ASKED)
    for (prompt, continuations), (plain, _) in zip(ASKED, scored, strict=True):
        for continuation, of_tokens in zip(continuations, plain, strict=True):
            right = oracle.per_token(
                lambda text: reader.logits(text)[-1], [*PREFIX, *drawn(9, 8), *prompt], continuation, True
            )
            torch.testing.assert_close(of_tokens.normalized, torch.tensor(right), atol=1e-4, rtol=1e-4)


def test_an_amateur_of_the_last_token_begins_anew_with_each_prompt() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=7)
    expert, amateur = oracle.Reader(model), oracle.Reader(other)
    strategy = ContrastiveDecoding(other, form="log_probs", beta=0.9, amateur_context="last_token")
    with Scorer(model, PREFIX, [strategy, None]) as scorer:
        scored = scorer.score(ASKED)
    for (prompt, continuations), (contrast, plain) in zip(ASKED, scored, strict=True):
        whole = [*PREFIX, *prompt]

        def scores_of(text: list[int], start: int = len(whole) - 1) -> Tensor:
            return oracle.contrastive_decoding(
                expert.logits(text)[-1], amateur.logits(text[start:])[-1], 0.1, 0.9, "log_probs"
            )

        right = torch.tensor(oracle.per_token(scores_of, whole, continuations[0], True))
        torch.testing.assert_close(contrast[0].normalized, right, atol=1e-4, rtol=1e-4)
        right = torch.tensor(oracle.per_token(lambda text: expert.logits(text)[-1], whole, continuations[0], True))
        torch.testing.assert_close(plain[0].normalized, right, atol=1e-4, rtol=1e-4)


def test_all_readers_on_the_expert_weights_share_one_pass_over_all_prompts() -> None:
    model = with_adapter("llama")
    strategies = [
        None,
        DoLa([1, 2]),
        LOL("liar", [1], guidance=GUIDE),
        ContextAware(GUIDE),
        ContrastiveDecoding("liar"),
    ]
    with Scorer(model, PREFIX, strategies) as scorer:
        scorer.score(ASKED)
        rows: list[Any] = []
        handle = model.model.layers[0].register_forward_pre_hook(
            lambda _, inputs, named: rows.append((inputs or (named["hidden_states"],))[0].shape), with_kwargs=True
        )
        scorer.score(ASKED)
        handle.remove()
    nodes = len(TokenTree([[*prompt, *answer[:-1]] for prompt, answers in ASKED for answer in answers]))
    assert [tuple(shape) for shape in rows] == [(3, nodes, 32)]  # expert, guided expert, LoRA amateur


def test_texts_that_begin_alike_are_one_tree() -> None:
    texts = [[1, 2, 3], [1, 2, 4, 5], [6], [], [1, 2], [2, 3]]
    tree = TokenTree(texts)
    assert tree.tokens == [1, 2, 3, 4, 5, 6, 2, 3]
    assert tree.depths == [0, 1, 2, 2, 3, 0, 0, 1]
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4], [5], [], [0, 1], [6, 7]]
    visible = tree.visible()
    for node in range(len(tree)):
        path = next(path for path in tree.paths if node in path)
        assert visible[node].nonzero().flatten().tolist() == path[: path.index(node) + 1]


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "mistral-sliding"])
def test_a_look_leaves_the_stream_as_it_was(name: str) -> None:
    model = tiny_model(name)
    ids = torch.tensor([[0, 0, *drawn(1, 7)], drawn(2, 9)])
    mask = (ids != 0).long()
    stream = open_stream(model, restorable=True, input_ids=ids, attention_mask=mask)
    looked = stream.forward_tree(TokenTree([drawn(3, 4), drawn(4, 3)]))
    assert stream.length == 9
    after = stream.logits(stream.extend(torch.tensor([[5], [6]])))
    fresh = open_stream(model, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(after, fresh.logits(fresh.extend(torch.tensor([[5], [6]]))), atol=1e-4, rtol=1e-4)
    fresh = open_stream(model, input_ids=ids, attention_mask=mask)
    alone = fresh.extend(torch.tensor([drawn(4, 3)] * 2)).hidden
    torch.testing.assert_close(looked.hidden[:, 4:], alone, atol=1e-4, rtol=1e-4)  # rows with padding too


def test_what_cannot_be_scored_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match="the prompt is empty"):
        Scorer(model, [], [None])
    with pytest.raises(OptionError, match="gives no score to a given token"):
        Scorer(model, PREFIX, [parse_strategy("contrastive-search").strategy])
    with Scorer(model, PREFIX, [None, ContextAware(drawn(1, 40))]) as scorer:
        with pytest.raises(InputError, match="continuation 1 is empty"):
            scorer.score([([5], [[6], []])])
        with pytest.raises(InputError, match=r"continuation 0: .* 85 \+ 50 tokens, .* expert in context's context"):
            scorer.score([([5] * 40, [[6] * 50])])
        assert scorer.score([([5] * 30, [[6] * 50])])
        assert scorer.score([]) == []


def test_weights_that_overflow_are_told() -> None:
    model = tiny_model("llama")
    with Scorer(model, PREFIX, [DoLa([1])]) as scorer:
        scorer.score(ASKED)
        with torch.no_grad():
            model.model.layers[2].mlp.down_proj.weight.fill_(math.nan)
        with pytest.raises(ModelError, match=r"the expert \(LlamaForCausalLM\) gave NaN logits"):
            scorer.score(ASKED)
