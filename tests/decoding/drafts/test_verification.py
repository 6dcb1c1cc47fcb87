"""Drafts of sampled calls: the distribution is the strategy's, token after token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scripted_drafts import Scripted
from tiny_models import LLAMA_LIKE, left_padded
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import decoding
from decoding import FSD, ContrastiveDecoding, ContrastiveSearch, DoLa
from decoding.drafts import verification
from decoding.drafts.verification import verified
from decoding.strategies.model_logits import ModelLogits

CASES = {
    "apart": ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
    "same": ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
    "excluded": ([0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]),
    "certain": ([0.0, 0.0, 1.0, 0.0], [0.7, 0.1, 0.1, 0.1]),
    "a draft that is certain": ([0.2, 0.3, 0.4, 0.1], [0.0, 1.0, 0.0, 0.0]),
    "nothing in common": ([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_draft_and_every_draw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """π by enumeration: over the drafts by q, over the uniform draw on a grid, over the rest by its probabilities."""
    target, proposed = (torch.tensor(values) for values in CASES[name])
    grid = (torch.arange(4000) + 0.5) / 4000
    rests: list[Tensor] = []

    def uniform(*_args: Any, **_options: Any) -> Tensor:
        return grid

    def rest_of(weights: Tensor, **_options: Any) -> Tensor:
        rests.append(weights[0] / weights[0].sum())
        return torch.full((len(weights), 1), 99)  # stands for a draw from the rest

    monkeypatch.setattr(verification.torch, "rand", uniform)
    monkeypatch.setattr(verification.torch, "multinomial", rest_of)
    total = torch.zeros(4)
    for draft, weight in enumerate(proposed.tolist()):
        if weight == 0:
            continue
        scores = target.log().expand(len(grid), 4)
        tokens = verified(scores, torch.full((len(grid),), draft), proposed.expand(len(grid), 4), None)
        total[draft] += weight * (tokens == draft).float().mean()
        assert set(tokens.tolist()) <= {draft, 99}
        total += weight * (tokens == 99).float().mean() * rests[-1]
    torch.testing.assert_close(total, target, atol=2e-3, rtol=0)  # a step of the grid for each draft


def test_rows_draw_from_their_own_generators() -> None:
    scores, proposed = torch.randn(3, 4), torch.full((3, 4), 0.25)
    drafts = torch.tensor([0, 1, 2])
    together = verified(scores, drafts, proposed, [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    for row in range(3):
        alone = verified(
            scores[row, None], drafts[row, None], proposed[row, None], [torch.Generator().manual_seed(5 + row)]
        )
        assert alone[0] == together[row]


# --- whole calls, on a vocabulary of 6 --------------------------------------------------------------------------------


def _small(seed: int) -> Any:
    torch.manual_seed(seed)
    tokens = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, "vocab_size": 6, "num_hidden_layers": 2, **tokens})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
    return model


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return _small(0), _small(1)


ROWS, NEW = 600, 3  # texts, which are drawn in one batch, of new tokens
MANY = 1000  # texts of contrastive search, which are of more kinds


def _chi_square(counts: Tensor, others: Tensor) -> tuple[float, int]:
    """The statistic of two samples' homogeneity and its degrees of freedom, texts of fewer than 10 put together."""
    rare = counts + others < 10
    table = torch.stack([counts, others]).double()
    table = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], dim=1)
    table = table[:, table.sum(0) > 0]
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    return float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1


def _texts(tokens: Tensor) -> Tensor:
    """How often each of the 6^3 continuations stands in (rows, length) tokens."""
    new = tokens[:, -NEW:]
    return torch.bincount((new * torch.tensor([36, 6, 1])).sum(1), minlength=216)


def _drawn(model: Any, inputs: dict[str, Tensor], seed: int, **options: Any) -> Tensor:
    torch.manual_seed(seed)
    return decoding.generate(model, **inputs, max_new_tokens=NEW, do_sample=True, top_k=0, **options)


PROMPT = [3, 4, 5, 3, 4]
STRATEGIES = ["model", "contrastive", "dola", "fsd", "search"]


def _strategy(name: str, weak: Any) -> Any:
    return {
        "model": ModelLogits(), "contrastive": ContrastiveDecoding(weak, alpha=0.05), "dola": DoLa([1]),
        "fsd": FSD(), "search": ContrastiveSearch(0.6, 4),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "proposers"),
    [("model", ["prompt-lookup", "weak"]), ("contrastive", ["weak"]), ("search", ["weak"])],
    ids=lambda value: str(value),
)
def test_texts_have_the_distribution_that_they_have_without_drafts(
    name: str, proposers: list[str], pair: tuple[Any, Any]
) -> None:
    """Of a session of each kind: that the scores which are drawn from are a strategy's own, rows with seeds tell."""
    model, weak = pair
    inputs = left_padded([PROMPT] * (MANY if name == "search" else ROWS))
    strategy = _strategy(name, weak)
    options = {"strategy": strategy, "temperature": 0.8}
    plain = _texts(_drawn(model, inputs, 0, **options))
    assert int((plain > 20).sum()) >= 5
    for proposer in proposers:
        drafts = weak if proposer == "weak" else proposer
        counts = _texts(_drawn(model, inputs, 1, drafts=drafts, draft_tokens=2, **options))
        statistic, freedom = _chi_square(plain, counts)
        # Four standard deviations of chi-square above its mean; the seeds are fixed.
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5, proposer


def test_the_test_tells_wrong_choices_apart(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, weak = pair
    inputs = left_padded([PROMPT] * (4 * ROWS))
    plain = _texts(_drawn(model, inputs, 0, temperature=0.8))

    def always(_scores: Tensor, drafts: Tensor, *_: Any) -> Tensor:
        return drafts

    def all_again(scores: Tensor, drafts: Tensor, proposed: Tensor, _: Any) -> Tensor:
        share = (scores.softmax(-1) / proposed).gather(1, drafts[:, None])[:, 0]
        again = torch.multinomial(scores.softmax(-1), 1)[:, 0]  # and not from what is left
        return torch.where(torch.rand(len(scores)) < share, drafts, again)

    for wrong in (always, all_again):
        monkeypatch.setattr("decoding.generation.drafted_rounds.verified", wrong)
        counts = _texts(_drawn(model, inputs, 1, temperature=0.8, drafts=weak, draft_tokens=2))
        statistic, freedom = _chi_square(plain, counts)
        assert statistic > freedom + 6 * (2 * freedom) ** 0.5


def test_one_row_after_the_other_has_the_model_s_distribution(pair: tuple[Any, Any]) -> None:
    """A batch of one row has a path of its own; against the probabilities of texts, which the model itself gives.

    Of three tokens the first and the last are drawn without a draft. The second, which has one, is counted.
    """
    model, weak = pair
    texts = torch.tensor(list(itertools.product(range(6), repeat=2)))
    with torch.no_grad():
        whole = torch.cat([torch.tensor([PROMPT]).expand(36, -1), texts], dim=1)
        log_p = model(whole).logits[:, -3:-1].log_softmax(-1)
    of_texts = log_p.gather(2, texts[:, :, None]).sum((1, 2)).exp()
    counts = torch.zeros(6)
    torch.manual_seed(3)
    number = 50  # of drafts that are always taken the statistic is 23
    for _ in range(number):
        tokens = decoding.generate(
            model, torch.tensor([PROMPT]), max_new_tokens=3, do_sample=True, top_k=0, drafts=weak, draft_tokens=1
        )
        counts[int(tokens[0, -2])] += 1
    expected = of_texts.view(6, 6).sum(0) * number
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("name", "rows", "proposers"),
    [
        *((name, 4, ["exit:1", "weak"]) for name in STRATEGIES),
        *((name, 4, ["prompt-lookup"]) for name in ("model", "search")),  # which reads what is proposed ahead
        *((name, 1, ["weak"]) for name in ("model", "contrastive", "search")),
    ],
    ids=lambda value: str(value),
)
def test_seeded_rows_draw_what_they_draw_without_drafts(
    name: str, rows: int, proposers: list[str], pair: tuple[Any, Any]
) -> None:
    model, weak = pair
    inputs = left_padded([PROMPT, [3, 4], [5, 4, 3], [4, 4, 5, 3, 3, 4]][:rows])
    options: dict[str, Any] = {"strategy": _strategy(name, weak), "seeds": [11, 12, 2**64 - 1, 0][:rows]}
    options |= {"max_new_tokens": 8, "do_sample": True, "temperature": 0.9}
    expected = decoding.generate(model, **inputs, **options)
    for proposer in proposers:
        drafts = weak if proposer == "weak" else proposer
        assert torch.equal(decoding.generate(model, **inputs, drafts=drafts, draft_tokens=3, **options), expected)


class _Foreign(Scripted):
    """Drafts, drawn from distributions that have little to do with the model."""

    def propose(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Any:
        from decoding.drafts.proposer import Drafts

        n = max(most)
        spread = torch.tensor([0.05, 0.4, 0.05, 0.1, 0.3, 0.1]).expand(len(texts), n, 6)
        tokens = torch.multinomial(spread.flatten(0, 1), 1).view(len(texts), n) if n else torch.zeros(len(texts), 0)
        # Rows have different numbers of drafts, some none.
        return Drafts(tokens.long(), [min(row % 3, count) for row, count in enumerate(most)], spread)


def test_drafts_of_another_distribution(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair
    monkeypatch.setattr("decoding.generation.strategy.open_proposer", lambda *_args, **_options: _Foreign([], 6))
    for number, (strategy, rows) in enumerate(((ModelLogits(), ROWS), (ContrastiveSearch(0.6, 4), MANY))):
        inputs = left_padded([PROMPT] * rows)
        plain = _texts(_drawn(model, inputs, 10 + number, strategy=strategy))
        counts = _texts(_drawn(model, inputs, 20 + number, strategy=strategy, drafts="prompt-lookup", draft_tokens=2))
        statistic, freedom = _chi_square(plain, counts)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
