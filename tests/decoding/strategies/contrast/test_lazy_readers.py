"""Readers wait where plausibility leaves one token, and no choice changes by it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from embedded_batches import batch, embedded, with_class_attributes
from tiny_models import left_padded, random_prompt, sharper_model
from torch import Tensor
from transformers import LogitsProcessorList

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, Prompt, Self, WeightedContrast
from decoding.strategies.contrast import session as contrast_session
from decoding.strategies.contrast.readers import EXPERT
from decoding.strategies.contrast.scores import Contrast, candidates
from decoding.strategies.contrast.session import ContrastSession
from decoding.stream import stream
from decoding.stream.output import joined

NEW = 14
SOON, LATE = 10, {"last token": 14, "lol": 13, "lol, entropy": 13}  # tokens until two rows once agree on one token

Make = Callable[[Any], Any]
STRATEGIES: dict[str, Make] = {
    "logits": lambda amateur: ContrastiveDecoding(amateur),
    "log-probs": lambda amateur: ContrastiveDecoding(amateur, form="log_probs", beta=1.0, alpha=0.3),
    "last token": lambda amateur: ContrastiveDecoding(amateur, amateur_context="last_token"),
    "lol": lambda amateur: LOL(amateur, [0.5]),
    "lol, guided": lambda amateur: LOL(amateur, [0.5, 0.75], guidance=[9, 40, 17, 23]),
    "lol, entropy": lambda amateur: LOL(amateur, [0.5], fusion="entropy"),
    "weighted": lambda amateur: WeightedContrast([("expert", 1.2), (amateur, -0.4), (Self(skip_layers=[1]), 0.2)]),
    "weighted by divergence": lambda amateur: WeightedContrast([("expert", 2), (amateur, -1)], weight_by="jsd"),
    "weighted first": lambda amateur: WeightedContrast([("expert", 1.5), (amateur, -0.5)], when="first 9"),
}


def eager(strategy: Any) -> Any:
    """The strategy, whose readers never wait."""
    return with_class_attributes(strategy, lazy=False)


@contextlib.contextmanager
def passes_of(model: Any) -> Iterator[list[int]]:
    """The number of tokens a row of each forward pass of a model."""
    passes: list[int] = []

    def read(_module: Any, arguments: tuple[Any, ...]) -> None:
        passes.append(arguments[0].shape[1])

    handle = model.get_input_embeddings().register_forward_pre_hook(read)
    try:
        yield passes
    finally:
        handle.remove()


# Which readers may wait depends on the strategy, and whether they do on all rows (FusedStreams). One row alone: with
# one reader, with its exits and a guided expert, with two readers in passes of their own, and with a gate.
ROWS = [
    *((name, 2) for name in STRATEGIES),
    *((name, 1) for name in ("logits", "lol, guided", "weighted", "weighted first")),
]


@pytest.mark.parametrize(("name", "rows"), ROWS)
def test_tokens_are_those_of_readers_that_never_wait(name: str, rows: int) -> None:
    expert, amateur, _ = embedded()
    strategy, inputs = STRATEGIES[name](amateur), batch(rows)
    decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=2)  # the checks of a model come first
    longest = LATE.get(name, SOON)
    with passes_of(amateur) as lazy:
        tokens = decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=longest)
    with passes_of(amateur) as never:
        expected = decoding.generate(expert, **inputs, strategy=eager(strategy), max_new_tokens=longest)
    assert torch.equal(tokens, expected)
    new = tokens.shape[1] - inputs["input_ids"].shape[1]
    assert len(never) == new  # the prompt, and every new token but the last
    assert len(lazy) < len(never)
    assert sum(lazy) <= sum(never)


@pytest.mark.parametrize(("name", "rows"), [("safe", 1), ("safe, sampled", 3), ("gate", 3), ("gate and divergence", 1)])
def test_readers_that_are_heard_for_the_first_tokens_read_no_more_after_them(name: str, rows: int) -> None:
    expert, amateur, _ = embedded()
    gated = {"when": "first 3", "weight_by": "jsd" if "divergence" in name else None}
    strategy = (
        decoding.SafeDecoding(amateur, strength=2.0, first_tokens=3)
        if "safe" in name
        else WeightedContrast([("expert", 1.5), (amateur, -0.5)], alpha=1e-3, **gated)
    )
    inputs, found = batch(rows), []
    new = 7
    options = {"max_new_tokens": new, "do_sample": "sampled" in name, "eos_token_id": None}
    decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=2)  # the checks of a model come first
    for form in (strategy, eager(strategy)):
        torch.manual_seed(5)
        with passes_of(amateur) as passes:
            found.append(decoding.generate(expert, **inputs, strategy=form, **options))
        read = sum(passes) - inputs["input_ids"].shape[1]
        assert read == new - 1 if form is not strategy else read <= 2  # the first of three comes after the prompt
    assert torch.equal(*found)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_reader_that_the_text_goes_on_with_is_heard_to_its_end(alpha: float) -> None:
    """Beyond the first tokens the scores are those of the anchor, which need not be the expert."""
    expert, amateur, _ = embedded()
    terms = [(amateur, 1.5, "small"), ("expert", -0.5)]
    strategy = WeightedContrast(terms, alpha=alpha, plausible="small", when="first 2")
    texts = [
        decoding.generate(expert, **batch(2), strategy=form, max_new_tokens=NEW) for form in (strategy, eager(strategy))
    ]
    assert torch.equal(*texts)


def test_the_expert_itself_may_wait() -> None:
    """Where plausibility is another reader's."""
    expert, amateur, _ = embedded()
    terms = [(amateur, 1.5, "small"), ("expert", -0.3), (Prompt([9, 40]), -0.2)]
    strategy, inputs = WeightedContrast(terms, alpha=0.3, plausible="small"), batch(2)
    decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=2)
    counts, results = [], []
    for form in (strategy, eager(strategy)):
        with passes_of(expert) as passes:
            results.append(decoding.generate(expert, **inputs, strategy=form, max_new_tokens=NEW))
        counts.append(len(passes))
    assert torch.equal(*results)
    assert counts[0] < counts[1]


def test_an_expert_that_waits_reads_drafts_and_leaves_a_whole_cache() -> None:
    expert, amateur, _ = embedded()
    strategy = WeightedContrast([("expert", 1.5), (amateur, -0.5, "amateur")], alpha=0.3, plausible="amateur")
    inputs, options = batch(1), {"max_new_tokens": NEW, "return_dict_in_generate": True}
    never = decoding.generate(expert, **inputs, strategy=eager(strategy), **options)
    for drafts in ("none", "prompt-lookup", "amateur", "exit:2"):
        found = decoding.generate(expert, **inputs, strategy=strategy, drafts=drafts, **options)
        assert torch.equal(found.sequences, never.sequences), drafts
        assert found.past_key_values.get_seq_length() == never.past_key_values.get_seq_length(), drafts
        for layer, expected in zip(found.past_key_values.layers, never.past_key_values.layers, strict=True):
            torch.testing.assert_close(layer.keys, expected.keys, atol=1e-4, rtol=1e-4)


def test_what_one_pass_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, amateur, _ = embedded()
    monkeypatch.setattr(contrast_session, "MOST_UNREAD", 10)
    inputs = batch(2)
    strategy = ContrastiveDecoding(amateur, alpha=1.0)  # one plausible token, always
    with passes_of(amateur) as passes:
        tokens = decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=24)
    assert torch.equal(tokens, decoding.generate(expert, **inputs, max_new_tokens=24, do_sample=False))
    assert passes[1:] == [10] * ((tokens.shape[1] - inputs["input_ids"].shape[1] - 1) // 10)


# With a seed, and so many tokens, that both rows once agree on one token.
@pytest.mark.parametrize(
    ("name", "seed", "new"),
    [
        ("llama", 1, 10), ("gpt2", 0, 10), ("mistral-sliding", 1, 14), ("gemma2", 1, 10), ("mamba", 0, 14),
        ("opt", 0, 10), ("bloom", 0, 10),
    ],
)  # fmt: skip
def test_every_kind_of_cache_reads_several_tokens_later(
    name: str, seed: int, new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []  # tokens that Mamba reads later, of which each has a pass of its own
    monkeypatch.setattr(stream, "joined", lambda outputs: together.append(len(outputs)) or joined(outputs))
    expert, amateur = sharper_model(name), sharper_model(name, 7)
    inputs = left_padded([random_prompt(7, 1)] if name == "mamba" else [random_prompt(7, 1), random_prompt(12, 2)])
    strategy = ContrastiveDecoding(amateur, alpha=0.5, beta=0.8)
    decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=2)  # the checks of a model come first
    results, counts = [], []
    for form in (strategy, eager(strategy)):
        torch.manual_seed(seed)
        with passes_of(amateur) as passes:
            results.append(decoding.generate(expert, **inputs, strategy=form, max_new_tokens=new, do_sample=True))
        counts.append(len(passes))
    assert torch.equal(*results)
    assert max(together) > 1 if name == "mamba" else counts[0] < counts[1]


def test_drawn_tokens_are_the_same() -> None:
    expert, amateur, _ = embedded()
    strategy = ContrastiveDecoding(amateur, beta=0.3)
    for options in ({}, {"temperature": 0.8, "top_p": 0.9, "top_k": 5}):
        drawn = []
        for form in (strategy, eager(strategy)):
            torch.manual_seed(3)
            sampled = decoding.generate(expert, **batch(2), strategy=form, max_new_tokens=8, do_sample=True, **options)
            drawn.append(sampled)
        assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.2},
        {"bad_words_ids": [[5], [7], [11]]},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_no_reader_waits_where_every_score_may_matter(options: dict[str, Any]) -> None:
    expert, amateur, _ = embedded()
    inputs, results = batch(2), []
    for form in (ContrastiveDecoding(amateur), eager(ContrastiveDecoding(amateur))):
        with passes_of(amateur) as passes:
            results.append(decoding.generate(expert, **inputs, strategy=form, max_new_tokens=8, **options))
        tokens = results[-1]["sequences"] if "output_scores" in options else results[-1]
        assert len(passes) == tokens.shape[1] - inputs["input_ids"].shape[1]
    if "output_scores" in options:
        lazy, never = results
        assert torch.equal(lazy.sequences, never.sequences)
        assert all(map(torch.equal, lazy.scores, never.scores))
    else:
        assert torch.equal(*results)


def test_logits_and_hidden_states_are_the_experts_own() -> None:
    expert, amateur, _ = embedded()
    asked = {"return_dict_in_generate": True, "output_logits": True, "output_hidden_states": True}
    lazy, never = (
        decoding.generate(expert, **batch(2), strategy=form, max_new_tokens=8, **asked)
        for form in (ContrastiveDecoding(amateur), eager(ContrastiveDecoding(amateur)))
    )
    assert torch.equal(lazy.sequences, never.sequences)
    assert all(map(torch.equal, lazy.logits, never.logits))
    assert all(map(torch.equal, lazy.hidden_states[-1], never.hidden_states[-1]))


def test_as_a_logits_processor_every_token_is_read() -> None:
    expert, amateur, _ = embedded()
    inputs, strategy = batch(2), ContrastiveDecoding(amateur)
    processor = strategy.logits_processor(expert, attention_mask=inputs["attention_mask"])
    beams = {"max_new_tokens": 8, "do_sample": False}
    tokens = expert.generate(**inputs, logits_processor=LogitsProcessorList([processor]), **beams)
    assert torch.equal(tokens, decoding.generate(expert, **inputs, strategy=strategy, max_new_tokens=8))


def session_of(strategy: Any, rows: int = 2) -> tuple[ContrastSession, Tensor]:
    expert, _, _ = embedded()
    from decoding.stream.prepare import prepare_inputs

    prepared, kwargs, config = prepare_inputs(expert, **batch(rows))
    config.max_length = prepared.shape[1] + NEW
    return strategy.session(expert, prepared, kwargs, config), prepared


def test_rows_that_are_put_in_another_order_take_what_they_have_not_read_along() -> None:
    strategy = ContrastiveDecoding(embedded()[1], alpha=1.0)
    lazy, ids = session_of(strategy)
    never, _ = session_of(eager(strategy))
    order = torch.tensor([1, 0])
    for step in range(6):
        chosen = lazy.greedy(ids, LogitsProcessorList())
        assert torch.equal(chosen, never.greedy(ids, LogitsProcessorList()))
        for session in (lazy, never):
            session.advance(chosen)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        if step == 3:
            for session in (lazy, never):
                session.reorder(order)
            ids = ids[order]
    assert lazy.streams.unread
    assert not never.streams.unread
    lazy._complete()
    for role, logits in never.reader_logits.items():
        torch.testing.assert_close(lazy.reader_logits[role].final, logits.final, rtol=1e-4, atol=1e-4)
    lazy.release()
    never.release()


def test_readers_of_the_same_weights_share_a_pass_and_do_not_wait() -> None:
    for strategy in (ContrastiveDecoding(decoding.Prompt([9, 40, 17])), ContextAware([9, 40, 17])):
        session, _ = session_of(strategy)
        assert session.may_wait == frozenset()
        session.release()


def test_a_strategy_that_does_not_say_what_plausibility_depends_on_reads_everything() -> None:
    @dataclasses.dataclass(frozen=True)
    class Untold(ContrastiveDecoding):
        plausibility_roles = None

    session, _ = session_of(Untold(embedded()[1]))
    assert session.may_wait == frozenset()
    session.release()


@pytest.mark.parametrize(
    ("logits", "alpha", "tokens"),
    [
        ([[4.0, 0.0, 1.0], [0.0, 9.0, 1.0]], 0.1, [[0], [1]]),
        ([[4.0, 0.0, 1.0], [0.0, 3.0, 1.0]], 0.1, [[0], [1, 2]]),  # 2 < ln 10
        ([[4.0, 0.0, 1.0]], None, None),
        ([[4.0, 0.0, 1.0]], 0.0, None),
        ([[float("-inf"), 2.0, 1.0]], 0.0, [[1, 2]]),  # a token that the model excludes
        ([[4.0, 3.9, 1.0]], 1.0, [[0]]),
        ([[4.0, 4.0, 1.0]], 1.0, [[0, 1]]),
        ([[4.0, 4.0 - 5e-4, 1.0]], 1.0, [[0, 1]]),  # closer than rounding
        ([[4.0, float("nan"), 1.0]], 0.1, None),
        ([[float("-inf"), 2.0, float("-inf")]], 0.1, [[1]]),
        ([[float("-inf")] * 3], 0.1, None),
        ([[4.0], [5.0]], 0.1, [[0], [0]]),  # a vocabulary of one token
    ],
)
def test_plausible_tokens(
    logits: Sequence[Sequence[float]], alpha: float | None, tokens: list[list[int]] | None
) -> None:
    plausibility = torch.tensor(logits)
    plausible = candidates(Contrast(lambda _: plausibility, lambda: plausibility, alpha))
    assert (None if plausible is None else [row.nonzero()[:, 0].tolist() for row in plausible]) == tokens


def test_the_roles_of_plausibility_are_the_readers_that_it_changes_with() -> None:
    """Other logits of any other reader leave plausibility as it is."""
    expert, amateur, _ = embedded()
    for name, make in STRATEGIES.items():
        strategy = make(amateur)
        session, ids = session_of(strategy)
        text = session.text(ids)
        before = strategy.contrast(session.reader_logits, text).plausibility_logits()
        for role, logits in session.reader_logits.items():
            other = dataclasses.replace(logits, final=torch.randn_like(logits.final))
            changed = strategy.contrast({**session.reader_logits, role: other}, text).plausibility_logits()
            assert torch.equal(before, changed) is (role not in strategy.plausibility_roles), (name, role)
        assert EXPERT in strategy.plausibility_roles
        session.release()
    del expert
