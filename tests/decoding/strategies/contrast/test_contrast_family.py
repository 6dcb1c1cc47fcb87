"""Each contrastive strategy against full recomputation: loop form, processor form, scoring; scores and tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCAB, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import decoding
from decoding import LOL, SLED, ContextAware, ContrastiveDecoding, DeCo, DoLa, Prompt
from decoding.evals import miniature

TINY = ["gpt2", "llama", "qwen2", "gemma2", "cohere", "opt", "bloom", "mistral-sliding"]
SHARED = Path(__file__).parents[5] / "shared/models"
STEPS = 3  # past the window of 8 tokens after both prompts
LONG = 8  # steps of limits
PREFIX, GUIDE = [7, 31, 12], [9, 40, 17, 23]
LOL_SETTINGS = {
    "amateur_weight": 0.8, "lower_amateur_weight": 0.6, "fusion_weight": 0.7, "fusion": "static",
    "refocus_weight": 0.5, "alpha": 0.05,
}  # fmt: skip


@functools.cache
def _pair(name: str) -> tuple[Any, Any, oracle.Reader, oracle.Reader]:
    """Expert and amateur, and both in float64."""
    if name in TINY:
        expert, amateur = tiny_model(name), tiny_model(name, seed=7)
    elif name == "miniature":
        expert, amateur = (miniature.load(role)[0] for role in ("expert", "amateur"))
    else:
        if not (SHARED / name).is_dir():
            pytest.skip(f"the model {name} lies outside the repository and is not here")
        expert, amateur = (
            AutoModelForCausalLM.from_pretrained(SHARED / folder, dtype=torch.float32).eval()
            for folder in (name, f"{name}-amateur")
        )
    return expert, amateur, oracle.Reader(expert), oracle.Reader(amateur)


def _exit(expert: Any, layer: int, other: Any) -> int:
    """Exit of a model of another depth at the same share of its layers."""
    mine, theirs = expert.config.num_hidden_layers, other.config.num_hidden_layers
    return min(round(layer / mine * theirs), theirs - 1)


def _behind(model: Any, prefix: list[int], text: list[int]) -> list[int]:
    bos = model.config.bos_token_id
    return [bos, *prefix, *text[1:]] if text[0] == bos else [*prefix, *text]


Scores = Callable[[list[int]], Tensor]


def _case(kind: str, name: str, prompt: list[int]) -> tuple[Any, Scores]:
    """A strategy, and what it should score after a text that begins with ``prompt``."""
    return _known_case(kind, name, tuple(prompt))


@functools.cache
def _known_case(kind: str, name: str, prompt: tuple[int, ...]) -> tuple[Any, Scores]:
    """The case of a prompt, whose scores tests of other ways in share."""
    strategy, scores_of = _new_case(kind, name, list(prompt))
    return strategy, oracle.remembered(scores_of)


def _new_case(kind: str, name: str, prompt: list[int]) -> tuple[Any, Scores]:
    """The strategy and the scores, computed anew for each text."""
    expert, amateur, e, a = _pair(name)

    def last(reader: oracle.Reader, text: list[int]) -> Tensor:
        return reader.logits(text)[-1]

    if kind == "cd-logits":
        return ContrastiveDecoding(amateur), lambda text: oracle.contrastive_decoding(
            last(e, text), last(a, text), 0.1, 0.5, "logits"
        )
    if kind == "cd-log-probs-last-token":
        strategy = ContrastiveDecoding(
            amateur, alpha=0.02, beta=0.9, form="log_probs", amateur_temperature=0.5, amateur_context="last_token"
        )
        return strategy, lambda text: oracle.contrastive_decoding(
            last(e, text), last(a, text[len(prompt) - 1 :]), 0.02, 0.9, "log_probs", 0.5
        )
    if kind == "cd-prompt":
        return ContrastiveDecoding(Prompt(PREFIX)), lambda text: oracle.contrastive_decoding(
            last(e, text), last(e, _behind(expert, PREFIX, text)), 0.1, 0.5, "logits"
        )
    if kind.startswith("dola"):
        norm, divergence = kind == "dola-norm-js", "jensen-shannon" if kind.endswith("js") else "dola"
        layers = list(range(1, expert.config.num_hidden_layers))
        strategy = DoLa(layers, alpha=0.05, divergence=divergence, final_norm=norm)
        return strategy, lambda text: oracle.dola(
            last(e, text), [e.early(text, layer, norm)[-1] for layer in layers], 0.05, divergence
        )
    if kind.startswith("sled"):
        norm, depth = kind == "sled-norm", expert.config.num_hidden_layers
        strategy = SLED(None if norm else range(1, depth), 1.5, 7, steps=4, final_norm=norm)
        return strategy, lambda text: oracle.sled(
            last(e, text), [e.early(text, layer, norm)[-1] for layer in range(not norm, depth)], 1.5, 7, 4
        )
    if kind == "deco":
        layers = list(range(1, expert.config.num_hidden_layers))
        return DeCo(layers, 0.7, 0.8, 9), lambda text: oracle.deco(
            last(e, text), [e.early(text, layer, True)[-1] for layer in layers], 0.7, 0.8, 9
        )
    if kind == "context":
        return ContextAware(PREFIX, alpha=0.7), lambda text: oracle.context_aware(
            last(e, _behind(expert, PREFIX, text)), last(e, text), 0.7
        )
    guided = "guided" in kind
    chosen = {**LOL_SETTINGS, "fusion": "entropy" if "entropy" in kind else "static"}
    lower, norm = (1, 2) if expert.config.num_hidden_layers > 2 else (1,), "bare" not in kind
    strategy = LOL(amateur, lower, guidance=GUIDE if guided else None, final_norm=norm, **chosen)

    def lol(text: list[int]) -> Tensor:
        early = [
            (e.early(text, layer, norm)[-1], a.early(text, _exit(expert, layer, amateur), norm)[-1]) for layer in lower
        ]
        guide = last(e, _behind(expert, GUIDE, text)) if guided else None
        return oracle.lol(last(e, text), last(a, text), early, guide, chosen)

    return strategy, lol


KINDS = [
    "cd-logits", "cd-log-probs-last-token", "cd-prompt", "dola", "dola-norm-js", "sled", "sled-norm", "deco",
    "context",
    "lol", "lol-guided", "lol-entropy-guided", "lol-bare",
]  # fmt: skip


def _prompts(name: str) -> list[list[int]]:
    vocab = _pair(name)[0].config.vocab_size
    generator = torch.Generator().manual_seed(3)
    return [[1, *torch.randint(3, vocab, (n,), generator=generator).tolist()] for n in (6, 9)]


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _same_scores(scores: Tensor, right: Tensor) -> None:
    excluded = right == -torch.inf
    assert torch.equal(scores == -torch.inf, excluded)
    torch.testing.assert_close(scores[~excluded].double(), right[~excluded], atol=1e-4, rtol=1e-4)


# A formula sees logits, whatever model they are of: every one on one model. A model meets the ways to read: another
# model from the prompt's last token, every exit from the embeddings on, exits of the model and of the amateur after the
# last norm with a text before the prompt, and before the norm. Other kinds read what one of these reads.
READING = ["cd-log-probs-last-token", "sled-norm", "lol-guided", "lol-bare"]
# Of these the third meets all that a model has but for offsets of positions, raw exits and its embeddings: two models
# that differ most in these read every way, the others one more each.
MEETING = {
    "llama": KINDS, "gpt2": READING, "gemma2": READING,
    "qwen2": ["sled-norm", "lol-guided"], "cohere": ["lol-guided", "lol-bare"],
    "opt": ["cd-log-probs-last-token", "lol-guided"], "bloom": ["cd-log-probs-last-token", "lol-guided"],
    "mistral-sliding": ["cd-log-probs-last-token", "lol-guided"], "miniature": ["sled-norm", "lol-guided"],
}  # fmt: skip
PAIRS = [*((name, kind) for name, kinds in MEETING.items() for kind in kinds), ("stories3M", "lol-guided")]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_left_padded_batch_gives_the_scores_and_tokens_of_recomputation(name: str, kind: str) -> None:
    expert = _pair(name)[0]
    prompts = _prompts(name)
    ids, mask = _padded(prompts)
    strategy = _case(kind, name, prompts[0])[0]
    options = {"attention_mask": mask, "max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 0}
    output = decoding.generate(
        expert, ids, strategy=strategy, return_dict_in_generate=True, output_scores=True, **options
    )
    for row, prompt in enumerate(prompts):
        found = output.sequences[row, ids.shape[1] :].tolist()
        tokens, scores = oracle.greedy_tokens(_case(kind, name, prompt)[1], prompt, STEPS, found)
        assert found == tokens
        for step in range(STEPS):
            _same_scores(output.scores[step][row], scores[step])
    if name in ("llama", "gemma2"):
        processor = strategy.logits_processor(expert, attention_mask=mask)
        as_processor = expert.generate(ids, do_sample=False, logits_processor=[processor], **options)
        assert as_processor.tolist() == output.sequences.tolist()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("llama", kind) for kind in ("cd-logits", "cd-prompt", "dola", "sled-norm", "deco", "context", "lol-guided")),
        ("gemma2", "lol-guided"),
        ("miniature", "cd-logits"),
    ],
)
def test_one_prompt_alone(name: str, kind: str) -> None:
    prompt = _prompts(name)[1]
    strategy, scores_of = _case(kind, name, prompt)
    tokens = decoding.generate(
        _pair(name)[0], torch.tensor([prompt]), strategy=strategy, max_new_tokens=STEPS, eos_token_id=None
    )
    found = tokens[0, len(prompt) :].tolist()
    assert found == oracle.greedy_tokens(scores_of, prompt, STEPS, found)[0]


SCORED = [pair for pair in PAIRS if "last-token" not in pair[1] and pair[0] not in ("qwen2", "opt", "mistral-sliding")]


# Raw scores are those that are normalized otherwise, which a formula decides and no model.
@pytest.mark.parametrize(
    ("name", "kind", "normalized"),
    [*((*pair, True) for pair in SCORED), *((*pair, False) for pair in SCORED if pair[0] == "llama")],
)
def test_scoring_equals_recomputation(name: str, kind: str, normalized: bool) -> None:
    prompt, other = _prompts(name)
    continuations = [other[1:5], other[4:5], other[2:9]]
    strategy, scores_of = _case(kind, name, prompt)
    scored = decoding.score(_pair(name)[0], prompt, continuations, strategy, normalized)
    for continuation, scores in zip(continuations, scored, strict=True):
        right = torch.tensor(oracle.per_token(scores_of, prompt, continuation, normalized), dtype=torch.float32)
        torch.testing.assert_close(scores, right, atol=1e-4, rtol=1e-4)


LIMITS = {
    "contrastive decoding without β": lambda model, amateur: ContrastiveDecoding(amateur, beta=0.0),
    "contrastive decoding in log-probabilities without β": lambda model, amateur: ContrastiveDecoding(
        amateur, beta=0.0, form="log_probs"
    ),
    "LOL without λ, ω and guidance": lambda model, amateur: LOL(amateur, [1], amateur_weight=0.0, fusion_weight=0.0),
}


@pytest.mark.parametrize(
    ("name", "limit"), [*(("llama", limit) for limit in LIMITS), *zip(("gemma2", "miniature"), LIMITS, strict=False)]
)
def test_limits_that_are_greedy_search(name: str, limit: str) -> None:
    model, amateur, *_ = _pair(name)
    ids, mask = _padded(_prompts(name))
    tokens = decoding.generate(
        model, ids, attention_mask=mask, strategy=LIMITS[limit](model, amateur), max_new_tokens=LONG, pad_token_id=0
    )
    assert tokens.tolist() == _greedy(name)


@functools.cache
def _greedy(name: str) -> list[list[int]]:
    """The padded prompts of a model with what greedy search writes after them."""
    ids, mask = _padded(_prompts(name))
    tokens = _pair(name)[0].generate(ids, attention_mask=mask, max_new_tokens=LONG, pad_token_id=0, do_sample=False)
    return tokens.tolist()


@pytest.mark.parametrize("name", ["llama", "miniature"])
def test_lol_without_lower_layers_is_contrastive_decoding_of_log_probabilities(name: str) -> None:
    model, amateur, *_ = _pair(name)
    ids, mask = _padded(_prompts(name))
    outputs = [
        decoding.generate(
            model, ids, strategy=strategy, attention_mask=mask, max_new_tokens=8, pad_token_id=0,
            return_dict_in_generate=True, output_scores=True,
        )
        for strategy in (
            LOL(amateur, [1], amateur_weight=0.7, fusion_weight=0.0),
            ContrastiveDecoding(amateur, beta=0.7, form="log_probs"),
        )
    ]  # fmt: skip
    assert outputs[0].sequences.tolist() == outputs[1].sequences.tolist()
    torch.testing.assert_close(outputs[0].scores, outputs[1].scores)


@settings(max_examples=5, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    padding=st.integers(0, 3),
    kind=st.sampled_from(["cd-logits", "cd-prompt", "dola", "sled", "deco", "context", "lol-entropy-guided"]),
    seed=st.integers(0, 99),
)
def test_a_rows_tokens_do_not_depend_on_its_batch(lengths: list[int], padding: int, kind: str, seed: int) -> None:
    model = _pair("llama")[0]
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    ids, mask = _padded(rows)
    ids, mask = (torch.nn.functional.pad(values, (padding, 0)) for values in (ids, mask))
    strategy = _case(kind, "llama", rows[0])[0]
    together = decoding.generate(model, ids, attention_mask=mask, strategy=strategy, max_new_tokens=STEPS)
    for row, prompt in enumerate(rows):
        alone = decoding.generate(model, torch.tensor([prompt]), strategy=strategy, max_new_tokens=STEPS)
        assert together[row, ids.shape[1] :].tolist() == alone[0, len(prompt) :].tolist()
