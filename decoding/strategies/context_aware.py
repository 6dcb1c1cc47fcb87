"""Context-aware decoding (Shi et al., NAACL 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from decoding.parameters import require_number
from decoding.strategies.contrast.amateurs import text_reader
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.system_messages import Placement, require_placement
from decoding.strategies.contrast.texts import check_text, texts_of
from decoding.strategies.contrast.weighted import WeightedStrategy

__all__ = ["AWARE", "ContextAware", "ContextStrategy"]

AWARE = "expert in context"  # the role of the reader of the context


class ContextStrategy(WeightedStrategy):
    """Base of the contrasts of the model after a context with the model without it. Its attributes are fields of the
    subclass.
    """

    context: Any
    tokenizer: Any
    placement: Placement | None
    anchor: ClassVar[str] = AWARE

    def __post_init__(self) -> None:
        super().__post_init__()
        texts_of(self.context, "context")
        require_placement(self.placement)

    def check(self, model: Any) -> None:
        """Raise OptionError where the context is text and there is no tokenizer."""
        check_text(self.context, self.tokenizer, "context")

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model on the prompt, and on the context and the prompt."""
        return [Reader(EXPERT), text_reader(AWARE, self.context, self.tokenizer, rows, "context", self.placement)]


@dataclass(frozen=True)
class ContextAware(ContextStrategy):
    """Context-aware decoding: what the context adds to the prompt, amplified.

    The score is (1 + α)·logit(y | c, x) - α·logit(y | x), with the prompt x and a context c before it: in a chat, as
    its system message. Both readers go through one forward pass a token.
    Source: Shi et al., "Trusting Your Evidence: Hallucinate Less with Context-aware Decoding", 2305.14739.

    Args:
        context: c: text, token ids, or a sequence of one of these a row; none of them empty.
        alpha: α >= 0; the paper uses 0.5 for summaries and 1 where the context contradicts what the model knows.
        tokenizer: for a context given as text.
        placement: "system" makes the context the system message of a chat, "prefix" puts it before the whole prompt.
            None is "system" where a prompt begins as the tokenizer's chat template does, and "prefix" where not.

    Raises:
        OptionError: a value out of range, an empty context, or text without a tokenizer (when a call begins).
        InputError: a context that fills the model's context length, or a prompt that is no chat with
            ``placement="system"`` (likewise).

    Example:
        >>> strategy = ContextAware("Argentina won the World Cup in 1978, 1986 and 2022. ", tokenizer=tokenizer)
        >>> decoding.generate(model, **question, strategy=strategy)
    """

    context: Any = field(metadata={"example": "TEXT"})
    alpha: float = field(default=0.5, metadata={"grid": (0.25, 0.5, 1.0, 2.0)})
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = field(default=None, metadata={"added_later": True})
    name: ClassVar[str] = "context-aware"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("alpha", self.alpha, 0.0)

    def weights(self) -> Mapping[str, float]:
        """1 + α with the context, -α without."""
        return {AWARE: 1 + self.alpha, EXPERT: -self.alpha}
