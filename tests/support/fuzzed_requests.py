"""Many odd requests to one engine of vLLM, and what must be true of each answer: :func:`fuzz`."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vllm import LLM
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind
from vllm_engines import CASES, EXPERT, PROMPTS, Case, continuation, loaded, prompt_ids, read_together, sampling

__all__ = ["BAD_FIELDS", "fuzz"]

VOCAB = 2048
END = 2  # the end token
# Long enough for several chunks and blocks; some begin alike.
LONG_TEXTS = [
    *(("Once upon a time there was a king who had three sons. " * 4)[:end] for end in (90, 150, 151, 210)),
    "Q: What is the capital? A: The capital is Tarnmere. " * 3,
]
TEXTS = [*PROMPTS[::3], *read_together(LONG_TEXTS)]
BAD_FIELDS: list[dict[str, Any]] = [
    {"strategy": "dolla"},
    {"strategy": "dola", "alpha": 2},
    {"strategy": "dola", "alpha": "x"},
    {"strategy": "dola", "layers": [4]},
    {"strategy": "dola", "layers": []},
    {"strategy": "dola", "beta": 1},
    {"strategy": "lol"},
    {"strategy": "lol", "lower_layers": [-1]},
    {"strategy": "contrastive-decoding", "form": "logits", "amateur_temperature": 2},
    {"strategy": "contrastive-decoding", "amateur": "/etc/passwd"},
    {"strategy": "none", "alpha": 0.1},
    {"strategy": None},
    {"strategy": "dola", "_group": ["x", 0]},
]
STOPS = [" the", "he", ".", "\n", "king"]


@dataclass
class Asked:
    """A request under way.

    Attributes:
        case: its strategy.
        prompt: its text.
        tokens: at most so many new ones.
        options: of the request.
        processed: what ``decoding.generate`` is given for them.
        greedy: whether its tokens are known.
        twin: of a sampled request with a seed, what it is sent again as.
        given_up: the step after which it is aborted; None for never.
    """

    case: Case
    prompt: str
    tokens: int
    options: dict[str, Any]
    processed: dict[str, Any] = field(default_factory=dict)
    greedy: bool = True
    twin: int | None = None
    given_up: int | None = None


def drawn(rng: random.Random, seeds: bool) -> Asked:
    """A request with valid options, seeds among them or not."""
    asked = Asked(rng.choice(list(CASES.values())), rng.choice(TEXTS), rng.randint(1, 24), {})
    if rng.random() < 0.3:
        asked.options["logprobs"] = rng.randint(0, 4)
    if rng.random() < 0.15:
        asked.options["prompt_logprobs"] = rng.randint(0, 2)
    if rng.random() < 0.2:
        asked.options["stop"] = rng.sample(STOPS, rng.randint(1, 2))
    if rng.random() < 0.1:
        asked.given_up = rng.randint(0, 12)
    if rng.random() < 0.3:
        asked.greedy = False
        asked.options.update(temperature=rng.choice([0.3, 1.0, 1.9]), n=rng.choice([1, 1, 2, 3]))
        for name, value in {"top_p": 0.8, "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.5}.items():
            if rng.random() < 0.2:
                asked.options[name] = value
        if seeds and rng.random() < 0.6:
            asked.options["seed"] = rng.randint(0, 99)
    elif rng.random() < 0.15:
        asked.options["repetition_penalty"] = asked.processed["repetition_penalty"] = 1.3
    return asked


def fuzz(llm: LLM, count: int, seed: int, seeds: bool = True) -> Counter[str]:
    """Send many requests, the same ones for the same seed, a few at a time, and check each answer.

    Args:
        llm: an engine with the embedded amateur that shows all lower layers, and no other request.
        count: how many.
        seed: of what is drawn.
        seeds: whether sampled requests have them.

    Returns:
        How often they ended in which way.
    """
    rng, core, ends = random.Random(seed), llm.llm_engine, Counter[str]()
    under_way: dict[str, Asked] = {}
    samples: dict[int, list[list[int]]] = {}  # of sampled requests whose twin is to come
    again: list[tuple[int, Asked]] = []
    sent = step = 0
    while sent < count or core.has_unfinished_requests() or again:
        while len(under_way) < 12 and (sent < count or again) and rng.random() < 0.7:
            if again and (sent >= count or rng.random() < 0.3):
                twin, asked = again.pop(rng.randrange(len(again)))
                asked.twin = twin
            else:
                sent += 1
                if rng.random() < 0.1:
                    ends[refused(llm, rng)] += 1
                    continue
                asked = drawn(rng, seeds)
            request_id = str(sent if asked.twin is None else f"{asked.twin}-again")
            params = sampling(asked.case, asked.tokens, output_kind=RequestOutputKind.FINAL_ONLY, **asked.options)
            core.add_request(request_id, asked.prompt, params)
            under_way[request_id] = asked
        step += 1
        for output in core.step():
            if not output.finished:
                continue
            asked = under_way.pop(output.request_id)
            check(asked, output)
            ends["greedy" if asked.greedy else "sampled"] += 1
            if "seed" in asked.options:
                ids = sorted(list(sample.token_ids) for sample in output.outputs)
                if asked.twin is None:
                    number = int(output.request_id)
                    samples[number] = ids
                    again.append((number, Asked(**{**vars(asked), "given_up": None})))
                else:
                    assert ids == samples.pop(asked.twin), asked
                    ends["the same again"] += 1
        for request_id, asked in list(under_way.items()):
            if asked.given_up is not None:
                asked.given_up -= 1
                if asked.given_up < 0:
                    core.abort_request([request_id])
                    del under_way[request_id]
                    ends["aborted"] += 1
        assert step < 100 * count, under_way
    assert not under_way
    return ends


def refused(llm: LLM, rng: random.Random) -> str:
    """Send a request that must be refused in one line."""
    fields = rng.choice(BAD_FIELDS)
    try:
        llm.llm_engine.add_request("bad", rng.choice(TEXTS), sampling(None, 4, extra_args=dict(fields)))
    except VLLMValidationError as error:
        if "\n" in str(error) or not str(error).strip():
            raise AssertionError(f"not one line: {error!r}") from error
        return "refused"
    raise AssertionError(f"{fields} were admitted")


def check(asked: Asked, output: Any) -> None:
    """Check an answer.

    Raises:
        AssertionError: it is not what it must be.
    """
    tokenizer = loaded(EXPERT)[1]
    assert len(output.outputs) == asked.options.get("n", 1)
    for sample in output.outputs:
        ids = list(sample.token_ids)
        assert 1 <= len(ids) <= asked.tokens, asked
        assert all(0 <= token < VOCAB for token in ids), asked
        if sample.finish_reason == "stop" and sample.stop_reason is None:
            assert ids[-1] == END, asked
        elif sample.finish_reason == "stop":
            assert sample.stop_reason in asked.options["stop"], asked
            assert sample.stop_reason in tokenizer.decode(ids), asked
            assert sample.stop_reason not in sample.text, asked
        else:
            assert (sample.finish_reason, len(ids)) == ("length", asked.tokens), asked
        if asked.greedy:
            right = continuation(asked.case.strategy, asked.prompt, 24, **asked.processed)
            assert ids == right[: len(ids)], asked
        if "logprobs" in asked.options:
            assert len(sample.logprobs) == len(ids), asked
            assert all(token in given for token, given in zip(ids, sample.logprobs, strict=True)), asked
    if "prompt_logprobs" in asked.options:
        assert len(output.prompt_logprobs) == len(prompt_ids(asked.prompt)), asked
