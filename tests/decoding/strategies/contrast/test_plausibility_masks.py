"""Masks in place of α: top-nσ and p-less of a weighted contrast, and the candidates of SLED and DeCo."""

from __future__ import annotations

import contrast_oracle as oracle
import pytest
import torch
from tiny_models import random_prompt, sharper_model
from torch import Tensor

import decoding
from decoding import OptionError, Prompt, Scorer, WeightedContrast
from decoding.kernels.contrast import masked
from decoding.strategies.contrast.readers import EXPERT, ReaderLogits
from decoding.strategies.contrast.scores import Contrast, candidates

STEPS = 8
TEXT = [7, 31, 55]
MASKS = ["top-n-sigma", "p-less"]


def strategy_with(mask: str) -> WeightedContrast:
    return WeightedContrast([("expert", 2.0), (Prompt(TEXT), -1.0)], mask=mask)  # type: ignore[arg-type]


def kept(mask: str, logits: Tensor) -> Tensor:
    """Both rules as their papers write them, of (vocab,) float64."""
    if mask == "top-n-sigma":
        return logits >= logits.max() - ((logits - logits.mean()) ** 2).mean().sqrt()
    p = logits.softmax(-1)
    return p >= (p * p).sum()


@pytest.mark.parametrize("mask", MASKS)
def test_scores_and_tokens_are_those_of_recomputation(mask: str) -> None:
    model = sharper_model("llama", times=6.0)
    reader, prompt = oracle.Reader(model), random_prompt(6, seed=1)
    output = decoding.generate(
        model, torch.tensor([prompt]), strategy=strategy_with(mask), max_new_tokens=STEPS,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    sizes, text = [], list(prompt)
    for scores in output.scores:
        own, other = reader.logits(text)[-1], reader.logits([*TEXT, *text])[-1]
        right = (2 * own - other).masked_fill(~kept(mask, own), -torch.inf)
        torch.testing.assert_close(scores[0].double(), right, atol=1e-4, rtol=1e-4)
        sizes.append(int(right.isfinite().sum()))
        text.append(int(right.argmax()))
    assert output.sequences[0].tolist() == text
    assert max(sizes) > 1  # not one token all along, which greedy search has


def test_readers_wait_where_a_mask_leaves_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharper logits leave p-less one token; top-nσ does not depend on their scale."""
    mask = "p-less"
    model, ids = sharper_model("llama", times=30.0), torch.tensor([random_prompt(6, seed=1)])
    monkeypatch.setattr(WeightedContrast, "fuse", False)
    passes: list[int] = []
    handle = model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    tokens = []
    for lazy in (True, False):
        passes.clear()
        monkeypatch.setattr(WeightedContrast, "lazy", lazy)
        tokens.append(decoding.generate(model, ids, strategy=strategy_with(mask), max_new_tokens=24).tolist())
        tokens.append([[len(passes)]])
    handle.remove()
    assert tokens[0] == tokens[2]
    assert tokens[1] < tokens[3]


@pytest.mark.parametrize("mask", MASKS)
def test_where_processors_exclude_all_that_a_mask_keeps_the_rest_is_chosen_from(mask: str) -> None:
    model, ids = sharper_model("llama", times=30.0), torch.tensor([random_prompt(6, seed=1)])
    first = int(decoding.generate(model, ids, strategy=strategy_with(mask), max_new_tokens=1)[0, -1])
    other = decoding.generate(model, ids, strategy=strategy_with(mask), max_new_tokens=1, bad_words_ids=[[first]])[
        0, -1
    ]
    assert int(other) != first


@pytest.mark.parametrize("mask", MASKS)
def test_texts_are_scored_under_a_mask(mask: str) -> None:
    model = sharper_model("llama", times=6.0)
    reader, prompt, answer = oracle.Reader(model), random_prompt(6, seed=1), random_prompt(3, seed=5)
    with Scorer(model, prompt, [strategy_with(mask)], floor=-50.0) as scorer:
        scores = scorer.score([((), [answer])])[0][0][0].normalized
    for index, token in enumerate(answer):
        text = [*prompt, *answer[:index]]
        own, other = reader.logits(text)[-1], reader.logits([*TEXT, *text])[-1]
        right = (2 * own - other).masked_fill(~kept(mask, own), -torch.inf).log_softmax(-1)[token]
        torch.testing.assert_close(scores[index].double(), right.clamp(min=-50.0), atol=1e-4, rtol=1e-4)


MASKED = {
    "top-n-sigma": (WeightedContrast("2*expert", mask="top-n-sigma"), lambda logits: kept("top-n-sigma", logits)),
    "p-less": (WeightedContrast("2*expert", mask="p-less"), lambda logits: kept("p-less", logits)),
    "sled": (decoding.SLED(evolution_scale=4), lambda logits: logits >= logits.topk(4).values[-1]),
    "deco": (decoding.DeCo(threshold_top_p=1.0, threshold_top_k=5), lambda logits: logits >= logits.topk(5).values[-1]),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_excludes_what_logits_at_minus_infinity_exclude(name: str) -> None:
    """With α 0 the others pass; where processors exclude all of these, the rest does."""
    strategy, is_kept = MASKED[name]
    final, exits = torch.randn(3, 40) * 3, torch.randn(2, 3, 40) * 3
    contrast = strategy.contrast({EXPERT: ReaderLogits(final, exits)}, torch.zeros(3, 1, dtype=torch.long))
    mask = torch.stack([is_kept(row.double()) for row in final])
    evidence, scores = final.masked_fill(~mask, -torch.inf), contrast.scores
    assert torch.equal(contrast.masked, masked(scores, evidence, 0.0))
    processed = scores.clone()
    processed[0, ::2] = -torch.inf
    processed[1, mask[1]] = -torch.inf
    assert torch.equal(contrast.apply_plausibility(processed), masked(processed, evidence, 0.0))
    assert torch.equal(contrast.apply_plausibility(processed)[1], processed[1])
    marked = candidates(contrast)
    assert marked is not None
    assert torch.equal(marked, mask)
    assert not contrast.by_alpha


@pytest.mark.parametrize(
    ("logits", "mask", "told"),
    [
        ([[4.0, 0.0], [1.0, 2.0]], [[True, False], [True, True]], True),
        ([[4.0, 0.0], [1.0, 2.0]], [[True, True], [True, True]], False),  # every token passes
        ([[4.0, 0.0], [1.0, 2.0]], [[True, False], [False, False]], False),  # a row has none
        ([[4.0, float("nan")]], [[True, False]], False),
    ],
)
def test_candidates_of_a_mask_are_its_own(logits: list[list[float]], mask: list[list[bool]], told: bool) -> None:
    values, marks = torch.tensor(logits), torch.tensor(mask)
    marked = candidates(Contrast(lambda _: values, lambda: values, None, lambda: marks))
    assert marked is marks if told else marked is None


def test_another_mask_is_refused() -> None:
    with pytest.raises(OptionError, match="mask='top-h'"):
        strategy_with("top-h")
