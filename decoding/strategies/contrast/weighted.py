"""The base of contrasts that are a weighted sum of readers' scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from decoding.generation.unpadded_text import after_first
from decoding.kernels.contrast import drawn_to_first, weighted_contrast
from decoding.strategies.contrast.amateurs import cut_to_shared, padded_to
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.strategies.contrast.strengths import of_positions

__all__ = ["WeightedStrategy", "readers_with_expert"]


class WeightedStrategy(ContrastStrategy):
    """Base of the strategies whose scores are Σ w·s over readers, with fixed weights or with weights of each position.

    With a strength f, a number for each position, the sum is drawn towards the anchor, the reader whose plausibility
    counts: s_anchor + f·(Σ w·s - s_anchor). Strength 1 is the sum itself, 0 the anchor alone.

    Attributes:
        anchor: the role of the reader whose plausibility counts.
    """

    anchor: ClassVar[str] = EXPERT

    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """The weight of each reader by its role."""

    @property
    def score_form(self) -> str:
        """What s is: "logits", or "log_probs", each a log-softmax."""
        return "logits"

    @property
    def plausibility_alpha(self) -> float | None:
        """Plausible is p >= alpha·max p of the anchor; None lets every token pass."""
        return None

    @property
    def plausibility_mask(self) -> Callable[[Tensor], Tensor] | None:
        """What is plausible in place of α, from the anchor's logits (..., vocab) to (..., vocab) bool; None for α."""
        return None

    @property
    def temperatures(self) -> Mapping[str, float]:
        """What a reader's logits are divided by, by its role, where that is not 1."""
        return {}

    def strength(self, logits: Mapping[str, Tensor], new_tokens: Tensor) -> Tensor | None:
        """The strength of each position (...), from the readers' logits; None where it is 1 everywhere.

        Args:
            logits: by role (..., vocab), of the same tokens.
            new_tokens: (...) how many tokens come between the prompt and each position.
        """
        return None

    @property
    def has_strength(self) -> bool:
        """True where :meth:`strength` gives one."""
        return type(self).strength is not WeightedStrategy.strength

    @property
    def plausibility_roles(self) -> frozenset[str] | None:  # type: ignore[override]
        """The anchor alone; None where every token passes."""
        masks = self.plausibility_alpha is not None or self.plausibility_mask is not None
        return frozenset({self.anchor}) if masks else None

    @property
    def tokenwise(self) -> bool:  # type: ignore[override]
        """True of fixed weights; a strength, and a mask in place of α, come from the logits of all tokens."""
        return not self.has_strength and self.plausibility_mask is None

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The weighted sum where the prompt's end is not known: positions count from the text's first token."""
        return self._weighted(logits, after_first(input_ids))

    def contrast_at(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor, new_tokens: Tensor) -> Contrast:
        """The weighted sum, drawn towards the anchor by the strength of each position."""
        return self._weighted(logits, new_tokens) if self.has_strength else self.contrast(logits, input_ids)

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """The weights, over the temperature of each reader, and the strength."""
        roles, finals = self._summed(logits)
        strength = self._strength(roles, finals, new_tokens)
        weights = self._weights_at(roles, strength)
        by_role = {
            role: ReaderWeights(weight / self.temperatures.get(role, 1.0))
            for role, weight in zip(roles, weights, strict=True)
        }
        return ContrastParts(by_role, settings={} if strength is None else {"strength": strength})

    def _weighted(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> Contrast:
        vocab = logits[EXPERT].final.shape[-1]  # that tokens are chosen from
        roles, finals = self._summed(logits)
        temperatures = [self.temperatures.get(role, 1.0) for role in roles]

        def score_fn(alpha: float | None) -> Tensor:
            # Not before the scores are asked for: readers that wait have logits of an earlier token until then.
            weights = self._weights_at(roles, self._strength(roles, finals, new_tokens))
            return padded_to(weighted_contrast(finals, weights, self.score_form, temperatures, alpha), vocab)

        anchor, mask = finals[0], self.plausibility_mask
        return Contrast(
            score_fn,
            lambda: padded_to(anchor, vocab),
            self.plausibility_alpha if mask is None else None,
            None if mask is None else lambda: padded_to(mask(anchor), vocab, False),
        )

    def _summed(self, logits: Mapping[str, ReaderLogits]) -> tuple[list[str], tuple[Tensor, ...]]:
        """The roles that are summed, the anchor first, and their logits of the tokens that all of them have."""
        fixed = self.weights()
        roles = [self.anchor, *(role for role in logits if role != self.anchor and role in fixed)]
        return roles, cut_to_shared(*(logits[role].final for role in roles))

    def _weights_at(self, roles: Sequence[str], strength: Tensor | None) -> list[float | Tensor]:
        """The weight of each role, drawn towards the anchor alone by the strength of each position."""
        fixed = self.weights()
        weights = [fixed.get(role, 0.0) for role in roles]
        return [*weights] if strength is None else drawn_to_first(weights, strength)

    def _strength(self, roles: Sequence[str], finals: Sequence[Tensor], new_tokens: Tensor) -> Tensor | None:
        if not self.has_strength:
            return None
        strength = self.strength(dict(zip(roles, finals, strict=True)), new_tokens.to(finals[0].device))
        return None if strength is None else of_positions(strength, finals[0], f"{self.name}: the strength")


def readers_with_expert(readers: Sequence[Reader]) -> list[Reader]:
    """The readers, the expert first, added where it is not among them: its cache is what a call returns."""
    if any(reader.role == EXPERT for reader in readers):
        return sorted(readers, key=lambda reader: reader.role != EXPERT)
    return [Reader(EXPERT), *readers]
