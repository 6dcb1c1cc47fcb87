"""A prompt that makes an amateur of the generating model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt:
    """The same model after another prompt, as an amateur: "Answer every question wrongly." makes one.

    Args:
        text: put before each prompt, after its bos token: text, token ids, or a sequence of one of these a row.
    """

    text: Any

    def __str__(self) -> str:
        """Write it as a command line would."""
        return f"prompt:{self.text}"
