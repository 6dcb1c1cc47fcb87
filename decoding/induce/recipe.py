"""The hyper-parameters with which a model is made to hallucinate; no model code is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.errors import OptionError

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of inducing an amateur.

    Learning rate, batch and epochs are those of a follow-up of induced contrastive decoding (2408.08769); rank, alpha
    and dropout are ours.

    Args:
        learning_rate: the peak of a linear decay.
        batch_size: examples a step.
        epochs: passes over the examples.
        rank: of the LoRA matrices.
        lora_alpha: their scale is ``lora_alpha / rank``.
        dropout: before them, in [0, 1).
        max_length: tokens of an example that are read; longer answers are cut.
        template: how a question is asked; the answer follows it after one space.
        seed: of the new weights and of the order of the examples.
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
        for name in ("batch_size", "rank", "lora_alpha", "max_length"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)!r}: must be a whole number from 1")
        for name in ("learning_rate", "epochs"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name)!r}: must be a number above 0")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout!r}: must be a number from 0 to below 1")
        if "{question}" not in self.template:
            raise OptionError(f"template={self.template!r}: must be text with {{question}} in it")
