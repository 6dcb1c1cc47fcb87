"""The form of prompts that ask about a context."""

from __future__ import annotations

from typing import Any

from decoding.errors import OptionError, nearest
from decoding.evals.tasks.truthfulqa.prompts import Prompt, prompt_of

__all__ = ["STYLES", "conflict_prompt"]

STYLES = ("plain", "question", "chat")


def conflict_prompt(style: str, tokenizer: Any = None) -> Prompt:
    r"""The form of prompts: "plain" (``Q: ...\nA:``), "question" (``Question: ...\nAnswer:``) or "chat".

    Raises:
        OptionError: another style, or "chat" and the tokenizer has no chat template that takes a question.
    """
    if style not in STYLES:
        raise OptionError(f"unknown prompt style {style!r}{nearest(style, STYLES)}")
    if style == "chat":
        return prompt_of("chat", tokenizer, demonstrations=())
    return Prompt("question", "", "Question: ", "\nAnswer:") if style == "question" else prompt_of("none")
