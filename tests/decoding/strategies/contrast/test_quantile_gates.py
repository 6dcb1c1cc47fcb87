"""Gates that compare with a quantile of the row's own earlier measures, against full recomputation in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import contrast_oracle as oracle
import numpy as np
import pytest
import torch
from degraded_oracle import without_layers
from embedded_batches import with_class_attributes
from scripted_drafts import drafted
from tiny_models import left_padded, random_prompt, sharper_model, tiny_model
from torch import Tensor

import decoding
from decoding import LastToken, OptionError, Prompt, Self, WeightedContrast
from decoding.scoring import shared_readers, teacher_forcing
from decoding.strategies.contrast.measures import MeasureHistory
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.strategies.contrast.strengths import quantile_gate
from decoding.strategies.contrast.system_messages import SystemMessages

STEPS = 12
PROMPTS = [random_prompt(4, seed=1), random_prompt(9, seed=2)]
Scores = Callable[[list[int], int], Tensor]


@functools.cache
def models() -> tuple[Any, Any]:
    return sharper_model("llama", times=4.0), sharper_model("llama", seed=7, times=4.0)


@functools.cache
def readers() -> dict[str, oracle.Reader]:
    own, other = models()
    return {
        "own": oracle.Reader(own),
        "skipped": oracle.Reader(without_layers(own, (1,))),
        "other": oracle.Reader(other),
    }


def confidence(logits: Tensor, _: Tensor) -> float:
    return float(logits.softmax(-1).max())


def entropy(logits: Tensor, _: Tensor) -> float:
    return oracle.entropy(logits)


@dataclass(frozen=True)
class Case:
    """A gate; the readers of its contrast, the anchor first; its measure, quantile, and least number of measures."""

    when: str
    names: tuple[str, str]
    measure: Callable[[Tensor, Tensor], float]
    quantile: float
    least: int
    alpha: float = 0.02

    @property
    def strategy(self) -> WeightedContrast:
        if self.names[0] == "other":  # the plausibility, and the measure, of a reader that is not the expert
            terms = [(models()[1], 2.0, "small"), ("expert", -1.0)]
            return WeightedContrast(terms, "logits", self.alpha, plausible="small", when=self.when)
        second = models()[1] if self.names[1] == "other" else Self(skip_layers=[1])
        return WeightedContrast([("expert", 2.0), (second, -1.0)], "logits", self.alpha, when=self.when)

    def logits(self, text: list[int]) -> list[Tensor]:
        return [readers()[name].logits(text)[-1] for name in self.names]

    @functools.cache  # noqa: B019 - the cases live as long as the tests
    def measured(self, text: tuple[int, ...]) -> float:
        return self.measure(*self.logits([*text]))

    def distance(self, text: list[int], start: int) -> float:
        """How far the measure after a text is beyond the quantile of those after its first ``start`` tokens and more;
        -inf where there are too few.
        """
        *earlier, here = (self.measured(tuple(text[:end])) for end in range(start, len(text) + 1))
        if len(earlier) < self.least:
            return -np.inf
        limit = float(np.quantile(earlier, self.quantile))
        return limit - here if "<" in self.when else here - limit

    def scores(self, text: list[int], start: int) -> Tensor:
        strength = float(self.distance(text, start) > 0)
        return oracle.weighted(self.logits(text), (2, -1), "logits", self.alpha, strength)


CASES = {
    "confidence": Case("confidence < quantile 0.4", ("own", "skipped"), confidence, 0.4, 3),
    "entropy": Case(" entropy>quantile .5", ("own", "other"), entropy, 0.5, 2),
    "divergence": Case("divergence < quantile 0.7", ("own", "other"), oracle.jensen_shannon, 0.7, 4),
    "other anchor": Case("confidence > quantile 0.5", ("other", "own"), confidence, 0.5, 2),
}
OPTIONS: dict[str, Any] = {"max_new_tokens": STEPS, "pad_token_id": 0, "eos_token_id": None}


@functools.cache
def expected(name: str, row: int) -> tuple[list[int], list[Tensor]]:
    case, prompt = CASES[name], PROMPTS[row]
    return oracle.greedy_tokens(lambda text: case.scores(text, len(prompt)), prompt, STEPS)


@pytest.mark.parametrize("name", CASES)
def test_every_way_in_gives_the_tokens_of_recomputation(name: str) -> None:
    """Left-padded rows; a call that returns scores, and one in which readers wait; one strategy in all calls."""
    case, (model, _) = CASES[name], models()
    strategy, batch = case.strategy, left_padded(PROMPTS)
    output = decoding.generate(
        model, **batch, strategy=strategy, return_dict_in_generate=True, output_scores=True, **OPTIONS
    )
    width, distances = batch["input_ids"].shape[1], []
    for row, prompt in enumerate(PROMPTS):
        tokens, scores = expected(name, row)
        assert output.sequences[row, width:].tolist() == tokens
        for step, right in enumerate(scores):
            here, kept = output.scores[step][row], right.isfinite()
            assert torch.equal(here.isfinite(), kept)
            torch.testing.assert_close(here[kept].double(), right[kept], atol=1e-4, rtol=1e-4)
        distances += [case.distance([*prompt, *tokens[:step]], len(prompt)) for step in range(STEPS)]
    assert min(abs(distance) for distance in distances) > 1e-6  # no choice is one of rounding
    assert min(distance for distance in distances if distance != -np.inf) < 0 < max(distances)
    processor = strategy.logits_processor(model, attention_mask=batch["attention_mask"])
    for found in (
        decoding.generate(model, **batch, strategy=strategy, **OPTIONS),
        model.generate(**batch, do_sample=False, logits_processor=[processor], **OPTIONS),
    ):
        assert torch.equal(found, output.sequences)


@pytest.mark.parametrize(("name", "seed"), [("confidence", 0), ("divergence", 1), ("entropy", 2)])
def test_rows_know_what_was_measured_at_the_drafts_that_they_accepted(name: str, seed: int) -> None:
    """Rows that accept different numbers of drafts, some after wrong ones."""
    (model, _), batch = models(), left_padded(PROMPTS)
    tokens = torch.tensor([expected(name, row)[0] for row in range(2)])
    found, proposer = drafted(
        model, torch.cat([batch["input_ids"], tokens], dim=1), batch, strategy=CASES[name].strategy,
        script={"wrong": 0.25, "seed": seed}, return_dict_in_generate=True, output_scores=True, **OPTIONS,
    )  # fmt: skip
    assert torch.equal(found.sequences[:, -STEPS:], tokens)
    for step, scores in enumerate(found.scores):
        for row in range(2):
            right = expected(name, row)[1][step]
            kept = right.isfinite()
            torch.testing.assert_close(scores[row][kept].double(), right[kept], atol=1e-4, rtol=1e-4)
    assert any(len(set(taken)) > 1 for taken in proposer.taken)


def test_explanations_show_where_the_gate_was_open() -> None:
    case, (model, _), batch = CASES["confidence"], models(), left_padded(PROMPTS)
    sequences = torch.cat([batch["input_ids"], torch.tensor([expected("confidence", row)[0] for row in range(2)])], 1)
    explained = decoding.explain(model, sequences, case.strategy, **batch)
    for row, (prompt, explanation) in enumerate(zip(PROMPTS, explained, strict=True)):
        text = [*prompt, *expected("confidence", row)[0]]
        for step, shown in enumerate(explanation.steps):
            is_open = case.distance(text[: len(prompt) + step], len(prompt)) > 0
            assert shown.settings["strength"] == float(is_open)


def test_the_history_follows_the_beam() -> None:
    case, (model, _), prompt, beams = CASES["confidence"], models(), PROMPTS[1], 3
    hypotheses = [(0.0, list(prompt))]
    for _ in range(7):
        grown = [
            (total + float(gain), [*text, int(token)])
            for total, text in hypotheses
            for gain, token in zip(*oracle.log_softmax(case.scores(text, len(prompt))).topk(beams), strict=True)
        ]
        hypotheses = sorted(grown, key=lambda hypothesis: -hypothesis[0])[:beams]
    processor = case.strategy.logits_processor(model)
    found = model.generate(
        torch.tensor([prompt]), logits_processor=[processor], num_beams=beams, max_new_tokens=7, do_sample=False,
        renormalize_logits=True, num_return_sequences=beams,
    )  # fmt: skip
    assert found.tolist() == [text for _, text in hypotheses]


@pytest.mark.parametrize("name", ["confidence", "divergence"])
def test_continuations_are_scored_after_their_own_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one tree, whose prompts end in different places, in several products of the head."""
    case, (model, _), prefix = CASES[name], models(), PROMPTS[0]
    tokens = expected(name, 0)[0]
    monkeypatch.setattr(shared_readers, "NUMBERS_AT_ONCE", 2 * 120 * 5)
    requests = [([], [tokens, [*tokens[:7], 9, 8, 7]]), (tokens[:2], [tokens[2:], tokens[2:9]])]
    with decoding.Scorer(model, prefix, [None, case.strategy]) as scorer:
        assert scorer._shared is not None
        assert scorer._shared.positions_at_once == 5
        scored = scorer.score(requests)
    for (prompt, continuations), (_, of_strategy) in zip(requests, scored, strict=True):
        whole = [*prefix, *prompt]
        for continuation, scores in zip(continuations, of_strategy, strict=True):
            right = oracle.per_token(lambda text, n=len(whole): case.scores(text, n), whole, continuation, True)
            torch.testing.assert_close(
                scores.normalized, torch.tensor(right, dtype=torch.float32), atol=2e-4, rtol=1e-4
            )


def test_a_whole_text_is_scored_as_after_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    case, (model, _) = CASES["entropy"], models()
    texts = [[*prompt, *expected("entropy", row)[0]][:15] for row, prompt in enumerate(PROMPTS)]
    monkeypatch.setattr(teacher_forcing, "NUMBERS_AT_ONCE", 2 * 120 * 4)
    scores = teacher_forcing.teacher_forced(model, torch.tensor(texts), case.strategy)
    for row, text in enumerate(texts):
        for end in range(1, len(text) + 1):
            right = oracle.log_softmax(case.scores(text[:end], 1)).clamp(min=-1000)
            torch.testing.assert_close(scores[row, end - 1].double(), right, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("gate", "waits"), [("confidence < quantile 0.4", True), ("divergence > quantile 0.6", False)])
def test_a_reader_that_is_measured_does_not_wait(gate: str, waits: bool) -> None:
    model, other = sharper_model("llama", times=30.0), models()[1]
    strategy, batch = WeightedContrast([("expert", 2.0), (other, -1.0)], alpha=0.3, when=gate), left_padded(PROMPTS)
    decoding.generate(model, **batch, strategy=strategy, max_new_tokens=1)  # the checks of a model come first
    passes: list[int] = []
    handle = other.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    tokens, counts = [], []
    for form in (strategy, with_class_attributes(strategy, lazy=False)):
        passes.clear()
        tokens.append(decoding.generate(model, **batch, strategy=form, **OPTIONS))
        counts.append(len(passes))
    handle.remove()
    assert torch.equal(*tokens)
    assert counts[1] == STEPS
    assert (counts[0] < STEPS) is waits


def test_rows_accept_as_many_measures_as_tokens() -> None:
    history, nan = MeasureHistory(), float("nan")
    history.look(torch.tensor([0.0, 10.0]))
    history.accept()
    for place, values in enumerate(([1.0, 11.0], [2.0, 99.0], [98.0, 99.0])):
        history.look(torch.tensor(values), place)
    history.look(torch.tensor([3.0, 97.0]), 2)  # the same place again
    assert history.measures.tolist() == [[0, 1, 2, 3], [10, 11, 99, 97]]
    history.accept([2, 1])
    history.look(torch.tensor([4.0, 12.0]))
    history.reorder(torch.tensor([1, 1]))
    expected_row = torch.tensor([10, 11, nan, nan, 12])
    torch.testing.assert_close(history.measures, expected_row.expand(2, -1), equal_nan=True)
    history.accept([0, 0])
    history.look(torch.tensor([5.0, 6.0]))
    torch.testing.assert_close(history.measures[0], torch.tensor([10, 11, nan, nan, 5.0]), equal_nan=True)


@pytest.mark.parametrize(("quantile", "least"), [(0.2, 5), (0.8, 5), (0.5, 2), (0.25, 4), (0.3, 4), (0.05, 20)])
def test_a_gate_is_closed_until_its_share_can_be_told(quantile: float, least: int) -> None:
    gate = quantile_gate(f"entropy > quantile {quantile}")
    assert gate is not None
    for count in (0, least - 1, least, least + 1):
        # As many as are missing stand among them.
        measures = torch.cat([torch.rand(count), torch.full((3,), torch.nan), torch.tensor([2.0])])
        assert bool(gate.is_open(measures)) is (count >= least)
        assert bool(gate.is_open(measures[None])) is (count >= least)


@pytest.mark.parametrize("when", ["confidence < quantile 0", "entropy > quantile 1.0", "divergence<quantile 20"])
def test_a_quantile_is_between_0_and_1(when: str) -> None:
    with pytest.raises(OptionError, match="the quantile must be a number above 0 and below 1"):
        WeightedContrast([("expert", 2), (LastToken(), -1)], when=when)


def test_a_divergence_below_a_quantile_has_two_sides() -> None:
    with pytest.raises(OptionError, match="a divergence needs a reader beside the anchor"):
        WeightedContrast([("expert", 1)], when="divergence < quantile 0.2")


def test_without_a_history_the_gate_says_so() -> None:
    strategy, logits = CASES["confidence"].strategy, ReaderLogits(torch.randn(1, 9))
    contrast = strategy.contrast({EXPERT: logits, "reader 2": logits}, torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(OptionError, match="quantile 0\\.4': what was measured at earlier tokens"):
        contrast.masked  # noqa: B018


def test_a_whole_text_has_no_measures_of_a_reader_with_a_system_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its positions before the first message of the chat mean nothing."""
    strategy = WeightedContrast(
        [("expert", 2.0), (Prompt([5]), -1.0, "told")], when="divergence < quantile 0.5", plausible="expert"
    )
    told = Reader("told", system=object.__new__(SystemMessages))
    monkeypatch.setattr(WeightedContrast, "readers", lambda *_: [Reader(EXPERT), told])
    with pytest.raises(OptionError, match="the told reads its text as a chat's system message, so what weighted-con"):
        teacher_forcing.teacher_forced(tiny_model("llama"), torch.tensor([[5, 6]]), strategy)
