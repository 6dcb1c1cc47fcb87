"""A bounded random sample of whole texts with their states, for measures that need the mean first."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["TextSample"]


class TextSample:
    """The texts of smallest random number, as many as fit into a given number of tokens.

    A text's number depends on the seed and on its place in the data alone, so that the sample is the same whatever the
    batches were. It is complete where all texts fit.

    Args:
        tokens: the most that are kept, of each layer.
        seed: of the numbers.
    """

    def __init__(self, tokens: int, seed: int) -> None:
        self.tokens = tokens
        self.seed = seed
        self.limit = 1.0  # texts from this number on are not in the sample
        # Each layer's states are in one block whose rows are given to texts: a block a text, allocated and freed as
        # texts come and go, would fragment memory.
        self._states: list[Tensor] = []
        self._free = list(range(tokens))
        # A heap of: minus the number, place in the data, rows.
        self._kept: list[tuple[float, int, list[int]]] = []

    def wants(self, index: int) -> bool:
        """Return whether the text at this place in the data is in the sample of the texts so far."""
        return self._number(index) < self.limit

    def add(self, index: int, states: Sequence[Tensor]) -> None:
        """Add a text that is wanted; drop others for it, or the text itself.

        Args:
            index: its place in the data.
            states: one (length, dim) a layer, length at most the size of the sample.
        """
        number, length = self._number(index), len(states[0])
        while len(self._free) < length:
            if number > -self._kept[0][0]:
                self.limit = number
                return
            largest, _, rows = heapq.heappop(self._kept)
            self.limit = -largest
            self._free += rows
        if not self._states:
            self._states = [torch.empty(self.tokens, rows.shape[1], dtype=rows.dtype) for rows in states]
        rows = [self._free.pop() for _ in range(length)]
        for block, layer_states in zip(self._states, states, strict=True):
            block[rows] = layer_states.cpu()
        heapq.heappush(self._kept, (-number, index, rows))

    def _number(self, index: int) -> float:
        return random.Random(f"{self.seed} {index}").random()

    def __len__(self) -> int:
        return len(self._kept)

    def layer(self, position: int) -> list[Tensor]:
        """States of the sampled texts in one layer, each (length, dim), in an order that depends on nothing else."""
        return [self._states[position][rows] for _, _, rows in sorted(self._kept, reverse=True)]
