"""Settings of an analysis; no model code is needed to read their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.errors import OptionError

__all__ = ["PAPER", "Settings"]


@dataclass(frozen=True)
class Settings:
    """Settings that decide the numbers of an analysis.

    Attributes:
        layers: 0 is the input of the first decoder layer, n the output of layer n, and the last one the input of the
            head, after the final norm; negative numbers count from the end; None is all.
        max_length: tokens read of a text; fewer where the model's context is shorter.
        max_texts: texts read; None is all.
        batch_tokens: tokens of a forward pass, padding included. Decides memory and speed, not the numbers.
        skip_bos: leave out each text's first token, the BOS token where the tokenizer puts one: the attention sink.
        skip_special: leave out all special tokens. Padding never counts.
        sample_tokens: tokens of the sample of whole texts that centred and standardised cosines, the partition score
            and the intrinsic dimension come from; exact where all texts fit.
        neighbours: tokens of the sample for TwoNN.
        zeta: ζ of IsoScore*.
        rogue: number of dimensions that are named.
        seed: of the sample and of the bootstrap.

    Raises:
        OptionError: a number out of range.
    """

    layers: tuple[int, ...] | None = None
    max_length: int = 256
    max_texts: int | None = None
    batch_tokens: int = 4096
    skip_bos: bool = False
    skip_special: bool = False
    sample_tokens: int = 8192
    neighbours: int = 2048
    zeta: float = 0.2
    rogue: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "max_length": 2, "max_texts": 1, "batch_tokens": 1, "sample_tokens": self.max_length, "neighbours": 3,
            "rogue": 1, "seed": 0,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                longest = " (max_length)" if name == "sample_tokens" else ""
                raise OptionError(f"{name}={value}: must be a whole number from {low}{longest}")
        if not 0 <= self.zeta <= 1:
            raise OptionError(f"zeta={self.zeta}: must be a number from 0 to 1")
        if self.layers is not None and not self.layers:
            raise OptionError("layers: none given; expected numbers of layers, or None for all")


PAPER = Settings(layers=(-1,), max_length=256, max_texts=2000)
"""Su and Collier (2023): last layer, first 2000 texts, at most 256 tokens, pairs within a text, nothing centred."""
