"""Classifier-free guidance (Sanchez et al., 2023): away from a negative prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from decoding.parameters import require_number
from decoding.strategies.contrast.amateurs import check_reader, reader_text, second_reader
from decoding.strategies.contrast.prompt import Prompt
from decoding.strategies.contrast.reader_kinds import LastToken, OtherPrompt, Self, as_kind
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.system_messages import Placement, require_placement
from decoding.strategies.contrast.texts import least_rows, texts_of
from decoding.strategies.contrast.weighted import WeightedStrategy

__all__ = ["Guidance"]

NEGATIVE = "negative reader"


@dataclass(frozen=True)
class Guidance(WeightedStrategy):
    """Classifier-free guidance: what the prompt adds to a negative prompt, amplified.

    The score is log p_n + γ·(log p - log p_n), p after the prompt and p_n after the negative prompt; both go through
    one forward pass a token. The tokens are those of transformers' ``guidance_scale``, which takes two passes. Source:
    Sanchez et al., "Stay on topic with Classifier-Free Guidance", 2306.17806, eq. 7; without a negative prompt, p_n is
    after the prompt's last token, as there.

    Args:
        negative: a prompt in place of the row's own: text, token ids, or a sequence of one of these a row. Or another
            reader: ``decoding.Prompt(text)`` for the same prompt after a negative system message, ``Self(...)``, a
            model. Text is never the name of a model. None reads the prompt's last token only.
        scale: γ >= 0; 1 is the model itself, the paper uses 1.5.
        tokenizer: for a negative prompt given as text.
        placement: of a ``Prompt``'s text, see :class:`decoding.ContrastiveDecoding`.

    Raises:
        OptionError: a value out of range, an empty text, or text without a tokenizer (when a call begins).
        InputError: a negative prompt that fills the model's context (likewise).

    Example:
        >>> inputs = tokenizer("Write a story about a dragon:", return_tensors="pt")
        >>> strategy = Guidance("Write a boring story about a dragon:", scale=1.5, tokenizer=tokenizer)
        >>> decoding.generate(model, **inputs, strategy=strategy)
    """

    negative: Any = None
    scale: float = field(default=1.5, metadata={"grid": (1.25, 1.5, 2.0)})
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = None
    name: ClassVar[str] = "guidance"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reader(self._reader, "negative")
        require_number("scale", self.scale, 0.0)
        require_placement(self.placement)

    @property
    def _reader(self) -> Any:
        if self.negative is None:
            return LastToken()
        kind = as_kind(self.negative)
        if isinstance(kind, (Prompt, OtherPrompt, LastToken, Self)) or hasattr(kind, "get_output_embeddings"):
            return kind
        texts_of(kind, "negative")
        return OtherPrompt(kind)

    def check(self, model: Any) -> None:
        """Raise where the negative prompt does not fit the model."""
        self.readers(model, least_rows(reader_text(self._reader)))

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model after the prompt, and after the negative prompt."""
        reader = second_reader(self._reader, model, rows, self.tokenizer, placement=self.placement, role=NEGATIVE)
        return [Reader(EXPERT), reader]

    @property
    def score_form(self) -> str:
        """Log-probabilities."""
        return "log_probs"

    def weights(self) -> Mapping[str, float]:
        """γ and 1 - γ."""
        return {EXPERT: self.scale, NEGATIVE: 1 - self.scale}
