"""An engine with a strategy of its own, which requests have that name none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.sampling_params import StructuredOutputsParams
from vllm_engines import CASES, EXPERT, PROMPTS, continuation, engine, loaded, new_tokens, prompt_ids, sampling

import decoding

SIZES = {"V1": (27, 16), "V2": (9, 10)}  # requests, tokens


@pytest.mark.parametrize(
    ("own", "runner"),
    [
        *(
            pytest.param(own, "V1", marks=pytest.mark.quick)
            for own in ("dola-all-layers", "cd-log-probs", "lol-entropy")
        ),
        ("lol-entropy", "V2"),
    ],
)
def test_requests_have_it_another_one_or_none(own: str, runner: str) -> None:
    names = ["plain", own, "none", "dola-all-layers", "cd", "cd-log-probs-weak", "lol", "lol-entropy-raw", "dola-low"]
    size, tokens = SIZES[runner]
    asked = [(name, prompt) for name, prompt in zip(names * 3, PROMPTS[:size], strict=False)]
    strategies = [CASES[own if name == "plain" else name].strategy for name, _ in asked]
    right = [continuation(strategy, prompt, tokens) for strategy, (_, prompt) in zip(strategies, asked, strict=True)]
    with engine(contrast={"strategy": dict(CASES[own].fields or {})}, runner=runner) as llm:
        params = [sampling(CASES[name], tokens) for name, _ in asked]
        got = new_tokens(llm, [prompt for _, prompt in asked], params)
        assert dict(zip(asked, got, strict=True)) == dict(zip(asked, right, strict=True))
        # Alone in their batch, too.
        for name, case in {"plain": CASES[own], "none": CASES["none"], "cd": CASES["cd"]}.items():
            alone = [continuation(case.strategy, prompt, tokens) for prompt in PROMPTS[:3]]
            assert new_tokens(llm, PROMPTS[:3], sampling(CASES[name], tokens)) == alone


@pytest.fixture(scope="module", params=["none", "cd"])
def processed(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str]]:
    """An engine that shows the scores that tokens are chosen by, and the name of its own strategy."""
    settings = {"strategy": dict(CASES[request.param].fields or {})}
    with engine(logprobs_mode="processed_logprobs", contrast=settings) as llm:
        yield llm, request.param


@pytest.mark.quick
def test_processed_log_probabilities_are_the_strategys(processed: tuple[Any, str]) -> None:
    """With logprobs_mode="processed_logprobs" clients get what tokens are chosen by: plausible tokens and no others."""
    model, ids = loaded(EXPERT)[0], torch.tensor([prompt_ids(PROMPTS[0])])
    names = ["plain", "none", "dola-all-layers", "cd", "lol", "lol-entropy"]
    llm, own = processed
    strategies = [CASES[own if name == "plain" else name].strategy for name in names]
    params = [sampling(CASES[name], 3, logprobs=4) for name in names]
    outputs = llm.generate([PROMPTS[0]] * len(names), params, use_tqdm=False)
    for name, strategy, output in zip(names, strategies, outputs, strict=True):
        given: dict[str, Any] = {} if strategy is None else {"strategy": strategy}
        scores = decoding.generate(
            model, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False,
            output_scores=True, return_dict_in_generate=True, **given,
        ).scores  # fmt: skip
        for step, entries in enumerate(output.outputs[0].logprobs):
            right = scores[step][0].log_softmax(-1)
            for token, entry in entries.items():
                assert entry.logprob == pytest.approx(right[token].item(), abs=1e-3), (own, name, step)


@pytest.mark.quick
def test_structured_outputs(processed: tuple[Any, str]) -> None:
    """A grammar excludes tokens before strategies score them, whatever is plausible."""
    choices = ["the river", "a castle", "honey"]
    llm, _ = processed
    for name in ("plain", "none", "dola-all-layers", "cd", "lol-entropy"):
        params = sampling(CASES[name], 12, structured_outputs=StructuredOutputsParams(choice=choices))
        outputs = llm.generate(PROMPTS[:4], params, use_tqdm=False)
        assert all(output.outputs[0].text in choices for output in outputs)
