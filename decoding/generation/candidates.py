"""Candidates: the most probable tokens of a step, among which some strategies choose by scores of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper

from decoding.errors import OptionError

__all__ = ["check_top_k", "top_candidates", "without_temperature"]

BLOCK = 128  # tokens that share a maximum in the search for candidates


def check_top_k(model: Any, top_k: int) -> None:
    """Raise OptionError where k is beyond the model's vocabulary."""
    vocab = model.config.get_text_config(decoder=True).vocab_size
    if top_k > vocab:
        raise OptionError(f"top_k={top_k}: must be 1 to {vocab}, the size of the model's vocabulary")


def top_candidates(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of (batch, vocab) and their token ids, (batch, k) each, as ``values.topk(k)``.

    A CPU finds them sooner in the k blocks with the largest maxima: nothing outside these is among them.
    """
    blocks = values.shape[1] // BLOCK
    if values.device.type != "cpu" or blocks < 8 * k:
        best, tokens = values.topk(k)
        return best, tokens
    whole = blocks * BLOCK
    chosen = values[:, :whole].unflatten(1, (blocks, BLOCK)).amax(-1).topk(k).indices  # (batch, k)
    searched = (chosen[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
    if whole < values.shape[1]:
        searched = torch.cat([searched, torch.arange(whole, values.shape[1]).expand(len(values), -1)], dim=1)
    best, indices = values.gather(1, searched).topk(k)
    return best, searched.gather(1, indices)


def without_temperature(logits_processor: LogitsProcessorList) -> tuple[LogitsProcessorList, float]:
    """The processors but for temperature, and the temperature, for :meth:`Strategy.split_temperature`: where candidates
    have scores of their own, it belongs to the draw among them and not to their probabilities.
    """
    temperature = 1.0
    kept = LogitsProcessorList()
    for processor in logits_processor:
        if isinstance(processor, TemperatureLogitsWarper):
            temperature *= processor.temperature
        else:
            kept.append(processor)
    return kept, temperature
