"""The default dtype of torch is the caller's own: no result hangs on it."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

import decoding
from decoding import FSD, LOL, ContextAware, ContrastiveDecoding, ContrastiveSearch, DoLa, Prompt, Strategy
from decoding.evals import miniature
from decoding.evals.isotropy import analyse
from decoding.scoring.teacher_forcing import teacher_forced

MODELS: dict[str, Callable[[], Any]] = {
    "encoder-decoder": lambda: tiny_model("t5"),
    "isotropy": lambda: miniature.load("expert", dtype=torch.float32)[0],
}
IDS = torch.tensor([[11, 12, 13, 14, 15, 12], [21, 22, 23, 24, 25, 22]])
STRATEGIES: dict[str, Strategy] = {
    "contrastive search": ContrastiveSearch(0.6, 4),
    "FSD": FSD(),
    "contrastive decoding": ContrastiveDecoding(Prompt([7, 8]), form="log_probs"),
    "DoLa": DoLa([0, 1]),
    "context-aware": ContextAware([5, 6, 7]),
    "LOL": LOL(Prompt([7, 8]), [1], guidance=[5, 6], fusion="entropy"),
}


def _sampled(model: Any, strategy: Strategy) -> Any:
    torch.manual_seed(0)
    output = decoding.generate(
        model, IDS, strategy=strategy, do_sample=True, max_new_tokens=5, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(output.scores)


def _isotropy(model: Any) -> Any:
    layers = analyse(model, miniature.load("expert")[1], miniature.prompts()[:6]).layers
    return torch.tensor([list(_numbers(dataclasses.astuple(layer))) for layer in layers], dtype=torch.float64)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, (int, float)):
        yield float(value)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "generate": lambda model, strategy: decoding.generate(model, IDS, strategy=strategy, max_new_tokens=5),
    "sampled": _sampled,
    "processor": lambda model, strategy: model.generate(
        IDS, logits_processor=[strategy.logits_processor(model)], num_beams=2, max_new_tokens=5
    ),
    "encoder-decoder": lambda model, strategy: decoding.generate(model, IDS, strategy=strategy, max_new_tokens=5),
    "score": lambda model, strategy: torch.stack(decoding.score(model, [11, 12, 13], [[14, 15], [16, 17]], strategy)),
    "texts": lambda model, strategy: teacher_forced(model, IDS, strategy),
    "isotropy": lambda model, strategy: _isotropy(model),
}
CASES = [
    *((call, name) for call in ("generate", "sampled", "processor") for name in STRATEGIES),
    ("encoder-decoder", "contrastive search"),
    ("encoder-decoder", "DoLa"),
    *((call, name) for call in ("score", "texts") for name in STRATEGIES if STRATEGIES[name].scorable),
    ("isotropy", "DoLa"),
]


@functools.cache
def _model(kind: str) -> Any:
    return MODELS.get(kind, functools.partial(tiny_model, "llama"))()


def _kind(call: str) -> str:
    return call if call in MODELS else "llama"


@functools.cache
def _looked_at_in(dtype: torch.dtype, kind: str, name: str) -> Any:
    """A model of which nothing was known before the first call of a strategy in this default dtype."""
    return copy.deepcopy(_model(kind))


@functools.cache
def _expected(call: str, name: str) -> Any:
    """The result of a call in the default dtype of the tests."""
    return CALLS[call](_model(_kind(call)), STRATEGIES[name])


# A number that is made in the default dtype is rounded where that is bfloat16. Where it is float64, what it is added to
# may come out in another dtype: in the sessions of all strategies, and once in each other call.
IN_FLOAT64 = [*(case for case in CASES if case[0] == "generate"), *dict(CASES[::-1]).items()]
IN_DTYPES = [*((torch.bfloat16, *case) for case in CASES), *((torch.float64, *case) for case in IN_FLOAT64)]


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("dtype", "call", "name"), dict.fromkeys(IN_DTYPES), ids=str)
def test_results_do_not_hang_on_the_default_dtype(
    dtype: torch.dtype, call: str, name: str, default_dtype: Callable[[torch.dtype], None]
) -> None:
    expected = _expected(call, name)
    default_dtype(dtype)
    result = CALLS[call](_looked_at_in(torch.get_default_dtype(), _kind(call), name), STRATEGIES[name])
    assert result.dtype == expected.dtype
    assert torch.equal(result.nan_to_num(), expected.nan_to_num())
