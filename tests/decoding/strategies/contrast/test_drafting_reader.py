"""An amateur that drafts and is read too: it reads each token once, and no token, score or draw changes by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from embedded_batches import batch, embedded, with_class_attributes
from torch import Tensor

import decoding
from decoding import LOL, ContrastiveDecoding, Self, WeightedContrast
from decoding.drafts.length import DraftLength
from decoding.strategies.contrast.session import ContrastSession

NEW = 14
STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "logits": lambda weak: ContrastiveDecoding(weak, alpha=0.5, beta=0.3),
    "log-probs": lambda weak: ContrastiveDecoding(weak, form="log_probs", beta=0.3, alpha=0.3),
    "last token": lambda weak: ContrastiveDecoding(weak, amateur_context="last_token", alpha=0.5),
    "lol": lambda weak: LOL(weak, [1], guidance=[9, 40, 17], alpha=0.5),
    "lol, entropy": lambda weak: LOL(weak, [1], fusion="entropy", alpha=0.5),
    "weighted": lambda weak: WeightedContrast(
        [("expert", 1.3), (weak, -0.3, "amateur"), (Self(skip_layers=[1]), 0.1)], alpha=0.3
    ),
    "plausible by the amateur": lambda weak: WeightedContrast(
        [("expert", 1.2), (weak, -0.2, "amateur")], alpha=0.3, plausible="amateur"
    ),
}


def _eager(strategy: Any) -> Any:
    """The strategy, whose readers never wait."""
    return with_class_attributes(strategy, lazy=False)


@contextmanager
def _widths(model: Any) -> Iterator[list[int]]:
    """The tokens of a row in each pass of a model."""
    widths: list[int] = []
    embeddings = model.get_input_embeddings()
    handle = embeddings.register_forward_pre_hook(lambda _module, given: widths.append(given[0].shape[1]))
    try:
        yield widths
    finally:
        handle.remove()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """Of each round the drafts of the rows that had not ended, and those of them that were accepted."""
    ended: list[tuple[list[int], list[int]]] = []
    end = DraftLength.end

    def noted(self: Any, drafts: Any, chosen: Any) -> None:
        ended.append(([drafts.counts[row] for row in chosen], [len(tokens) - 1 for tokens in chosen.values()]))
        end(self, drafts, chosen)

    monkeypatch.setattr(DraftLength, "end", noted)
    return ended


def _call(strategy: Any, rows: int, **options: Any) -> Any:
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    return decoding.generate(embedded()[0], **batch(rows), strategy=strategy, **options)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "log-probs"])
def test_each_token_is_read_once(name: str, rounds: list[tuple[list[int], list[int]]]) -> None:
    """A round takes a pass for each draft, and one more where all of a row's are accepted: none to check them."""
    weak = embedded()[1]
    strategy = STRATEGIES[name](weak)
    drafted: dict[str, Any] = {"drafts": "amateur", "draft_tokens": 3}
    _call(strategy, 1, max_new_tokens=2, **drafted)  # the checks of a model come first
    for rows in (1, 3) if name == "logits" else (3,):
        expected = _call(_eager(strategy), rows)
        rounds.clear()
        with _widths(weak) as passes:
            assert torch.equal(_call(_eager(strategy), rows, **drafted), expected)
        ended = [any(map(int.__eq__, *of_round)) for of_round in rounds]
        assert len(passes) == 1 + sum(max(drafts) + last for (drafts, _), last in zip(rounds, ended, strict=True))
        assert any(ended)
        assert not all(ended) or rows > 1
        assert rows > 1 or set(passes[1:]) == {1}
        with _widths(weak) as lazy:
            assert torch.equal(_call(strategy, rows, **drafted), expected)
        assert len(lazy) <= len(passes)
        if name not in ("weighted", "plausible by the amateur"):
            assert len(lazy) < len(passes)  # one token is plausible behind the last draft: nobody asks for others


@pytest.mark.parametrize("options", [{}, {"seeds": [3, 5, 8]}], ids=["drawn drafts", "seeds"])
def test_draws_are_the_same(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the amateur that drafts is read with a stream of its own."""
    strategy = STRATEGIES["log-probs"](embedded()[1])
    options = {**options, "do_sample": True, "top_p": 0.9, "drafts": "amateur", "draft_tokens": 3}
    with monkeypatch.context() as patch:
        patch.setattr(ContrastSession, "read_by_amateur", lambda *_given: None)
        torch.manual_seed(0)
        expected = _call(strategy, 3, **options)
    torch.manual_seed(0)
    assert torch.equal(_call(strategy, 3, **options), expected)


def test_what_a_call_returns_is_the_same() -> None:
    """Rows that have ended go on with padding, which nobody has proposed."""
    strategy = STRATEGIES["lol"](embedded()[1])
    text: Tensor = _call(strategy, 3)
    end = next(token for token in text[1, -NEW + 3 :].tolist() if token not in text[0, -NEW:])
    recorded = {
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "eos_token_id": end,
        "pad_token_id": 0,
    }  # fmt: skip
    expected = _call(strategy, 3, **recorded)
    found = _call(strategy, 3, drafts="amateur", draft_tokens=3, **recorded)
    assert torch.equal(found.sequences, expected.sequences)
    assert expected.sequences.shape == text.shape
    assert int(expected.sequences[1, -1]) == 0
    for scores, sought in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(scores, sought, atol=1e-4, rtol=1e-3)  # float32, sums in another order


def test_rounds_without_drafts_and_readers_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause leaves tokens to read, which the next drafts or the next choice read in one pass."""
    weak = embedded()[1]
    monkeypatch.setattr(DraftLength, "begin", _in_turn([3, 0, 0, 0, 0, 2, 0, 1]))
    for name in ("logits", "lol, entropy"):
        strategy = STRATEGIES[name](weak)
        assert torch.equal(_call(strategy, 3, drafts="amateur"), _call(_eager(strategy), 3)), name
    alone = ContrastiveDecoding(weak, alpha=1.0)  # one token is plausible, always
    expected = _call(_eager(alone), 1)
    with _widths(weak) as passes:
        assert torch.equal(_call(alone, 1, drafts="amateur"), expected)
    assert 5 in passes[1:]


def _in_turn(lengths: list[int]) -> Callable[[Any], int]:
    turns: list[int] = []

    def begin(_length: Any) -> int:
        turns.append(lengths[len(turns) % len(lengths)])
        return turns[-1]

    return begin
