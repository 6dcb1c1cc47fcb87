"""An exit that drafts with the whole model's stream: its layers read each token once, and no token changes by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from drafted_cases import PROMPTS, STRATEGIES, llama, plain, plain_text
from tiny_models import VOCAB, left_padded, tiny_model
from torch import Tensor

import decoding
from decoding import ContextAware, ContrastiveSearch, DoLa
from decoding.capabilities import lower_layers
from decoding.capabilities.lower_layers import may_read_ahead
from decoding.drafts.length import DraftLength
from decoding.strategies.model_logits import ModelLogits
from decoding.stream.lower_layers import LowerLayers

EXIT = 2  # of three layers


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Of each round the drafts of the rows that had not ended."""
    ended: list[list[int]] = []
    end = DraftLength.end

    def noted(self: Any, drafts: Any, chosen: Any) -> None:
        ended.append([drafts.counts[row] for row in chosen])
        end(self, drafts, chosen)

    monkeypatch.setattr(DraftLength, "end", noted)
    return ended


@contextmanager
def _widths(module: Any) -> Iterator[list[int]]:
    """The tokens of a row in each pass of a layer."""
    widths: list[int] = []
    handle = module.register_forward_pre_hook(
        lambda _module, given, named: widths.append((given[0] if given else named["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    try:
        yield widths
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["greedy", "fsd", "log-probs"])
def test_each_token_is_read_once(name: str, rounds: list[list[int]]) -> None:
    model, strategy = llama(), STRATEGIES[name]()
    drafted: dict[str, Any] = {"strategy": strategy, "drafts": f"exit:{EXIT}", "draft_tokens": 3}
    for rows in (1, 3):
        inputs = left_padded(PROMPTS[:rows])
        plain(model, inputs, **drafted, max_new_tokens=2)  # the checks of a model come first
        rounds.clear()
        layers = model.model.layers
        with _widths(layers[EXIT - 1]) as lower, _widths(layers[EXIT]) as upper:
            tokens = plain(model, inputs, **drafted)
        assert torch.equal(tokens, plain_text(name, rows))
        assert upper[1:] == [max(counts) + 1 for counts in rounds]
        assert lower[0] == upper[0] == inputs["input_ids"].shape[1]  # one prompt
        assert lower[1:] == [1] * sum(upper[1:])  # each draft when it is made, and the last when it is checked


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma2", "cohere", "gpt2", "opt"])
def test_every_kind_of_model_goes_on_from_its_lower_layers(name: str) -> None:
    assert may_read_ahead(tiny_model(name), 1)


def test_a_model_that_cannot_drafts_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the check finds: an error, other states, or layers that are run again."""
    model, inputs = tiny_model("llama", 11), left_padded(PROMPTS[:2])
    expected = plain(model, inputs, strategy=ModelLogits())
    above, read = LowerLayers.read_above, []

    def wrong(self: Any, inputs: Any, *given: Any) -> Any:
        read.append(given)
        output = above(self, inputs, *given)
        output.hidden = output.hidden + 1
        return output

    def again(self: Any, inputs: Any, *given: Any) -> Any:
        read.append(given)
        self.exit(input_ids=inputs["input_ids"])
        return above(self, inputs, *given)

    for broken in (wrong, again):
        lower_layers._memo.discard(model, lambda _key: True)
        read.clear()
        with monkeypatch.context() as patch:
            patch.setattr(LowerLayers, "read_above", broken)
            assert torch.equal(plain(model, inputs, strategy=ModelLogits(), drafts="exit:1"), expected)
        assert len(read) == 1
    assert not may_read_ahead(model, 1)


def test_where_the_layers_read_again() -> None:
    """Readers that share the expert's passes, layers that are contrasted, and candidates: all as before."""
    model, inputs = llama(), left_padded(PROMPTS[:2])
    for strategy in (ContextAware([7, 8]), DoLa([1]), ContrastiveSearch()):
        with _widths(model.model.layers[0]) as lower:
            tokens = plain(model, inputs, strategy=strategy, drafts=f"exit:{EXIT}", max_new_tokens=5)
        assert lower.count(inputs["input_ids"].shape[1]) >= 1
        assert torch.equal(tokens, plain(model, inputs, strategy=strategy, max_new_tokens=5))


def test_a_draft_that_gives_nan_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = llama(), left_padded(PROMPTS[:2])
    options: dict[str, Any] = {"strategy": ModelLogits(), "drafts": f"exit:{EXIT}", "draft_tokens": 3}
    expected = plain_text("greedy", 2)
    record = decoding.DraftRecord()
    assert torch.equal(plain(model, inputs, draft_record=record, **options), expected)
    known = set(expected.flatten().tolist())
    bad = next(d for row in record.rows for d, right in row.values() if not right and d not in known)
    weight, broken = model.get_input_embeddings().weight, []
    kept: Tensor = weight[bad].detach().clone()
    ahead = LowerLayers.read

    def noted(self: Any, *given: Any) -> Any:
        output = ahead(self, *given)
        broken.append(not self.usable)
        return output

    monkeypatch.setattr(LowerLayers, "read", noted)
    with torch.no_grad():
        weight[bad] = torch.nan
        try:
            assert torch.equal(plain(model, inputs, suppress_tokens=[bad], **options), expected)
        finally:
            weight[bad] = kept
    assert any(broken)
    assert bad < VOCAB
