"""Proxy-tuning (Liu et al., COLM 2024): what tuning did to a small model, done to a large one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from decoding.parameters import require_number
from decoding.strategies.contrast.amateurs import check_reader, reader_text, second_reader
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.texts import least_rows
from decoding.strategies.contrast.weighted import WeightedStrategy

__all__ = ["ProxyTuning"]


@dataclass(frozen=True)
class ProxyTuning(WeightedStrategy):
    """Proxy-tuning: the difference between a tuned and an untuned small model, added to the large model's logits.

    The score is s + α·(s_tuned - s_untuned). Source: Liu et al., "Tuning Language Models by Proxy", 2401.08565, eq. 1,
    where α is 1; with α it is DExperts (Liu et al., 2105.03023, eq. 1).

    Args:
        tuned: the small tuned model (DExperts' expert), in any form that :class:`decoding.ContrastiveDecoding` takes
            as an amateur.
        untuned: the same model before tuning (DExperts' anti-expert), likewise.
        weight: α >= 0; 0 is the model itself.
        tokenizer: the model's; compared with those of models that are given by name.

    Raises:
        OptionError: a value out of range.
        ModelError: a model of other tokens, or one that cannot be loaded (when a call begins).

    Example:
        >>> strategy = ProxyTuning("small-chat", "small-base", tokenizer=tokenizer)
        >>> decoding.generate(large, **inputs, strategy=strategy)
    """

    tuned: Any = field(metadata={"example": "amateur", "names_models": True})
    untuned: Any = field(metadata={"example": "self:skip_layers=1", "names_models": True})
    weight: float = field(default=1.0, metadata={"grid": (0.5, 1.0, 2.0)})
    tokenizer: Any = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "proxy-tuning"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reader(self.tuned, "tuned")
        check_reader(self.untuned, "untuned")
        require_number("weight", self.weight, 0.0)

    def check(self, model: Any) -> None:
        """Raise where a model cannot be loaded or has other tokens; loads those that are given by name."""
        self.readers(model, least_rows(reader_text(self.tuned), reader_text(self.untuned)))

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The large model and the two small ones."""
        tuned = second_reader(self.tuned, model, rows, self.tokenizer, role="tuned model")
        untuned = second_reader(self.untuned, model, rows, self.tokenizer, role="untuned model")
        return [Reader(EXPERT), tuned, untuned]

    def weights(self) -> Mapping[str, float]:
        """1, α and -α."""
        return {EXPERT: 1.0, "tuned model": self.weight, "untuned model": -self.weight}
