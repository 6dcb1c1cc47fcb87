"""``decoding.score``: one text is one text, and token ids may be lists, arrays, tensors or a tokenizer's output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_ids, tiny_model

import decoding
from decoding import DoLa, InputError, OptionError, Scorer
from decoding.evals import miniature

STRATEGY = DoLa([0, 1])


@pytest.fixture(scope="module")
def expert() -> Any:
    return miniature.load("expert")


def test_one_text_is_one_continuation(expert: Any) -> None:
    """It was taken for a list of letters."""
    model, tokenizer = expert
    one = decoding.score(model, "The town", " lies by the sea", STRATEGY, tokenizer=tokenizer)
    listed = decoding.score(model, "The town", [" lies by the sea"], STRATEGY, tokenizer=tokenizer)
    assert len(one) == 1
    assert one[0].tolist() == listed[0].tolist()


def test_a_tokenizers_output_is_its_texts_without_padding(expert: Any) -> None:
    model, tokenizer = expert
    texts = [" lies by the sea", " is"]
    settings: dict[str, Any] = {"padding": True, "add_special_tokens": False}
    expected = decoding.score(
        model,
        tokenizer("The town")["input_ids"],
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
    )
    for tensors in ("pt", "np", None):
        prompt = tokenizer("The town", return_tensors=tensors)
        scores = decoding.score(model, prompt, tokenizer(texts, return_tensors=tensors, **settings))
        assert [row.tolist() for row in scores] == [row.tolist() for row in expected]


@pytest.mark.parametrize(
    "continuations",
    [[5, 6], (5, 6), np.array([5, 6]), torch.tensor([5, 6]), [np.int64(5), torch.tensor(6)], torch.tensor([[5, 6]])],
    ids=["list", "tuple", "numpy", "tensor", "numpy-numbers", "rows"],
)  # fmt: skip
def test_token_ids_of_one_continuation(continuations: Any) -> None:
    model, ids = tiny_model("llama"), random_ids(5)
    (expected,) = decoding.score(model, ids, [[5, 6]])
    (scores,) = decoding.score(model, ids, continuations)
    assert scores.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("prompt", "continuations", "message"),
    [
        (["Q:"], [[5]], "prompt: 'Q:' among its token ids"),
        (None, [[5]], "prompt: None must be token ids"),
        (7, [[5]], "prompt: 7 must be token ids"),
        ([1.0], [[5]], "prompt: 1.0 among"),
        (torch.ones(2, 3, dtype=torch.long), [[5]], r"prompt: \(2, 3\), where one text"),
        ({"ids": [5]}, [[5]], "no input_ids among ids"),
        ({"input_ids": [[5], [6]]}, [[5]], "prompt: 2 texts, where one is expected"),
        ([5], None, "continuations=None"),
        ([5], 3, "continuations=3"),
        ([5], [], "no continuations"),
        ([5], [[]], "continuation 0 is empty"),
        ([5], [[5], 3], "continuation 1: 3 must be token ids"),
        ([5], [None], "continuation 0: None"),
        ([5], [[True]], "continuation 0: True"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(prompt: Any, continuations: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoding.score(tiny_model("llama"), prompt, continuations)


def test_a_scorer_takes_the_same_token_ids() -> None:
    model = tiny_model("llama")
    with Scorer(model, np.array([4, 5]), STRATEGY) as scorer:
        (((one,),),) = scorer.score([(torch.tensor([6]), [7, 8])])
    with Scorer(model, [4, 5], [STRATEGY], max_branch_tokens=np.int64(8)) as scorer:
        (((other,),),) = scorer.score([([6], [[7, 8]])])
    assert one.normalized.tolist() == other.normalized.tolist()
    with pytest.raises(InputError, match="prefix: 'Q:' must be token ids"):
        Scorer(model, "Q:", [None])
    with pytest.raises(OptionError, match="max_branch_tokens=0"):
        Scorer(model, [4], [None], max_branch_tokens=0)
