"""Weighted contrasts against full recomputation in float64 (``contrast_oracle``), one reader and one text at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from degraded_oracle import of_rank, tiny_mixture, without_heads, without_layers
from tiny_models import VOCAB, left_padded, random_prompt, sharper_model
from torch import Tensor
from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

import decoding
from decoding import (
    AdaptiveContext,
    ContextAware,
    Documents,
    ExpertContrast,
    Guidance,
    LastToken,
    MaskedHeads,
    OtherPrompt,
    Prompt,
    ProxyTuning,
    SafeDecoding,
    Self,
    SkippedLayers,
    WeightedContrast,
)

STEPS = 4
SHARPER = 8.0  # of the logits, which are nearly flat otherwise: gates would never close, masks keep every token
PREFIX, NEGATIVE, MORE = [7, 31, 55], [9, 44, 80, 12, 99], [63, 20]
PROMPTS = [random_prompt(4, seed=1), random_prompt(9, seed=2)]
PROJECTIONS = {"gpt2": "attn.c_proj", "opt": "self_attn.out_proj"}
MODELS = ["llama", "gemma2", "gpt2", "opt", "qwen2", "mixtral"]
Logits = Callable[[list[int]], Tensor]


@dataclass(frozen=True)
class Voices:
    """What the readers of a strategy say after a text whose first ``start`` tokens are its prompt."""

    name: str

    @functools.cached_property
    def model(self) -> Any:
        return tiny_mixture(self.name) if self.name == "mixtral" else sharper_model(self.name, times=SHARPER)

    @functools.cached_property
    def others(self) -> tuple[Any, Any]:
        """Two models of the same tokens."""
        return sharper_model("llama", seed=7, times=SHARPER), sharper_model("llama", seed=8, times=SHARPER)

    def own(self, text: list[int], before: list[int] = []) -> Tensor:  # noqa: B006 - is not changed
        return self._reader().logits([*before, *text])[-1]

    def other(self, number: int, text: list[int]) -> Tensor:
        return self._reader(number).logits(text)[-1]

    def without_layers(self, layers: tuple[int, ...], text: list[int]) -> Tensor:
        return self._reader(layers).logits(text)[-1]

    def without_heads(self, text: list[int]) -> Tensor:
        return self._reader("heads").logits(text)[-1]

    def of_rank(self, rank: int, text: list[int]) -> Tensor:
        return self._reader(f"rank {rank}").logits(text)[-1]

    @functools.cache  # noqa: B019 - the voices of a model live as long as the tests
    def _reader(self, kind: Any = None) -> oracle.Reader:
        if kind is None:
            return oracle.Reader(self.model)
        if isinstance(kind, int):
            return oracle.Reader(self.others[kind])
        if isinstance(kind, tuple):
            return oracle.Reader(without_layers(self.model, kind))
        if kind == "heads":
            return oracle.Reader(without_heads(self.model, HEADS, PROJECTIONS.get(self.name, "self_attn.o_proj")))
        return oracle.Reader(of_rank(self.model, int(kind.split()[1])))


HEADS = {0: [1], 2: [0, 3]}
voices_of = functools.cache(Voices)


@functools.cache
def _case(kind: str, v: Voices) -> tuple[Any, Callable[[list[int], int], Tensor]]:
    """A strategy, and the scores of a text whose prompt has so many tokens, which tests of other ways in share."""
    strategy, scores_of = _new_case(kind, v)
    by_prompt = functools.cache(lambda n: oracle.remembered(lambda text: scores_of(text, n)))
    return strategy, lambda text, n: by_prompt(n)(text)


def _new_case(kind: str, v: Voices) -> tuple[Any, Callable[[list[int], int], Tensor]]:
    """The strategy and the scores, computed anew for each text."""
    w = oracle.weighted
    if kind == "guidance":
        return Guidance(NEGATIVE, 1.8), lambda t, n: w([v.own(t), v.own(t[n:], NEGATIVE)], (1.8, -0.8), "log_probs")
    if kind == "guidance-last-token":
        return Guidance(), lambda t, n: w([v.own(t), v.own(t[n - 1 :])], (1.5, -0.5), "log_probs")
    if kind == "guidance-prompt":
        return Guidance(Prompt(PREFIX)), lambda t, n: w([v.own(t), v.own(t, PREFIX)], (1.5, -0.5), "log_probs")
    if kind == "proxy-tuning":
        return ProxyTuning(*v.others, 0.8), lambda t, n: w(
            [v.own(t), v.other(0, t), v.other(1, t)], (1, 0.8, -0.8), "logits"
        )
    if kind == "adaptive-context":

        def adaptive(t: list[int], n: int) -> Tensor:
            aware, plain = v.own(t, PREFIX), v.own(t)
            a = max(0.2, oracle.jensen_shannon(aware, plain))
            return (1 + a) * aware - a * plain

        return AdaptiveContext(PREFIX, floor=0.2), adaptive
    if kind == "documents":
        given = [PREFIX, NEGATIVE, MORE]
        return Documents(given, 0.3, 0.7), lambda t, n: oracle.documents(
            v.own(t, [*itertools.chain(*given)]), v.own(t), [v.own(t, document) for document in given], 0.3, 0.7
        )
    if kind == "safe-decoding":
        strategy = SafeDecoding(v.others[0], 2.0, first_tokens=3, common_tokens=4)
        return (
            strategy,
            lambda t, n: oracle.safe_decoding(v.own(t), v.other(0, t), 2.0, 4) if len(t) - n < 3 else v.own(t),
        )
    if kind == "skipped-layers":
        return SkippedLayers(), lambda t, n: w([v.own(t), v.without_layers((1,), t)], (1.5, -0.5), "logits", 0.1)
    if kind == "masked-heads":
        return MaskedHeads(HEADS, alpha=0.05), lambda t, n: w(
            [v.own(t), v.without_heads(t)], (2, -1), "log_probs", 0.05, oracle.entropy(v.own(t))
        )
    if kind == "expert-contrast":
        return ExpertContrast(3), lambda t, n: w([v.own(t), v.of_rank(3, t)], (1.5, -0.5), "logits", 0.1)
    if kind == "three-readers":
        terms = [("expert", 1.2), (OtherPrompt(NEGATIVE), -0.4, "negative"), (Self(skip_layers=[0, 2]), -0.3)]
        return WeightedContrast(terms, "log_probs", 0.02), lambda t, n: w(
            [v.own(t), v.own(t[n:], NEGATIVE), v.without_layers((0, 2), t)], (1.2, -0.4, -0.3), "log_probs", 0.02
        )
    if kind == "no-expert":  # plausible by another reader; the generating model has no say
        terms = [(LastToken(), -0.5), (Prompt(PREFIX), 1.5, "prompted")]
        return WeightedContrast(terms, alpha=0.2, plausible="prompted"), lambda t, n: w(
            [v.own(t, PREFIX), v.own(t[n - 1 :])], (1.5, -0.5), "logits", 0.2
        )
    if kind == "by-jsd":
        terms = [("expert", 2.0), (v.others[0], -1.0), (LastToken(), 0.5)]

        def by_jsd(t: list[int], n: int) -> Tensor:
            readers = [v.own(t), v.other(0, t), v.own(t[n - 1 :])]
            return w(readers, (2, -1, 0.5), "logits", 0.1, oracle.jensen_shannon(*readers[:2]))

        return WeightedContrast(terms, weight_by="jsd"), by_jsd
    if kind == "by-entropy-when-unsure":
        terms = [("expert", 1.5), (Self(mask_heads=HEADS), -0.5)]

        def unsure(t: list[int], n: int) -> Tensor:
            own = v.own(t)
            strength = oracle.entropy(own) if float(own.softmax(-1).max()) < 0.6 else 0.0
            return w([own, v.without_heads(t)], (1.5, -0.5), "log_probs", None, strength)

        strategy = WeightedContrast(terms, "log_probs", None, weight_by="entropy", when="confidence < 0.6")
        return strategy, unsure
    gates = {
        "first": ("first 3", lambda own, other, new: new < 3),
        "entropy": ("entropy > 1.7", lambda own, other, new: oracle.entropy(own) > 1.7),
        "divergence": ("divergence>.8", lambda own, other, new: oracle.jensen_shannon(own, other) > 0.8),
        "called": (lambda logits, new: (new % 2 == 1) & (logits["expert"] > -99).all(-1), lambda o, a, new: new % 2),
    }
    gate, is_open = gates[kind.removeprefix("when-")]

    def gated(t: list[int], n: int) -> Tensor:
        own, other = v.own(t), v.without_layers((1,), t)
        return w([own, other], (2, -1), "logits", 0.1, float(bool(is_open(own, other, len(t) - n))))

    return WeightedContrast([("expert", 2.0), (Self(skip_layers=[1]), -1.0)], when=gate), gated


KINDS = [
    "guidance", "guidance-last-token", "guidance-prompt", "proxy-tuning", "adaptive-context", "documents",
    "safe-decoding", "skipped-layers", "masked-heads", "three-readers", "no-expert", "by-jsd", "by-entropy-when-unsure",
    "when-first", "when-entropy", "when-divergence", "when-called",
]  # fmt: skip
GATED = [kind for kind in KINDS if "when" in kind]
# A formula sees logits, whatever model they are of: every one on one model. A model meets the ways to read: heads left
# out, where its attention ends; layers left out beside a prompt of its own; texts of several lengths before the prompt,
# where positions and windows are counted.
PAIRS = [
    *(("llama", kind) for kind in KINDS),
    *((name, "masked-heads") for name in ("gemma2", "gpt2", "opt", "mixtral")),
    *((name, "three-readers") for name in ("gemma2", "gpt2")),
    ("opt", "documents"),
    ("mixtral", "expert-contrast"),
]


def _same_scores(scores: Tensor, right: Tensor) -> None:
    excluded = right == -torch.inf
    assert torch.equal(scores == -torch.inf, excluded)
    torch.testing.assert_close(scores[~excluded].double(), right[~excluded], atol=1e-4, rtol=1e-4)


def _options(mask: Any) -> dict[str, Any]:
    return {"attention_mask": mask, "max_new_tokens": STEPS, "pad_token_id": 0}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_left_padded_batch_gives_the_scores_and_tokens_of_recomputation(name: str, kind: str) -> None:
    voices = voices_of(name)
    strategy, scores_of = _case(kind, voices)
    batch = left_padded(PROMPTS)
    ids, options = batch["input_ids"], _options(batch["attention_mask"])
    output = decoding.generate(
        voices.model, ids, strategy=strategy, return_dict_in_generate=True, output_scores=True, **options
    )
    plain = decoding.generate(voices.model, ids, strategy=strategy, **options)  # no scores: readers may be left out
    for row, prompt in enumerate(PROMPTS):
        found = output.sequences[row, ids.shape[1] :].tolist()
        tokens, scores = oracle.greedy_tokens(lambda text, n=len(prompt): scores_of(text, n), prompt, STEPS, found)
        assert found == tokens
        for step in range(STEPS):
            _same_scores(output.scores[step][row], scores[step])
    assert plain.tolist() == output.sequences.tolist()
    if name == "llama":  # every strategy, where generate() chooses
        processor = strategy.logits_processor(voices.model, attention_mask=batch["attention_mask"])
        processed = voices.model.generate(ids, do_sample=False, logits_processor=[processor], **options)
        assert processed.tolist() == output.sequences.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_one_prompt_alone_with_drafts_and_without(kind: str) -> None:
    """A draft is taken where it is what the strategy chooses: also where a gate closes among the drafts.

    Whoever proposed it: both proposers where there is a gate.
    """
    voices, prompt = voices_of("llama"), [*PROMPTS[1], *PROMPTS[1][:4]]
    strategy, scores_of = _case(kind, voices)
    ways: list[dict[str, Any]] = [{}, {"drafts": "exit:1", "draft_tokens": 3}]
    if kind in GATED:
        ways.append({"drafts": "prompt-lookup", "draft_tokens": 4})
    written = [
        decoding.generate(voices.model, torch.tensor([prompt]), strategy=strategy, max_new_tokens=6, **drafts)
        for drafts in ways
    ]
    found = written[0][0, len(prompt) :].tolist()
    right = oracle.greedy_tokens(lambda text: scores_of(text, len(prompt)), prompt, 6, found)[0]
    for tokens, drafts in zip(written, ways, strict=True):
        assert tokens[0, len(prompt) :].tolist() == right, drafts


@pytest.mark.parametrize("kind", [*GATED, "safe-decoding"])
def test_the_gates_of_these_tests_open_and_close(kind: str) -> None:
    voices = voices_of("llama")
    scores_of = _case(kind, voices)[1]
    closed = []
    for prompt in PROMPTS:
        tokens, scores = oracle.greedy_tokens(lambda text, n=len(prompt): scores_of(text, n), prompt, STEPS)
        for step in range(STEPS):
            own = voices.own([*prompt, *tokens[:step]])
            kept = scores[step].isfinite()
            difference = (scores[step] - own)[kept]
            closed.append(bool((difference - difference[0]).abs().max() < 1e-9))  # but for log-softmax
    assert 0 < sum(closed) < len(closed)


@pytest.mark.parametrize(
    ("kind", "normalized"),
    [
        *((kind, True) for kind in KINDS),
        *((kind, False) for kind in ("guidance", "documents", "safe-decoding", "when-first")),
    ],
)
def test_scoring_equals_recomputation(kind: str, normalized: bool) -> None:
    voices, (prompt, other) = voices_of("llama"), PROMPTS
    strategy, scores_of = _case(kind, voices)
    continuations = [other[1:6], other[4:5], other[1:3]]
    for continuation, scores in zip(
        continuations, decoding.score(voices.model, prompt, continuations, strategy, normalized), strict=True
    ):
        right = oracle.per_token(lambda text: scores_of(text, len(prompt)), prompt, continuation, normalized)
        torch.testing.assert_close(scores, torch.tensor(right, dtype=torch.float32), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["when-first", "when-called", "safe-decoding", "by-jsd", "guidance"])
def test_new_tokens_are_counted_from_each_prompt_where_prompts_share_a_text(kind: str) -> None:
    """[5, 6 | 7, 8] and [5, 6, 7 | 8]: the same text with its prompt's end in two places, in one pass."""
    voices, prefix = voices_of("llama"), PROMPTS[0]
    strategy, scores_of = _case(kind, voices)
    requests = [([5, 6], [[7, 8, 9, 10], [7, 9]]), ([5, 6, 7], [[8, 9, 10]]), ([], [[5, 6, 7, 8]])]
    with decoding.Scorer(voices.model, prefix, [strategy, None]) as scorer:
        scored = scorer.score(requests)
    for (prompt, continuations), (of_strategy, _) in zip(requests, scored, strict=True):
        whole = [*prefix, *prompt]
        for continuation, scores in zip(continuations, of_strategy, strict=True):
            right = oracle.per_token(lambda text, n=len(whole): scores_of(text, n), whole, continuation, True)
            torch.testing.assert_close(
                scores.normalized, torch.tensor(right, dtype=torch.float32), atol=2e-4, rtol=1e-4
            )


@pytest.mark.parametrize("kind", ["when-first", "safe-decoding", "guidance", "three-readers"])
def test_beams_are_scored_by_how_far_each_is_from_the_prompt(kind: str) -> None:
    voices, prompt, beams = voices_of("llama"), PROMPTS[1], 3
    strategy, scores_of = _case(kind, voices)
    hypotheses = [(0.0, list(prompt))]
    for _ in range(4):
        grown = [
            (total + float(gain), [*text, int(token)])
            for total, text in hypotheses
            for gain, token in zip(*oracle.log_softmax(scores_of(text, len(prompt))).topk(beams), strict=True)
        ]
        hypotheses = sorted(grown, key=lambda hypothesis: -hypothesis[0])[:beams]
    found = voices.model.generate(
        torch.tensor([prompt]), logits_processor=[strategy.logits_processor(voices.model)], num_beams=beams,
        max_new_tokens=4, do_sample=False, renormalize_logits=True,
    )  # fmt: skip
    assert found[0].tolist() == hypotheses[0][1]


GREEDY = {
    "weights 1 and 0": lambda v: WeightedContrast([("expert", 1), (v.others[0], 0)], alpha=None),
    "weights 1 and 0 of log-probabilities": lambda v: WeightedContrast([("expert", 1), (LastToken(), 0)], "log_probs"),
    "guidance at scale 1": lambda v: Guidance(NEGATIVE, scale=1),
    "tuned is untuned": lambda v: ProxyTuning(v.others[0], v.others[0], 2.0),
    "tuned is untuned, of the same weights": lambda v: ProxyTuning(Prompt(PREFIX), Prompt(PREFIX)),
    "no weight of tuning": lambda v: ProxyTuning(*v.others, weight=0),
    "no strength of safety": lambda v: SafeDecoding(v.others[0], strength=0, common_tokens=VOCAB),
    "no first tokens": lambda v: SafeDecoding(v.others[0], first_tokens=0),
    "plausible is the most probable": lambda v: SkippedLayers([1], alpha=1.0),
    "heads of no weight": lambda v: MaskedHeads("0.1", beta=0),
    "a closed gate": lambda v: WeightedContrast([("expert", 3), (v.others[0], -2)], when="first 0"),
    "strength 0": lambda v: WeightedContrast(
        [("expert", 3), (v.others[0], -2)], weight_by=lambda logits: 0 * logits["expert"][..., 0]
    ),
}


@pytest.mark.parametrize(("name", "limit"), [*(("llama", limit) for limit in GREEDY), ("gemma2", "weights 1 and 0")])
def test_limits_that_are_greedy_search(name: str, limit: str) -> None:
    voices, batch = voices_of(name), left_padded(PROMPTS)
    tokens = decoding.generate(voices.model, **batch, strategy=GREEDY[limit](voices), max_new_tokens=6)
    assert tokens.tolist() == _greedy(name)


@functools.cache
def _greedy(name: str) -> list[list[int]]:
    """The padded prompts with what greedy search writes after them."""
    return voices_of(name).model.generate(**left_padded(PROMPTS), do_sample=False, max_new_tokens=6).tolist()


SAME: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "one document is context-aware decoding": lambda v: (Documents([PREFIX], 0.6), ContextAware(PREFIX, 0.6)),
    "documents without amplification": lambda v: (
        Documents([PREFIX, MORE], 0.6, 0.0), ContextAware([*PREFIX, *MORE], 0.6)
    ),
    "the most of AdaCAD is context-aware decoding at 1": lambda v: (
        AdaptiveContext(PREFIX, floor=1.0), ContextAware(PREFIX, 1.0)
    ),
    "context-aware decoding by terms": lambda v: (
        WeightedContrast([(Prompt(PREFIX), 1.5, "c"), ("expert", -0.5)], alpha=None, plausible="c"),
        ContextAware(PREFIX, 0.5),
    ),
    "contrastive decoding by terms": lambda v: (
        WeightedContrast([("expert", 1.5), (v.others[0], -0.5)]), decoding.ContrastiveDecoding(v.others[0])
    ),
    "proxy-tuning by terms": lambda v: (
        WeightedContrast([("expert", 1), (v.others[0], 0.5), (v.others[1], -0.5)], alpha=None),
        ProxyTuning(*v.others, 0.5),
    ),
    "terms as text": lambda v: (
        WeightedContrast("1.5*expert - 0.5*self:skip_layers=1"), SkippedLayers([1])
    ),
    "layers by share of the depth": lambda v: (SkippedLayers([0.4]), SkippedLayers([1])),
    "heads as text": lambda v: (MaskedHeads("0.1+2.0+2.3"), MaskedHeads(HEADS)),
}  # fmt: skip


@pytest.mark.parametrize("pair", SAME)
def test_configurations_of_the_same_formula_give_the_same_scores(pair: str) -> None:
    voices, batch = voices_of("llama"), left_padded(PROMPTS)
    one, other = (
        decoding.generate(
            voices.model,
            **batch,
            strategy=strategy,
            max_new_tokens=STEPS,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for strategy in SAME[pair](voices)
    )
    assert one.sequences.tolist() == other.sequences.tolist()
    for scores, right in zip(one.scores, other.scores, strict=True):
        torch.testing.assert_close(scores, right, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "negative", "scale"),
    [
        ("llama", None, 0.5), ("llama", NEGATIVE, 3.0), ("gpt2", None, 3.0), ("gpt2", NEGATIVE, 1.5),
        ("gemma2", None, 1.5), ("gemma2", NEGATIVE, 0.5),
    ],
)  # fmt: skip
def test_guidance_is_that_of_transformers(name: str, negative: list[int] | None, scale: float) -> None:
    model, ids = voices_of(name).model, torch.tensor([PROMPTS[1]])
    given = None if negative is None else torch.tensor([negative])
    mask = None if given is None else torch.ones_like(given)
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model, given, mask)
    right = model.generate(ids, logits_processor=LogitsProcessorList([processor]), do_sample=False, max_new_tokens=6)
    found = decoding.generate(model, ids, strategy=Guidance(negative, scale), max_new_tokens=6)
    assert found.tolist() == right.tolist()
    if scale != 1 and negative is not None:  # its own argument: as users have it
        by_option = model.generate(
            ids, guidance_scale=scale, negative_prompt_ids=given, negative_prompt_attention_mask=mask,
            do_sample=False, max_new_tokens=6,
        )  # fmt: skip
        assert by_option.tolist() == right.tolist()


# Readers of several lengths, what depends on one row's scores, gates, and tokens that readers share; every strategy is
# tried in tests/decoding/strategies/test_contract.py.
@pytest.mark.parametrize(
    "kind", ["documents", "by-jsd", "when-first", "when-entropy", "safe-decoding", "three-readers"]
)
def test_a_seed_draws_the_same_whoever_is_beside_it(kind: str) -> None:
    voices = voices_of("llama")
    strategy = _case(kind, voices)[0]
    sampling = {"do_sample": True, "temperature": 3.0, "top_k": 0, "max_new_tokens": STEPS}
    batch = left_padded(PROMPTS)
    together = decoding.generate(voices.model, **batch, strategy=strategy, seeds=[4, 5], **sampling)
    for row, prompt in enumerate(PROMPTS):
        alone = decoding.generate(voices.model, torch.tensor([prompt]), strategy=strategy, seeds=[4 + row], **sampling)
        assert together[row, batch["input_ids"].shape[1] :].tolist() == alone[0, len(prompt) :].tolist()
    assert (
        decoding.generate(voices.model, **batch, strategy=strategy, seeds=[6, 7], **sampling).tolist()
        != together.tolist()
    )
