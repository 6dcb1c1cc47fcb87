"""Tokens do not depend on how vLLM schedules a request: in chunks, again after preemption, from the prefix cache."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from vllm_engines import (
    CASES,
    PROMPTS,
    Case,
    block_pool,
    continuation,
    engine,
    new_tokens,
    one_of_a_kind,
    prompt_ids,
    read_together,
    sampling,
    scheduler,
)

# Long enough for three and four blocks of 32 tokens, the first two of which all have in common.
STORY = "Once upon a time there was a king who had three sons. " * 5
LONG_PROMPTS = read_together(
    [STORY + end for end in ("The eldest", "The second went", "His daughter", "The capital of the kingdom")]
)


def mixed(prompts: list[str], tokens: int) -> tuple[list[Case], list[list[int]]]:
    """Cases of all strategies in turn, one a prompt, and the tokens that they continue the prompts with."""
    cases = [list(CASES.values())[i % len(CASES)] for i in range(len(prompts))]
    return cases, [continuation(case.strategy, text, tokens) for case, text in zip(cases, prompts, strict=True)]


def check_mixed(llm: Any, prompts: list[str], tokens: int) -> None:
    """Requests of all strategies, in one batch, have the tokens of the library."""
    cases, right = mixed(prompts, tokens)
    assert new_tokens(llm, prompts, [sampling(case, tokens) for case in cases]) == right


@pytest.mark.quick
def test_prompts_in_chunks() -> None:
    tokens = 8
    with engine(max_num_batched_tokens=16, max_num_seqs=16, enable_prefix_caching=False) as llm:
        chunks: list[int] = []
        schedule = scheduler(llm).schedule

        def noted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            chunks.extend(output.num_scheduled_tokens.values())
            return output

        with patch.object(scheduler(llm), "schedule", noted):
            for case in one_of_a_kind().values():
                right = [continuation(case.strategy, prompt, tokens) for prompt in LONG_PROMPTS]
                assert new_tokens(llm, LONG_PROMPTS, sampling(case, tokens)) == right
            check_mixed(llm, PROMPTS, 12)
        assert max(chunks) <= 16 < len(prompt_ids(LONG_PROMPTS[0]))


@pytest.mark.parametrize("caching", [False, True])
def test_requests_that_are_preempted(caching: bool) -> None:
    """Requests whose blocks are taken away read all of their text again, new tokens included."""
    tokens = 60  # for which a request needs a third block
    with engine(num_gpu_blocks_override=14, enable_prefix_caching=caching) as llm:
        core = scheduler(llm)
        for name, case in one_of_a_kind().items() if caching else ():
            prompts = PROMPTS[:8]
            with patch.object(core, "_preempt_request", wraps=core._preempt_request) as preempt:
                right = [continuation(case.strategy, prompt, tokens) for prompt in prompts]
                assert new_tokens(llm, prompts, sampling(case, tokens)) == right
            assert preempt.call_count, name
        with patch.object(core, "_preempt_request", wraps=core._preempt_request) as preempt:
            check_mixed(llm, PROMPTS[:17], tokens)
        assert preempt.call_count


@pytest.mark.quick
def test_prompts_from_the_prefix_cache() -> None:
    tokens = 8
    with engine(enable_prefix_caching=True) as llm:
        for case in one_of_a_kind().values():
            # What one strategy has read the next one finds: readers are those of the engine, whatever a request asks.
            right = [continuation(case.strategy, prompt, tokens) for prompt in LONG_PROMPTS]
            outputs = [llm.generate([prompt], sampling(case, tokens), use_tqdm=False)[0] for prompt in LONG_PROMPTS]
            assert [list(output.outputs[0].token_ids) for output in outputs] == right
            assert all(output.num_cached_tokens >= 64 for output in outputs[1:])
        check_mixed(llm, LONG_PROMPTS * 5, tokens)
        # Text that was generated is a prefix as well.
        case = CASES["lol"]
        longer = continuation(case.strategy, LONG_PROMPTS[0], 60)
        ids = prompt_ids(LONG_PROMPTS[0]) + longer[:40]
        llm.generate([LONG_PROMPTS[0]], sampling(case, 60), use_tqdm=False)
        output = llm.generate([{"prompt_token_ids": ids}], sampling(case, 20), use_tqdm=False)[0]
        assert list(output.outputs[0].token_ids) == longer[40:]
        assert output.num_cached_tokens > len(prompt_ids(LONG_PROMPTS[0]))
        llm.reset_prefix_cache()


def test_requests_that_end_early() -> None:
    """Requests are aborted in the midst of their text; those beside them and after them do not notice."""
    tokens = 24
    with engine(num_gpu_blocks_override=30) as llm:
        cases, right = mixed(PROMPTS, tokens)
        core = llm.llm_engine
        for i, (case, prompt) in enumerate(zip(cases, PROMPTS, strict=True)):
            core.add_request(str(i), prompt, sampling(case, tokens))
        finished: dict[int, list[int]] = {}
        for step in range(400):
            for output in core.step():
                if output.finished:
                    finished[int(output.request_id)] = list(output.outputs[0].token_ids)
            if step < 14:  # one at each step, of those that wait, read their prompts or write
                core.abort_request([str(step * 2)])
            if not core.has_unfinished_requests():
                break
        aborted = set(range(0, 28, 2))
        assert {i: ids for i, ids in finished.items() if i not in aborted} == {
            i: right[i] for i in range(28) if i not in aborted
        }
        assert not core.has_unfinished_requests()
        assert block_pool(llm).get_num_free_blocks() == block_pool(llm).num_gpu_blocks - 1


def test_the_v2_runner_schedules_alike() -> None:
    """Chunks, preemption and the prefix cache at once; the V2 runner's kernels run in Triton's interpreter."""
    tokens = 40
    with engine(runner="V2", max_num_batched_tokens=16, max_num_seqs=8, num_gpu_blocks_override=12) as llm:
        core = scheduler(llm)
        with patch.object(core, "_preempt_request", wraps=core._preempt_request) as preempt:
            cases, right = mixed(PROMPTS[:17], tokens)
            assert new_tokens(llm, PROMPTS[:17], [sampling(case, tokens) for case in cases]) == right
        assert preempt.call_count
    with engine(runner="V2", max_num_batched_tokens=16, max_num_seqs=8) as llm:
        for case in (CASES["dola-all-layers"], CASES["lol"]):
            right = [continuation(case.strategy, prompt, 4) for prompt in LONG_PROMPTS]
            outputs = [llm.generate([prompt], sampling(case, 4), use_tqdm=False)[0] for prompt in LONG_PROMPTS]
            assert [list(output.outputs[0].token_ids) for output in outputs] == right
            assert all(output.num_cached_tokens >= 64 for output in outputs[1:])


def test_two_ranks() -> None:
    """Tensor parallelism: each rank has half of the heads, of the model's and of the amateur's."""
    tokens = 12
    with engine(tensor_parallel_size=2, distributed_executor_backend="mp") as llm:
        check_mixed(llm, PROMPTS, tokens)
