"""A call that fails, is interrupted or is refused leaves its model as it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_state import FUSE, KINDS, OWN, generated, processed
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

import decoding
from decoding import Scorer
from decoding.strategies.registry import StrategySpec


class RaisesLater:
    """Raises when it is called for the third time."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.calls = error, 0

    def count(self) -> None:
        self.calls += 1
        if self.calls == 3:
            raise self.error("in the middle")


class RaisingProcessor(RaisesLater, LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.count()
        return scores


class RaisingCriterion(RaisesLater, StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.count()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class RaisingStreamer(RaisesLater, BaseStreamer):
    def put(self, value: Tensor) -> None:
        self.count()

    def end(self) -> None:
        """Not reached."""


def _blown(passes: int, run: Callable[[Any, Any, dict[str, Tensor]], Any] = generated) -> Callable[..., Any]:
    """A run whose fuse blows in one of its passes.

    It runs before too: the checks of what the model can do are made once, in passes of their own, and take an error in
    them for an answer.
    """

    def call(model: Any, strategy: Any, row: dict[str, Tensor], error: type[BaseException]) -> None:
        run(model, strategy, row)
        FUSE.passes, FUSE.error = passes, error
        run(model, strategy, row)

    return call


def _scored(model: Any, strategy: Any, row: dict[str, Tensor]) -> None:
    with Scorer(model, [11, 12], [strategy]) as scorer:
        scorer.score([([13], [[14], [15, 16]])])


FAILURES: dict[str, Callable[..., Any]] = {
    "the first pass": _blown(1),
    "a later pass": _blown(3),
    "a pass of a processor": _blown(4, functools.partial(processed, do_sample=False, max_new_tokens=4)),
    "a pass of scoring": _blown(2, _scored),
    "processor": lambda model, strategy, row, error: generated(
        model, strategy, row, logits_processor=LogitsProcessorList([RaisingProcessor(error)])
    ),
    "stopping criterion": lambda model, strategy, row, error: generated(
        model, strategy, row, stopping_criteria=StoppingCriteriaList([RaisingCriterion(error)])
    ),
    "streamer": lambda model, strategy, row, error: generated(model, strategy, row, streamer=RaisingStreamer(error)),
}


# A pass fails in the middle of what a strategy does to the model. So one of each kind meets every place, and the others
# a pass, the first or a later one, and another place by turns. Each place meets both errors.
PASSES, PLACES = [*FAILURES][:2], [*FAILURES][2:]
ERRORS = [
    (spec, place, (RuntimeError, KeyboardInterrupt)[(number // 2 + index) % 2])
    for number, spec in enumerate(OWN)
    for index, place in enumerate(
        FAILURES if spec in KINDS else [PASSES[number % 2], PLACES[number // 2 % len(PLACES)]]
    )
]


@pytest.mark.parametrize(("spec", "place", "error"), ERRORS, indirect=["spec"])
def test_after_an_error_and_ctrl_c(
    spec: StrategySpec, place: str, error: Any, model: Any, batch: Any, leaves_as_before: Any
) -> None:
    if place == "a pass of scoring" and not spec.strategy.scorable:
        pytest.skip("gives no score to a given token")
    row = {name: values[1:] for name, values in batch.items()}

    def call() -> None:
        # The traceback is kept, as notebooks keep it.
        with pytest.raises((error, decoding.ModelError), match=r"the middle|the fuse") as raised:
            FAILURES[place](model, spec.strategy, row, error)
        kept.append(raised)

    kept: list[Any] = []
    leaves_as_before(call)


@pytest.mark.parametrize("spec", KINDS, indirect=True)
def test_after_a_refusal(spec: StrategySpec, model: Any, batch: Any, leaves_as_before: Any) -> None:
    ids = batch["input_ids"]

    def call() -> None:
        for wrong in ({"input_ids": ids[:, :0]}, {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}):
            with pytest.raises(decoding.DecodingError):
                decoding.generate(model, **wrong, strategy=spec.strategy)

    leaves_as_before(call)
