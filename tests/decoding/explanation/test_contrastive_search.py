"""Explanations of contrastive search against full recomputation of every candidate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import left_padded, random_prompt, tiny_model
from torch import Tensor
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

import decoding
from decoding import ContrastiveSearch, DecodingWarning, InputError, OptionError
from decoding.explanation.records import Candidate, Step

ALPHA, K, STEPS = 0.7, 4, 6
PROMPTS = [random_prompt(4, seed=1), random_prompt(11, seed=2)]


def _steps(model: Any, sequences: Tensor, strategy: ContrastiveSearch, **inputs: Any) -> list[tuple[Step, ...]]:
    return [explained.steps for explained in decoding.explain(model, sequences, strategy, **inputs)]


def _candidates(step: Step) -> list[Candidate]:
    """Those that contrastive search reads, the most probable first."""
    scored = [candidate for candidate in (step.chosen, *step.rejected) if candidate.score is not None]
    return sorted(scored, key=lambda candidate: -candidate.parts["confidence"])


@torch.no_grad()
def _read(model: Any, texts: list[list[int]], encoder_ids: list[int] | None) -> tuple[Tensor, Tensor]:
    """(texts, length, dim) last hidden states and (texts, length, vocab) logits of texts of one length, in float64."""
    if encoder_ids is None:
        output = model(torch.tensor(texts), use_cache=False, output_hidden_states=True)
        return output.hidden_states[-1], output.logits
    given = {"input_ids": torch.tensor([encoder_ids] * len(texts)), "decoder_input_ids": torch.tensor(texts)}
    output = model(**given, use_cache=False, output_hidden_states=True)
    return output.decoder_hidden_states[-1], output.logits


def _check(
    model: Any, steps: Sequence[Step], text: list[int], start: int, *, positions: list[int] | None = None,
    window: int | None = None, encoder_ids: list[int] | None = None, repetition_penalty: float | None = None,
) -> int:  # fmt: skip
    """Compare the steps of ``text[start:]``, a row without its padding, with every candidate read behind the text anew.

    ``positions`` are those of the text's tokens in their row; by default it has no padding. Gives how often the most
    probable token was turned away from.
    """
    model = copy.deepcopy(model).double()
    positions = list(range(len(text))) if positions is None else positions
    assert [step.position for step in steps] == positions[start:]
    for index, step in enumerate(steps, start):
        before = text[:index]
        (hidden,), logits = _read(model, [before], encoder_ids)
        last = logits[:, -1]
        if repetition_penalty is not None:
            last = RepetitionPenaltyLogitsProcessor(repetition_penalty)(torch.tensor([before]), last)
        best = last[0].softmax(-1).topk(K)
        candidates = _candidates(step)
        assert [candidate.token for candidate in candidates] == best.indices.tolist()
        assert step.chosen.token == text[index]
        assert step.greedy.token == candidates[0].token
        assert step.weights == pytest.approx({"confidence": 1 - ALPHA, "penalty": -ALPHA})
        low = 0 if window is None else max(0, index - window)
        read = _read(model, [[*before, candidate.token] for candidate in candidates], encoder_ids)[0][:, -1]
        for candidate, p, after in zip(candidates, best.values.tolist(), read, strict=True):
            cosines = [float(torch.nn.functional.cosine_similarity(after, past, dim=0)) for past in hidden[low:]]
            # float32 against float64
            assert candidate.parts["confidence"] == pytest.approx(p, abs=1e-4)
            assert candidate.parts["penalty"] == pytest.approx(max(cosines), abs=1e-4)
            assert candidate.score == pytest.approx((1 - ALPHA) * p - ALPHA * max(cosines), abs=1e-4)
            assert candidate.repeats == positions[low + cosines.index(max(cosines))]
    return sum(step.differs_from_greedy for step in steps)


@pytest.mark.parametrize(
    ("name", "window"), [("llama", None), ("llama", 5), ("gpt2", None), ("mistral-sliding", 5), ("mamba", 5)]
)
def test_each_candidate_repeats_the_token_that_recomputation_finds(name: str, window: int | None) -> None:
    """Rows of a left-padded batch, branches side by side and by forked rows; with the paper's penalty and a window."""
    model, strategy = tiny_model(name), ContrastiveSearch(ALPHA, K, max_history=window)
    prompts = PROMPTS if name != "mamba" else [PROMPTS[1], random_prompt(11, seed=3)]  # it reads padding as text
    inputs = left_padded(prompts)
    sequences = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=STEPS)
    explained = _steps(model, sequences, strategy, **inputs)
    differing = 0
    for row, prompt in enumerate(prompts):
        padding = 11 - len(prompt)
        text = sequences[row, padding:].tolist()
        positions = list(range(padding, sequences.shape[1]))
        differing += _check(model, explained[row], text, len(prompt), positions=positions, window=window)
        for step in explained[row]:
            assert step.chosen.score == max(candidate.score for candidate in _candidates(step))
    assert differing > 0


@pytest.mark.parametrize("window", [None, 9])
def test_places_are_those_of_a_prompt_with_padding_between_its_tokens(window: int | None) -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch(ALPHA, K, max_history=window)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1], [1] * 11])
    ids = torch.tensor([PROMPTS[1], random_prompt(11, seed=3)]) * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    sequences = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=STEPS)
    explained = _steps(model, sequences, strategy, **inputs)
    for row in range(2):
        positions = [*mask[row].nonzero()[:, 0].tolist(), *range(11, 11 + STEPS)]
        _check(
            model,
            explained[row],
            sequences[row, positions].tolist(),
            int(mask[row].sum()),
            positions=positions,
            window=window,
        )


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_repeats_what_its_decoder_has_read(name: str) -> None:
    model, strategy = tiny_model(name), ContrastiveSearch(ALPHA, K)
    encoder_ids = random_prompt(9, seed=5)
    inputs = {"input_ids": torch.tensor([encoder_ids])}
    sequences = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=STEPS)
    steps = _steps(model, sequences, strategy, **inputs)[0]
    _check(model, steps, sequences[0].tolist(), 1, encoder_ids=encoder_ids)


def test_drawn_tokens_and_processors_are_those_of_the_call() -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch(ALPHA, K)
    options = {
        "input_ids": torch.tensor([PROMPTS[1]]), "do_sample": True, "temperature": 0.5, "top_k": 0,
        "repetition_penalty": 1.4, "max_new_tokens": 10,
    }  # fmt: skip
    torch.manual_seed(0)
    sequences = decoding.generate(model, **options, strategy=strategy)
    steps = _steps(model, sequences, strategy, **options)[0]
    _check(model, steps, sequences[0].tolist(), 11, repetition_penalty=1.4)
    assert any(step.chosen.score < max(candidate.score for candidate in _candidates(step)) for step in steps)


def test_a_row_ends_with_its_end_token() -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch(ALPHA, K)
    inputs = left_padded(PROMPTS)
    free = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=STEPS)
    end = int(free[0, 13])
    assert end not in free[1, 11:]
    options = {**inputs, "eos_token_id": end, "pad_token_id": 0}
    sequences = decoding.generate(model, **options, strategy=strategy, max_new_tokens=STEPS)
    explained = _steps(model, sequences, strategy, **options)
    assert [[step.chosen.token for step in row] for row in explained] == [
        sequences[0, 11:14].tolist(), sequences[1, 11:].tolist()
    ]  # fmt: skip


def test_a_prompt_of_one_token_and_one_without_a_text() -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch(ALPHA, K)
    prompt = torch.tensor([[7]])
    sequences = decoding.generate(model, prompt, strategy=strategy, max_new_tokens=2)
    steps = _steps(model, sequences, strategy, input_ids=prompt)[0]
    assert {candidate.repeats for candidate in _candidates(steps[0])} == {0}
    assert _steps(model, prompt, strategy, input_ids=prompt) == [()]


def test_sequences_of_another_call_are_refused_or_warned_of() -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch(ALPHA, K)
    prompt = torch.tensor([PROMPTS[0]])
    sequences = decoding.generate(model, prompt, strategy=strategy, max_new_tokens=5)
    with pytest.raises(InputError, match="which they begin with"):
        _steps(model, sequences[:, 1:], strategy, input_ids=prompt)
    with pytest.raises(InputError, match=r"past_key_values: .* give it as input_ids"):
        _steps(model, sequences, strategy, input_ids=prompt, past_key_values=DynamicCache())
    with pytest.raises(InputError, match="have 5 new tokens, and a call with these arguments makes at most 4"):
        _steps(model, sequences, strategy, input_ids=prompt, max_new_tokens=4)
    with pytest.raises(OptionError, match="num_beams=2"):
        _steps(model, sequences, strategy, input_ids=prompt, num_beams=2)
    least = int(model(sequences[:, :6]).logits[0, -1].argmin())
    sequences[0, 6] = least
    with pytest.warns(DecodingWarning, match=rf"token {least} \(row 0, position 6\) may not be chosen there") as warned:
        steps = _steps(model, sequences, strategy, input_ids=prompt)[0]
    assert len(warned) == 1
    assert steps[2].chosen.score is None
    # What follows is explained behind the text as it is: the penalty reaches the token that was no candidate.
    with pytest.warns(DecodingWarning):
        again = _steps(model, sequences, strategy, input_ids=sequences[:, :7])[0]
    assert [c.token for c in _candidates(steps[3])] == [c.token for c in _candidates(again[0])]
    for found, right in zip(_candidates(steps[3]), _candidates(again[0]), strict=True):
        assert found.parts["penalty"] == pytest.approx(right.parts["penalty"], abs=1e-4)
        assert found.repeats == right.repeats
