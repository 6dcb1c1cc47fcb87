"""Scores of answers to prompts with images, sound or an encoder's text: by recomputation, and as in generation."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from encoder_inputs import two_sounds, two_sources
from tiny_models import tiny_model
from torch import Tensor

import decoding
from decoding import AudioContrast, ContrastiveSearch, DoLa, ImageContrast, InputError, OptionError, SourceContrast
from decoding.tools.architectures.images import prompts_with_images
from decoding.tools.architectures.other_inputs import tiny_other_inputs
from decoding.tools.architectures.reference import batch_of

ANSWERS = [[[21, 30, 22], [40, 41]], [[25], [22, 23], [26, 27, 28]]]
OTHERS = [[45, 46], [51, 52, 53]]


@functools.cache
def model_of(name: str) -> Any:
    return tiny_other_inputs(name)


def image_prompts() -> dict[str, Any]:
    """Two prompts of different lengths with an image each."""
    make = prompts_with_images(model_of("llava"))
    assert make is not None
    return batch_of(model_of("llava"), make(0)[:2])


def sounds() -> dict[str, Any]:
    return two_sounds(model_of("whisper"))


def image_logits(row: int, answer: Sequence[int]) -> list[Tensor]:
    """Of the expert, and of the model without the image."""
    given, model = image_prompts(), double("llava")
    prompt = given["input_ids"][row][given["attention_mask"][row].bool()].tolist()
    text = [token for token in prompt if token != model.config.image_token_id]
    image = {"pixel_values": given["pixel_values"][row : row + 1].double()}
    return [
        after(model, answer, input_ids=torch.tensor([[*tokens, *answer[:-1]]]), **inputs)
        for tokens, inputs in ((prompt, image), (text, {}))
    ]


def sound_logits(row: int, answer: Sequence[int]) -> list[Tensor]:
    """Of the expert, and of the model that hears silence."""
    model, heard = double("whisper"), sounds()["input_features"][row : row + 1].double()
    begin = [int(model.generation_config.decoder_start_token_id)]
    decoded = torch.tensor([[*begin, *answer[:-1]]])
    return [
        after(model, answer, input_features=features, decoder_input_ids=decoded)
        for features in (heard, torch.full_like(heard, -1.5))
    ]


def source_logits(row: int, answer: Sequence[int]) -> list[Tensor]:
    """Of the expert, and of the model after another source."""
    given, model = two_sources(), double("bart")
    source = given["input_ids"][row][given["attention_mask"][row].bool()].tolist()
    decoded = torch.tensor([[1, 61, *answer[:-1]]])
    return [
        after(model, answer, input_ids=torch.tensor([text]), decoder_input_ids=decoded)
        for text in (source, OTHERS[row])
    ]


@functools.cache
def double(name: str) -> Any:
    return copy.deepcopy(model_of(name)).double()


@torch.no_grad()
def after(model: Any, answer: Sequence[int], **inputs: Any) -> Tensor:
    """(tokens, vocab) float64 logits that each token of an answer is chosen from."""
    return model(**inputs, use_cache=False).logits[0, -len(answer) :]


def contrast_of(expert: Tensor, amateur: Tensor, weight: float, alpha: float | None) -> Tensor:
    scores = (1 + weight) * expert - weight * amateur
    p = expert.softmax(-1)
    return scores if alpha is None else scores.masked_fill(p < alpha * p.amax(-1, keepdim=True), -torch.inf)


CASES: dict[str, tuple[str, Any, Any, Any, Any]] = {
    "image": (
        "llava", ImageContrast(no_image=True, alpha=0.01), image_prompts, image_logits,
        lambda expert, amateur: contrast_of(expert, amateur, 1.0, 0.01),
    ),
    "sound": (
        "whisper", AudioContrast(negatives="silence", alpha=0.01), sounds, sound_logits,
        lambda expert, amateur: contrast_of(expert.log_softmax(-1), amateur.log_softmax(-1), 1.0, 0.01),
    ),
    "source": (
        "bart", SourceContrast(OTHERS), two_sources, source_logits,
        lambda expert, amateur: expert.log_softmax(-1) - 0.7 * amateur.log_softmax(-1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_scored_as_its_formula(name: str) -> None:
    model_name, strategy, inputs, logits_of, formula = CASES[name]
    found = {
        normalized: decoding.score_batch(model_of(model_name), inputs(), ANSWERS, strategy, normalized)
        for normalized in (True, False)
    }
    for row, answers in enumerate(ANSWERS):
        for index, answer in enumerate(answers):
            scores = formula(*logits_of(row, answer))
            chosen = torch.tensor(answer)[:, None]
            for normalized, right in ((True, scores.log_softmax(-1)), (False, scores)):
                expected = right.gather(1, chosen)[:, 0].clamp_min(-1000)
                torch.testing.assert_close(found[normalized][row][index].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_generated_text_has_the_scores_of_its_call(name: str) -> None:
    model_name, strategy, inputs, _, _ = CASES[name]
    model = model_of(model_name)
    output = decoding.generate(
        model, **inputs(), strategy=strategy, max_new_tokens=3, return_dict_in_generate=True, output_scores=True
    )
    new = output.sequences[:, -3:]
    right = torch.stack([step.gather(1, new[:, i : i + 1])[:, 0] for i, step in enumerate(output.scores)], 1)
    scores = decoding.score_batch(model, inputs(), [[row.tolist()] for row in new], strategy, normalized=False)
    torch.testing.assert_close(torch.stack([of_prompt[0] for of_prompt in scores]), right, atol=1e-4, rtol=1e-4)


def test_one_prompt_is_scored_as_in_a_batch() -> None:
    both = decoding.score_batch(model_of("whisper"), sounds(), ANSWERS, CASES["sound"][1])
    one = decoding.score(
        model_of("whisper"), {"input_features": sounds()["input_features"][1:]}, ANSWERS[1], CASES["sound"][1]
    )
    for alone, beside in zip(one, both[1], strict=True):
        torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-4)


def test_first_tokens_are_scored_in_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = []
    monkeypatch.setattr(
        ImageContrast, "session", lambda self, *args, **kwargs: sessions.append(0) or base(self, *args, **kwargs)
    )
    base = super(ImageContrast, ImageContrast).session
    first = [[[ids[0]] for ids in answers] for answers in ANSWERS]
    strategy = CASES["image"][1]
    found = decoding.score_batch(model_of("llava"), image_prompts(), first, strategy)
    assert len(sessions) == 1
    whole = decoding.score_batch(model_of("llava"), image_prompts(), ANSWERS, strategy)
    assert len(sessions) == 4  # of three continuations
    for row, answers in enumerate(found):
        for index, score in enumerate(answers):
            torch.testing.assert_close(score[0], whole[row][index][0])


@pytest.mark.parametrize("strategy", [None, "dola:layers=1"])
def test_text_alone_is_scored_as_by_score(strategy: str | None) -> None:
    model = tiny_model("llama")
    prompts = [[5, 6, 7, 8], [9, 10]]
    inputs = {
        "input_ids": torch.tensor([prompts[0], [0, 0, *prompts[1]]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
    }
    found = decoding.score_batch(model, inputs, ANSWERS, strategy)
    for prompt, answers, scores in zip(prompts, ANSWERS, found, strict=True):
        for right, score in zip(decoding.score(model, prompt, answers, strategy), scores, strict=True):
            torch.testing.assert_close(score, right, atol=2e-4, rtol=1e-4)  # float32, padded or not


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strategy": ContrastiveSearch()}, OptionError, "strategy=contrastive-search: gives no score to a given"),
        ({"continuations": [[[5]]]}, InputError, "continuations: 1 lists for 2 prompts"),
        ({"continuations": [[[5]], [[]]]}, InputError, "continuation 0 of prompt 1 is empty"),
        ({"continuations": [[[5]], []]}, InputError, "prompt 1 has no continuations"),
        ({"continuations": [[[5]], [[10**6]]]}, InputError, "continuation 0 of prompt 1: token 1000000 is not in"),
        ({"continuations": [[[5]], [" yes"]]}, OptionError, "as text need tokenizer="),
        ({"inputs": {"attention_mask": torch.ones(2, 3)}}, InputError, "inputs: no input_features among attention"),
        ({"inputs": "sound"}, InputError, "inputs is a str: must be what a tokenizer or a processor returns"),
        ({"continuations": [[[5] * 200], [[6]]]}, InputError, "more than the model's context of"),
        ({"floor": "low"}, OptionError, "floor='low'"),
        ({"strategy": ImageContrast()}, InputError, "the prompt has no image"),
    ],
)
def test_what_is_wrong_is_one_line(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"inputs": sounds(), "continuations": ANSWERS, "strategy": DoLa(layers=[1])} | change
    with pytest.raises(error, match=message) as raised:
        decoding.score_batch(model_of("whisper"), **call)
    assert "\n" not in str(raised.value)


def test_long_sound_is_scored_segment_by_segment() -> None:
    features = sounds()["input_features"].repeat(1, 1, 2)
    with pytest.raises(InputError, match="at a time: texts are scored segment by segment"):
        decoding.score_batch(model_of("whisper"), {"input_features": features}, ANSWERS)
