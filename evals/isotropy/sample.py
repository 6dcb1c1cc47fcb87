"""A bounded random sample of whole texts with their states, for the measures that need the mean beforehand."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["TextSample"]


class TextSample:
    """The texts of smallest random number, as many as have a given number of tokens together.

    A text's number depends on the seed and on its place in the data alone, so that the sample is the same whatever the
    batches were. It is complete where all texts fit.

    Args:
        tokens: how many are kept at most, of each layer.
        seed: of the numbers.
    """

    def __init__(self, tokens: int, seed: int) -> None:
        self.room = tokens
        self.seed = seed
        self.limit = 1.0  # texts from this number on are not in the sample
        self._kept: list[tuple[float, int, Sequence[Tensor]]] = []  # heap: minus the number, tokens, states of each layer

    def offer(self, index: int, length: int, states: Callable[[], Sequence[Tensor]]) -> None:
        """Consider a text.

        Args:
            index: its place in the data.
            length: its number of tokens, at most the room there is.
            states: gives its states, one (length, dim) a layer; called where the text is taken.
        """
        number = random.Random(f"{self.seed} {index}").random()
        if number >= self.limit or not length:
            return
        heapq.heappush(self._kept, (-number, length, [each.cpu() for each in states()]))
        self.room -= length
        while self.room < 0:
            number, length, _ = heapq.heappop(self._kept)
            self.limit = -number
            self.room += length

    def __len__(self) -> int:
        return len(self._kept)

    def layer(self, position: int) -> list[Tensor]:
        """States of the sampled texts in one layer, each (length, dim), in an order that depends on nothing else."""
        return [states[position] for _, _, states in sorted(self._kept, key=lambda kept: -kept[0])]

    def points(self, position: int, count: int) -> Tensor:
        """At most ``count`` states (n, dim) of one layer, drawn from all sampled tokens."""
        states = torch.cat(self.layer(position))
        order = torch.randperm(len(states), generator=torch.Generator().manual_seed(self.seed))
        return states[order[:count]]
