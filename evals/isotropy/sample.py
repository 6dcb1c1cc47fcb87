"""A bounded random sample of whole texts with their states, for the measures that need the mean beforehand."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

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
        # A heap of: minus the number, place in the data, states of each layer.
        self._kept: list[tuple[float, int, Sequence[Tensor]]] = []

    def wants(self, index: int) -> bool:
        """Whether the text at this place in the data is in the sample of those up to now."""
        return self._number(index) < self.limit

    def add(self, index: int, states: Sequence[Tensor]) -> None:
        """Take in a text that is wanted, and give up others for it.

        Args:
            index: its place in the data.
            states: one (length, dim) a layer, length at most the room there is in all.
        """
        heapq.heappush(self._kept, (-self._number(index), index, states))
        self.room -= len(states[0])
        while self.room < 0:
            number, _, given_up = heapq.heappop(self._kept)
            self.limit = -number
            self.room += len(given_up[0])

    def _number(self, index: int) -> float:
        return random.Random(f"{self.seed} {index}").random()

    def __len__(self) -> int:
        return len(self._kept)

    def layer(self, position: int) -> list[Tensor]:
        """States of the sampled texts in one layer, each (length, dim), in an order that depends on nothing else."""
        return [states[position] for _, _, states in sorted(self._kept, key=lambda kept: -kept[0])]
