"""A call that ends well leaves its model as it was, in every way in, with every strategy and kind of amateur."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_state import ALL, KINDS, NEW, OWN, PROMPTS, changed, generated, processed, state_of, tokenizer_of_models
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

import decoding
from decoding import Scorer
from decoding.api import generate_with
from decoding.scoring.teacher_forcing import teacher_forced
from decoding.strategies.baselines import Baseline
from decoding.strategies.registry import StrategySpec
from decoding.text import continuations


def _compiled(model: Any, strategy: Any, batch: dict[str, Tensor]) -> None:
    with contextlib.suppress(decoding.DecodingError):  # tests/decoding/strategies/test_contract.py has the reasons
        generated(model, strategy, batch, compile=True)


def _streamed(model: Any, strategy: Any, batch: dict[str, Tensor]) -> None:
    """A stream that nobody reads to its end, from a thread of its own."""
    tokenizer = tokenizer_of_models()
    row = {name: values[1:] for name, values in batch.items()}
    streamer = TextIteratorStreamer(tokenizer)
    thread = threading.Thread(target=generated, args=(model, strategy, row), kwargs={"streamer": streamer})
    thread.start()
    next(iter(streamer))
    thread.join()


WAYS: dict[str, Callable[[Any, Any, dict[str, Tensor]], Any]] = {
    "generate": generated,
    "custom_generate": lambda model, strategy, batch: model.generate(
        **batch, custom_generate=strategy, max_new_tokens=NEW
    ),
    "a dictionary": lambda model, strategy, batch: generated(
        model, strategy, batch, return_dict_in_generate=True, output_scores=True, output_logits=True
    ),
    "sampled": lambda model, strategy, batch: generated(model, strategy, batch, do_sample=True, temperature=2.0),
    "compiled": _compiled,
    "streamed": _streamed,
    "processor": lambda model, strategy, batch: processed(model, strategy, batch, do_sample=False),
    "beams": lambda model, strategy, batch: processed(model, strategy, batch, do_sample=False, num_beams=2),
}
DRAWING = ("sampled",)


# What a strategy does to a model it does in whatever call. So a strategy of each kind is called in every way, and the
# others in two: the first, and one of the other seven by turns.
OTHER_WAYS = [*WAYS][1:]
CALLS = [
    (spec, way)
    for number, spec in enumerate(OWN)
    for index, way in enumerate(WAYS)
    if spec in KINDS or way == "generate" or (index - 1 - number) % len(OTHER_WAYS) == 0
]


@pytest.mark.parametrize(("spec", "way"), CALLS, indirect=["spec"])
def test_after_a_call(spec: StrategySpec, way: str, model: Any, batch: Any, leaves_as_before: Any) -> None:
    leaves_as_before(lambda: WAYS[way](model, spec.strategy, batch), way in DRAWING)


@pytest.mark.parametrize("spec", [*(spec for spec in ALL if spec not in OWN), *KINDS], indirect=True)
def test_after_every_baseline_and_a_call_on_text(
    spec: StrategySpec, model: Any, tokenizer: Any, batch: Any, leaves_as_before: Any
) -> None:
    if isinstance(spec.strategy, Baseline):  # the others are called above
        leaves_as_before(lambda: generate_with(spec, model, **batch, max_new_tokens=NEW), spec.is_stochastic)
    leaves_as_before(lambda: continuations(model, tokenizer, spec, PROMPTS[0], max_new_tokens=NEW), spec.is_stochastic)


@pytest.mark.parametrize("spec", OWN, indirect=True)
def test_after_scoring(spec: StrategySpec, model: Any, batch: Any, leaves_as_before: Any) -> None:
    if not spec.strategy.scorable:
        pytest.skip("gives no score to a given token")
    leaves_as_before(lambda: decoding.score(model, [11, 12], [[13], [14, 15]], spec.strategy))
    if not any(reader.from_last_token for reader in spec.strategy.readers(model, 1)):  # a whole text has no prompt
        leaves_as_before(lambda: teacher_forced(model, batch["input_ids"][1:], spec.strategy))
    requests = [([13], [[14], [15, 16]])]
    opened: list[Scorer] = []
    leaves_as_before(lambda: opened.append(Scorer(model, [11, 12], [None, spec.strategy])))
    leaves_as_before(lambda: opened[0].score(requests))  # it is alive as the model is looked at
    leaves_as_before(opened[0].release)


@pytest.mark.parametrize("spec", KINDS, indirect=True)
def test_between_the_tokens_of_a_call(spec: StrategySpec, model: Any, batch: Any) -> None:
    """Whoever looks at the model while a call waits (a streamer, a stopping criterion) finds it as it was."""
    before, seen = state_of(model), []

    class Looks(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            seen.append(changed(before, {**state_of(model), "torch": before["torch"]}))  # grad mode is the call's own
            return torch.zeros(len(input_ids), dtype=torch.bool)

    generated(model, spec.strategy, batch, stopping_criteria=StoppingCriteriaList([Looks()]))
    assert seen == [set()] * NEW
