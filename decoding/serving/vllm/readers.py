"""What the requests of an engine may read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoding.errors import OptionError, shown

__all__ = ["LARGEST_SEARCH", "EngineReaders"]

LARGEST_SEARCH = 64  # candidates


@dataclass(frozen=True)
class EngineReaders:
    """What the requests of an engine may read.

    Attributes:
        depth: the model's number of layers.
        tied: its embeddings are the rows of its head.
        layers: lower layers that it shows, ascending, each as how many layers were read.
        amateur: name or folder of the amateur; None where there is none.
        adapter: the amateur is the model itself with a LoRA adapter.
        vocab_size: the model's number of tokens; None where it is not known.
        amateur_layers: of the amateur, one for each of ``layers``, at the same share of its depth.
        second_prompts: whether requests may read a second prompt.
        candidates: the most candidates that a request's contrastive search may have; 0 for none.
    """

    depth: int
    tied: bool
    layers: tuple[int, ...] = ()
    amateur: str | None = None
    amateur_layers: tuple[int, ...] = ()
    second_prompts: bool = False
    candidates: int = 0
    adapter: bool = False
    vocab_size: int | None = None

    @classmethod
    def of_everything(cls, depth: int, tied: bool) -> EngineReaders:
        """All that an engine could show of such a model: a request on it tells what its strategy reads."""
        return cls(depth, tied, tuple(range(depth)), amateur="any", second_prompts=True, candidates=LARGEST_SEARCH)

    @property
    def followers(self) -> int:
        """The most followers that a request may have."""
        return max(self.candidates, int(self.second_prompts or self.adapter))

    def check_second_prompts(self, name: str) -> None:
        """Raise OptionError where requests of a strategy's name cannot have a second prompt."""
        if not self.second_prompts:
            raise OptionError(f'{name}: this engine reads no second prompts; start it with "second_prompts": true')

    def check_tokens(self, name: str, number: int) -> None:
        """Raise OptionError where a parameter, a number of tokens, is beyond the model's vocabulary."""
        if self.vocab_size is not None and number > self.vocab_size:
            raise OptionError(f"{name}={number}: must be 1 to {self.vocab_size}, the size of the model's vocabulary")

    def check_layers(self, name: str, given: Any, layers: Sequence[int]) -> None:
        """Raise OptionError where this engine does not show one of the layers."""
        absent = next((layer for layer in layers if not 0 <= layer < self.depth), None)
        if absent is not None:
            raise OptionError(f"{name}={shown(given)}: no lower layer {absent}; must be from 0 to {self.depth - 1}")
        missing = sorted(set(layers) - set(self.layers))
        if missing:
            shows = f"shows layers {', '.join(map(str, self.layers))}" if self.layers else "shows no lower layers"
            raise OptionError(
                f"{name}={shown(given)}: this engine {shows} of 0 to {self.depth - 1}; start it with "
                f'"layers": {sorted({*self.layers, *layers})}'
            )
