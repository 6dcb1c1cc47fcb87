"""A contrast that depends on the text is given the text of each of its logits, in steps, whole texts and scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import VOCAB, left_padded, random_prompt, tiny_model
from torch import Tensor

import decoding
from decoding import Scorer
from decoding.scoring.teacher_forcing import teacher_forced
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

GUIDE = (7, 31)
PROMPTS = [random_prompt(3, seed=1), random_prompt(8, seed=2)]


@dataclass(frozen=True)
class Counting(ContrastStrategy):
    """The logits after a guide, less how often each token is in the text; and less still for the text's last token."""

    weight: float = 2.0
    name: ClassVar[str] = "counting"

    def readers(self, model: Any, rows: int) -> list[Reader]:
        return [Reader(EXPERT), Reader("guided", prefix=[GUIDE] * rows)]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        final = logits["guided"].final
        assert input_ids.shape[:-1] == final.shape[:-1]
        counts = torch.zeros(*final.shape[:-1], final.shape[-1] + 1)  # NO_TOKEN counts at the end
        counts.scatter_add_(-1, input_ids % (final.shape[-1] + 1), torch.ones(input_ids.shape))
        last = torch.nn.functional.one_hot(input_ids[..., -1], final.shape[-1])
        scores = final.float() - self.weight * counts[..., :-1] - 3 * last
        return Contrast(lambda alpha: scores, lambda: final, None)


@torch.no_grad()
def _scores(model: Any, text: list[int], weight: float) -> Tensor:
    scores = model(torch.tensor([[*GUIDE, *text]])).logits[0, -1].clone()
    for token in text:
        scores[token] -= weight
    scores[text[-1]] -= 3
    return scores


@pytest.mark.parametrize("way", ["facade", "processor"])
def test_a_step_over_padded_rows_has_each_rows_text(way: str) -> None:
    model, strategy, batch = tiny_model("llama"), Counting(), left_padded(PROMPTS)
    if way == "facade":
        tokens = decoding.generate(model, **batch, strategy=strategy, max_new_tokens=10)
    else:
        processor = strategy.logits_processor(model, attention_mask=batch["attention_mask"])
        tokens = model.generate(**batch, logits_processor=[processor], max_new_tokens=10, do_sample=False)
    for row, prompt in zip(tokens[:, batch["input_ids"].shape[1] :].tolist(), PROMPTS, strict=True):
        text = list(prompt)
        for token in row:
            assert token == int(_scores(model, text, 2.0).argmax())
            text.append(token)


def test_beams_keep_the_text_of_their_padded_prompt() -> None:
    model, strategy, batch = tiny_model("llama"), Counting(), left_padded(PROMPTS)
    processor = strategy.logits_processor(model, attention_mask=batch["attention_mask"])
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "renormalize_logits": True}
    found = model.generate(**batch, logits_processor=[processor], **options)
    for row, prompt in enumerate(PROMPTS):
        alone = torch.tensor([prompt])
        processor = strategy.logits_processor(model)
        right = model.generate(alone, logits_processor=[processor], **options)
        assert found[row, batch["input_ids"].shape[1] :].tolist() == right[0, len(prompt) :].tolist()


def test_whole_texts_and_continuations_have_the_text_of_every_position() -> None:
    model, strategy = tiny_model("llama"), Counting(0.5)
    prefix, texts = random_prompt(4, seed=5), [([9, 9, 5], [[9, 3], [9, 4, 9, 9], [3]]), ([], [[5, 5, 5], [9]])]
    with Scorer(model, prefix, [None, strategy]) as scorer:
        scored = scorer.score(texts)
    for (prompt, continuations), (_, ours) in zip(texts, scored, strict=True):
        for tokens, scores in zip(continuations, ours, strict=True):
            text = [*prefix, *prompt, *tokens]
            start = len(text) - len(tokens)
            right = torch.stack([_scores(model, text[:i], 0.5).log_softmax(-1) for i in range(1, len(text) + 1)])
            of_tokens = right[start - 1 : -1].gather(1, torch.tensor(tokens)[:, None])[:, 0]
            torch.testing.assert_close(scores.normalized, of_tokens, atol=2e-4, rtol=1e-4)
            whole = teacher_forced(model, torch.tensor([text]), strategy)[0]
            torch.testing.assert_close(whole, right, atol=2e-4, rtol=1e-4)


def test_scores_in_several_matrix_products_have_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, strategy = tiny_model("llama"), Counting()
    prompt, continuations = random_prompt(6, seed=7), [random_prompt(5, seed=8), random_prompt(3, seed=9)]
    text = torch.tensor([[*prompt, *continuations[0]]])
    right = [*decoding.score(model, prompt, continuations, strategy), teacher_forced(model, text, strategy)]
    for module in ("shared_readers", "teacher_forcing"):
        monkeypatch.setattr(f"decoding.scoring.{module}.NUMBERS_AT_ONCE", 4 * VOCAB)
    found = [*decoding.score(model, prompt, continuations, strategy), teacher_forced(model, text, strategy)]
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
