"""Tokens drawn at random: of all rows from torch's global generator, or of each row from a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.errors import OptionError, shown
from decoding.parameters import plain_numbers

__all__ = ["draw", "row_generators"]

SEEDS = 2**64  # that a torch.Generator knows, from 0


def row_generators(seeds: Any, rows: int, config: GenerationConfig, device: torch.device) -> list[torch.Generator]:
    """Make the generators of a call's rows from their seeds.

    Args:
        seeds: one whole number from 0 to 2^64 - 1 for each row; a list, an array or a tensor.
        rows: of the batch, repeated for ``num_return_sequences``.
        config: of the call.
        device: of the scores.

    Raises:
        OptionError: no such numbers, not one for each row, or a call that draws nothing, or not row by row.
    """
    numbers = plain_numbers(seeds)
    if not isinstance(numbers, list):
        raise OptionError(f"seeds={shown(seeds)}: must be a list of whole numbers, one for each row")
    for number in numbers:
        if type(number) is not int or not 0 <= number < SEEDS:
            raise OptionError(f"seeds: {shown(number)} is among them; each must be a whole number from 0 to 2^64 - 1")
    if (config.num_beams or 1) > 1:
        raise OptionError(f"seeds: with num_beams={config.num_beams} beams draw, not rows; leave one of them out")
    if not config.do_sample:
        raise OptionError("seeds: nothing is drawn without do_sample=True; pass it too, or leave seeds out")
    if len(numbers) != rows:
        raise OptionError(f"seeds: {len(numbers)} are given for {rows} rows; must be one for each row")
    return [torch.Generator(device).manual_seed(seed) for seed in numbers]


def draw(scores: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """Draw a token of each row from the softmax of its scores.

    A row that has a generator draws what it would draw alone after ``torch.manual_seed`` with the generator's seed.

    Args:
        scores: (batch, vocab) float32.
        generators: one for each row, on the device of the scores; None draws all rows from torch's global generator.

    Returns:
        (batch,) token ids; -1 where there is nothing to draw from, since all scores are -inf or one is NaN or infinite.
    """
    # multinomial would refuse these rows, and on a GPU end the process.
    nothing = ~scores.amax(-1).isfinite()
    probabilities = scores.masked_fill(nothing[:, None], 0).softmax(-1)
    if generators is None:
        tokens = torch.multinomial(probabilities, num_samples=1).squeeze(1)
    else:
        pairs = zip(probabilities, generators, strict=True)
        tokens = torch.cat([torch.multinomial(row, num_samples=1, generator=generator) for row, generator in pairs])
    return tokens.masked_fill(nothing, -1)
