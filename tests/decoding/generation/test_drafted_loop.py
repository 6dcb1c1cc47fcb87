"""Calls with drafts against the same calls without: the same tokens, for every strategy, proposer and way in."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from drafted_cases import (
    ENDING,
    NEW,
    PROMPTS,
    SCRIPTS,
    STRATEGIES,
    amateur,
    llama,
    model_of,
    plain,
    plain_text,
    with_script,
)
from tiny_models import DECODER_ONLY, left_padded, random_prompt, tiny_model
from tiny_strategies import DISTINCT
from torch import Tensor
from transformers import AutoModelForCausalLM

from decoding import (
    LOL,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveSearch,
    DoLa,
    DraftRecord,
    ModelError,
    Prompt,
)
from decoding.evals import miniature
from decoding.strategies.model_logits import ModelLogits


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


SHARED = Path(__file__).parents[4] / "shared/models"


# What scripts do is the loop's: a session of each kind meets every one of them. Other strategies are read in a batch,
# whose rows come apart; alone there is nothing more of theirs to go wrong.
TRIED = [
    *((name, 4, (0, 1, 2, 3) if name in ENDING else (1,)) for name in STRATEGIES),
    *((name, 1, (0, 3)) for name in [*ENDING, "lol", "window"]),
]


@pytest.mark.parametrize(("name", "rows", "scripts"), TRIED, ids=lambda value: str(value))
def test_tokens_are_those_without_drafts(name: str, rows: int, scripts: tuple[int, ...]) -> None:
    of_call, inputs, strategy = model_of(name), left_padded(PROMPTS[:rows]), STRATEGIES[name]()
    expected = plain_text(name, rows)
    taken = {}
    for seed in scripts:
        draft_tokens, script = SCRIPTS[seed]
        tokens, proposer = with_script(
            of_call, expected, inputs, strategy=strategy, draft_tokens=draft_tokens, script={"seed": seed, **script}
        )
        assert torch.equal(tokens, expected), draft_tokens
        taken[seed] = proposer.taken
    if 3 in taken:
        assert set(taken[3]) == {(5,) * rows}
    if rows > 1:
        assert {count for counts in taken[1] for count in counts} >= {1, 2, 3, 4}  # a rejection at each place, and none
        assert all(any(len(set(counts)) > 1 for counts in taken[seed]) for seed in (0, 1) if seed in taken)


@pytest.mark.parametrize("name", ["greedy", *DISTINCT])
def test_every_proposer(name: str) -> None:
    """For a session of each kind. An exit and an amateur may draft with what a strategy's own readers have read, so
    every strategy meets these; the others know nothing of the strategy. Alone and in a batch by turns.
    """
    rows = 1 if name in DISTINCT[1::3] else 4
    of_call, inputs, strategy = model_of(name), left_padded(PROMPTS[:rows]), STRATEGIES[name]()
    proposers: list[Any] = ["exit:1", *(["amateur"] if hasattr(strategy, "amateur") else [])]
    if name in ENDING:
        proposers += ["prompt-lookup", amateur()]
    expected = plain_text(name, rows)[:, : inputs["input_ids"].shape[1] + 6]
    for drafts in proposers:
        tokens = plain(of_call, inputs, strategy=strategy, max_new_tokens=6, drafts=drafts, draft_tokens=3)
        assert torch.equal(tokens, expected), drafts


SHARING = ["qwen2", "mistral-sliding", "gemma2", "cohere", "gpt2", "opt"]  # the first windows are 8 tokens


@pytest.mark.parametrize("name", SHARING)
def test_every_kind_of_model(name: str) -> None:
    """A reader of several rows a text, and one whose candidates are read side by side."""
    of_call = tiny_model(name)
    inputs = left_padded(PROMPTS)
    for strategy in (ContextAware([7, 8]), ContrastiveSearch()):
        options = {"strategy": strategy, "max_new_tokens": 6}
        expected = plain(of_call, inputs, **options)
        tokens, _ = with_script(of_call, expected, inputs, **options, script={"wrong": 0.2})
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_models_that_cannot_read_drafts_are_refused_in_one_line(name: str) -> None:
    of_call = tiny_model(name)
    for strategy in (ModelLogits(), ContrastiveSearch()):
        with pytest.raises(ModelError, match=f"{type(of_call).__name__}.*shared prefix") as error:
            plain(of_call, {"input_ids": torch.tensor([PROMPTS[0]])}, strategy=strategy, drafts="prompt-lookup")
        assert "\n" not in str(error.value)
    assert set(DECODER_ONLY) == {"llama", "bloom", "mamba", *SHARING}  # each is tested, one way or the other


@functools.cache
def _embedded() -> tuple[Any, Any, Any]:
    expert, tokenizer = miniature.load("expert")
    return expert, miniature.load("amateur")[0], tokenizer


def _family(weak: Any, tokenizer: Any) -> dict[str, Any]:
    context = "The river rises in the old hills. "
    return {
        "greedy": ModelLogits(),
        "contrastive-decoding": ContrastiveDecoding(weak),
        "prompt": ContrastiveDecoding(Prompt("Say wrong things. "), tokenizer=tokenizer),
        "context-aware": ContextAware(context, tokenizer=tokenizer),
        "dola-low": DoLa("low"),
        "contrastive-search": ContrastiveSearch(),
    }


QUESTIONS = [
    "Question: Where does the river rise?\nAnswer: the river rises in", "The town of", "Once there was a",
    "A river in the town of",
]  # fmt: skip


def _encoded(tokenizer: Any) -> dict[str, Tensor]:
    return left_padded([tokenizer(text)["input_ids"] for text in QUESTIONS])


def test_the_embedded_models() -> None:
    """Readers that are told in words, and their induced amateur, with every proposer."""
    expert, weak, tokenizer = _embedded()
    inputs = _encoded(tokenizer)
    family = _family(weak, tokenizer)
    for name, strategy, drafts in (
        ("greedy", family["greedy"], "prompt-lookup"),
        ("prompt", family["prompt"], "amateur"),
        ("context-aware", family["context-aware"], weak),
        ("dola-low", family["dola-low"], "exit:2"),
        ("induced", ContrastiveDecoding("induced"), "amateur"),
        ("lol", LOL("induced", [0.5], guidance="default", tokenizer=tokenizer), "prompt-lookup"),
    ):
        expected = plain(expert, inputs, strategy=strategy, max_new_tokens=5)
        tokens = plain(expert, inputs, strategy=strategy, max_new_tokens=5, drafts=drafts, draft_tokens="auto")
        assert torch.equal(tokens, expected), name


@pytest.mark.skipif(not (SHARED / "stories3M").is_dir(), reason="stories3M is not there")
def test_stories3m() -> None:
    from transformers import AutoTokenizer

    of_call = AutoModelForCausalLM.from_pretrained(SHARED / "stories3M", dtype=torch.float32).eval()  # bfloat16 ties
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "stories3M")
    inputs = _encoded(tokenizer)
    weak = str(SHARED / "stories3M-amateur")
    family = _family(weak, tokenizer)
    for name, drafts in (("greedy", weak), ("contrastive-search", "exit:2")):
        expected = plain(of_call, inputs, strategy=family[name], max_new_tokens=5)
        tokens = plain(of_call, inputs, strategy=family[name], max_new_tokens=5, drafts=drafts)
        assert torch.equal(tokens, expected), name


def test_custom_generate_and_a_config(model: Any) -> None:
    from transformers import GenerationConfig

    inputs = left_padded(PROMPTS)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False)
    config.drafts, config.draft_tokens = "prompt-lookup", 3
    common = {"max_new_tokens": NEW, "do_sample": False}
    calls: dict[str, dict[str, Any]] = {
        "greedy": {"drafts": "exit:2", "draft_tokens": 3, **common},
        "contrastive-decoding": {"drafts": amateur(), "draft_tokens": "auto", **common},
        "contrastive-search": {"generation_config": config},
    }
    for name, options in calls.items():
        tokens = model.generate(**inputs, custom_generate=STRATEGIES[name](), **options)
        assert torch.equal(tokens, plain_text(name, len(PROMPTS))), name


def test_several_sequences_of_a_prompt(model: Any) -> None:
    inputs = left_padded(PROMPTS[:2])
    for name, drafts in (("greedy", "exit:2"), ("contrastive-search", "prompt-lookup")):
        options = {
            "strategy": STRATEGIES[name](), "do_sample": True, "seeds": [3, 5, 8, 13], "num_return_sequences": 2,
            "max_new_tokens": 6,
        }  # fmt: skip
        expected = plain(model, inputs, **options)
        assert torch.equal(plain(model, inputs, drafts=drafts, draft_tokens=3, **options), expected), name


def test_a_prompt_of_embeddings(model: Any) -> None:
    inputs = left_padded(PROMPTS[:2])
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()}
    del embedded["input_ids"]
    for strategy in (ModelLogits(), DoLa([1, 2]), ContrastiveSearch()):
        options = {"strategy": strategy, "max_new_tokens": 6}
        expected = plain(model, embedded, **options)
        assert torch.equal(plain(model, embedded, **options, drafts="prompt-lookup"), expected)


def test_inference_mode(model: Any) -> None:
    inputs = left_padded(PROMPTS[:3])
    with torch.inference_mode():
        for name in ("greedy", "contrastive-decoding", "contrastive-search"):
            strategy = STRATEGIES[name]()
            expected = plain_text(name, 3)
            tokens, _ = with_script(model, expected, inputs, strategy=strategy)
            assert torch.equal(tokens, expected)


@pytest.mark.parametrize("draft_tokens", [1, 7, "auto"])
def test_one_row_by_prompt_lookup_draws_what_it_draws_without_drafts(draft_tokens: Any) -> None:
    """From torch's global generator: drafts of prompt lookup are not drawn, each token is."""
    inputs = left_padded([random_prompt(12, 2)])
    sampled: dict[str, Any] = {"do_sample": True, "top_k": 3, "max_new_tokens": 30}
    record = DraftRecord()
    drafts: dict[str, Any] = {"drafts": "prompt-lookup", "draft_tokens": draft_tokens, "draft_record": record}
    model = llama()  # before the seed: its weights are drawn
    torch.manual_seed(3)
    expected = plain(model, inputs, **sampled)
    torch.manual_seed(3)
    assert torch.equal(plain(model, inputs, **sampled, **drafts), expected)
    assert record.rows[0] or draft_tokens == "auto"
