"""Models in bfloat16: logits go to the kernels as they are, and the scores are those of logits widened before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_models import left_padded, random_prompt, tiny_model
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, DoLa
from decoding.kernels import contrast as contrast_kernels
from decoding.kernels import layer_divergence as divergence_kernels
from decoding.scoring.teacher_forcing import teacher_forced
from decoding.strategies.contrast.readers import ReaderLogits
from decoding.stream.prepare import prepare_inputs

STRATEGIES = {
    "logits": lambda amateur: ContrastiveDecoding(amateur),
    "log-probs": lambda amateur: ContrastiveDecoding(amateur, 0.02, 0.9, "log_probs", 0.5),
    "no-amateur": lambda amateur: ContrastiveDecoding(amateur, beta=0.0),
    "dola": lambda amateur: DoLa([1, 2], alpha=0.05),
    "dola-batch": lambda amateur: DoLa([1, 2], divergence="jensen-shannon", final_norm=True, per_row=False),
    "dola-one-layer": lambda amateur: DoLa([2]),
    "context": lambda amateur: ContextAware([7, 31, 12], alpha=0.7),
    "lol": lambda amateur: LOL(amateur, [1, 2], alpha=0.02),
    "lol-guided": lambda amateur: LOL(amateur, [1], guidance=[9, 40], alpha=0.02),
    "lol-entropy": lambda amateur: LOL(amateur, [1, 2], guidance=[9, 40], fusion="entropy", final_norm=False),
}
PROMPTS = [random_prompt(4, seed=1), random_prompt(9, seed=2)]


def _in_bfloat16(seed: int) -> Any:
    return tiny_model("llama", seed).bfloat16()


def _widened(logits: Mapping[str, ReaderLogits]) -> dict[str, ReaderLogits]:
    return {
        role: ReaderLogits(narrow.final.float(), None if narrow.exits is None else narrow.exits.float())
        for role, narrow in logits.items()
    }


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of all logits that a kernel's public function was given."""
    seen: list[torch.dtype] = []

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            seen.extend(
                tensor.dtype for tensor in tensors if tensor.dtype != torch.int64
            )  # which is a choice of layers
            return function(*args, **kwargs)

        return call

    forms = ("contrast_logits_eager", "contrast_log_probs_eager", "multi_layer_contrast_eager")
    for module, name in [
        *((contrast_kernels, name) for name in forms),
        (divergence_kernels, "layer_divergence_eager"),
    ]:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return seen


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_logits_are_widened_before_a_kernel(name: str, given: list[torch.dtype]) -> None:
    """Nor does it matter to the scores: to widen and then to cut or choose is to cut or choose and then to widen."""
    model, strategy = _in_bfloat16(0), STRATEGIES[name](_in_bfloat16(7))
    ids, kwargs, config = prepare_inputs(model, **left_padded(PROMPTS))
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3)])
    with torch.no_grad():
        session = strategy.session(model, ids, kwargs, config)
        for _ in range(3):
            narrow = session.reader_logits
            given.clear()
            found = [session.scores(ids, LogitsProcessorList()), session.scores(ids, processors)]
            processed = 2 * session.logits.float()
            found.append(session.rescored(ids, processed))
            assert set(given) == {torch.bfloat16}
            session.reader_logits = _widened(narrow)
            expected = [session.scores(ids, LogitsProcessorList()), session.scores(ids, processors)]
            expected.append(session.rescored(ids, processed))
            assert set(given) == {torch.bfloat16, torch.float32}
            for scores, right in zip(found, expected, strict=True):
                assert scores.dtype == torch.float32
                assert torch.equal(scores, right)
            tokens = session.greedy(ids, LogitsProcessorList())
            session.advance(tokens)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
    session.release()


@pytest.mark.parametrize("name", ["log-probs", "dola", "lol-guided"])
def test_scoring_and_whole_texts_give_what_widened_logits_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, strategy = _in_bfloat16(0), STRATEGIES[name](_in_bfloat16(7))
    texts = torch.tensor([random_prompt(7, seed=3), random_prompt(7, seed=4)])

    def scores() -> list[Tensor]:
        scored = decoding.score(model, PROMPTS[1], PROMPTS, strategy)
        return [*scored, *decoding.score(model, PROMPTS[1], PROMPTS), teacher_forced(model, texts, strategy)]

    found = scores()
    for module in ("scoring.shared_readers", "strategies.contrast.reader_group"):
        monkeypatch.setattr(
            f"decoding.{module}.ReaderLogits",
            lambda final, exits=None: ReaderLogits(final.float(), None if exits is None else exits.float()),
        )
    for given_scores, right in zip(found, scores(), strict=True):
        assert given_scores.dtype == torch.float32
        assert torch.equal(given_scores, right)


def test_the_logits_reported_are_the_models_in_float32() -> None:
    model = _in_bfloat16(0)
    options = {**left_padded(PROMPTS), "max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    ours = decoding.generate(model, strategy=ContrastiveDecoding(_in_bfloat16(7), beta=0.0, alpha=0.0), **options)
    theirs = model.generate(**options, do_sample=False)
    for logits, right in zip(ours.logits, theirs.logits, strict=True):
        assert logits.dtype == right.dtype == torch.float32
        assert torch.equal(logits, right)
