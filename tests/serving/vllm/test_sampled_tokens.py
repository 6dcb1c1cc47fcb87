"""Sampled tokens of vLLM have the library's distribution."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm_engines import CASES, EXPERT, Case, engine, loaded, one_of_a_kind, prompt_ids, sampling

import decoding

PROMPT = "The shepherd looked"
# A fit this bad or worse comes by chance once in ten thousand; the seeds are fixed, so it comes always or never.
UNLIKELY = 1e-4
SAMPLES = {"V1": 512, "V2": 192}


def on(v1: Iterable[str], v2: Iterable[str]) -> Any:
    """Run a test with an engine of each runner for these names of cases."""
    asked = [pytest.param("V1", name, marks=pytest.mark.quick) for name in v1] + [("V2", name) for name in v2]
    return pytest.mark.parametrize(("served", "name"), asked, indirect=["served"])


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Any, int]]:
    """An engine, and how many samples are drawn: all of them are one batch."""
    with engine(runner=request.param, max_num_seqs=64) as llm:
        yield llm, SAMPLES[request.param]


@functools.cache
def distribution(strategy: Any, ids: tuple[int, ...], **warpers: float) -> Tensor:
    """(vocab,) the library's probabilities of the next token, after temperature, top-k and top-p."""
    model, given = loaded(EXPERT)[0], torch.tensor([ids])
    output = decoding.generate(
        model, input_ids=given, attention_mask=torch.ones_like(given), strategy=strategy, max_new_tokens=1,
        do_sample=True, top_k=warpers.get("top_k", 0), temperature=warpers.get("temperature", 1.0),
        top_p=warpers.get("top_p", 1.0), output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    return output.scores[0][0].double().softmax(-1)


def p_value(counts: Counter[int], expected: Tensor) -> float:
    """Pearson's chi-square test: how likely counts are as far from the expected distribution as these.

    Tokens that are expected less than five times are counted together. One that cannot come gives 0.
    """
    total = sum(counts.values())
    if any(expected[token] == 0 for token in counts):
        return 0.0
    often = [token for token in expected.nonzero().flatten().tolist() if expected[token] * total >= 5]
    cells = [(counts[token], float(expected[token]) * total) for token in often]
    rest = total - sum(seen for seen, _ in cells), total - sum(wanted for _, wanted in cells)
    if rest[1] > 1e-6:
        cells.append(rest)
    if len(cells) == 1:
        return 1.0
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


def drawn(llm: Any, case: Case, samples: int, tokens: int, **options: Any) -> list[list[int]]:
    """The tokens of many samples of one request."""
    params = sampling(case, tokens, n=samples, seed=11, **{"temperature": 1.0, **options})
    output = llm.generate([PROMPT], params, use_tqdm=False)[0]
    return [list(sample.token_ids) for sample in output.outputs]


# The kernels of the V2 runner take long in Triton's interpreter; it draws from scores of any kind alike.
@on(
    [*one_of_a_kind(), "cd-strong", "dola-low", "sled", "deco", "weighted", "weighted-entropy"],
    ["plain", "dola-low", "cd-log-probs", "lol-entropy"],
)
def test_first_and_second_tokens(served: tuple[Any, int], name: str) -> None:
    llm, samples = served
    case, ids = CASES[name], tuple(prompt_ids(PROMPT))
    texts = drawn(llm, case, samples, 2)
    firsts = Counter(text[0] for text in texts)
    right = distribution(case.strategy, ids)
    assert p_value(firsts, right) > UNLIKELY
    first = firsts.most_common(1)[0][0]
    seconds = Counter(text[1] for text in texts if text[0] == first)
    assert p_value(seconds, distribution(case.strategy, (*ids, first))) > UNLIKELY
    if case.strategy is not None:  # the samples are enough to tell strategies apart
        assert len(firsts) > 1 or right.max() > 0.99
        assert p_value(firsts, distribution(None, ids)) < UNLIKELY


@on(["dola-low", "cd-strong", "lol-entropy"], ["dola-low"])
def test_warpers_act_on_plausible_tokens(served: tuple[Any, int], name: str) -> None:
    llm, samples = served
    case, ids = CASES[name], tuple(prompt_ids(PROMPT))
    for warpers in ({"temperature": 2.0}, {"temperature": 1.5, "top_p": 0.8}, {"temperature": 1.8, "top_k": 3}):
        firsts = Counter(text[0] for text in drawn(llm, case, samples, 1, **warpers))
        assert p_value(firsts, distribution(case.strategy, ids, **warpers)) > UNLIKELY, warpers


@pytest.mark.parametrize("served", [pytest.param("V1", marks=pytest.mark.quick), "V2"], indirect=True)
def test_a_seed_draws_the_same_beside_others(served: tuple[Any, int]) -> None:
    """A request with a seed draws its tokens whatever else is in the batch."""
    llm, _ = served
    cases = list(one_of_a_kind().values())
    params = [sampling(case, 8, temperature=1.3, seed=5 + i) for i, case in enumerate(cases)]
    together = [list(o.outputs[0].token_ids) for o in llm.generate([PROMPT] * len(cases), params, use_tqdm=False)]
    alone = [list(llm.generate([PROMPT], given, use_tqdm=False)[0].outputs[0].token_ids) for given in params]
    assert together == alone
