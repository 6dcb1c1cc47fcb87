"""Greedy tokens of vLLM are those of ``decoding.generate`` in float32, on both model runners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm_engines import CASES, PROMPTS, continuation, engine, new_tokens, sampling

from decoding.serving.vllm.engines import MODELS

# The V2 runner's kernels run in Triton's interpreter: fewer and shorter requests.
RUNNERS = [pytest.param("V1", marks=pytest.mark.quick), "V2"]
SIZES = {"V1": (28, 16), "V2": (5, 10)}
# Further settings of what is computed as another case is; mixed batches have them.
IN_MIXED_BATCHES = ("sled-norm", "deco-strong", "weighted-log-probs", "weighted-gated")


@pytest.fixture(scope="module", params=RUNNERS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Any, int, int]]:
    """An engine without a strategy of its own, how many prompts it is given, and how many tokens they are given."""
    with engine(runner=request.param) as llm:
        yield (llm, *SIZES[request.param])


@pytest.mark.parametrize("name", [name for name in CASES if name not in IN_MIXED_BATCHES])
def test_a_batch_of_one_strategy(served: tuple[Any, int, int], name: str) -> None:
    llm, size, tokens = served
    case, prompts = CASES[name], PROMPTS[:size]
    right = [continuation(case.strategy, prompt, tokens) for prompt in prompts]
    assert new_tokens(llm, prompts, sampling(case, tokens)) == right


def test_all_strategies_and_plain_requests_in_one_batch(served: tuple[Any, int, int]) -> None:
    llm, _, tokens = served
    cases = [list(CASES.values())[i % len(CASES)] for i in range(len(PROMPTS))]
    right = [continuation(case.strategy, prompt, tokens) for case, prompt in zip(cases, PROMPTS, strict=True)]
    assert new_tokens(llm, PROMPTS, [sampling(case, tokens) for case in cases]) == right


def test_requests_that_come_and_go(served: tuple[Any, int, int]) -> None:
    """Places in the batch change hands: requests of other lengths end, and others take their places."""
    llm, _, tokens = served
    names = list(CASES)
    asked = [
        (CASES[names[i % len(names)]], PROMPTS[i * 5 % 28], 1 + i * 7 % tokens) for i in range(2 * len(names))
    ]  # more than the batch has places for
    right = [continuation(case.strategy, prompt, tokens)[:most] for case, prompt, most in asked]
    params = [sampling(case, most) for case, _, most in asked]
    assert new_tokens(llm, [prompt for _, prompt, _ in asked], params) == right


def test_plain_requests_pay_for_no_others_that_have_ended(served: tuple[Any, int, int]) -> None:
    """The logits of a step are kept for its own requests alone."""
    llm, size, _ = served
    prompts = PROMPTS[:size]
    right = [continuation(CASES["dola"].strategy, prompt, 2) for prompt in prompts]
    assert new_tokens(llm, prompts, sampling(CASES["dola"], 2)) == right
    assert new_tokens(llm, prompts[:1], sampling(None, 2)) == [continuation(None, prompts[0], 2)]
    model = MODELS[llm.llm_engine.vllm_config.instance_id]
    assert (model.keeps_steps, model.step) == (False, None)
