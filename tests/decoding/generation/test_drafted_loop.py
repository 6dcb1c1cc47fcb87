"""Calls with drafts against the same calls without: the same tokens, ends, outputs and streams."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_drafts import drafted
from tiny_models import DECODER_ONLY, left_padded, letter_tokenizer, random_prompt, tiny_model, word_tokenizer
from tiny_strategies import ADAPTER, DISTINCT, EXAMPLES, adapted
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, StoppingCriteria, TextStreamer
from transformers.generation import BaseStreamer

import decoding
from decoding import FSD, LOL, ContextAware, ContrastiveDecoding, ContrastiveSearch, DoLa, ModelError, Prompt
from decoding.evals import miniature
from decoding.strategies.model_logits import ModelLogits

NEW = 16
PROMPTS = [random_prompt(5, 1), random_prompt(13, 2), random_prompt(2, 3), random_prompt(8, 4)]
SHARED = Path(__file__).parents[4] / "shared/models"
ENDING = ["greedy", "contrastive-decoding", "contrastive-search"]  # a session of each kind
SCRIPTS: list[tuple[int | str, dict[str, Any]]] = [
    (1, {"wrong": 0.3}),
    (3, {"wrong": 0.2}),
    ("auto", {"wrong": 0.05}),
    (4, {"wrong": 0.0, "short": 0.0}),
]


@functools.cache
def amateur() -> Any:
    return tiny_model("llama", seed=7)


STRATEGIES: dict[str, Callable[[], Any]] = {
    "greedy": ModelLogits,
    **EXAMPLES,
    "log-probs": lambda: ContrastiveDecoding(amateur(), form="log_probs", alpha=0.3),
    "last-token": lambda: ContrastiveDecoding(amateur(), amateur_context="last_token"),
    "dola-high": lambda: DoLa("high"),
    "lol-entropy": lambda: LOL(amateur(), [0.5], fusion="entropy"),
    "fsd-4": lambda: FSD(0.5, 5, n=4),
    "window": lambda: ContrastiveSearch(0.5, 6, max_history=5),
}
STRATEGIES = {name: functools.cache(make) for name, make in STRATEGIES.items()}  # a new amateur would be checked again


@functools.cache
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture(scope="module")
def with_adapter() -> Any:
    return adapted(tiny_model("llama"))


def _plain(model: Any, inputs: Any, **options: Any) -> Any:
    return decoding.generate(model, **inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})


@functools.cache
def _text(name: str, rows: int) -> Tensor:
    """(rows, tokens) what a strategy writes after the first prompts without drafts; several tests hold others to it."""
    return _plain(llama(), left_padded(PROMPTS[:rows]), strategy=STRATEGIES[name]())


def _drafted(model: Any, sequences: Tensor, inputs: Any, **options: Any) -> Any:
    return drafted(model, sequences, inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})


# --- the same tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_tokens_are_those_without_drafts(name: str, rows: int, model: Any, with_adapter: Any) -> None:
    """Of a session of each kind with every script; of other strategies with half of them alone, half in a batch."""
    of_call = with_adapter if name == ADAPTER else model
    inputs, strategy = left_padded(PROMPTS[:rows]), STRATEGIES[name]()
    expected = _plain(of_call, inputs, strategy=strategy) if name == ADAPTER else _text(name, rows)
    taken = {}
    for seed, (draft_tokens, script) in enumerate(SCRIPTS):
        if name not in ENDING and seed % 2 != (rows > 1):
            continue
        tokens, proposer = _drafted(
            of_call, expected, inputs, strategy=strategy, draft_tokens=draft_tokens, script={"seed": seed, **script}
        )
        assert torch.equal(tokens, expected), draft_tokens
        taken[seed] = proposer.taken
    if 3 in taken:
        assert set(taken[3]) == {(5,) * rows}
    if rows > 1:
        assert {count for counts in taken[1] for count in counts} >= {1, 2, 3, 4}  # a rejection at each place, and none
        assert all(any(len(set(counts)) > 1 for counts in taken[seed]) for seed in (0, 1) if seed in taken)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["greedy", *DISTINCT])
def test_every_proposer(name: str, rows: int, model: Any, with_adapter: Any) -> None:
    """For a session of each kind alone and in a batch; other strategies take turns."""
    of_call, inputs, strategy = (
        with_adapter if name == ADAPTER else model,
        left_padded(PROMPTS[:rows]),
        STRATEGIES[name](),
    )
    proposers = ["prompt-lookup", "exit:1", amateur(), *(["amateur"] if hasattr(strategy, "amateur") else [])]
    if name not in ENDING:
        proposers = proposers[(DISTINCT.index(name) + rows) % 2 :: 2]
    expected = _plain(of_call, inputs, strategy=strategy, max_new_tokens=8)
    for drafts in proposers:
        tokens = _plain(of_call, inputs, strategy=strategy, max_new_tokens=8, drafts=drafts, draft_tokens=3)
        assert torch.equal(tokens, expected), drafts


SHARING = ["qwen2", "mistral-sliding", "gemma2", "cohere", "gpt2", "opt"]  # the first windows are 8 tokens


@pytest.mark.parametrize("name", SHARING)
def test_every_kind_of_model(name: str) -> None:
    of_call = tiny_model(name)
    inputs = left_padded(PROMPTS)
    for strategy in (ModelLogits(), ContextAware([7, 8]), ContrastiveSearch()):
        expected = _plain(of_call, inputs, strategy=strategy)
        for draft_tokens, script in SCRIPTS[1:2]:
            tokens, _ = _drafted(of_call, expected, inputs, strategy=strategy, draft_tokens=draft_tokens, script=script)
            assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", ["mamba", "bloom", "t5", "bart"])
def test_models_that_cannot_read_drafts_are_refused_in_one_line(name: str) -> None:
    of_call = tiny_model(name)
    for strategy in (ModelLogits(), ContrastiveSearch()):
        with pytest.raises(ModelError, match=f"{type(of_call).__name__}.*(shared prefix|decoder-only)") as error:
            _plain(of_call, {"input_ids": torch.tensor([PROMPTS[0]])}, strategy=strategy, drafts="prompt-lookup")
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
        "log-probs": ContrastiveDecoding(weak, form="log_probs"),
        "prompt": ContrastiveDecoding(Prompt("Say wrong things. "), tokenizer=tokenizer),
        "context-aware": ContextAware(context, tokenizer=tokenizer),
        "dola-low": DoLa("low"),
        "dola-high": DoLa("high"),
        "fsd": FSD(),
        "contrastive-search": ContrastiveSearch(),
    }


QUESTIONS = [
    "Question: Where does the river rise?\nAnswer: the river rises in", "The town of", "Once there was a",
    "A river in the town of",
]  # fmt: skip


def _encoded(tokenizer: Any) -> dict[str, Tensor]:
    return left_padded([tokenizer(text)["input_ids"] for text in QUESTIONS])


def test_the_embedded_models() -> None:
    expert, weak, tokenizer = _embedded()
    inputs = _encoded(tokenizer)
    family = _family(weak, tokenizer)
    family["induced"] = ContrastiveDecoding("induced")
    family["lol"] = LOL("induced", [0.5], guidance="default", tokenizer=tokenizer)
    for number, (name, strategy) in enumerate(family.items()):
        expected = _plain(expert, inputs, strategy=strategy, max_new_tokens=16)
        own = ["amateur"] if hasattr(strategy, "amateur") else []
        drafts = ["prompt-lookup", "exit:2", weak, *own][number % (3 + len(own))]
        tokens = _plain(expert, inputs, strategy=strategy, max_new_tokens=16, drafts=drafts, draft_tokens="auto")
        assert torch.equal(tokens, expected), name
        tokens, _ = _drafted(expert, expected, inputs, strategy=strategy, max_new_tokens=16)
        assert torch.equal(tokens, expected), name


@pytest.mark.skipif(not (SHARED / "stories3M").is_dir(), reason="stories3M is not there")
def test_stories3m() -> None:
    from transformers import AutoTokenizer

    of_call = AutoModelForCausalLM.from_pretrained(SHARED / "stories3M", dtype=torch.float32).eval()  # bfloat16 ties
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "stories3M")
    inputs = _encoded(tokenizer)
    weak = str(SHARED / "stories3M-amateur")
    family = _family(weak, tokenizer)
    for number, name in enumerate(["greedy", "contrastive-decoding", "context-aware", "contrastive-search"]):
        expected = _plain(of_call, inputs, strategy=family[name], max_new_tokens=16)
        drafts = [weak, "amateur", "prompt-lookup", "exit:2"][number]
        tokens = _plain(of_call, inputs, strategy=family[name], max_new_tokens=16, drafts=drafts)
        assert torch.equal(tokens, expected), name


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENDING)
def test_rows_end_at_different_times_in_the_middle_of_what_is_accepted(name: str, model: Any) -> None:
    inputs, strategy = left_padded(PROMPTS), STRATEGIES[name]()
    free = _text(name, len(PROMPTS))[:, inputs["input_ids"].shape[1] :]
    ends = [int(free[0, 3]), int(free[1, 9]), int(free[2, 6])]
    options = {"strategy": strategy, "eos_token_id": ends, "pad_token_id": 5}
    expected = _plain(model, inputs, **options)
    new = expected[:, inputs["input_ids"].shape[1] :]
    lengths = {next((i for i, token in enumerate(row) if token in ends), NEW) for row in new.tolist()}
    assert len(lengths) > 1
    for draft_tokens, script in [SCRIPTS[1], (16, {"wrong": 0.0, "short": 0.0})]:
        tokens, _ = _drafted(model, expected, inputs, draft_tokens=draft_tokens, script=script, **options)
        assert torch.equal(tokens, expected)
    # Rows that end all at once, at the first token, and alone.
    for eos in (int(free[0, 0]), free[:, 2].tolist()):
        expected = _plain(model, inputs, strategy=strategy, eos_token_id=eos, pad_token_id=5)
        tokens, _ = _drafted(model, expected, inputs, strategy=strategy, eos_token_id=eos, pad_token_id=5)
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", ENDING)
def test_few_new_tokens(name: str, model: Any) -> None:
    inputs, strategy = left_padded(PROMPTS[:3]), STRATEGIES[name]()
    for new in (1, 2, 3):
        expected = _plain(model, inputs, strategy=strategy, max_new_tokens=new)
        for drafts in ("prompt-lookup", "exit:2"):
            tokens = _plain(model, inputs, strategy=strategy, max_new_tokens=new, drafts=drafts, draft_tokens=5)
            assert torch.equal(tokens, expected)
        tokens, _ = _drafted(model, expected, inputs, strategy=strategy, max_new_tokens=new, draft_tokens=5)
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", ENDING)
def test_a_text_that_fills_the_context(name: str) -> None:
    """No draft has a position that the model has not learned."""
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 24, "vocab_size": 120}
    of_call = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=None, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in of_call.parameters():
            parameter.mul_(4.0)
    strategy, inputs, new = STRATEGIES[name](), left_padded(PROMPTS[:2]), 24 - 13
    expected = _plain(of_call, inputs, strategy=strategy, max_new_tokens=new)
    for drafts, draft_tokens in (("exit:2", 5), ("prompt-lookup", 3), (tiny_model("gpt2", 3), "auto")):
        tokens = _plain(
            of_call, inputs, strategy=strategy, max_new_tokens=new, drafts=drafts, draft_tokens=draft_tokens
        )
        assert torch.equal(tokens, expected)
    tokens, _ = _drafted(of_call, expected, inputs, strategy=strategy, max_new_tokens=new, draft_tokens=16)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("eos", [False, True])
def test_stop_strings_in_the_middle_of_what_is_accepted(rows: int, eos: bool, model: Any) -> None:
    """Without an end token a row that has stopped goes on with its own tokens until all have, as without drafts."""
    tokenizer = letter_tokenizer()
    inputs = left_padded(PROMPTS[:rows])
    for name in ENDING:
        strategy = STRATEGIES[name]()
        free = _text(name, rows)[:, inputs["input_ids"].shape[1] :]
        strings = [tokenizer.decode(row[place : place + 2]) for place, row in zip((4, 7, 10, 13), free, strict=False)]
        options: dict[str, Any] = {"strategy": strategy, "stop_strings": strings, "tokenizer": tokenizer}
        if eos:
            options |= {"eos_token_id": int(free[-1, 9]), "pad_token_id": 0}
        expected = _plain(model, inputs, **options)
        assert expected.shape[1] < inputs["input_ids"].shape[1] + NEW
        for draft_tokens, script in [*SCRIPTS[1:2], (16, {"wrong": 0.0, "short": 0.0})]:
            tokens, _ = _drafted(model, expected, inputs, draft_tokens=draft_tokens, script=script, **options)
            assert torch.equal(tokens, expected), name


class _Lengths(StoppingCriteria):
    """Stops each row at a length of its own, and knows every text that it may be shown."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1]) >= self.lengths


@pytest.mark.parametrize("eos", [None, 119])
def test_a_criterion_of_the_user_s_for_each_row(model: Any, eos: int | None) -> None:
    inputs = left_padded(PROMPTS)
    criteria = [_Lengths([16, 20, 18, 14])]
    for name in ENDING:
        options = {
            "strategy": STRATEGIES[name](), "stopping_criteria": criteria, "eos_token_id": eos, "pad_token_id": 0,
        }  # fmt: skip
        expected = _plain(model, inputs, **options)
        assert expected.shape[1] == 20
        for draft_tokens, script in SCRIPTS[1::2]:
            tokens, _ = _drafted(model, expected, inputs, draft_tokens=draft_tokens, script=script, **options)
            assert torch.equal(tokens, expected), name


class _Total(StoppingCriteria):
    """Stops a row once its best scores come to a sum."""

    def __init__(self, width: int, most: float) -> None:
        self.width, self.most = width, most

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        assert len(scores) == input_ids.shape[1] - self.width
        assert all(len(step) == len(input_ids) for step in scores)
        return _totals(scores) > self.most


def _totals(scores: Any) -> Tensor:
    return torch.stack([step.amax(-1).abs() for step in scores]).sum(0)


@pytest.mark.parametrize("name", ENDING)
def test_a_criterion_of_the_scores(model: Any, name: str) -> None:
    inputs = left_padded(PROMPTS)
    width = inputs["input_ids"].shape[1]
    options = {"strategy": STRATEGIES[name](), "return_dict_in_generate": True, "output_scores": True}
    most = float(_totals(_plain(model, inputs, **options).scores).mean()) / 2
    options |= {"eos_token_id": 119, "pad_token_id": 0, "stopping_criteria": [_Total(width, most)]}
    expected = _plain(model, inputs, **options).sequences
    assert len({int(count) for count in (expected[:, width:] == 0).sum(1)}) > 1  # rows end apart
    output, _ = _drafted(model, expected, inputs, **options)
    assert torch.equal(output.sequences, expected)


def test_max_time_ends_a_run(model: Any) -> None:
    inputs = left_padded(PROMPTS)
    expected = _plain(model, inputs, max_new_tokens=40)
    for strategy in (ModelLogits(), ContrastiveSearch()):
        began = time.monotonic()
        tokens = _plain(
            model, inputs, strategy=strategy, max_new_tokens=80, max_time=0.0, drafts="exit:2", draft_tokens=3
        )
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 1
        assert time.monotonic() - began < 20
    tokens, _ = _drafted(model, expected, inputs, strategy=ModelLogits(), max_new_tokens=40, max_time=60.0)
    assert torch.equal(tokens, expected)


# --- what is returned -------------------------------------------------------------------------------------------------


def _close(values: Any, expected: Any, rows: list[int]) -> None:
    """Hold values of a step to those without drafts in some rows, at the last token: others may be left out."""
    torch.testing.assert_close(values[rows], expected[rows], atol=2e-4, rtol=1e-3)  # sums in another order


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", [*ENDING, "context-aware", "lol", "window"])
def test_what_is_returned_beside_the_tokens(name: str, rows: int, model: Any) -> None:
    inputs, strategy = left_padded(PROMPTS[:rows]), STRATEGIES[name]()
    width = inputs["input_ids"].shape[1]
    free = _text(name, rows)[:, width:]
    options = {
        "strategy": strategy, "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
        "output_hidden_states": True, "eos_token_id": [int(free[-1, 7])], "pad_token_id": 0,
    }  # fmt: skip
    expected = _plain(model, inputs, **options)
    output, _ = _drafted(model, expected.sequences, inputs, **options)
    assert torch.equal(output.sequences, expected.sequences)
    new = expected.sequences[:, width:]
    assert len(output.scores) == len(output.logits) == len(output.hidden_states) == new.shape[1]
    ended = (new == int(free[-1, 7])).int().cumsum(1) - (new == int(free[-1, 7])).int() > 0
    for step in range(new.shape[1]):
        going = (~ended[:, step]).nonzero()[:, 0].tolist()
        _close(output.scores[step], expected.scores[step], going)
        _close(output.logits[step], expected.logits[step], going)
        assert len(output.hidden_states[step]) == len(expected.hidden_states[step])
        for states, sought in zip(output.hidden_states[step], expected.hidden_states[step], strict=True):
            assert states.shape == sought.shape
            _close(states[:, -1], sought[:, -1], going)
    cache, sought = output.past_key_values, expected.past_key_values
    assert cache.get_seq_length() == sought.get_seq_length() == expected.sequences.shape[1] - 1
    for layer, sought_layer in zip(cache.layers, sought.layers, strict=True):
        assert type(layer) is type(sought_layer)
        assert layer.keys.shape == sought_layer.keys.shape
        for row in range(rows):
            first = width - len(PROMPTS[row])
            last = width + int((~ended[row]).sum()) - 1
            for entries in ("keys", "values"):
                _close(getattr(layer, entries)[row, :, first:last], getattr(sought_layer, entries)[row, :, first:last],
                       slice(None))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "of_call"),
    [*((name, "llama") for name in ENDING), ("greedy", "mistral-sliding"), ("contrastive-search", "mistral-sliding")],
)
def test_a_returned_cache_is_continued(name: str, of_call: str) -> None:
    continued_model, strategy = tiny_model(of_call), STRATEGIES[name]()
    inputs = left_padded(PROMPTS[:3])
    whole = _plain(continued_model, inputs, strategy=strategy, max_new_tokens=2 * NEW)
    half = whole[:, : inputs["input_ids"].shape[1] + NEW]

    def more(output: Any) -> dict[str, Any]:
        assert torch.equal(output.sequences, half)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)
        return {"input_ids": output.sequences, "attention_mask": mask, "past_key_values": output.past_key_values}

    def first() -> dict[str, Any]:
        return more(_drafted(continued_model, half, inputs, strategy=strategy, return_dict_in_generate=True)[0])

    assert torch.equal(_plain(continued_model, first(), strategy=strategy), whole)
    tokens, _ = _drafted(continued_model, whole, first(), strategy=strategy)
    assert torch.equal(tokens, whole)
    plain = continued_model.generate(half, attention_mask=more(_fresh(half))["attention_mask"],
                                     max_new_tokens=4, do_sample=False, pad_token_id=0)  # fmt: skip
    continued = continued_model.generate(**first(), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(continued, plain)


def _fresh(sequences: Tensor) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(sequences=sequences, past_key_values=None)


def test_a_cache_of_the_caller_s_is_left_as_without_drafts(model: Any) -> None:
    from transformers import DynamicCache

    inputs = left_padded(PROMPTS[:3])
    for name in ENDING:
        strategy, caches = STRATEGIES[name](), []
        expected = None
        for with_drafts in (False, True):
            cache = DynamicCache(config=model.config)
            options = {"strategy": strategy, "past_key_values": cache}
            if with_drafts:
                tokens, _ = _drafted(model, expected, inputs, **options)
                assert torch.equal(tokens, expected)
            else:
                expected = _plain(model, inputs, **options)
            caches.append(cache)
        plain, cache = caches
        assert plain.get_seq_length() == cache.get_seq_length() == expected.shape[1] - 1
        for layer, sought in zip(cache.layers, plain.layers, strict=True):
            for row in range(3):
                first = expected.shape[1] - NEW - len(PROMPTS[row])
                _close(layer.values[row, :, first:], sought.values[row, :, first:], slice(None))


# --- streams ----------------------------------------------------------------------------------------------------------


class _Steps(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.puts: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.puts.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("stop", [None, "eos", "string"])
@pytest.mark.parametrize("rows", [1, 3])
def test_streams(rows: int, stop: str | None, model: Any) -> None:
    inputs = left_padded(PROMPTS[:rows])
    for name in ("greedy", "contrastive-decoding", "contrastive-search"):
        strategy = STRATEGIES[name]()
        options: dict[str, Any] = {"strategy": strategy}
        free = _text(name, rows)[:, inputs["input_ids"].shape[1] :]
        if stop == "eos":
            options |= {"eos_token_id": free[:, 6].tolist(), "pad_token_id": 0}
        if stop == "string":
            tokenizer = letter_tokenizer()
            options |= {"stop_strings": [tokenizer.decode(free[0, 6:8])], "tokenizer": tokenizer}
        plain, streamer = _Steps(), _Steps()
        expected = _plain(model, inputs, streamer=plain, **options)
        tokens, proposer = _drafted(model, expected, inputs, streamer=streamer, **options)
        assert torch.equal(tokens, expected)
        assert streamer.ended == plain.ended == 1
        assert torch.equal(streamer.puts[0], inputs["input_ids"])
        if rows > 1:
            assert [put.tolist() for put in streamer.puts] == [put.tolist() for put in plain.puts]
            continue
        assert all(put.dim() == 1 for put in streamer.puts[1:])
        assert torch.equal(torch.cat(streamer.puts[1:]), torch.cat(plain.puts[1:]))
        runs = [len(put) for put in streamer.puts[2:]]
        assert runs[: len(proposer.taken)] == [count for (count,) in proposer.taken]  # whole runs, as they come


def test_text_of_a_streamer(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, texts = left_padded(PROMPTS[:1]), []
    for options in ({}, {"drafts": "exit:2", "draft_tokens": 4}):
        _plain(model, inputs, strategy=FSD(), streamer=TextStreamer(word_tokenizer()), **options)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].count("w") == len(PROMPTS[0]) + NEW


# --- other ways in ----------------------------------------------------------------------------------------------------


def test_custom_generate_and_a_config(model: Any) -> None:
    from transformers import GenerationConfig

    inputs = left_padded(PROMPTS)
    for name in ("greedy", "contrastive-decoding", "contrastive-search"):
        strategy = STRATEGIES[name]()
        expected = _text(name, len(PROMPTS))
        common = {"custom_generate": strategy, "max_new_tokens": NEW, "do_sample": False}
        assert torch.equal(model.generate(**inputs, drafts="exit:2", draft_tokens=3, **common), expected)
        assert torch.equal(model.generate(**inputs, drafts=amateur(), draft_tokens="auto", **common), expected)
        config = GenerationConfig(max_new_tokens=NEW, do_sample=False)
        config.drafts, config.draft_tokens = "prompt-lookup", 3
        with_config = model.generate(**inputs, custom_generate=strategy, generation_config=config)
        assert torch.equal(with_config, expected)


def test_several_sequences_of_a_prompt(model: Any) -> None:
    inputs = left_padded(PROMPTS[:2])
    for name in ("greedy", "contrastive-search"):
        options = {
            "strategy": STRATEGIES[name](), "do_sample": True, "seeds": [3, 5, 8, 13], "num_return_sequences": 2,
        }  # fmt: skip
        expected = _plain(model, inputs, **options)
        for drafts in ("exit:2", "prompt-lookup"):
            assert torch.equal(_plain(model, inputs, drafts=drafts, draft_tokens=3, **options), expected), name


def test_a_prompt_of_embeddings(model: Any) -> None:
    inputs = left_padded(PROMPTS[:2])
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()}
    del embedded["input_ids"]
    for strategy in (ModelLogits(), DoLa([1, 2]), ContrastiveSearch()):
        expected = _plain(model, embedded, strategy=strategy)
        assert torch.equal(_plain(model, embedded, strategy=strategy, drafts="prompt-lookup"), expected)


def test_inference_mode(model: Any) -> None:
    inputs = left_padded(PROMPTS[:3])
    with torch.inference_mode():
        for name in ("greedy", "contrastive-decoding", "contrastive-search"):
            strategy = STRATEGIES[name]()
            expected = _text(name, 3)
            tokens, _ = _drafted(model, expected, inputs, strategy=strategy)
            assert torch.equal(tokens, expected)
