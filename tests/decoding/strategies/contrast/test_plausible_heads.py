"""Heads are applied for plausible tokens alone where that is enough, and no choice changes by it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from embedded_batches import batch, embedded, with_class_attributes
from tiny_models import VOCAB, left_padded, random_prompt, sharper_model, tiny_model
from tiny_strategies import adapted
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, TopKLogitsWarper

import decoding
from decoding import LOL, ContrastiveDecoding, Prompt, WeightedContrast
from decoding.capabilities.cuda_graphs import request_cuda_graphs
from decoding.kernels.contrast import masked
from decoding.models.structure import ModelStructure
from decoding.strategies.contrast import base
from decoding.strategies.contrast import scores as contrast_scores
from decoding.strategies.contrast.readers import ReaderLogits
from decoding.strategies.contrast.scores import Contrast
from decoding.strategies.contrast.session import ContrastSession
from decoding.stream.prepare import prepare_inputs

GUIDANCE = [9, 40, 17, 23]
NEW = 6

Make = Callable[[Any], Any]
STRATEGIES: dict[str, Make] = {
    "logits": lambda amateur: ContrastiveDecoding(amateur),
    "log-probs": lambda amateur: ContrastiveDecoding(amateur, form="log_probs", beta=1.0, amateur_temperature=0.5),
    "lol": lambda amateur: LOL(amateur, [0.5, 0.75]),
    "lol, guided": lambda amateur: LOL(amateur, [0.5], guidance=GUIDANCE, final_norm=False),
    "lol, no lower layers": lambda amateur: LOL(amateur, [0.5], fusion_weight=0, guidance=GUIDANCE),
    "weighted": lambda amateur: WeightedContrast([("expert", 1.2), (amateur, -0.4), (Prompt([9, 40]), 0.2)]),
    "weighted log-probs": lambda amateur: WeightedContrast([("expert", 1.2), (amateur, -0.4)], "log_probs", 0.05),
}
SAMPLERS: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"do_sample": True, "top_k": 5, "temperature": 0.7},
    {"do_sample": True, "top_p": 0.8, "typical_p": 0.9, "renormalize_logits": True},
]
GREEDY, *_, TYPICAL = SAMPLERS


def with_whole_heads(strategy: Any) -> Any:
    """The strategy, whose readers wait but have their heads applied for all tokens."""
    return with_class_attributes(strategy, tokenwise=False)


def random_batch(rows: int = 2) -> dict[str, Tensor]:
    return left_padded([random_prompt(length, seed) for seed, length in enumerate((7, 12, 4)[:rows])])


@dataclasses.dataclass
class Products:
    """The products of a head: the rows of those for all tokens, and the tokens of those for some."""

    rows: list[int] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def products_of(model: Any) -> Iterator[Products]:
    """Collect the products of a model's head after its prompt's."""
    products, head = Products(), model.get_output_embeddings()
    whole, some = ModelStructure._product, ModelStructure._product_at

    def count(structure: ModelStructure, states: Tensor) -> Tensor:
        if structure.head is head:
            products.rows.append(states[..., 0].numel())
        return whole(structure, states)

    def count_some(structure: ModelStructure, states: Tensor, tokens: Tensor) -> Tensor:
        if structure.head is head:
            products.tokens.append(len(tokens))
        return some(structure, states, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelStructure, "_product", count)
        patch.setattr(ModelStructure, "_product_at", count_some)
        yield products


def generated(model: Any, inputs: dict[str, Tensor], strategy: Any, **options: Any) -> Any:
    torch.manual_seed(5)
    return decoding.generate(model, **inputs, strategy=strategy, **{"max_new_tokens": NEW, **options})


def both(model: Any, inputs: dict[str, Tensor], strategy: Any, **options: Any) -> Tensor:
    """The tokens, which are those of whole heads."""
    tokens = generated(model, inputs, strategy, **options)
    assert torch.equal(tokens, generated(model, inputs, with_whole_heads(strategy), **options))
    return tokens


# A sampler sees scores, whichever strategy and rows they are of: every one with one strategy, and one with guidance.
# One row alone: with a reader, with guidance and exits, with readers in a pass of their own.
@pytest.mark.parametrize(
    ("name", "rows", "options"),
    [
        *((name, 3, GREEDY) for name in STRATEGIES),
        *((name, 1, GREEDY) for name in ("logits", "lol, guided", "weighted")),
        *(("logits", 3, options) for options in SAMPLERS[1:]),
        ("lol, guided", 3, TYPICAL),
    ],
)
def test_tokens_are_those_of_whole_heads(name: str, rows: int, options: dict[str, Any]) -> None:
    expert, amateur, _ = embedded()
    both(expert, batch(rows), STRATEGIES[name](amateur), **options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_whole_head_is_applied_to_what_plausibility_depends_on(name: str) -> None:
    expert, amateur, _ = embedded()
    strategy, inputs = STRATEGIES[name](amateur), batch(3)
    generated(expert, inputs, strategy, max_new_tokens=2)  # the checks of a model come first
    with products_of(expert) as of_expert, products_of(amateur) as of_amateur:
        tokens = generated(expert, inputs, strategy)
    steps = tokens.shape[1] - inputs["input_ids"].shape[1]
    plausibility = 2 if getattr(strategy, "guidance", None) else 1
    assert of_expert.rows[1 - steps :] == [3 * plausibility] * (steps - 1)  # before them that of the prompt
    assert len(of_amateur.rows) <= 1
    assert len(of_amateur.tokens) > steps // 2


def test_where_many_tokens_are_plausible_each_reader_has_its_head_applied_once() -> None:
    """All readers of a pass in one product, without the expert alone before it, to find that the tokens are many."""
    expert = tiny_model("llama")  # whose random logits lie close together
    strategy, inputs = WeightedContrast([("expert", 1.2), (Prompt([9, 40]), -0.2)], alpha=1e-6), random_batch(1)
    generated(expert, inputs, strategy, max_new_tokens=2)
    with products_of(expert) as products:
        tokens = generated(expert, inputs, strategy)
    steps = tokens.shape[1] - inputs["input_ids"].shape[1]
    assert products.rows[1 - steps :] == [2] * (steps - 1)
    assert not products.tokens
    assert torch.equal(tokens, generated(expert, inputs, with_whole_heads(strategy)))


# A soft-cap, a scale, a head that is the embeddings, attention in windows.
@pytest.mark.parametrize("name", ["gemma2", "cohere", "gpt2", "mistral-sliding"])
def test_every_kind_of_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        contrast_scores, "MOST_TOKENS", 1.0
    )  # a random model finds many tokens plausible, of a vocabulary of 120
    times = 12.0 if name == "cohere" else 3.0
    expert, amateur, inputs = sharper_model(name, 0, times), sharper_model(name, 7, times), random_batch()
    for strategy, options in (
        (ContrastiveDecoding(amateur, beta=0.8), TYPICAL), (LOL(amateur, [1, 2], alpha=0.4), GREEDY)
    ):  # fmt: skip
        with products_of(amateur) as products:
            both(expert, inputs, strategy, **options)
        assert min(products.tokens) < VOCAB


@functools.cache
def with_adapter() -> Any:
    """The model of all strategies with an adapter, which is looked at once."""
    return adapted(sharper_model("llama"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_readers_of_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast_scores, "MOST_TOKENS", 1.0)
    model, inputs = with_adapter(), random_batch(3)
    strategy = STRATEGIES[name]("liar")
    plausibility = 2 if getattr(strategy, "guidance", None) else 1
    options = TYPICAL if name == "logits" else GREEDY
    with products_of(model) as products:
        tokens = generated(model, inputs, strategy, **options)
    assert products.rows[1 - NEW :] == [3 * plausibility] * (NEW - 1)
    assert min(products.tokens) < VOCAB
    assert torch.equal(tokens, generated(model, inputs, with_whole_heads(strategy), **options))


def test_a_row_of_one_plausible_token_needs_no_other_head() -> None:
    model, inputs = sharper_model("llama"), random_batch()
    strategy = LOL(decoding.Prompt(GUIDANCE), [1], alpha=1.0)
    generated(model, inputs, strategy, max_new_tokens=2)
    with products_of(model) as products:
        tokens = generated(model, inputs, strategy)
    assert torch.equal(tokens, decoding.generate(model, **inputs, do_sample=False, max_new_tokens=NEW))
    assert products == Products([2 * (2 + 2), *[2] * (NEW - 1)], [])  # of the prompt every reader's, at both layers


def test_an_amateur_of_a_shorter_vocabulary() -> None:
    expert, amateur, _ = embedded()
    amateur = copy.deepcopy(amateur)
    amateur.resize_token_embeddings(amateur.config.vocab_size - 8)
    strategy = ContrastiveDecoding(amateur)
    with pytest.warns(decoding.DecodingWarning, match="differ by padding"):
        strategy.check(expert)
    for options in (GREEDY, TYPICAL):
        both(expert, batch(3), strategy, **options)


def test_more_tokens_than_pay_take_the_whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, amateur, _ = embedded()
    monkeypatch.setattr(contrast_scores, "MOST_TOKENS", 8 / expert.config.vocab_size)
    strategy = ContrastiveDecoding(amateur)
    with products_of(amateur) as products:
        tokens = generated(expert, batch(2), strategy, max_new_tokens=24)
    assert torch.equal(tokens, generated(expert, batch(2), with_whole_heads(strategy), max_new_tokens=24))
    assert len(products.rows) > 1
    assert 1 < max(products.tokens) <= 8


class Forbidding(ContrastiveDecoding):
    """Excludes what the amateur finds likely, by its logit."""

    def contrast(self, logits: Any, input_ids: Tensor) -> Contrast:
        contrast = super().contrast(logits, input_ids)
        forbidden = logits["amateur"].final > 0.0

        def score_fn(alpha: float | None) -> Tensor:
            scores = contrast.score_fn(None).masked_fill(forbidden, -torch.inf)
            return masked(scores, contrast.plausibility_logits(), alpha)

        return dataclasses.replace(contrast, score_fn=score_fn)


def test_where_every_plausible_token_is_excluded_the_others_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast_scores, "MOST_TOKENS", 1.0)
    expert, amateur, inputs = sharper_model("llama", times=2.0), tiny_model("llama", 7), random_batch()
    strategy = Forbidding(amateur, alpha=0.7)
    with products_of(amateur) as products:
        tokens = generated(expert, inputs, strategy)
    assert torch.equal(tokens, generated(expert, inputs, with_whole_heads(strategy)))
    assert len(products.rows) > 1
    assert len(products.tokens) > 1


class Doubling:
    """A processor to which a constant of the row matters."""

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        return torch.where(scores > 0, 2 * scores, scores / 2)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.2},
        {"logits_processor": LogitsProcessorList([Doubling()])},
        {"logits_processor": LogitsProcessorList([TopKLogitsWarper(20), Doubling()])},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=["repetition-penalty", "own-processor", "own-processor-after-a-sampler", "scores"],
)
def test_heads_are_whole_where_a_constant_may_matter(options: dict[str, Any]) -> None:
    expert, amateur, _ = embedded()
    results = []
    for strategy in (ContrastiveDecoding(amateur), with_whole_heads(ContrastiveDecoding(amateur))):
        with products_of(expert) as of_expert, products_of(amateur) as of_amateur:
            results.append(generated(expert, batch(2), strategy, **options))
        assert of_expert.tokens == of_amateur.tokens == []
    if "output_scores" in options:
        assert all(map(torch.equal, results[0].scores, results[1].scores))
    else:
        assert torch.equal(*results)


@pytest.mark.parametrize(
    "make",
    [
        lambda amateur: LOL(amateur, [0.5], fusion="entropy"),
        lambda amateur: ContrastiveDecoding(amateur, alpha=0.0),
        lambda amateur: WeightedContrast([("expert", 2), (amateur, -1)], weight_by="jsd"),
    ],
    ids=["entropy", "no-plausibility", "weights-by-divergence"],
)
def test_strategies_that_need_every_logit_have_them(make: Make) -> None:
    expert, amateur, _ = embedded()
    strategy = make(amateur)
    generated(expert, batch(2), strategy, max_new_tokens=2)
    with products_of(expert) as of_expert, products_of(amateur) as of_amateur:
        tokens = generated(expert, batch(2), strategy)
    assert of_expert.tokens == of_amateur.tokens == []
    assert len(of_expert.rows) <= tokens.shape[1] - batch(2)["input_ids"].shape[1]  # none was applied twice


BY_ALL_TOKENS: dict[str, Make] = {
    "entropy": lambda amateur: LOL(amateur, [0.5], fusion="entropy"),
    "jsd": lambda amateur: WeightedContrast([("expert", 2), (amateur, -1)], weight_by="jsd"),
    "gate": lambda amateur: WeightedContrast([("expert", 2), (amateur, -1)], when="confidence < 0.4"),
}


@pytest.mark.parametrize("name", [*STRATEGIES, *BY_ALL_TOKENS])
def test_scores_of_tokenwise_strategies_depend_on_other_tokens_by_a_constant(name: str) -> None:
    make = {**STRATEGIES, **BY_ALL_TOKENS}[name]
    strategy = make(embedded()[1])
    session, ids = session_of(strategy)
    torch.manual_seed(0)
    some = torch.randperm(session.logits.shape[-1])[:20]

    def scores(logits: dict[str, ReaderLogits]) -> Tensor:
        return strategy.contrast(logits, session.text(ids)).scores[:, some]

    def with_other_tokens(logits: Tensor) -> Tensor:
        return torch.randn_like(logits).index_copy_(-1, some, logits[..., some])

    changed = {
        role: ReaderLogits(
            with_other_tokens(logits.final), None if logits.exits is None else with_other_tokens(logits.exits)
        )
        for role, logits in session.reader_logits.items()
    }
    change = scores(changed) - scores(session.reader_logits)
    spread = change.amax(-1) - change.amin(-1)
    assert bool((spread < 1e-3).all()) is strategy.tokenwise  # float32 of logits up to 30
    session.release()


def test_logits_and_hidden_states_are_the_experts_own() -> None:
    expert, amateur, _ = embedded()
    asked = {"return_dict_in_generate": True, "output_logits": True, "output_hidden_states": True}
    selected, never = (
        generated(expert, batch(2), strategy, **asked)
        for strategy in (ContrastiveDecoding(amateur), with_whole_heads(ContrastiveDecoding(amateur)))
    )
    assert torch.equal(selected.sequences, never.sequences)
    assert all(map(torch.equal, selected.logits, never.logits))
    assert all(map(torch.equal, selected.hidden_states[-1], never.hidden_states[-1]))


def session_of(strategy: Any) -> tuple[ContrastSession, Tensor]:
    expert = embedded()[0]
    prepared, kwargs, config = prepare_inputs(expert, **batch(2))
    config.max_length = prepared.shape[1] + NEW
    return strategy.session(expert, prepared, kwargs, config), prepared


def test_calls_that_return_scores_or_capture_their_steps_want_more_than_tokens() -> None:
    config = GenerationConfig()
    assert base._may_leave_out(config)
    request_cuda_graphs(config, True)
    assert not base._may_leave_out(config)
    assert not base._may_leave_out(GenerationConfig(return_dict_in_generate=True, output_scores=True))


def test_a_head_with_a_hook_is_called() -> None:
    expert, amateur, _ = embedded()
    calls: list[int] = []
    handle = amateur.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    try:
        generated(expert, batch(2), ContrastiveDecoding(amateur))
    finally:
        handle.remove()
    assert len(calls) > 1


def test_rows_that_are_put_in_another_order_take_their_logits_along() -> None:
    strategy = LOL(embedded()[1], [0.5])
    selected, ids = session_of(strategy)
    never, _ = session_of(with_whole_heads(strategy))
    order = torch.tensor([1, 0])
    for step in range(6):
        if step == 3:
            for session in (selected, never):
                session.reorder(order)
            ids = ids[order]
        chosen = selected.greedy(ids, LogitsProcessorList())
        assert torch.equal(chosen, never.greedy(ids, LogitsProcessorList()))
        for session in (selected, never):
            session.advance(chosen)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    selected.release()
    never.release()


def test_an_amateur_whose_logits_are_no_numbers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, amateur, _ = embedded()
    monkeypatch.setattr(
        ModelStructure, "_product_at", lambda _, states, tokens: torch.full((len(states), len(tokens)), torch.nan)
    )
    with pytest.raises(decoding.ModelError, match=r"NaN|no number"):
        generated(expert, batch(2), ContrastiveDecoding(amateur))
