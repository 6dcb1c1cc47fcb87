"""Log-probabilities of prompts (``prompt_logprobs``), under the strategies of the requests that ask for them."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from vllm.config import CompilationMode, CUDAGraphMode
from vllm.exceptions import VLLMValidationError
from vllm_engines import CASES, EXPERT, PROMPTS, Case, engine, loaded, new_tokens, one_of_a_kind, prompt_ids, sampling

import decoding
from decoding.serving.vllm.engines import ENGINES

TEXTS = (
    "The shepherd looked at the old castle by the river and he was not afraid of the king",
    "Q: Where does the river end? A: The river ends in the sea.",
    "Once upon a time there was a clockmaker who had three sons and a red hat",
)
# Floats of vLLM's kernels differ from transformers' by 1e-5; DoLa of raw lower layers multiplies logits of several 100.
TOLERANCE = {"abs": 2e-3, "rel": 1e-4}


@functools.cache
def right(strategy: Any, text: str) -> list[float]:
    """The log-probabilities of a text's tokens from the second on; -inf where one is not plausible."""
    ids = prompt_ids(text)
    (scores,) = decoding.score(loaded(EXPERT)[0], ids[:1], [ids[1:]], strategy, floor=float("-inf"))
    return scores.tolist()


def log_probs(output: Any) -> list[float]:
    """The log-probabilities of a prompt's tokens from the second on, as a client gets them."""
    given = zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
    return [entries[token].logprob for entries, token in given]


@pytest.mark.quick
def test_requests_of_one_batch_have_each_their_strategys() -> None:
    """In chunks of a prefill beside requests that are decoded, of which a few score no prompt."""
    with engine(max_num_batched_tokens=24, max_num_seqs=16) as llm:
        asked = [(name, text) for text in TEXTS for name in CASES]
        params = [sampling(CASES[name], 3, prompt_logprobs=i % 3) for i, (name, _) in enumerate(asked)]
        beside = [sampling(case, 24) for case in one_of_a_kind().values()]
        texts = [text for _, text in asked]
        outputs = llm.generate([*texts, *PROMPTS[: len(beside)]], [*params, *beside], use_tqdm=False)
        tokens = new_tokens(llm, texts, [sampling(CASES[name], 3) for name, _ in asked])
    for (name, text), output, new in zip(asked, outputs, tokens, strict=False):
        assert log_probs(output) == pytest.approx(right(CASES[name].strategy, text), **TOLERANCE), (name, text)
        assert list(output.outputs[0].token_ids) == new, (name, text)


def test_the_v2_runner() -> None:
    """It asks for the rows of a whole step at once, plain requests' among them."""
    with engine(
        max_num_batched_tokens=24, max_num_seqs=16, runner="V2", contrast={"strategy": dict(CASES["dola"].fields or {})}
    ) as llm:
        cases = {**one_of_a_kind(), "none": CASES["none"], "plain": Case(None, CASES["dola"].strategy)}
        params = [sampling(case, 2, prompt_logprobs=1) for case in cases.values()]
        outputs = llm.generate([TEXTS[0]] * len(cases), params, use_tqdm=False)
        for (name, case), output in zip(cases.items(), outputs, strict=True):
            assert log_probs(output) == pytest.approx(right(case.strategy, TEXTS[0]), **TOLERANCE), name


@pytest.mark.parametrize("own", ["dola-low", "cd"])
def test_an_engine_with_a_strategy_of_its_own(own: str) -> None:
    """Its strategy's, or those of a request that names another one or none."""
    with engine(contrast={"strategy": dict(CASES[own].fields or {})}) as llm:
        cases = {"plain": CASES[own], "none": CASES["none"], "lol": CASES["lol"], "dola": CASES["dola"]}
        given = {name: Case(None, None) if name == "plain" else case for name, case in cases.items()}
        params = [sampling(case, 2, prompt_logprobs=2) for case in given.values()]
        for text in TEXTS:
            outputs = llm.generate([text] * len(cases), params, use_tqdm=False)
            for (name, case), output in zip(cases.items(), outputs, strict=True):
                assert log_probs(output) == pytest.approx(right(case.strategy, text), **TOLERANCE), (name, text)


def test_what_has_none_is_refused() -> None:
    others = set(ENGINES)  # that have ended, but have not been collected yet
    with engine(contrast={"second_prompts": True, "candidates": 4}, amateur=None) as llm:
        for fields in ({"strategy": "guidance"}, {"strategy": "contrastive-search"}):
            message = f"{fields['strategy']}: prompt_logprobs: a prompt that has several readings here is not scored"
            with pytest.raises(VLLMValidationError, match="^" + re.escape(message)):
                llm.generate([TEXTS[0]], sampling(Case(fields, None), 4, prompt_logprobs=1), use_tqdm=False)
        # vLLM sets this where it has a GPU, and runs no line of the model beside such graphs.
        (running,) = (ENGINES[name] for name in ENGINES.keys() - others)
        running.compilation.mode, running.compilation.cudagraph_mode = CompilationMode.NONE, CUDAGraphMode.FULL
        with pytest.raises(VLLMValidationError, match=r"^prompt_logprobs: with cudagraph_mode=FULL on the V1"):
            llm.generate([TEXTS[0]], sampling(CASES["dola"], 4, prompt_logprobs=1), use_tqdm=False)
        output = llm.generate([TEXTS[0]], sampling(None, 4, prompt_logprobs=1), use_tqdm=False)[0]
        assert log_probs(output) == pytest.approx(right(None, TEXTS[0]), **TOLERANCE)
