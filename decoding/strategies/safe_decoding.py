"""SafeDecoding (Xu et al., ACL 2024): the first tokens are chosen as a safety-tuned model would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.generation.unpadded_text import after_first
from decoding.kernels.contrast import masked
from decoding.parameters import require_count, require_number
from decoding.strategies.contrast.amateurs import check_reader, cut_to_shared, padded_to, reader_text, second_reader
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.strategies.contrast.texts import least_rows

__all__ = ["SafeDecoding"]

SAFE = "safe model"
LEAST = 1e-30  # a probability that the extrapolation makes zero or less


@dataclass(frozen=True)
class SafeDecoding(ContrastStrategy):
    """SafeDecoding: for the first tokens of an answer, what a safety-tuned model prefers more than the model itself.

    The probability of a token is p + α·(p_safe - p) over the tokens that both readers have among their k most probable,
    with the smallest k that leaves c of them; after the first m new tokens it is p. Source: Xu et al., "SafeDecoding:
    Defending against Jailbreak Attacks via Safety-Aware Decoding", 2402.08983, eqs. 2 to 4, with α 3 and m 2 as there.

    Args:
        safe: the safety-tuned model, in any form that :class:`decoding.ContrastiveDecoding` takes as an amateur: best a
            LoRA adapter, whose rows share the model's pass.
        strength: α >= 0; 0 is the model itself over the common tokens.
        first_tokens: m >= 0.
        common_tokens: c >= 1. The authors' code uses 3.
        tokenizer: the model's; compared with that of a model given by name.

    Raises:
        OptionError: a value out of range.
        ModelError: a model of other tokens, or one that cannot be loaded (when a call begins).

    Example:
        >>> decoding.generate(model, **inputs, strategy=SafeDecoding("safety-adapter"), max_new_tokens=64)
    """

    safe: Any = field(metadata={"example": "amateur", "names_models": True})
    strength: float = field(default=3.0, metadata={"grid": (1.0, 3.0)})
    first_tokens: int = 2
    common_tokens: int = 3
    tokenizer: Any = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "safe-decoding"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reader(self.safe, "safe")
        require_number("strength", self.strength, 0.0)
        require_count("first_tokens", self.first_tokens, 0)
        require_count("common_tokens", self.common_tokens, 1)

    @property
    def contrasted_tokens(self) -> int:
        """The first m."""
        return self.first_tokens

    def check(self, model: Any) -> None:
        """Raise where the safe model cannot be loaded or has other tokens; loads it where it is given by name."""
        self.readers(model, least_rows(reader_text(self.safe)))

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model and the safe model."""
        return [Reader(EXPERT), second_reader(self.safe, model, rows, self.tokenizer, role=SAFE)]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The extrapolated probabilities where the prompt's end is not known: the text's first tokens are the new."""
        return self.contrast_at(logits, input_ids, after_first(input_ids))

    def contrast_at(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor, new_tokens: Tensor) -> Contrast:
        """The extrapolated log-probabilities at the first new tokens, the model's own at the others."""
        final = logits[EXPERT].final.float()
        is_first = (new_tokens < self.first_tokens).to(final.device)
        if not bool(is_first.any()):
            return Contrast(lambda _: final, lambda: final, None)
        vocab = final.shape[-1]
        own, safe, mixed = self._mixed(logits)
        common = _common(own, safe, self.common_tokens)
        # Beyond the common tokens only the order counts, where a processor has excluded all of these.
        scores = padded_to(torch.where(common, mixed, own.clamp_min(LEAST).log()), vocab)
        kept = padded_to(torch.where(common, 0.0, own.log() - 1.0), vocab)
        everything = torch.zeros_like(final).masked_fill_(final.isneginf(), -torch.inf)
        first = is_first[..., None]
        scores, passing = torch.where(first, scores, final), torch.where(first, kept, everything)
        return Contrast(lambda alpha: masked(scores, passing, alpha), lambda: passing, 1.0)

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """The logarithm of the extrapolated probability of the first tokens, or of the model's own; and α there."""
        final = logits[EXPERT].final.float()
        is_first = (new_tokens < self.first_tokens).to(final.device)
        mixed = padded_to(self._mixed(logits)[2], final.shape[-1])
        term = torch.where(is_first[..., None], mixed, final.log_softmax(-1))
        return ContrastParts(
            terms={"log of the extrapolated probability": (term, 1.0)}, settings={"strength": self.strength * is_first}
        )

    def _mixed(self, logits: Mapping[str, ReaderLogits]) -> tuple[Tensor, Tensor, Tensor]:
        """(..., shared vocab) p, p_safe, and the logarithm of p + α·(p_safe - p)."""
        shared = cut_to_shared(logits[EXPERT].final, logits[SAFE].final)
        own, safe = (reader.float().softmax(-1) for reader in shared)
        return own, safe, own.lerp(safe, self.strength).clamp_min(LEAST).log()


def _common(own: Tensor, safe: Tensor, least: int) -> Tensor:
    """(..., vocab) True for the tokens that two distributions have among their k most probable, with the smallest k
    that leaves ``least`` of them.
    """
    ranks = [p.argsort(dim=-1, descending=True, stable=True).argsort(-1) for p in (own, safe)]
    needed = torch.maximum(*ranks)  # the k - 1 that a token needs
    least = min(least, needed.shape[-1])
    return needed <= needed.kthvalue(least, dim=-1, keepdim=True).values
