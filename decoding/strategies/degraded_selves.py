"""Contrasts of a model with a degraded self: skipped layers, masked heads, other experts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from decoding.drafts.options import AMATEUR
from decoding.errors import OptionError, shown
from decoding.kernels.contrast import entropy
from decoding.models.layer_numbers import require_layers
from decoding.models.layers import depth_of
from decoding.parameters import plain_numbers, require_count, require_number, require_range
from decoding.strategies.contrast.amateurs import second_reader
from decoding.strategies.contrast.heads_text import heads_from_text
from decoding.strategies.contrast.reader_kinds import Self
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.weighted import WeightedStrategy

__all__ = ["ExpertContrast", "MaskedHeads", "SkippedLayers"]


class DegradedSelf(WeightedStrategy):
    """Base of the strategies whose amateur is the model itself, degraded. Its rows share the model's forward pass."""

    alpha: float

    @abstractmethod
    def amateur(self, model: Any) -> Self:
        """The degraded model."""

    @property
    def plausibility_alpha(self) -> float:
        """α."""
        return self.alpha

    def check(self, model: Any) -> None:
        """Raise OptionError where the model does not have what is to be taken from it."""
        self.readers(model, 1)

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model, and the degraded model."""
        return [Reader(EXPERT), second_reader(self.amateur(model), model, rows, role=AMATEUR)]


@dataclass(frozen=True)
class SkippedLayers(DegradedSelf):
    """A contrast with the model without some of its middle layers (SkipLayerCD, PruneCD).

    The score is (1 + β)·s - β·s_skipped over tokens with p >= α·max p, as in
    :class:`decoding.ContrastiveDecoding`. Which layers are skipped is ours: published methods search for them.

    Args:
        layers: the decoder layers that are skipped: numbers from 0, or shares of the depth (a float between 0 and 1).
            None skips the middle quarter.
        alpha: α in [0, 1].
        beta: β >= 0.

    Raises:
        OptionError: a value out of range, or a layer that the model does not have (when a call begins).

    Example:
        >>> decoding.generate(model, **inputs, strategy=SkippedLayers([12, 13, 14]), max_new_tokens=64)
    """

    layers: Sequence[int | float] | None = None
    alpha: float = field(default=0.1, metadata={"grid": (0.0, 0.1)})
    beta: float = field(default=0.5, metadata={"grid": (0.25, 0.5, 1.0)})
    name: ClassVar[str] = "skipped-layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_number("beta", self.beta, 0.0)
        if self.layers is None:
            return
        layers = plain_numbers([self.layers] if isinstance(self.layers, (int, float)) else self.layers)
        layers = list(layers) if isinstance(layers, range) else layers
        require_layers("layers", layers)
        if not layers:
            raise OptionError("layers: is empty and would skip nothing; give at least one, or None for the middle")
        object.__setattr__(self, "layers", tuple(layers))

    def amateur(self, model: Any) -> Self:
        """The model without these layers."""
        depth = depth_of(model)
        if self.layers is None:
            # The middle quarter, at least one; a model of one layer has none to spare and is refused.
            first = (depth - max(1, depth // 4)) // 2
            return Self(skip_layers=range(first, first + max(1, depth // 4)))
        return Self(skip_layers=[n if isinstance(n, int) else min(int(n * depth), depth - 1) for n in self.layers])

    def weights(self) -> Mapping[str, float]:
        """1 + β and -β."""
        return {EXPERT: 1 + self.beta, AMATEUR: -self.beta}


@dataclass(frozen=True)
class MaskedHeads(DegradedSelf):
    """Decoding by contrasting retrieval heads (DeCoRe): a contrast with the model without some attention heads.

    The score is (1 + α_t)·log p - α_t·log p_masked, α_t the entropy of p in nats, over tokens with p >= α·max p.
    Source: Gema et al., "DeCoRe: Decoding by Contrasting Retrieval Heads to Mitigate Hallucinations", 2410.18860. There
    the heads are those that copy from the context, which ``decoding heads`` finds.

    Args:
        heads: the heads whose output is zero: a mapping from layers to lists of heads, counted from 0; text,
            "5.0+5.3+7.1" (layer.head), which is what the strategy keeps; or the file ``heads.json`` of ``decoding
            heads``, "heads.json:20" for its 20 best heads.
        alpha: α in [0, 1].
        beta: a fixed weight in place of the entropy, >= 0; None for the entropy.

    Raises:
        OptionError: a value out of range, or a head that the model does not have (when a call begins).
        ModelError: a model whose heads cannot be told apart (likewise).

    Example:
        >>> decoding.generate(model, **inputs, strategy=MaskedHeads({5: [0, 3], 7: [1]}), max_new_tokens=64)
    """

    heads: Any = field(metadata={"example": "0.0"})
    alpha: float = field(default=0.1, metadata={"grid": (0.0, 0.1)})
    beta: float | None = None
    name: ClassVar[str] = "masked-heads"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("alpha", self.alpha, 0.0, 1.0)
        if self.beta is not None:
            require_number("beta", self.beta, 0.0)
        heads = heads_from_text(self.heads) if isinstance(self.heads, str) else self.heads
        masked = Self(mask_heads=heads)
        if not masked.mask_heads:
            raise OptionError(f"heads={shown(self.heads)}: must name at least one head, such as {{5: [0, 3]}}")
        object.__setattr__(self, "heads", masked.heads_text)

    def amateur(self, model: Any) -> Self:
        """The model without these heads."""
        return Self(mask_heads=heads_from_text(self.heads))

    @property
    def score_form(self) -> str:
        """Log-probabilities."""
        return "log_probs"

    @property
    def has_strength(self) -> bool:
        """True where the weight is the entropy."""
        return self.beta is None

    def weights(self) -> Mapping[str, float]:
        """1 + β and -β; 2 and -1, which the strength α_t draws towards 1 and 0."""
        beta = 1.0 if self.beta is None else self.beta
        return {EXPERT: 1 + beta, AMATEUR: -beta}

    def strength(self, logits: Mapping[str, Tensor], new_tokens: Tensor) -> Tensor:
        """The entropy."""
        return entropy(logits[EXPERT])


@dataclass(frozen=True)
class ExpertContrast(DegradedSelf):
    """Self-contrast of a mixture of experts (SCMoE): against the model whose router chooses a worse expert.

    The score is (1 + β)·s - β·s_rank over tokens with p >= α·max p; s_rank are the logits where every token goes to the
    expert of one rank alone. Source: Shi et al., "Unchosen Experts Can Contribute Too: Unleashing MoE Models' Power by
    Self-Contrast", 2405.14507, whose defaults these are.

    Args:
        rank: of the expert, 1 for the best.
        alpha: α in [0, 1].
        beta: β >= 0.

    Raises:
        OptionError: a value out of range, or a rank that the model does not have (when a call begins).
        ModelError: a model without a router (likewise).

    Example:
        >>> decoding.generate(mixtral, **inputs, strategy=ExpertContrast(rank=2), max_new_tokens=64)
    """

    rank: int = field(default=2, metadata={"grid": (2, 3)})
    alpha: float = field(default=0.1, metadata={"grid": (0.0, 0.1)})
    beta: float = field(default=0.5, metadata={"grid": (0.25, 0.5, 1.0)})
    name: ClassVar[str] = "expert-contrast"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("rank", self.rank, 1)
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_number("beta", self.beta, 0.0)

    def amateur(self, model: Any) -> Self:
        """The model with another routing."""
        return Self(expert_rank=self.rank)

    def weights(self) -> Mapping[str, float]:
        """1 + β and -β."""
        return {EXPERT: 1 + self.beta, AMATEUR: -self.beta}
