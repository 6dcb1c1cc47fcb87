"""Ends of calls with drafts, against the same calls without: end tokens, stop strings, criteria, lengths."""

from __future__ import annotations

import functools
import time
from typing import Any

import pytest
import torch
from drafted_cases import ENDING, NEW, PROMPTS, SCRIPTS, STRATEGIES, llama, plain, plain_text, with_script
from tiny_models import left_padded, letter_tokenizer, tiny_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteria

from decoding import ContrastiveSearch
from decoding.strategies.model_logits import ModelLogits

ALL_RIGHT: tuple[int, dict[str, Any]] = (16, {"wrong": 0.0, "short": 0.0})
# Ends are the loop's. It asks of a session one thing: whether it looks ahead, as contrastive search does.
ONE_AND_AHEAD = ["greedy", "contrastive-search"]


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.mark.parametrize("name", ENDING)
def test_rows_end_at_different_times_in_the_middle_of_what_is_accepted(name: str, model: Any) -> None:
    inputs, strategy = left_padded(PROMPTS), STRATEGIES[name]()
    free = plain_text(name, len(PROMPTS))[:, inputs["input_ids"].shape[1] :]
    ends = [int(free[0, 3]), int(free[1, 9]), int(free[2, 6])]
    options = {"strategy": strategy, "eos_token_id": ends, "pad_token_id": 5}
    expected = plain(model, inputs, **options)
    new = expected[:, inputs["input_ids"].shape[1] :]
    lengths = {next((i for i, token in enumerate(row) if token in ends), NEW) for row in new.tolist()}
    assert len(lengths) > 1
    for draft_tokens, script in [SCRIPTS[1], ALL_RIGHT]:
        tokens, _ = with_script(model, expected, inputs, draft_tokens=draft_tokens, script=script, **options)
        assert torch.equal(tokens, expected)
    if name not in ONE_AND_AHEAD:
        return
    # Rows that end all at once, at the first token, and alone.
    for eos in (int(free[0, 0]), free[:, 2].tolist()):
        expected = plain(model, inputs, strategy=strategy, eos_token_id=eos, pad_token_id=5)
        tokens, _ = with_script(model, expected, inputs, strategy=strategy, eos_token_id=eos, pad_token_id=5)
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", ENDING)
def test_few_new_tokens(name: str, model: Any) -> None:
    inputs, strategy = left_padded(PROMPTS[:3]), STRATEGIES[name]()
    for new, drafts in ((1, "exit:2"), (2, "prompt-lookup"), (3, "exit:2")):
        expected = plain(model, inputs, strategy=strategy, max_new_tokens=new)
        if name in ONE_AND_AHEAD:
            tokens = plain(model, inputs, strategy=strategy, max_new_tokens=new, drafts=drafts, draft_tokens=5)
            assert torch.equal(tokens, expected)
        tokens, _ = with_script(model, expected, inputs, strategy=strategy, max_new_tokens=new, draft_tokens=5)
        assert torch.equal(tokens, expected)


@functools.cache
def _of_24_positions() -> Any:
    """A model that all strategies share, which is looked at once."""
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "vocab_size": 120}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=1, eos_token_id=None, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


@pytest.mark.parametrize("name", ENDING)
def test_a_text_that_fills_the_context(name: str) -> None:
    """No draft has a position that the model has not learned. Who drafts is the same for every strategy."""
    of_call = _of_24_positions()
    strategy, inputs, new = STRATEGIES[name](), left_padded(PROMPTS[:2]), 24 - 13
    expected = plain(of_call, inputs, strategy=strategy, max_new_tokens=new)
    proposers: list[tuple[Any, Any]] = [("exit:1", 5), ("prompt-lookup", 3), (tiny_model("gpt2", 3), "auto")]
    for drafts, draft_tokens in proposers if name == "greedy" else proposers[:1]:
        tokens = plain(of_call, inputs, strategy=strategy, max_new_tokens=new, drafts=drafts, draft_tokens=draft_tokens)
        assert torch.equal(tokens, expected)
    tokens, _ = with_script(of_call, expected, inputs, strategy=strategy, max_new_tokens=new, draft_tokens=16)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("rows", "eos", "names"),
    [(4, False, ENDING), (4, True, ONE_AND_AHEAD), (1, False, ["contrastive-search"]), (1, True, ["greedy"])],
    ids=lambda value: str(value),
)
def test_stop_strings_in_the_middle_of_what_is_accepted(rows: int, eos: bool, names: list[str], model: Any) -> None:
    """Without an end token a row that has stopped goes on with its own tokens until all have, as without drafts."""
    tokenizer = letter_tokenizer()
    inputs = left_padded(PROMPTS[:rows])
    for name in names:
        strategy = STRATEGIES[name]()
        free = plain_text(name, rows)[:, inputs["input_ids"].shape[1] :]
        strings = [tokenizer.decode(row[place : place + 2]) for place, row in zip((2, 4, 6, 7), free, strict=False)]
        options: dict[str, Any] = {"strategy": strategy, "stop_strings": strings, "tokenizer": tokenizer}
        if eos:
            options |= {"eos_token_id": int(free[-1, 9]), "pad_token_id": 0}
        expected = plain(model, inputs, **options)
        assert expected.shape[1] < inputs["input_ids"].shape[1] + NEW
        for draft_tokens, script in [SCRIPTS[1], ALL_RIGHT] if rows > 1 else [ALL_RIGHT]:
            tokens, _ = with_script(model, expected, inputs, draft_tokens=draft_tokens, script=script, **options)
            assert torch.equal(tokens, expected), name


class _Lengths(StoppingCriteria):
    """Stops each row at a length of its own, and knows every text that it may be shown."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1]) >= self.lengths


@pytest.mark.parametrize(("eos", "names"), [(None, ENDING), (119, ONE_AND_AHEAD)], ids=lambda value: str(value))
def test_a_criterion_of_the_user_s_for_each_row(model: Any, eos: int | None, names: list[str]) -> None:
    inputs = left_padded(PROMPTS)
    criteria = [_Lengths([16, 20, 18, 14])]
    for name in names:
        options = {
            "strategy": STRATEGIES[name](), "stopping_criteria": criteria, "eos_token_id": eos, "pad_token_id": 0,
        }  # fmt: skip
        expected = plain(model, inputs, **options)
        assert expected.shape[1] == 20
        for draft_tokens, script in SCRIPTS[1::2]:
            tokens, _ = with_script(model, expected, inputs, draft_tokens=draft_tokens, script=script, **options)
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
    most = float(_totals(plain(model, inputs, **options).scores).mean()) / 2
    options |= {"eos_token_id": 119, "pad_token_id": 0, "stopping_criteria": [_Total(width, most)]}
    expected = plain(model, inputs, **options).sequences
    assert len({int(count) for count in (expected[:, width:] == 0).sum(1)}) > 1  # rows end apart
    output, _ = with_script(model, expected, inputs, **options)
    assert torch.equal(output.sequences, expected)


def test_max_time_ends_a_run(model: Any) -> None:
    inputs = left_padded(PROMPTS)
    expected = plain(model, inputs, max_new_tokens=20)
    for strategy in (ModelLogits(), ContrastiveSearch()):
        began = time.monotonic()
        tokens = plain(
            model, inputs, strategy=strategy, max_new_tokens=80, max_time=0.0, drafts="exit:2", draft_tokens=3
        )
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 1
        assert time.monotonic() - began < 20
    tokens, _ = with_script(model, expected, inputs, strategy=ModelLogits(), max_new_tokens=20, max_time=60.0)
    assert torch.equal(tokens, expected)
