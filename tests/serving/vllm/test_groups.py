"""Requests with several readings in each step: second prompts, adapters as amateurs, candidates of a search."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.v1.request import RequestStatus
from vllm_engines import (
    EXPERT,
    PROMPTS,
    Case,
    continuation,
    engine,
    loaded,
    new_tokens,
    prompt_ids,
    sampling,
    scheduler,
)

import decoding
from decoding.evals import miniature

ADAPTER = str(miniature.folder("induced"))
CONTEXTS = (
    "The old king said to the shepherd that the castle was red. ",
    "A story of the sea. ",
    "Facts about rivers and people of the north and of the west. ",
)
NEGATIVES = (None, "Once upon a time", "Q: Who")
ANCHORED: tuple[dict[str, str], ...] = ({"plausible": "reader 2", "weight_by": "jsd"}, {})
GROUPS = {"second_prompts": True, "candidates": 6}
Asked = tuple[Any, Case]  # a prompt for vLLM, and what is asked for


def context_aware(number: int) -> tuple[Asked, Callable[[int], list[int]]]:
    """A prompt after a context, its request, and the tokens that the library gives it."""
    tokenizer = loaded(EXPERT)[1]
    context, prompt = CONTEXTS[number % 3], PROMPTS[number % 28]
    alpha = (0.5, 1.0)[number % 2]
    ids = prompt_ids(prompt)
    start = 1 if ids[0] == tokenizer.bos_token_id else 0
    whole = ids[:start] + tokenizer(context, add_special_tokens=False).input_ids + ids[start:]
    fields: dict[str, Any] = {"prompt_without_context": prompt if number % 2 else ids}
    strategy: Any
    if number % 3 == 2:
        fields |= {"strategy": "adaptive-context", "floor": number % 5 / 10}
        strategy = decoding.AdaptiveContext(context, floor=number % 5 / 10, tokenizer=tokenizer)
    else:
        fields |= {"strategy": "context-aware", "alpha": alpha}
        strategy = decoding.ContextAware(context, alpha=alpha, tokenizer=tokenizer)
    return ({"prompt_token_ids": whole}, Case(fields, strategy)), lambda n: continuation(strategy, prompt, n)


def guidance(number: int) -> tuple[Asked, Callable[[int], list[int]]]:
    """A prompt with a negative one."""
    negative, prompt = NEGATIVES[number % 3], PROMPTS[number % 28]
    tokenizer = loaded(EXPERT)[1]
    if number % 4 == 2 or number % 3 == 1:
        reader = "last-token" if negative is None else f"instead:{negative}"
        terms, more = f"1.5*expert - 0.5*{reader}", ANCHORED[number // 4 % 2]
        strategy: Any = decoding.WeightedContrast(terms, alpha=0.2, tokenizer=tokenizer, **more)
        fields: dict[str, Any] = {"strategy": "weighted-contrast", "terms": terms, "alpha": 0.2, **more}
        return (prompt, Case(fields, strategy)), lambda n: continuation(strategy, prompt, n)
    fields = {"strategy": "guidance", "scale": 2.0, **({} if negative is None else {"negative": negative})}
    strategy = decoding.Guidance(negative, scale=2.0, tokenizer=tokenizer)
    return (prompt, Case(fields, strategy)), lambda n: continuation(strategy, prompt, n)


def searched(number: int) -> tuple[Asked, Callable[[int], list[int]]]:
    """A prompt of contrastive search, with 4 or 6 candidates."""
    settings: dict[str, Any] = {} if number % 2 else {"top_k": 6, "penalty_alpha": 0.4}
    strategy, prompt = decoding.ContrastiveSearch(**settings), PROMPTS[number % 28]
    case = Case({"strategy": "contrastive-search", **settings}, strategy)
    return (prompt, case), lambda n: continuation(strategy, prompt, n)


def alone(number: int) -> tuple[Asked, Callable[[int], list[int]]]:
    """A prompt that one reading is enough for."""
    strategy, prompt = (None, decoding.DoLa())[number % 2], PROMPTS[number % 28]
    fields = ({"strategy": "none"}, {"strategy": "dola"})[number % 2]
    return (prompt, Case(fields, strategy)), lambda n: continuation(strategy, prompt, n)


KINDS = (context_aware, guidance, searched, alone)


def check(llm: Any, kinds: Any, tokens: int, size: int = 28) -> None:
    """Requests of these kinds in turn, in one batch, have the tokens of the library."""
    made = [kinds[i % len(kinds)](i) for i in range(size)]
    right = [make(tokens) for _, make in made]
    params = [sampling(case, tokens) for (_, case), _ in made]
    assert new_tokens(llm, [prompt for (prompt, _), _ in made], params) == right


@pytest.mark.parametrize("caching", [False, pytest.param(True, marks=pytest.mark.quick)])
def test_groups_in_chunks(caching: bool) -> None:
    with engine(
        contrast=GROUPS, max_num_batched_tokens=16, max_num_seqs=16, amateur=None, enable_prefix_caching=caching
    ) as llm:
        check(llm, KINDS, 16)
        check(llm, KINDS, 16)


@pytest.mark.parametrize("caching", [False, True])
def test_groups_that_are_preempted(caching: bool) -> None:
    options: dict[str, Any] = {"num_gpu_blocks_override": 30, "max_model_len": 128, "enable_prefix_caching": caching}
    with engine(contrast=GROUPS, amateur=None, **options) as llm:
        core = scheduler(llm)
        for kinds in ((context_aware, guidance), (searched,), KINDS) if caching else (KINDS,):
            with patch.object(core, "_preempt_request", wraps=core._preempt_request) as preempt:
                check(llm, kinds, 40, size=12)
            assert preempt.call_count, kinds


def test_groups_on_the_v2_runner() -> None:
    with engine(contrast=GROUPS, runner="V2", amateur=None, max_num_batched_tokens=24, max_num_seqs=24) as llm:
        check(llm, KINDS, 8, size=8)


def contrasted(number: int) -> tuple[Asked, Callable[[int], list[int]]]:
    """A prompt that the model with the adapter reads too."""
    lol = {"lower_layers": [1, 3]}
    fields = ({"strategy": "contrastive-decoding", "beta": 1.0}, {"strategy": "lol", **lol})[number % 2]
    strategy = (decoding.ContrastiveDecoding(ADAPTER, beta=1.0), decoding.LOL(ADAPTER, **lol))[number % 2]
    prompt = PROMPTS[number % 28]

    def right(tokens: int) -> list[int]:  # adapters are loaded beside the model that has none
        model, tokenizer = miniature.load("expert")
        ids = torch.tensor([prompt_ids(prompt)])
        mask = torch.ones_like(ids)
        return decoding.generate(
            model.float(), ids, attention_mask=mask, strategy=strategy, max_new_tokens=tokens, tokenizer=tokenizer
        )[0, ids.shape[1] :].tolist()

    return (prompt, Case(fields, strategy)), right


@pytest.mark.parametrize(
    ("runner", "size", "tokens", "chunks"),
    [("V1", 28, 40, {}), ("V2", 9, 8, {"max_num_batched_tokens": 16, "max_num_seqs": 16})],
    ids=["V1", "V2-in-chunks"],
)
def test_an_adapter_as_amateur(runner: str, size: int, tokens: int, chunks: dict[str, int]) -> None:
    options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2, **chunks}
    with engine(
        amateur=ADAPTER, contrast={"second_prompts": True}, runner=runner, num_gpu_blocks_override=20, **options
    ) as llm:
        core = scheduler(llm)
        with patch.object(core, "_preempt_request", wraps=core._preempt_request) as preempt:
            check(llm, (contrasted, alone, guidance), tokens, size)
        assert preempt.call_count or runner == "V2"


@pytest.mark.parametrize("amateur", [None, ADAPTER], ids=["prompts and searches", "an adapter"])
def test_groups_on_two_ranks(amateur: str | None) -> None:
    """Each rank has half of the heads, and the same followers and history."""
    options: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "max_num_seqs": 24}
    if amateur is None:
        kinds, contrast = KINDS, GROUPS
    else:
        kinds, contrast = (contrasted, alone, guidance), {"second_prompts": True}
        options |= {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    with engine(amateur=amateur, contrast=contrast, max_num_batched_tokens=24, **options) as llm:
        check(llm, kinds, 12, size=12)


def test_limits_are_the_requests_own() -> None:
    """A group ends where the request would: at stop strings, its number of tokens, its end token, or the context."""
    with engine(contrast=GROUPS, max_num_seqs=64, max_model_len=64, amateur=None) as llm:
        (prompt, case), right = guidance(1)
        tokens = right(40)
        (output,) = llm.generate([prompt], sampling(case, 40, stop_token_ids=[tokens[5]]), use_tqdm=False)
        assert list(output.outputs[0].token_ids) == tokens[: tokens.index(tokens[5]) + 1]
        assert output.outputs[0].finish_reason == "stop"
        tokenizer = loaded(EXPERT)[1]
        word = tokenizer.decode(tokens[4:7]).strip()
        (output,) = llm.generate([prompt], sampling(case, 40, stop=[word]), use_tqdm=False)
        assert output.outputs[0].finish_reason == "stop"
        assert tokenizer.decode(tokens).startswith(output.outputs[0].text)
        # The longer of the two texts fills the context.
        negative = prompt_ids("Once upon a time there was a king who had three sons. " * 2)
        fields = {"strategy": "guidance", "negative": negative}
        (output,) = llm.generate([prompt], sampling(Case(fields, None), 100, ignore_eos=True), use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 64 - len(negative)
        assert output.outputs[0].finish_reason == "length"
        (prompt, case), _ = searched(1)
        (output,) = llm.generate([prompt], sampling(case, 100, ignore_eos=True), use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 64 - 1 - len(prompt_ids(prompt))


def test_groups_end_as_a_whole() -> None:
    """Aborted requests take their followers along, wherever they stand; the others go on."""
    tokens = 24
    with engine(contrast=GROUPS, num_gpu_blocks_override=60, max_model_len=128, amateur=None) as llm:
        made = [KINDS[i % 4](i) for i in range(16)]
        core = llm.llm_engine
        for i, ((prompt, case), _) in enumerate(made):
            core.add_request(str(i), prompt, sampling(case, tokens))
        finished: dict[int, list[int]] = {}
        for step in range(600):
            for output in core.step():
                assert output.request_id.isdigit(), "a follower has answered"
                if output.finished:
                    finished[int(output.request_id)] = list(output.outputs[0].token_ids)
            if step % 3 == 0 and step < 24:
                core.abort_request([str(step // 3 * 2 + step // 3 % 2)])
            if not core.has_unfinished_requests():
                break
        aborted = {step * 2 + step % 2 for step in range(8)}
        kept = set(range(16)) - aborted
        assert {i: finished[i] for i in kept} == {i: made[i][1](tokens) for i in kept}
        assert not scheduler(llm).requests


# One engine for the tests that follow: it lives until the last of them, and no other beside it.
@pytest.fixture(scope="module")
def groups() -> Iterator[Any]:
    """An engine with groups."""
    with engine(contrast=GROUPS, max_num_seqs=64, amateur=None) as llm:
        yield llm


@pytest.mark.quick
def test_groups_in_a_batch(groups: Any) -> None:
    for kind in KINDS:
        check(groups, (kind,), 24, size=12)
    check(groups, KINDS, 24)
    assert not scheduler(groups).requests


def test_a_request_whose_follower_ends_is_answered_with_an_error(groups: Any) -> None:
    (prompt, case), _ = guidance(1)
    (other, plain), right = alone(1)
    core = groups.llm_engine
    core.add_request("0", prompt, sampling(case, 24))
    core.add_request("1", other, sampling(plain, 24))
    finished: dict[str, Any] = {}
    for step in range(200):
        finished |= {output.request_id: output.outputs[0] for output in core.step() if output.finished}
        if step == 3:
            (follower,) = (name for name in scheduler(groups).requests if name.endswith("follower-1"))
            scheduler(groups).finish_requests([follower], RequestStatus.FINISHED_ABORTED)
        if not core.has_unfinished_requests():
            break
    assert finished["0"].finish_reason == "error"
    assert list(finished["1"].token_ids) == right(24)
    assert not scheduler(groups).requests


def test_penalties_are_of_the_requests_own_text(groups: Any) -> None:
    prompt, negative = PROMPTS[12], "Once upon a time"
    strategy = decoding.Guidance(negative, scale=2.0, tokenizer=loaded(EXPERT)[1])
    case = Case({"strategy": "guidance", "scale": 2.0, "negative": negative}, strategy)
    right = continuation(strategy, prompt, 40, repetition_penalty=1.8)
    assert right != continuation(strategy, prompt, 40)
    assert new_tokens(groups, [prompt], sampling(case, 40, repetition_penalty=1.8)) == [right]


def test_both_readings_of_a_sampled_text_have_its_tokens(groups: Any) -> None:
    """Tokens that are drawn have the library's probabilities after each beginning, so the follower has read them."""
    tokenizer = loaded(EXPERT)[1]
    strategy = decoding.Guidance("Once upon a time", scale=1.5, tokenizer=tokenizer)
    case = Case({"strategy": "guidance", "scale": 1.5, "negative": "Once upon a time"}, strategy)
    params = sampling(case, 3, temperature=1.0, top_k=2, n=200, ignore_eos=True)
    (output,) = groups.generate([PROMPTS[3]], params, use_tqdm=False)
    ids = prompt_ids(PROMPTS[3])
    texts = Counter(tuple(sample.token_ids) for sample in output.outputs)
    by_beginning: dict[tuple[int, ...], Counter[int]] = {}
    for text, times in texts.items():
        by_beginning.setdefault(text[:2], Counter())[text[2]] += times
    model = loaded(EXPERT)[0]
    for beginning, drawn in by_beginning.items():
        whole = torch.tensor([[*ids, *beginning]])
        output = decoding.generate(
            model, whole, attention_mask=torch.ones_like(whole), max_new_tokens=1, return_dict_in_generate=True,
            output_scores=True, do_sample=False,
            strategy=decoding.Guidance([[*tokenizer("Once upon a time").input_ids, *beginning]], scale=1.5),
        )  # fmt: skip
        best = output.scores[0][0].topk(2)
        expected = dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))
        assert set(drawn) <= set(expected), beginning
        total = drawn.total()
        for token, probability in expected.items():
            spread = (probability * (1 - probability) / total) ** 0.5
            assert abs(drawn[token] / total - probability) < 5 * spread + 1e-6, beginning


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"strategy": "contrastive-search"}, {"temperature": 0.5}, "contrastive-search: temperature=0.5: it does"),
        ({"strategy": "contrastive-search"}, {"repetition_penalty": 1.2}, "contrastive-search: repetition_penalty=1.2"),
        ({"strategy": "contrastive-search", "top_k": 7}, {}, "contrastive-search: top_k=7: this engine reads at"),
        ({"strategy": "guidance", "negative": [5000]}, {}, "guidance: negative: token id 5000; must be from 0 to 2047"),
        ({"strategy": "guidance", "negative": [1] * 256}, {}, "guidance: negative: has 256 tokens; must have 1 to 255"),
        ({"strategy": "guidance"}, {"temperature": 1.0, "seed": 3}, "guidance: seed=3: vLLM's V1 model runner has no"),
        ({"strategy": "guidance", "_group": ["x", 1, 1]}, {}, "guidance: no parameter '_group'"),
    ],
)  # fmt: skip
def test_what_groups_do_not_have_is_refused(
    groups: Any, fields: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VLLMValidationError, match="^" + re.escape(message)) as error:
        groups.generate([PROMPTS[0]], sampling(Case(fields, None), 4, **options), use_tqdm=False)
    assert "\n" not in str(error.value)
