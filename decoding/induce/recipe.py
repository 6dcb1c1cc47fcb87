"""Hyper-parameters of training a model to hallucinate; needs no model code."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.errors import OptionError
from decoding.parameters import require_count, require_number, require_range, store_plain_numbers

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of inducing an amateur.

    Learning rate, batch and epochs are those of a follow-up of induced contrastive decoding (2408.08769); rank, alpha
    and dropout are this library's.

    Args:
        learning_rate: the peak of a linear decay.
        batch_size: examples per step.
        epochs: passes over the examples.
        rank: rank of the LoRA matrices.
        lora_alpha: the adapter's output is scaled by ``lora_alpha / rank``.
        dropout: dropout before the adapter, in [0, 1).
        max_length: tokens of an example; longer answers are cut, and examples of longer questions left out.
        template: prompt of a question, which stands in place of ``{question}``; the answer follows it after one space.
        seed: seed of the new weights and of the order of the examples.
    """

    learning_rate: float = 5e-4
    batch_size: int = 256
    epochs: float = 5
    rank: int = 8
    lora_alpha: int = 16
    dropout: float = 0.0
    max_length: int = 512
    template: str = "Q: {question}\nA:"
    seed: int = 0

    def __post_init__(self) -> None:
        store_plain_numbers(self)
        for name in ("batch_size", "rank", "lora_alpha", "max_length"):
            require_count(name, getattr(self, name), 1)
        for name in ("learning_rate", "epochs"):
            require_number(name, getattr(self, name), 0.0, open_=True)
        require_range("dropout", self.dropout, 0.0, 1.0)
        if self.dropout == 1:
            raise OptionError(f"dropout={self.dropout!r}: must be a number from 0 to below 1")
        if not isinstance(self.template, str) or "{question}" not in self.template:
            raise OptionError(f"template={self.template!r}: must be text with {{question}} in it")
