"""The few-shot prompt of generated answers, computed once a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from decoding.models.devices import input_device
from decoding.strategies.baselines import Greedy, Sampling
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.registry import StrategySpec
from decoding.transformers_private import CACHE_ARGUMENT, cache_in, supports_logits_to_keep

__all__ = ["SharedPrompt"]


class SharedPrompt:
    """The cache of the tokens that all prompts begin with, for batches that continue from there.

    On TruthfulQA (308 of some 325 tokens shared, 50 new ones, batches of 8, CPU) greedy search and DoLa then take about
    two thirds of the time.

    Args:
        model: a decoder-only transformers model.
        tokens: shorter than every prompt.
    """

    def __init__(self, model: Any, tokens: Sequence[int]) -> None:
        self.length = len(tokens)
        self.layers: list[tuple[Tensor, Tensor]] = []  # keys and values, (1, heads, length, dim)
        if not tokens or model.config.is_encoder_decoder:
            return
        last = {"logits_to_keep": 1} if supports_logits_to_keep(model) else {}
        ids, cache = torch.tensor([list(tokens)], device=input_device(model)), None
        with torch.no_grad():
            for piece in ids.split(model.generation_config.prefill_chunk_size or len(tokens), dim=1):
                output = model(piece, **{CACHE_ARGUMENT: cache}, use_cache=True, **last)
                cache = cache_in(output)
        # Windows and recurrent states cannot be shifted.
        if type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers):
            self.layers = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]

    def serves(self, spec: StrategySpec, model: Any) -> bool:
        """Return whether a strategy can use the cache.

        Contrastive search cannot: it needs the states of the whole prompt; nor can readers with prompts of their own.
        """
        if not self.layers:
            return False
        if isinstance(spec.strategy, ContrastStrategy):
            return not any(
                reader.prefix is not None or reader.adapter is not None for reader in spec.strategy.readers(model, 1)
            )
        return isinstance(spec.strategy, (Greedy, Sampling))

    def cache(self, pads: Sequence[int]) -> DynamicCache:
        """The cache of a left-padded batch's first ``length`` columns, of which row i begins with ``pads[i]`` pads."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(self._shifted(keys, pads), self._shifted(values, pads), index)
        return cache

    def _shifted(self, states: Tensor, pads: Sequence[int]) -> Tensor:
        shifted = states.new_zeros(len(pads), *states.shape[1:])
        for row, pad in enumerate(pads):
            shifted[row, :, pad:] = states[0, :, : max(0, self.length - pad)]
        return shifted
