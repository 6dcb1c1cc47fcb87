"""The fingerprint of weights: on every machine the same, of tensors of any size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from decoding.evals import miniature
from decoding.evals.engine.configurations import SAMPLED, _spread, fingerprint


def with_weights(weights: Tensor) -> nn.Module:
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(weights, requires_grad=False))
    return model


# Above 2^24 float32 no longer holds every integer. Among the shapes are embeddings of real models.
LARGE = [(2**24 - 1,), (2**24,), (2**24 + 1,), (2**24 + 16, 1), (49152, 576), (128256, 512)]
LARGER = [(50304, 768), (32000, 4096), (2**31 + 1,), (152064, 8192)]  # of one number, expanded


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_tensors_have_a_fingerprint_that_changes_with_their_ends(shape: tuple[int, ...]) -> None:
    weights = torch.zeros(shape, dtype=torch.bfloat16)
    seen = [fingerprint(with_weights(weights))]
    for place in (0, -1):
        weights.view(-1)[place] = 1
        seen.append(fingerprint(with_weights(weights)))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("shape", LARGER, ids=str)
def test_larger_tensors_have_a_fingerprint(shape: tuple[int, ...]) -> None:
    zeros, ones = (fingerprint(with_weights(torch.tensor(value).expand(shape))) for value in (0.0, 1.0))
    assert zeros != ones


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 1000, *(math.prod(shape) for shape in (*LARGE, *LARGER))])
def test_sampled_places_are_spread_evenly_from_the_first_number_to_the_last(count: int) -> None:
    places = _spread(count)
    assert len(places) == SAMPLED
    assert (places[0], places[-1]) == (0, count - 1)
    steps = {after - before for before, after in itertools.pairwise(places)}
    assert max(steps) - min(steps) <= 1


def test_an_empty_tensor_has_no_numbers_to_sample() -> None:
    assert fingerprint(with_weights(torch.zeros(0, 4))) == fingerprint(with_weights(torch.ones(0, 4)))
    assert fingerprint(with_weights(torch.zeros(0, 4))) != fingerprint(with_weights(torch.zeros(0, 5)))


@pytest.mark.parametrize(("name", "known"), [("expert", "436db17c8251ec9e"), ("amateur", "f2aa2c651bca7188")])
def test_fingerprints_of_small_models_stay_what_they_were(name: str, known: str) -> None:
    assert fingerprint(miniature.load(name)[0]) == known


def test_places_in_small_tensors_are_those_that_samples_were_stored_under() -> None:
    for count in (*range(1, 3000), *range(3000, 1_200_000, 4999)):
        assert _spread(count) == torch.linspace(0, count - 1, SAMPLED).long().tolist()
