"""Whole texts under a strategy: against recomputation of every position, and against ``decoding.score``."""

from __future__ import annotations

import functools
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from tiny_models import VOCAB, tiny_model

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, DoLa, InputError, ModelError, OptionError, Prompt
from decoding.evals import miniature
from decoding.scoring.teacher_forcing import longest_text, teacher_forced

GUIDE = [9, 40, 17, 23]
NAMES = ["llama", "gpt2", "gemma2", "cohere", "opt", "bloom", "mistral-sliding"]
STRATEGIES = {
    "cd": lambda amateur: ContrastiveDecoding(amateur),
    "cd-prompt": lambda amateur: ContrastiveDecoding(Prompt(GUIDE)),
    "dola": lambda amateur: DoLa([0, 1, 2]),
    "dola-of-the-batch": lambda amateur: DoLa([0, 1, 2], per_row=False, final_norm=True),
    "context": lambda amateur: ContextAware([1, 7, 31]),
    "lol": lambda amateur: LOL(amateur, [1, 2], guidance=GUIDE, fusion="entropy"),
}
FLOOR = -1000.0
_model = functools.cache(tiny_model)  # a new one would be checked again


def _texts(*lengths: int, bos: bool = True) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return [[1, *row[1:]] for row in rows[:1]] + rows[1:] if bos else rows


def _block(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def _of_next(scores: torch.Tensor, row: int, text: list[int]) -> torch.Tensor:
    """The scores of tokens 1, 2, ... of a text."""
    return scores[row, : len(text) - 1].gather(-1, torch.tensor(text[1:])[:, None])[:, 0]


# Every strategy on one model. What a whole text meets in a model are its positions and masks, behind another prefix and
# without; what an exit meets is its head.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("llama", kind) for kind in STRATEGIES),
        *((name, "lol") for name in NAMES[1:]),
        *((name, "cd-prompt") for name in ("gpt2", "bloom", "mistral-sliding")),
        *((name, "dola-of-the-batch") for name in ("gemma2", "cohere", "opt")),
    ],
)
def test_it_scores_as_decoding_score_does(name: str, kind: str) -> None:
    model, amateur = _model(name), _model(name, seed=7)
    strategy = STRATEGIES[kind](amateur)
    texts = _texts(9, 5, 14)  # the first begins with bos, behind which a prefix stands; the others do not
    scores = teacher_forced(model, _block(texts), strategy)
    for row, text in enumerate(texts):
        (right,) = decoding.score(model, text[:1], [text[1:]], strategy)
        # Two orders of float32 sums.
        torch.testing.assert_close(_of_next(scores, row, text), right, atol=2e-4, rtol=1e-4)


def test_every_token_after_every_position_against_recomputation() -> None:
    model, amateur = tiny_model("llama"), tiny_model("llama", seed=7)
    settings: dict[str, Any] = {
        "amateur_weight": 0.8, "lower_amateur_weight": 0.6, "fusion_weight": 0.7, "fusion": "static",
        "refocus_weight": 0.5, "alpha": 0.4,
    }  # fmt: skip
    (text,) = _texts(8)
    scores = teacher_forced(model, torch.tensor([text]), LOL(amateur, [1], guidance=GUIDE, **settings), FLOOR)[0]
    e, a = oracle.Reader(model), oracle.Reader(amateur)
    for t in range(len(text)):
        read = text[: t + 1]
        behind_guide = [1, *GUIDE, *read[1:]]
        early = [(e.early(read, 1, True)[-1], a.early(read, 1, True)[-1])]
        right = oracle.lol(e.logits(read)[-1], a.logits(read)[-1], early, e.logits(behind_guide)[-1], settings)
        right = oracle.log_softmax(right).clamp_min(FLOOR)
        assert FLOOR in right
        torch.testing.assert_close(scores[t].double(), right, atol=1e-4, rtol=1e-4)


def test_log_softmax_leaves_the_scores_as_they_are() -> None:
    """Evaluation harnesses apply it again; the floor must not weigh anything."""
    model = tiny_model("llama")
    scores = teacher_forced(model, _block(_texts(6, 3)), DoLa([1]))
    assert (scores == FLOOR).any()
    torch.testing.assert_close(scores.log_softmax(-1), scores, atol=1e-5, rtol=1e-6)


def test_a_lora_amateur_reads_in_the_same_pass(tmp_path: Any) -> None:
    pytest.importorskip("peft")
    model, tokenizer = miniature.load("expert")
    strategy = LOL(str(miniature.folder("induced")), [0.5], guidance="From the encyclopaedia.\n\n", tokenizer=tokenizer)
    passes = []
    handle = model.get_decoder().layers[0].register_forward_hook(lambda *_: passes.append(1))
    texts = [tokenizer(text)["input_ids"] for text in ("Q: What does the bear eat?\nA: Moss.", "The town lies by")]
    strategy.check(model)
    passes.clear()
    scores = teacher_forced(model, _block(texts), strategy)
    handle.remove()
    assert len(passes) == 1
    for row, text in enumerate(texts):
        (right,) = decoding.score(model, text[:1], [text[1:]], strategy)
        torch.testing.assert_close(_of_next(scores, row, text), right, atol=2e-4, rtol=1e-4)


def test_a_text_may_be_as_long_as_fits_every_readers_context() -> None:
    model, amateur = tiny_model("gpt2"), tiny_model("gpt2", seed=7)
    strategy = LOL(amateur, [1], guidance=GUIDE)
    longest = longest_text(model, strategy)
    assert longest == model.config.n_positions - len(GUIDE)
    (text,) = _texts(longest + 1)
    assert teacher_forced(model, torch.tensor([text[:longest]]), strategy).isfinite().all()
    with pytest.raises(InputError, match=f"texts of {longest + 1} tokens: must be at most {longest}"):
        teacher_forced(model, torch.tensor([text]), strategy)


def test_refusals() -> None:
    ids = torch.tensor([_texts(4)[0]])
    model, amateur = tiny_model("llama"), tiny_model("llama", seed=7)
    with pytest.raises(OptionError, match=r"whole text has no prompt: .* amateur_context='full'"):
        teacher_forced(model, ids, ContrastiveDecoding(amateur, amateur_context="last_token"))
    with pytest.raises(ModelError, match="encoder-decoder"):
        teacher_forced(tiny_model("t5"), ids, DoLa([1]))
    torch.nn.init.constant_(amateur.get_output_embeddings().weight, torch.nan)
    with pytest.raises(ModelError, match=r"the amateur \(LlamaForCausalLM\) gave NaN"):
        teacher_forced(model, ids, ContrastiveDecoding(amateur))
