"""SLED's parts; test_contrast_family.py and test_contract.py hold the whole to the oracle and in all ways in."""

from __future__ import annotations

from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from kernel_checks import DTYPES, dtype_id
from tiny_models import left_padded, random_ids, random_prompt, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import decoding
from decoding import SLED, OptionError
from decoding.kernels.layer_evolution import evolved, latent_distribution


def _logits(layers: int, batch: int, vocab: int, width: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(layers + vocab)
    exits = width * torch.randn(layers, batch, vocab, generator=generator)
    return torch.randn(batch, vocab, generator=generator), exits


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("width", [0.1, 1.0, 10.0, 200.0])
def test_scores_are_those_of_a_vector_for_each_layer_and_token(width: float, dtype: torch.dtype) -> None:
    """Wide exits are sure of one token, by more than float32 can tell from 1."""
    final, exits = _logits(4, 3, 90, width)
    final, exits = final.to(dtype).float(), exits.to(dtype)
    tokens = final.topk(6).indices
    exits[0, 0, tokens[0, 2]] = exits.float().max() + 50.0  # sure of a candidate
    scores = evolved(final, latent_distribution(final, exits, tokens), tokens, 2.5, 10)
    for row in range(3):
        right = oracle.sled(final[row].double(), list(exits[:, row].double()), 2.5, 6, 10)
        torch.testing.assert_close(scores[row, tokens[row]].double(), right[tokens[row]], atol=1e-4, rtol=1e-4)


def test_the_latent_distribution_holds_no_tensor_larger_than_one_layer() -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != given:
                self.numbers = max(self.numbers, result.numel())
            return result

    final, exits = _logits(30, 2, 5000)
    given, tokens = exits.untyped_storage().data_ptr(), final.topk(75).indices
    with Largest() as largest:
        latent = latent_distribution(final, exits, tokens)
        evolved(final, latent, tokens, 2.5, 10)
    assert largest.numbers == final.numel()


def test_excluded_tokens_take_no_part_in_a_move() -> None:
    final, exits = _logits(3, 2, 40)
    tokens = final.topk(5).indices
    with_more = [
        torch.nn.functional.pad(values, (0, 7), value=-torch.inf) for values in (final, exits)
    ]  # as padding rows of a vocabulary are
    latent = latent_distribution(final, exits, tokens)
    torch.testing.assert_close(latent_distribution(*with_more, tokens), latent)
    exits[1, :, tokens[0, 0]] = -torch.inf
    assert latent_distribution(final, exits, tokens).isfinite().all()


def test_layers_that_do_not_move_leave_the_logits() -> None:
    final, _ = _logits(1, 2, 40)
    tokens = final.topk(5).indices
    latent = latent_distribution(final, final.expand(3, -1, -1), tokens)
    assert latent.count_nonzero() == 0
    assert evolved(final, latent, tokens, 2.5, 10).equal(final)


@pytest.mark.parametrize(("parameters", "greedy"), [({"evolution_rate": 0.0}, True), ({"evolution_scale": 1}, True)])
def test_limits_that_are_greedy_search(parameters: dict[str, Any], greedy: bool) -> None:
    model = tiny_model("llama")
    batch = left_padded([random_prompt(4, 1), random_prompt(9, 2)])
    expected = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert decoding.generate(model, **batch, strategy=SLED(**parameters), max_new_tokens=12).equal(expected)
    assert not decoding.generate(model, **batch, strategy=SLED(), max_new_tokens=12).equal(expected)


def test_where_processors_exclude_the_candidates_the_others_are_left() -> None:
    model, ids = tiny_model("llama"), random_ids(1, 6)
    best = model(ids).logits[0, -1].topk(3).indices.tolist()
    tokens = decoding.generate(
        model, ids, strategy=SLED(evolution_scale=3), max_new_tokens=1, bad_words_ids=[[token] for token in best]
    )
    assert tokens[0, -1].item() not in best


def test_layers_by_share_of_the_depth() -> None:
    model, ids = tiny_model("llama"), random_ids(2, 6)
    named, shares = SLED([0.34, 0.67]), SLED([1, 2])
    assert [reader.exits for reader in named.readers(model, 2)] == [(1, 2)]
    assert [reader.exits for reader in SLED().readers(model, 2)] == [(0, 1, 2)]
    tokens = [decoding.generate(model, ids, strategy=strategy, max_new_tokens=6) for strategy in (named, shares)]
    assert tokens[0].equal(tokens[1])


def test_an_encoder_decoder_has_layers_too() -> None:
    model = tiny_model("t5")
    batch = left_padded([random_prompt(5, 1), random_prompt(5, 2)])
    together = decoding.generate(model, **batch, strategy=SLED(final_norm=True), max_new_tokens=6)
    for row in range(2):
        alone = {name: values[row : row + 1] for name, values in batch.items()}
        assert decoding.generate(model, **alone, strategy=SLED(final_norm=True), max_new_tokens=6)[0].equal(
            together[row]
        )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"evolution_rate": -1.0}, "evolution_rate=-1.0: must be a number from 0 up"),
        ({"evolution_scale": 0}, "evolution_scale=0: must be a whole number from 1"),
        ({"steps": 0.5}, "steps=0.5: must be a whole number from 1"),
        ({"final_norm": 1}, "final_norm=1: must be True or False"),
        ({"layers": []}, "layers=.*: must be at least one layer, or None"),
        ({"layers": "low"}, "layers='?low'?: expected numbers of layers or shares"),
        ({"layers": [-1]}, "layers=.*: expected numbers of layers from 0"),
    ],
)
def test_values_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SLED(**parameters)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (SLED([5]), "layer 5: LlamaForCausalLM has 3 layers"),
        (SLED(evolution_scale=500), "evolution_scale=500: must be 1 to 120, the size of the model's vocabulary"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(strategy: SLED, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        decoding.generate(tiny_model("llama"), random_ids(1, 4), strategy=strategy, max_new_tokens=2)
