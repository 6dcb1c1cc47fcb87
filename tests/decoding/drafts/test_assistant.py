"""Drafts by a smaller reader, against its own search; it forgets what was not kept, row by row."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_models import LLAMA_LIKE, VOCAB, left_padded, random_prompt, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import decoding
from decoding import InputError
from decoding.capabilities.capabilities import open_rows
from decoding.drafts import assistant
from decoding.drafts.assistant import Assistant
from decoding.drafts.texts_read import TextsRead

MODELS = ["llama", "mistral-sliding", "gemma2", "gpt2"]
PROMPTS = [random_prompt(5, 1), random_prompt(13, 2), random_prompt(2, 3)]


def _open(model: Any, new: int = 60, prompts: Any = PROMPTS, vocab: int = VOCAB, **options: Any) -> Assistant:
    return Assistant(TextsRead(open_rows(model, prompts, new), prompts), vocab, **options)


@torch.no_grad()
def _continued(model: Any, text: list[int], n: int) -> list[int]:
    """What the model's greedy search adds, without a cache."""
    text = list(text)
    for _ in range(n):
        text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[-n:] if n else []


@pytest.mark.parametrize("name", MODELS)
def test_drafts_are_the_model_s_own_after_whatever_was_kept(name: str) -> None:
    model, draw = tiny_model(name, seed=3), random.Random(0)
    drafting = _open(model, until_unsure=False)
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(9):
        most = [draw.choice([0, 1, 3]) for _ in texts]
        drafts = drafting.propose(texts, most)
        assert list(drafts.counts) == most
        assert drafts.tokens.shape[1] == max(most)
        for row, text in enumerate(texts):
            assert drafts.tokens[row, : most[row]].tolist() == _continued(model, text, most[row])
            # Some drafts are kept, then another token; a row may have asked for none and have grown all the same.
            kept = drafts.tokens[row, : draw.randint(0, most[row])].tolist()
            text += [*kept, draw.randrange(3, VOCAB)] if draw.random() < 0.8 else []
    drafting.release()


def test_a_row_stops_where_the_model_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=3)
    for sure in (0.0, 0.5, 1.1):
        monkeypatch.setattr(assistant, "SURE", sure)
        drafts = _open(model).propose([list(prompt) for prompt in PROMPTS], [6, 6, 3])
        for row, prompt in enumerate(PROMPTS):
            most = 3 if row == 2 else 6
            expected = _continued(model, prompt, most)
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *expected]]), use_cache=False).logits[0]
            unsure = (logits.softmax(-1).amax(-1)[len(prompt) - 1 : -1] < sure).tolist()
            count = unsure.index(True) + 1 if True in unsure else most
            assert drafts.counts[row] == count
            assert drafts.tokens[row, :count].tolist() == expected[:count]


def test_drawn_drafts_come_with_their_distributions() -> None:
    model = tiny_model("llama", seed=3)
    torch.manual_seed(0)
    drafts = _open(model, vocab=VOCAB + 8, temperature=0.7, until_unsure=False).propose(
        [list(prompt) for prompt in PROMPTS], [4, 4, 4]
    )
    assert drafts.probabilities is not None
    assert drafts.probabilities.shape == (3, 4, VOCAB + 8)  # of the model that is drafted for
    assert not drafts.probabilities[:, :, VOCAB:].any()
    for row, prompt in enumerate(PROMPTS):
        text = [*prompt, *drafts.tokens[row].tolist()]
        with torch.no_grad():
            logits = model(torch.tensor([text]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = torch.nn.functional.pad((logits / 0.7).softmax(-1), (0, 8))
        torch.testing.assert_close(drafts.probabilities[row], expected, atol=2e-5, rtol=1e-3)  # float32


def test_a_model_with_more_tokens_drafts_those_that_there_are() -> None:
    model = tiny_model("llama", seed=3)
    drafts = _open(model, vocab=50, until_unsure=False).propose([list(prompt) for prompt in PROMPTS], [6, 6, 6])
    assert int(drafts.tokens.max()) < 50


def test_tokens_that_a_smaller_vocabulary_does_not_have_are_read_all_the_same() -> None:
    """As of vocabularies that are padded differently."""
    torch.manual_seed(0)
    wider = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, "vocab_size": VOCAB + 1})).eval()
    with torch.no_grad():
        wider.lm_head.weight.mul_(8.0)[VOCAB] *= 4.0  # so that it says the token too
    inputs = left_padded([[5, VOCAB, 6], [VOCAB, 7, 8, 9, VOCAB]])
    options = {"max_new_tokens": 24, "do_sample": False}
    expected = wider.generate(**inputs, **options)
    assert bool((expected[:, 5:] == VOCAB).any())
    for drafts in (tiny_model("llama", seed=3), "exit:1"):
        tokens = decoding.generate(wider, **inputs, drafts=drafts, draft_tokens=3, **options)
        assert torch.equal(tokens, expected)


def test_a_context_that_is_too_short() -> None:
    narrow = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=VOCAB)).eval()
    inputs = left_padded(PROMPTS)
    with pytest.raises(
        InputError, match="13 tokens, which with 4 new ones is more than the context of 16 of the model"
    ):
        decoding.generate(tiny_model("llama"), **inputs, drafts=narrow, max_new_tokens=4)
    decoding.generate(tiny_model("llama"), **inputs, drafts=narrow, max_new_tokens=3)
