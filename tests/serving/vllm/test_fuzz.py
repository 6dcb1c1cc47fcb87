"""Many odd requests at once: no wrong token, no crash, no block leaked."""

from __future__ import annotations

from fuzzed_requests import fuzz
from vllm_engines import engine

# Preemption and the prefix cache at once; with CHUNKS, prompts in parts too.
NARROW = {"max_num_seqs": 8, "num_gpu_blocks_override": 22, "max_model_len": 128, "max_num_batched_tokens": 2048}
CHUNKS = {**NARROW, "max_num_batched_tokens": 48}
ENDS = {"greedy", "sampled", "the same again", "refused", "aborted"}


def test_requests_with_prompts_in_chunks() -> None:
    """Without seeds: on a CPU, vLLM's V1 runner ends at a request with a seed whose prompt is read in parts."""
    with engine(**CHUNKS) as llm:
        assert set(fuzz(llm, 600, seed=3, seeds=False)) == ENDS - {"the same again"}


def test_requests_with_seeds() -> None:
    with engine(**NARROW) as llm:
        assert set(fuzz(llm, 400, seed=4)) == ENDS


def test_requests_to_the_v2_runner() -> None:
    with engine(runner="V2", **CHUNKS) as llm:
        assert set(fuzz(llm, 40, seed=5)) == ENDS


def test_an_engine_with_a_strategy_of_its_own() -> None:
    """Its plain requests have it; those that name one are as before."""
    from vllm_engines import CASES, Case

    plain = CASES["plain"]
    own = CASES["lol-entropy"]
    CASES["plain"] = Case(None, own.strategy)
    try:
        with engine(contrast={"strategy": dict(own.fields or {})}, **CHUNKS) as llm:
            fuzz(llm, 60, seed=6, seeds=False)
    finally:
        CASES["plain"] = plain
