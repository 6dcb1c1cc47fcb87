"""DeCo's parts; test_contrast_family.py and test_contract.py hold the whole to the oracle and in all ways in."""

from __future__ import annotations

from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from kernel_checks import DTYPES, dtype_id
from tiny_models import left_padded, random_ids, random_prompt, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

import decoding
from decoding import DeCo, OptionError
from decoding.generation.unpadded_text import NO_TOKEN
from decoding.strategies.contrast.readers import EXPERT, ReaderLogits


def _contrast(strategy: DeCo, final: torch.Tensor, exits: torch.Tensor) -> torch.Tensor:
    text = torch.full((*final.shape[:-1], 1), NO_TOKEN)
    return strategy.contrast({EXPERT: ReaderLogits(final, exits)}, text).masked


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 20), (0.3, 20), (1.0, 4), (1e-6, 20), (0.9, 1)])
def test_rows_have_candidates_and_layers_of_their_own(top_p: float, top_k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    final = (2 * torch.randn(2, 3, 60, generator=generator)).to(dtype)
    exits = (3 * torch.randn(5, 2, 3, 60, generator=generator)).to(dtype)
    scores = _contrast(DeCo([1], 0.6, top_p, top_k), final, exits)
    for row in ((i, j) for i in range(2) for j in range(3)):
        lower = [layer[row].double() for layer in exits]
        right = oracle.deco(final[row].double(), lower, 0.6, top_p, top_k)
        assert scores[row].isfinite().equal(right.isfinite())
        finite = right.isfinite()
        torch.testing.assert_close(scores[row][finite].double(), right[finite], atol=1e-5, rtol=1e-5)


def test_what_a_layer_excludes_is_excluded() -> None:
    final, exits = torch.randn(1, 30), torch.randn(2, 1, 30)
    best = int(final.argmax())
    exits[:, 0, best] = -torch.inf
    scores = _contrast(DeCo([1], threshold_top_p=1.0), final, exits)
    assert scores[0, best] == -torch.inf
    assert not scores.isnan().any()
    assert scores.isfinite().sum() == 19


def test_without_weight_it_is_greedy_search() -> None:
    model = tiny_model("llama")
    batch = left_padded([random_prompt(4, 1), random_prompt(9, 2)])
    expected = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert decoding.generate(model, **batch, strategy=DeCo(alpha=0.0), max_new_tokens=12).equal(expected)


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, range(20, 29)), (40, range(25, 36)), (3, (2,)), (4, (2, 3)), (1, (0,))]
)
def test_layers_are_those_of_the_paper_at_32_and_the_same_shares_at_other_depths(depth: int, layers: Any) -> None:
    config = LlamaConfig(
        vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=depth, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    assert DeCo().readers(LlamaForCausalLM(config).eval(), 1)[0].exits == tuple(layers)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1.0}, "alpha=-1.0: must be a number from 0 up"),
        ({"threshold_top_p": 0}, "threshold_top_p=0: must be a number above 0 up to 1"),
        ({"threshold_top_p": 1.1}, "threshold_top_p=1.1: must be a number from 0 to 1"),
        ({"threshold_top_k": 0}, "threshold_top_k=0: must be a whole number from 1"),
        ({"layers": [2.5]}, "layers=.*: expected numbers of layers from 0"),
    ],
)
def test_values_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DeCo(**parameters)


def test_what_does_not_fit_the_model_is_refused() -> None:
    for strategy, message in (
        (DeCo([7]), "layer 7: LlamaForCausalLM has 3 layers"),
        (DeCo(threshold_top_k=500), "threshold_top_k=500: must be 1 to 120, the size of the model's vocabulary"),
    ):
        with pytest.raises(OptionError, match=message):
            decoding.generate(tiny_model("llama"), random_ids(1, 4), strategy=strategy, max_new_tokens=2)
