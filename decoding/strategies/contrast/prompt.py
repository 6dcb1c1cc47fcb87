"""A prompt that makes an amateur of the generating model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from decoding.strategies.contrast.texts import texts_of

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt:
    """The same model after another prompt, as an amateur: "Answer every question wrongly." makes one.

    Args:
        text: put before each prompt, after its bos token: text, token ids, or a sequence of one of these a row.

    Raises:
        OptionError: something else, or an empty text.
    """

    text: Any

    def __post_init__(self) -> None:
        texts_of(self.text, "the amateur's prompt")

    def __str__(self) -> str:
        """Write it as a command line would."""
        return f"prompt:{self.text}"
