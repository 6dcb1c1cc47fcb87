"""Top-nσ and p-less, by name and as logits processors beside other strategies, against float64 without a batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import left_padded, random_ids, random_prompt, tiny_model
from transformers import GenerationConfig
from transformers.generation.logits_process import TemperatureLogitsWarper

import decoding
from decoding import DoLa, OptionError, PLess, PLessLogitsWarper, TopNSigma, TopNSigmaLogitsWarper
from decoding.api import generate_with
from decoding.strategies.effective_config import decoded_with, effective_config
from decoding.strategies.registry import parse_strategy

NEW = 6
PROMPTS = [random_prompt(9, 1), random_prompt(4, 2), random_prompt(1, 3)]
STRATEGIES = [TopNSigma(), TopNSigma(0.4, 1.7), PLess(), PLess(3.0)]


@torch.no_grad()
def _scores(model: Any, text: Sequence[int], strategy: Any) -> torch.Tensor:
    """(vocab,) float64 scores after a text."""
    logits = model(torch.tensor([list(text)]), use_cache=False).logits[0, -1].double()
    if isinstance(strategy, TopNSigma):
        kept = logits >= logits.max() - strategy.n * logits.std(correction=0)
    else:
        p = (logits / strategy.temperature).softmax(-1)
        kept = p >= (p * p).sum()
    return torch.where(kept, logits / strategy.temperature, -math.inf)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-sliding"])
def test_padded_batches_have_the_scores_of_the_oracle(name: str, strategy: Any) -> None:
    model = tiny_model(name)
    batch = left_padded(PROMPTS)
    output = decoding.generate(
        model, **batch, strategy=strategy, do_sample=True, top_k=0, seeds=[3, 4, 5], max_new_tokens=NEW,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    right, kept = copy.deepcopy(model).double(), 0
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for step in range(NEW):
            expected, scores = _scores(right, text, strategy), output.scores[step][row]
            assert scores.isfinite().equal(expected.isfinite())
            kept += int(scores.isfinite().sum())
            # Float32 against float64 over three layers.
            torch.testing.assert_close(scores.double(), expected, atol=1e-4, rtol=1e-4)
            text.append(int(output.sequences[row, batch["input_ids"].shape[1] + step]))
    assert kept > len(PROMPTS) * NEW  # somewhere there is a choice


@pytest.mark.parametrize(
    ("strategy", "warpers"),
    [
        (TopNSigma(0.8), [TopNSigmaLogitsWarper(0.8)]),
        (TopNSigma(0.8, 1.7), [TemperatureLogitsWarper(1.7), TopNSigmaLogitsWarper(0.8)]),
        (PLess(), [PLessLogitsWarper()]),
        (PLess(2.0), [TemperatureLogitsWarper(2.0), PLessLogitsWarper()]),
    ],
    ids=["top-n-sigma", "top-n-sigma-warm", "p-less", "p-less-warm"],
)
def test_a_sampler_draws_as_plain_generate_with_its_processor(strategy: Any, warpers: list[Any]) -> None:
    model, ids = tiny_model("llama"), random_ids(3, 7)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW}
    torch.manual_seed(5)
    plain = model.generate(ids, logits_processor=warpers, **options)
    torch.manual_seed(5)
    assert decoding.generate(model, ids, strategy=strategy, **options).equal(plain)
    seeds = [8, 9, 10]
    by_row = decoding.generate(model, ids, logits_processor=warpers, seeds=seeds, **options)
    assert decoding.generate(model, ids, strategy=strategy, seeds=seeds, **options).equal(by_row)


@pytest.mark.parametrize("warper", [TopNSigmaLogitsWarper(0.7), PLessLogitsWarper()], ids=["top-n-sigma", "p-less"])
def test_beside_a_contrast_the_plausible_tokens_alone_are_looked_at(warper: Any) -> None:
    model, ids = tiny_model("llama"), random_ids(2, 7)
    strategy = DoLa([1, 2], alpha=0.02, final_norm=True)
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True}
    contrast = decoding.generate(model, ids, strategy=strategy, **options).scores[0].double()
    found = decoding.generate(model, ids, strategy=strategy, logits_processor=[warper], **options).scores[0]
    for row, scores in zip(found, contrast, strict=True):
        plausible = scores[scores.isfinite()]
        p = plausible.softmax(-1)
        if isinstance(warper, TopNSigmaLogitsWarper):
            kept = plausible >= plausible.max() - 0.7 * plausible.std(correction=0)
        else:
            kept = p >= (p * p).sum()
        assert 1 <= kept.sum() < len(plausible)
        assert row[row.isfinite()].double().sort().values.equal(plausible[kept].sort().values)


def test_processors_of_the_call_act_first() -> None:
    model, ids = tiny_model("llama"), random_ids(1, 7)
    best = int(model(ids).logits[0, -1].argmax())
    tokens = decoding.generate(
        model, ids.repeat(200, 1), strategy=TopNSigma(0.0), do_sample=True, max_new_tokens=1, bad_words_ids=[[best]]
    )
    assert set(tokens[:, -1].tolist()) == {int(model(ids).logits[0, -1].topk(2).indices[1])}


def test_samplers_of_the_models_folder_are_off_beside_them() -> None:
    model, ids = tiny_model("llama"), random_ids(2, 7)
    spec = parse_strategy("p-less:temperature=3")
    expected = generate_with(spec, model, input_ids=ids, seeds=[1, 2], max_new_tokens=NEW)
    folder = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "typical_p": 0.1}
    model.generation_config = GenerationConfig(**{**model.generation_config.to_dict(), **folder})
    assert generate_with(spec, model, input_ids=ids, seeds=[1, 2], max_new_tokens=NEW).equal(expected)
    with decoded_with(model, {}, folder=True):
        assert effective_config(spec, model, {}, folder=True)["top_k"] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopNSigma(-1.0), "n=-1.0: must be a number from 0 up"),
        (lambda: TopNSigma(float("nan")), "n=nan"),
        (lambda: TopNSigma(temperature=0), "temperature=0: must be a number above 0"),
        (lambda: PLess(-2), "temperature=-2: must be a number above 0"),
        (lambda: TopNSigmaLogitsWarper("1"), "n='1': must be a number from 0 up"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()
