"""AdaCAD: context-aware decoding as strong as context and memory disagree (Wang et al., NAACL 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from decoding.kernels.contrast import divergence
from decoding.parameters import require_range
from decoding.strategies.context_aware import AWARE, ContextStrategy
from decoding.strategies.contrast.readers import EXPERT
from decoding.strategies.contrast.system_messages import Placement

__all__ = ["AdaptiveContext"]


@dataclass(frozen=True)
class AdaptiveContext(ContextStrategy):
    """Adaptive context-aware decoding (AdaCAD): context-aware decoding whose α is the disagreement at each token.

    The score is (1 + α_t)·logit(y | c, x) - α_t·logit(y | x), and α_t the Jensen-Shannon divergence of the two
    distributions, at least ``floor``. Source: Wang et al., "AdaCAD: Adaptively Decoding to Balance Conflicts between
    Contextual and Parametric Knowledge", 2409.07394. The divergence is taken in bits here, so α_t is at most 1.

    Args:
        context: c: text, token ids, or a sequence of one of these a row; none of them empty.
        floor: the least α_t, in [0, 1]; a floor keeps long texts close to their context.
        tokenizer: for a context given as text.
        placement: see :class:`decoding.ContextAware`.

    Raises:
        OptionError: a value out of range, an empty context, or text without a tokenizer (when a call begins).
        InputError: a context that fills the model's context length (likewise).

    Example:
        >>> strategy = AdaptiveContext("Argentina won the World Cup in 1978, 1986 and 2022. ", tokenizer=tokenizer)
        >>> decoding.generate(model, **question, strategy=strategy)
    """

    context: Any = field(metadata={"example": "TEXT"})
    floor: float = field(default=0.0, metadata={"grid": (0.0, 0.3)})
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = None
    name: ClassVar[str] = "adaptive-context"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("floor", self.floor, 0.0, 1.0)

    def weights(self) -> Mapping[str, float]:
        """2 and -1, which the strength α_t draws towards 1 and 0."""
        return {AWARE: 2.0, EXPERT: -1.0}

    def strength(self, logits: Mapping[str, Tensor], new_tokens: Tensor) -> Tensor:
        """The divergence, at least the floor."""
        return divergence(logits[AWARE], logits[EXPERT]).clamp(min=self.floor)
