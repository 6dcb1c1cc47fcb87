"""vLLM's other parameters act on a strategy's scores as ``decoding.generate``'s processors do.

Where vLLM has no twin in transformers, the oracle is a processor of a few lines in plain Python. Presence and frequency
penalties of vLLM count new tokens alone, its repetition penalty counts the prompt's too, and multi-token bad words must
begin among the new tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm_engines import (
    CASES,
    EXPERT,
    PROMPTS,
    continuation,
    engine,
    loaded,
    new_tokens,
    one_of_a_kind,
    prompt_ids,
    sampling,
    start_of,
)

import decoding

EOS = 2
RUNNERS = ["V1", "V2"]
SIZES = {"V1": (4, 20), "V2": (2, 12)}  # prompts, tokens


@pytest.fixture(scope="module", params=RUNNERS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Any, int, int]]:
    """An engine, how many prompts it is given, and how many tokens they are given."""
    with engine(runner=request.param, max_model_len=128) as llm:
        yield (llm, *SIZES[request.param])


@dataclass(frozen=True)
class Counted:
    """Subtracts a penalty for a token that is among the new ones, and one for each time it is."""

    start: int
    presence: float
    frequency: float

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            for token, times in Counter(ids).items():
                scores[row, token] -= self.presence + self.frequency * times
        return scores


@dataclass(frozen=True)
class Only:
    """Excludes all other tokens."""

    tokens: tuple[int, ...]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept = torch.full_like(scores, -math.inf)
        kept[:, list(self.tokens)] = scores[:, list(self.tokens)]
        return kept


@dataclass(frozen=True)
class Biased:
    """Adds a number to the scores of some tokens."""

    biases: tuple[tuple[int, float], ...]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for token, bias in self.biases:
            scores[:, token] += bias
        return scores


def check(served: tuple[Any, int, int], params: dict[str, Any], options: Any, names: Any = None) -> int:
    """Compare requests of all strategies in one batch; how many have other tokens than without the parameters.

    Args:
        served: the engine, with prompts and tokens.
        params: of vLLM.
        options: of ``decoding.generate``, from where new tokens begin.
        names: of the cases; all kinds unless it says otherwise.
    """
    llm, size, tokens = served
    asked = [(CASES[name], prompt) for name in names or one_of_a_kind() for prompt in PROMPTS[:size]]
    alone = "repetition_penalty" in params  # which the prompts' padding would change
    starts = [len(prompt_ids(prompt)) if alone else start_of(PROMPTS) for _, prompt in asked]
    right = [
        continuation(case.strategy, prompt, tokens, **options(start))
        for (case, prompt), start in zip(asked, starts, strict=True)
    ]
    got = new_tokens(llm, [prompt for _, prompt in asked], [sampling(case, tokens, **params) for case, _ in asked])
    assert got == right
    return sum(
        ids != continuation(case.strategy, prompt, tokens) for ids, (case, prompt) in zip(got, asked, strict=True)
    )


def test_repetition_penalty(served: Any) -> None:
    assert check(served, {"repetition_penalty": 1.3}, lambda _: {"repetition_penalty": 1.3})


def test_presence_and_frequency_penalties(served: Any) -> None:
    params = {"presence_penalty": 0.7, "frequency_penalty": 0.4}
    assert check(served, params, lambda start: {"logits_processor": (Counted(start, 0.7, 0.4),)})
    params = {"presence_penalty": -1.0, "frequency_penalty": 0.0}  # which rewards what was there
    assert check(served, params, lambda start: {"logits_processor": (Counted(start, -1.0, 0.0),)})


def test_all_penalties_at_once(served: Any) -> None:
    """Repetition first, as vLLM has them."""
    params = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3}
    # transformers' own penalty comes before the processors of the call.
    assert check(
        served,
        params,
        lambda start: {"repetition_penalty": 1.2, "logits_processor": (Counted(start, 0.5, 0.3),)},
    )


def test_logit_bias(served: Any) -> None:
    """A bias moves scores, not plausibility: a token that is not plausible stays so."""
    first = continuation(CASES["dola"].strategy, PROMPTS[0], 4)
    biases = {first[0]: -100.0, first[1]: 2.5, 50: 100.0}
    assert check(served, {"logit_bias": biases}, lambda _: {"logits_processor": (Biased(tuple(biases.items())),)})


def test_allowed_tokens(served: Any) -> None:
    """Of which at first none is plausible."""
    allowed = tuple(range(300, 420, 3))
    assert check(
        served,
        {"allowed_token_ids": list(allowed)},
        lambda _: {"logits_processor": (Only(allowed),)},
        [*one_of_a_kind(), "sled", "deco"],
    )


def test_bad_words(served: Any) -> None:
    tokenizer = loaded(EXPERT)[1]
    text = "".join(tokenizer.decode(continuation(None, prompt, 24)) for prompt in PROMPTS[:4])
    # vLLM bans a word behind a space too, if it has as many tokens then.
    spelled = {
        word: [tuple(tokenizer.encode(spelling, add_special_tokens=False)) for spelling in (word, f" {word}")]
        for word in sorted({*text.split(), *text} - {" ", "\n"})
    }
    words = [word for word, ids in spelled.items() if {len(spelling) for spelling in ids} == {1}]
    banned = tuple(dict.fromkeys(ids for word in words for ids in spelled[word]))
    assert check(served, {"bad_words": words}, lambda _: {"bad_words_ids": banned})


def test_no_end_before_min_tokens(served: Any) -> None:
    llm, size, tokens = served
    for name, case in one_of_a_kind().items():
        prompts = PROMPTS[:size]
        stops = [continuation(case.strategy, prompt, tokens)[2] for prompt in prompts]
        right = [
            continuation(case.strategy, prompt, tokens, eos_token_id=(EOS, stop), min_new_tokens=7)
            for prompt, stop in zip(prompts, stops, strict=True)
        ]
        params = [sampling(case, tokens, min_tokens=7, stop_token_ids=[stop]) for stop in stops]
        got = new_tokens(llm, prompts, params)
        assert got == right, name
        assert all(len(ids) >= 7 for ids in got)


def test_stop_strings(served: Any) -> None:
    llm, size, tokens = served
    tokenizer = loaded(EXPERT)[1]
    for case in one_of_a_kind().values():
        prompts = PROMPTS[:size]
        whole = [tokenizer.decode(continuation(case.strategy, prompt, tokens)) for prompt in prompts]
        stops = [text[8:11] for text in whole]
        outputs = llm.generate(prompts, [sampling(case, tokens, stop=[stop]) for stop in stops], use_tqdm=False)
        for prompt, text, stop, output in zip(prompts, whole, stops, outputs, strict=True):
            sample = output.outputs[0]
            ids = list(sample.token_ids)
            assert ids == continuation(case.strategy, prompt, tokens)[: len(ids)]
            assert (sample.finish_reason, sample.stop_reason) == ("stop", stop)
            assert sample.text == text[: text.index(stop)]
            assert stop in tokenizer.decode(ids)
            assert stop not in tokenizer.decode(ids[:-1])


def test_the_whole_context(served: Any) -> None:
    llm, _, _ = served
    for name in ("plain", "dola", "lol"):
        ids = (prompt_ids(PROMPTS[0]) * 40)[:118]
        output = llm.generate([{"prompt_token_ids": ids}], sampling(CASES[name], 100, ignore_eos=True), use_tqdm=False)[
            0
        ]
        model = loaded(EXPERT)[0]
        right = decoding.generate(
            model, input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 118, dtype=torch.long),
            strategy=CASES[name].strategy, max_new_tokens=10, do_sample=False, eos_token_id=[],
        )  # fmt: skip
        assert list(output.outputs[0].token_ids) == right[0, 118:].tolist()
        assert output.outputs[0].finish_reason == "length"


def expert_log_probs(ids: list[int]) -> Tensor:
    """(positions, vocab) the model's own log-probabilities of the token after each."""
    with torch.no_grad():
        return loaded(EXPERT)[0](torch.tensor([ids])).logits[0].log_softmax(-1)


def test_log_probabilities_are_the_models_own(served: Any) -> None:
    """VLLM's default are log-probabilities before any processor.

    Float32 sums of other orders differ by 1e-5; a log-probability is of the order of 10.
    """
    llm, _, tokens = served
    for name, case in one_of_a_kind().items():
        output = llm.generate([PROMPTS[1]], sampling(case, tokens, logprobs=5), use_tqdm=False)[0]
        ids = list(output.outputs[0].token_ids)
        assert ids == continuation(case.strategy, PROMPTS[1], tokens), name
        start = len(output.prompt_token_ids)
        log_probs = expert_log_probs([*output.prompt_token_ids, *ids])
        for at, given in enumerate(output.outputs[0].logprobs):
            assert set(log_probs[start - 1 + at].topk(5).indices.tolist()) <= given.keys()
            for token, entry in given.items():
                assert entry.logprob == pytest.approx(log_probs[start - 1 + at, token].item(), abs=1e-3), name


def test_samples_of_a_request_have_seeds_of_their_own(served: Any) -> None:
    """The samples of n > 1 are those of single requests with the seeds that follow; the same again is the same."""
    llm, size, tokens = served
    cases = list(one_of_a_kind().values())
    for case in cases if size == SIZES["V1"][0] else cases[::3]:
        options: dict[str, Any] = {"temperature": 1.0, "tokens": tokens}

        def samples(**given: Any) -> list[list[int]]:
            output = llm.generate([PROMPTS[2]], sampling(case, **options, **given), use_tqdm=False)[0]  # noqa: B023
            return [list(sample.token_ids) for sample in output.outputs]

        together = samples(n=3, seed=7)
        assert samples(n=3, seed=7) == together
        assert [samples(seed=7 + i)[0] for i in range(3)] == together
    assert len({tuple(ids) for ids in together}) > 1
