"""Explanations against recomputation: float64, no cache, no padding, each reader by itself, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from explained_steps import AMATEUR, EXPERT, NEAR, PROMPTS, STEPS, check_sum, shown
from tiny_models import left_padded, tiny_model, word_tokenizer
from tiny_strategies import EXAMPLES, OTHER_INPUTS, OTHER_MODELS
from torch import Tensor

import decoding
from decoding import (
    LOL,
    AdaptiveContext,
    ContrastiveDecoding,
    DoLa,
    Explanation,
    MaskedHeads,
    OptionError,
    Strategy,
)
from decoding.api import generate_with
from decoding.explanation.records import Step
from decoding.strategies.registry import NOT_EXPLAINED, STRATEGIES, parse_strategy

Texts = list[int]
ScoresAndReaders = tuple[Tensor, dict[str, Tensor]]
"""(vocab,) scores in float64, -inf where a token may not be chosen; and the logits (vocab,) of each reader."""


def _check(step: Step, text: Texts, scores: Tensor, readers: Mapping[str, Tensor]) -> None:
    """Compare every figure of a step, after the text."""
    assert list(step.chosen.log_probs) == list(readers)
    log_probs = {name: logits.log_softmax(-1) for name, logits in readers.items()}
    probabilities = scores.softmax(-1)
    # Scores that a tolerance away from plausibility's edge could be on its other side are none here: seeds are fixed.
    assert step.choices == int((scores > -math.inf).sum())
    assert step.greedy.token == int(readers["expert"].argmax())
    for candidate in shown(step):
        assert candidate.log_probs == pytest.approx(
            {name: float(values[candidate.token]) for name, values in log_probs.items()}, **NEAR
        )
        score = float(scores[candidate.token])
        assert (candidate.score is None) == (score == -math.inf)
        assert candidate.score is None or candidate.score == pytest.approx(score, **NEAR)
        assert candidate.probability == pytest.approx(float(probabilities[candidate.token]), abs=1e-4)
    tokens = {candidate.token for candidate in shown(step)}
    allowed = min(step.choices, 5)
    assert tokens >= set(scores.topk(allowed).indices.tolist()) | set(readers["expert"].topk(5).indices.tolist())
    assert tokens >= {int(logits.argmax()) for logits in readers.values()}
    margin = float(scores[step.chosen.token] - scores[step.greedy.token])
    assert (step.margin is None) == (not math.isfinite(margin))
    assert step.margin is None or step.margin == pytest.approx(margin, **NEAR)
    assert step.divergences == pytest.approx(
        {
            name: oracle.jensen_shannon(readers["expert"], logits)
            for name, logits in readers.items()
            if name != "expert"
        },
        abs=1e-4,
    )


READERS = {"expert": oracle.Reader(EXPERT), "amateur": oracle.Reader(AMATEUR)}
PREFIX = [5, 6]


def _greedy(text: Texts) -> ScoresAndReaders:
    logits = READERS["expert"].logits(text)[-1]
    return logits, {"expert": logits}


def _contrastive_decoding(text: Texts) -> ScoresAndReaders:
    readers = {name: reader.logits(text)[-1] for name, reader in READERS.items()}
    return oracle.contrastive_decoding(*readers.values(), 0.05, 0.8, "log_probs", 0.5), readers


def _dola(text: Texts) -> ScoresAndReaders:
    final = READERS["expert"].logits(text)[-1]
    early = [READERS["expert"].early(text, layer, False)[-1] for layer in (1, 2)]
    named = {f"expert, layer {layer}": logits for layer, logits in enumerate(early, 1)}
    return oracle.dola(final, early, 0.05, "dola"), {"expert": final, **named}


def _lol(fusion: str) -> Callable[[Texts], ScoresAndReaders]:
    settings = {"refocus_weight": 0.5, "amateur_weight": 0.7, "lower_amateur_weight": 0.4, "fusion_weight": 0.5}

    def scores(text: Texts) -> ScoresAndReaders:
        expert, amateur = READERS["expert"], READERS["amateur"]
        finals = [expert.logits(text)[-1], expert.logits([*PREFIX, *text])[-1], amateur.logits(text)[-1]]
        lower = {layer: [reader.early(text, layer, True)[-1] for reader in (expert, amateur)] for layer in (1, 2)}
        readers = {"expert": finals[0], **{f"expert, layer {layer}": pair[0] for layer, pair in lower.items()}}
        readers |= {"guided expert": finals[1], "amateur": finals[2]}
        readers |= {f"amateur, layer {layer}": pair[1] for layer, pair in lower.items()}
        given = {**settings, "fusion": fusion, "alpha": 0.05}
        return oracle.lol(finals[0], finals[2], list(lower.values()), finals[1], given), readers

    return scores


def _LOL(fusion: Any) -> LOL:  # noqa: N802
    return LOL(
        AMATEUR, [1, 2], guidance=PREFIX, amateur_weight=0.7, lower_amateur_weight=0.4, fusion=fusion, alpha=0.05
    )


ORACLES: dict[str, tuple[Any, Callable[[Texts], ScoresAndReaders]]] = {
    "greedy": ("greedy", _greedy),
    "contrastive-decoding": (
        ContrastiveDecoding(AMATEUR, alpha=0.05, beta=0.8, form="log_probs", amateur_temperature=0.5),
        _contrastive_decoding,
    ),
    "dola": (DoLa([1, 2], alpha=0.05), _dola),
    "lol": (_LOL("static"), _lol("static")),
    "lol-by-entropy": (_LOL("entropy"), _lol("entropy")),
}


@pytest.mark.parametrize("name", ORACLES)
def test_every_figure_is_that_of_recomputation(name: str) -> None:
    """In a left-padded batch; a row alone is explained alike: see below."""
    (strategy, scores_of), prompts = ORACLES[name], PROMPTS
    inputs = left_padded(prompts)
    columns = inputs["input_ids"].shape[1]
    options = {**inputs, "eos_token_id": None, "max_new_tokens": STEPS}
    given = strategy if isinstance(strategy, Strategy) else None
    sequences = decoding.generate(EXPERT, **options, strategy=given, do_sample=False)
    explained = decoding.explain(EXPERT, sequences, strategy, **options)
    differing = 0
    for row, prompt in enumerate(prompts):
        padding = columns - len(prompt)
        assert explained[row].is_padding == tuple([True] * padding + [False] * (len(prompt) + STEPS))
        assert explained[row].tokens == tuple(sequences[row].tolist())
        assert [step.position for step in explained[row].steps] == list(range(columns, columns + STEPS))
        for step in explained[row].steps:
            text = sequences[row, padding : step.position].tolist()
            _check(step, text, *scores_of(text))
            check_sum(step)
            assert step.chosen.token == int(sequences[row, step.position])
            assert step.chosen.score == max(candidate.score for candidate in shown(step) if candidate.score)
            differing += step.differs_from_greedy
    assert (differing > 0) == (name != "greedy")


def test_the_layer_that_dola_chose_is_named_and_has_its_weight() -> None:
    sequences = decoding.generate(EXPERT, torch.tensor(PROMPTS[1:]), strategy=DoLa([0, 1, 2]), max_new_tokens=STEPS)
    (explained,) = decoding.explain(EXPERT, sequences, DoLa([0, 1, 2]), input_ids=torch.tensor(PROMPTS[1:]))
    assert explained.readers == ("expert", *(f"expert, layer {layer}" for layer in range(3)))
    for step in explained.steps:
        weights = dict.fromkeys((f"expert, layer {layer}" for layer in range(3)), 0.0)
        weights |= {"expert": 1.0, f"expert, layer {step.settings['layer']}": -1.0}
        assert step.weights == weights


def test_the_strength_of_each_step_and_the_weights_that_it_makes() -> None:
    inputs = {"input_ids": torch.tensor(PROMPTS[:1])}
    strategy = AdaptiveContext([7, 8])
    sequences = decoding.generate(EXPERT, **inputs, strategy=strategy, max_new_tokens=STEPS)
    for step in decoding.explain(EXPERT, sequences, strategy, **inputs)[0].steps:
        strength = step.settings["strength"]
        assert strength == pytest.approx(step.divergences["expert in context"], abs=1e-6)
        assert step.weights == pytest.approx({"expert in context": 1 + strength, "expert": -strength})
        assert step.disagreement == step.divergences["expert in context"]
    masked = MaskedHeads({1: [0]})
    sequences = decoding.generate(EXPERT, **inputs, strategy=masked, max_new_tokens=STEPS)
    text = sequences[0, : len(PROMPTS[0])].tolist()
    (step, *_) = decoding.explain(EXPERT, sequences, masked, **inputs)[0].steps
    assert step.settings["strength"] == pytest.approx(oracle.entropy(READERS["expert"].logits(text)[-1]), abs=1e-4)


def test_a_layer_that_stands_for_several_has_their_weights_together() -> None:
    """An amateur of one layer exits after it, whatever layer the expert exits after."""
    shallow = oracle.ended_after(tiny_model("llama", seed=7), 1)
    shallow.config.num_hidden_layers = 1
    strategy = LOL(shallow, [1, 2], lower_amateur_weight=0.4, alpha=0.05)
    inputs = {"input_ids": torch.tensor(PROMPTS[:1])}
    sequences = decoding.generate(EXPERT, **inputs, strategy=strategy, max_new_tokens=STEPS)
    for step in decoding.explain(EXPERT, sequences, strategy, **inputs)[0].steps:
        check_sum(step)


# --- every strategy of the registry ----------------------------------------------------------------------------------


def _made(name: str) -> tuple[Any, Any]:
    """The strategy of a name and its text after the prompts."""
    spec = EXAMPLES[name]() if name in EXAMPLES else parse_strategy(name)
    options = {**left_padded(PROMPTS), "max_new_tokens": STEPS}
    torch.manual_seed(0)
    if isinstance(spec, Strategy):
        return spec, decoding.generate(EXPERT, **options, strategy=spec)
    return spec, generate_with(spec, EXPERT, **options)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in OTHER_MODELS])
def test_every_strategy_is_explained_or_refused_by_name(name: str) -> None:
    strategy, sequences = _made(name)
    inputs, tokenizer = left_padded(PROMPTS), word_tokenizer()
    if name in NOT_EXPLAINED:
        with pytest.raises(OptionError, match=rf"strategy={name}\(.*: .* chooses among whole texts") as refusal:
            decoding.explain(EXPERT, sequences, strategy, **inputs)
        assert "\n" not in str(refusal.value)
        return
    together = decoding.explain(EXPERT, sequences, strategy, tokenizer=tokenizer, **inputs)
    for row, explanation in enumerate(together):
        assert explanation.strategy.startswith(name)
        assert Explanation.from_json(explanation.to_json(indent=1)) == explanation
        assert explanation.steps
        for step in explanation.steps:
            check_sum(step)
            assert step.chosen.score is not None
            assert step.weights or not isinstance(strategy, Strategy)
            texts = {candidate.token: (candidate.text or "").strip() for candidate in shown(step)}
            assert texts == {token: tokenizer.convert_ids_to_tokens(token) for token in texts}
            scores = [candidate.score for candidate in step.rejected if candidate.score is not None]
            assert scores == sorted(scores, reverse=True)
        # A row's explanation depends neither on its batch nor on padding, nor on how many tokens are read at once.
        if row and name not in ("greedy", "contrastive-search", "lol"):
            continue  # the first row is the padded one
        keep = inputs["attention_mask"][row].bool()
        padding = int((~keep).sum())
        text = sequences[row : row + 1, padding : len(explanation.tokens)]
        (alone,) = decoding.explain(EXPERT, text, strategy, input_ids=inputs["input_ids"][row : row + 1, keep])
        for ours, theirs in zip(alone.steps, explanation.steps, strict=True):
            assert ours.position == theirs.position - padding
            assert ours.chosen.token == theirs.chosen.token
            assert ours.chosen.score == pytest.approx(theirs.chosen.score, **NEAR)
            assert ours.chosen.log_probs == pytest.approx(theirs.chosen.log_probs, **NEAR)
            assert ours.weights == pytest.approx(theirs.weights, abs=1e-4)
            if theirs.chosen.repeats is not None:
                assert ours.chosen.repeats == theirs.chosen.repeats - padding


def test_strategies_of_other_inputs_are_in_the_tests_of_these() -> None:
    assert OTHER_INPUTS < OTHER_MODELS


def test_a_strategy_that_does_not_say_how_it_scores_shows_its_readers() -> None:
    class Plain(DoLa):
        def parts(self, logits: Any, new_tokens: Any) -> Any:
            return super(DoLa, self).parts(logits, new_tokens)

    inputs = {"input_ids": torch.tensor(PROMPTS[:1])}
    sequences = decoding.generate(EXPERT, **inputs, strategy=Plain([1, 2]), max_new_tokens=2)
    step = decoding.explain(EXPERT, sequences, Plain([1, 2]), **inputs)[0].steps[0]
    assert (step.weights, step.settings) == ({}, {})
    assert set(step.chosen.log_probs) == {"expert", "expert, layer 1", "expert, layer 2"}


@pytest.mark.parametrize(
    ("strategy", "measure"),
    [
        (DoLa([0, 1, 2]), "divergence"),
        (DoLa([0, 1, 2], divergence="jensen-shannon"), "divergence"),
        (decoding.DeCo([0, 1, 2]), "probability"),
    ],
)
def test_the_measure_by_which_a_layer_was_chosen_is_told(strategy: Any, measure: str) -> None:
    """And the layer that it names is the one with the largest; DoLa's divergences are those of its formula."""
    prompt = torch.tensor(PROMPTS[1:])
    sequences = decoding.generate(EXPERT, prompt, strategy=strategy, max_new_tokens=STEPS)
    (explained,) = decoding.explain(EXPERT, sequences, strategy, input_ids=prompt)
    for step in explained.steps:
        of_layers = [step.settings[f"{measure} of layer {layer}"] for layer in range(3)]
        assert step.settings["layer"] == of_layers.index(max(of_layers))
        if measure == "divergence":
            with torch.no_grad():
                output = EXPERT(sequences[:, : step.position], output_hidden_states=True)
                final = output.logits[0, -1].double().softmax(-1)
                exits = [EXPERT.lm_head(output.hidden_states[layer][0, -1]).double().softmax(-1) for layer in range(3)]
            expected = [_divergence(final, exit_, strategy.divergence) for exit_ in exits]
            assert of_layers == pytest.approx(expected, rel=1e-3, abs=1e-5)


def _divergence(final: Tensor, exit_: Tensor, kind: str) -> float:
    """Half of the sum of the KL from the average M, or to it where the kind is the textbook's."""
    average = (final + exit_) / 2
    pairs = [(average, own) if kind == "dola" else (own, average) for own in (final, exit_)]
    return float(sum((a * (a / b).log()).sum() for a, b in pairs) / 2)


def test_one_layer_alone_was_not_chosen_by_anything() -> None:
    prompt = torch.tensor(PROMPTS[1:])
    sequences = decoding.generate(EXPERT, prompt, strategy=DoLa([1]), max_new_tokens=1)
    assert decoding.explain(EXPERT, sequences, DoLa([1]), input_ids=prompt)[0].steps[0].settings == {"layer": 1}
