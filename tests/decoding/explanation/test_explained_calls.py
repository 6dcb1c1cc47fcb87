"""Explanations take the options of a call: batches, processors, draws, end tokens, drafts, progress; and bad input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from explained_steps import AMATEUR, EXPERT, NEAR, PROMPTS, STEPS, check_sum, shown
from scripted_drafts import drafted
from tiny_models import left_padded, random_ids, tiny_model, word_tokenizer
from tiny_strategies import EXAMPLES
from torch import Tensor

import decoding
from decoding import (
    FSD,
    SLED,
    ContrastiveDecoding,
    DoLa,
    DraftRecord,
    Explanation,
    InputError,
    OptionError,
    Strategy,
)

# --- what is read at once, and by which models -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "mistral-sliding", "mamba", "t5"])
def test_models_that_read_tokens_one_by_one_are_explained_alike(name: str) -> None:
    model = tiny_model(name)
    inputs = {"input_ids": random_ids(2, 7)}
    start = 1 if name == "t5" else 7
    for strategy in (DoLa([0, 1]), FSD()):
        if isinstance(strategy, DoLa) and name == "t5":
            continue
        options = {**inputs, "max_new_tokens": STEPS, "eos_token_id": None}
        output = decoding.generate(
            model, **options, strategy=strategy, return_dict_in_generate=True, output_scores=True
        )
        explained = decoding.explain(model, output.sequences, strategy, **options)
        for row, explanation in enumerate(explained):
            assert [step.position for step in explanation.steps] == list(range(start, start + STEPS))
            for step, scores in zip(explanation.steps, output.scores, strict=True):
                for candidate in shown(step):
                    right = float(scores[row, candidate.token])
                    assert (candidate.score is None) == (right == -math.inf)
                    assert candidate.score is None or candidate.score == pytest.approx(right, **NEAR)


def test_long_texts_are_read_in_passes_whose_logits_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"input_ids": torch.tensor(PROMPTS[:1])}
    strategy = ContrastiveDecoding(AMATEUR)
    sequences = decoding.generate(EXPERT, **inputs, strategy=strategy, max_new_tokens=11, eos_token_id=None)
    decoding.explain(EXPERT, sequences, strategy, eos_token_id=None, **inputs)  # finds once what the model can do
    passes: list[int] = []
    forward = EXPERT.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(EXPERT.model, "forward", counted)
    (at_once,) = decoding.explain(EXPERT, sequences, strategy, eos_token_id=None, **inputs)
    assert len(passes) == 2  # the prompt, and the text
    passes.clear()
    monkeypatch.setattr("decoding.explanation.replay.NUMBERS_AT_ONCE", 4 * 2 * 120)
    (in_parts,) = decoding.explain(EXPERT, sequences, strategy, eos_token_id=None, **inputs)
    assert len(passes) == 1 + 3  # of 4 tokens, but for the last one, which nothing comes after
    for ours, theirs in zip(at_once.steps, in_parts.steps, strict=True):
        assert ours.chosen.score == pytest.approx(theirs.chosen.score, **NEAR)


# --- the call's own options ------------------------------------------------------------------------------------------


def test_processors_are_a_part_of_the_score_and_of_greedys_choice() -> None:
    options = {
        "input_ids": torch.tensor(PROMPTS[1:]), "repetition_penalty": 1.5, "min_new_tokens": 4, "max_new_tokens": STEPS
    }  # fmt: skip
    for strategy in (SLED(), ContrastiveDecoding(AMATEUR), "greedy"):
        given = strategy if isinstance(strategy, Strategy) else None
        sequences = decoding.generate(EXPERT, **options, strategy=given, do_sample=False)
        (explained,) = decoding.explain(EXPERT, sequences, strategy, **options)
        changed = 0
        for step in explained.steps:
            check_sum(step)
            assert step.chosen.score == max(c.score for c in shown(step) if c.score is not None)
            changed += any(c.parts.get("processors", 0.0) != 0.0 for c in shown(step))
        assert changed > 0
        # Greedy search with the same options, from each place.
        step = explained.steps[2]
        behind = sequences[:, : step.position]
        again = EXPERT.generate(behind, repetition_penalty=1.5, min_new_tokens=2, max_new_tokens=2, do_sample=False)
        assert step.greedy.token == int(again[0, -2])


def test_drawn_tokens_have_the_probabilities_that_they_were_drawn_with() -> None:
    options = {
        "input_ids": torch.tensor(PROMPTS[1:]), "do_sample": True, "temperature": 3.0, "top_k": 7,
        "max_new_tokens": 12, "eos_token_id": None,
    }  # fmt: skip
    for strategy in (None, DoLa([1, 2], alpha=0.0), FSD(top_k=7)):
        torch.manual_seed(1)
        output = decoding.generate(
            EXPERT, **options, strategy=strategy, return_dict_in_generate=True, output_scores=True
        )
        temperature = 3.0 if isinstance(strategy, FSD) else 1.0  # of its scores; the others' have been divided by it
        (explained,) = decoding.explain(EXPERT, output.sequences, strategy, **options)
        assert any(step.margin and step.margin < 0 for step in explained.steps)
        for step, scores in zip(explained.steps, output.scores, strict=True):
            right = (scores[0] / temperature).softmax(-1)
            assert step.choices == 7
            for candidate in shown(step):
                assert candidate.probability == pytest.approx(float(right[candidate.token]), abs=1e-4)


def test_a_row_ends_with_its_end_token() -> None:
    strategy = FSD(penalty_alpha=0.9)
    options = {**left_padded(PROMPTS), "max_new_tokens": STEPS}
    columns = options["input_ids"].shape[1]
    new = decoding.generate(EXPERT, **options, strategy=strategy, eos_token_id=None)[:, columns:].tolist()
    length, end = next((n, token) for n, token in enumerate(new[0][1:], 2) if token not in new[0][: n - 1] + new[1])
    options |= {"eos_token_id": end, "pad_token_id": 0}
    sequences = decoding.generate(EXPERT, **options, strategy=strategy)
    explained = decoding.explain(EXPERT, sequences, strategy, **options)
    assert [[step.chosen.token for step in explanation.steps] for explanation in explained] == [new[0][:length], new[1]]
    assert 1 < length < STEPS
    assert len(explained[0].tokens) == columns + length


def test_a_prompt_alone_has_no_steps() -> None:
    prompt = torch.tensor(PROMPTS[:1])
    (explained,) = decoding.explain(EXPERT, prompt, DoLa([1]), input_ids=prompt, tokenizer=word_tokenizer())
    assert explained.steps == ()
    assert explained.tokens == tuple(PROMPTS[0])


def test_bad_input_is_one_line() -> None:
    prompt = torch.tensor(PROMPTS[:1])
    for arguments, message in (
        ({"strategy": 3}, "strategy=3: must be a strategy such as decoding.DoLa()"),
        ({"strategy": "gredy"}, "did you mean greedy"),
        ({"strategy": DoLa([1]), "alternatives": 0}, "alternatives=0: must be a whole number from 1"),
        ({"strategy": DoLa([9])}, "9"),
    ):
        with pytest.raises(OptionError, match=message.replace("(", r"\(").replace(")", r"\)")) as error:
            decoding.explain(EXPERT, prompt, input_ids=prompt, **arguments)
        assert "\n" not in str(error.value)
    output = decoding.generate(EXPERT, input_ids=prompt, max_new_tokens=1, return_dict_in_generate=True)
    for given, message in (
        (PROMPTS[:1], "sequences must be a tensor"),
        (torch.full_like(prompt, 10**6), "sequences: token 1000000"),
        (prompt[:, :1], r"sequences \(1, 1\): must be those that generate returned for this prompt"),
        (output, "sequences is a GenerateDecoderOnlyOutput: give its field sequences"),
    ):
        with pytest.raises(InputError, match=message):
            decoding.explain(EXPERT, given, "greedy", input_ids=prompt)
    with pytest.raises(InputError, match="sequences are empty"):
        decoding.explain(EXPERT, prompt[:, :0], DoLa([1]), input_ids=prompt)
    for wrong in (3, [print]):
        with pytest.raises(OptionError, match=r"progress=.*: must be a function of a position, or None"):
            decoding.explain(EXPERT, prompt, "greedy", input_ids=prompt, progress=wrong)  # type: ignore[arg-type]


def test_progress_is_told_of_each_position_and_may_end_it() -> None:
    """One forward pass a token, as contrastive search reads them; one that is ended reads no more."""

    class Enough(Exception):  # noqa: N818 - no error
        pass

    inputs = {"input_ids": torch.tensor(PROMPTS[:1])}
    sequences = decoding.generate(EXPERT, **inputs, strategy="contrastive-search", max_new_tokens=6)
    told: list[int] = []
    decoding.explain(EXPERT, sequences, "contrastive-search", progress=told.append, **inputs)
    assert told == list(range(len(PROMPTS[0]), sequences.shape[1]))

    def end(position: int) -> None:
        if position == told[2]:
            raise Enough

    passes: list[int] = []
    hook = EXPERT.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        decoding.explain(EXPERT, sequences, "contrastive-search", **inputs)
        whole = len(passes)
        with pytest.raises(Enough):
            decoding.explain(EXPERT, sequences, "contrastive-search", progress=end, **inputs)
    finally:
        hook.remove()
    assert len(passes) - whole < whole


def test_infinite_scores_are_numbers_in_json() -> None:
    """A token that only the amateur excludes scores +inf."""

    class Excluding(ContrastiveDecoding):
        def contrast(self, logits: Any, input_ids: Tensor) -> Any:
            final = logits["amateur"].final.clone()
            final[..., 3] = -torch.inf
            logits = {**logits, "amateur": dataclasses.replace(logits["amateur"], final=final)}
            return super().contrast(logits, input_ids)

    strategy, prompt = Excluding(AMATEUR, alpha=0.0), torch.tensor(PROMPTS[:1])
    sequences = decoding.generate(EXPERT, prompt, strategy=strategy, max_new_tokens=2)
    (explained,) = decoding.explain(EXPERT, sequences, strategy, input_ids=prompt)
    assert [step.chosen.token for step in explained.steps] == [3, 3]
    assert explained.steps[0].chosen.probability == 1.0
    assert Explanation.from_json(explained.to_json()) == explained


# --- drafts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["contrastive-search", "contrastive-decoding", None])
def test_steps_tell_which_drafts_were_accepted_and_which_token_a_rejected_one_was(name: str | None) -> None:
    strategy = None if name is None else EXAMPLES[name]()
    inputs = left_padded(PROMPTS)
    columns = inputs["input_ids"].shape[1]
    options: dict[str, Any] = {"strategy": strategy, "max_new_tokens": 12, "eos_token_id": None, "do_sample": False}
    plain = decoding.generate(EXPERT, **inputs, **options)
    record = DraftRecord()
    script = {"wrong": 0.3, "short": 0.0, "seed": 1}
    sequences, proposer = drafted(EXPERT, plain, inputs, script=script, draft_record=record, **options)
    assert sequences.equal(plain)
    asked = {key: value for key, value in options.items() if key != "strategy"}
    explained = decoding.explain(EXPERT, sequences, strategy, draft_record=record, **inputs, **asked)
    for row, explanation in enumerate(explained):
        # The first token of the call has no draft, nor has the one after drafts that were all accepted.
        accepted = [step.draft for step in explanation.steps].count("accepted")
        rounds = [taken[row] for taken in proposer.taken]
        assert sum(taken - 1 for taken in rounds) <= accepted <= sum(taken - 1 for taken in rounds) + 3
        assert explanation.steps[0].draft is None
        for step in explanation.steps:
            assert (step.draft is None) == (step.draft_token is None)
            assert (step.draft == "accepted") == (step.draft_token == step.chosen.token)
        assert set(record.rows[row]) <= set(range(columns + 1, sequences.shape[1]))
    kinds = {step.draft for explanation in explained for step in explanation.steps}
    assert kinds == {"accepted", "rejected", None}
    without = DraftRecord()
    decoding.generate(EXPERT, **inputs, **options, draft_record=without)
    assert without.rows == [{}, {}]
    with pytest.raises(InputError, match="draft_record: is of a call of 1 rows, and the sequences have 2"):
        decoding.explain(EXPERT, sequences, strategy, draft_record=DraftRecord([{}]), **inputs)
    with pytest.raises(OptionError, match=r"draft_record=.*: must be a decoding"):
        decoding.generate(EXPERT, **inputs, **options, draft_record=[])
