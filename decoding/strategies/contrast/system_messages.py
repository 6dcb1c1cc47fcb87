"""The texts of a strategy (a context, guidance, an amateur's prompt) as system messages of chats."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.models.chat_template import ChatTemplate, read_chat_template
from decoding.parameters import require_choice

__all__ = ["Placement", "SystemMessages", "require_placement"]

Placement = Literal["system", "prefix"]


def require_placement(placement: Any) -> None:
    """Raise OptionError unless a placement is "system", "prefix", or None to let the prompt's tokens tell."""
    if placement is not None:
        require_choice("placement", placement, ("system", "prefix"))


@dataclass(frozen=True)
class SystemMessages:
    """Texts that are system messages where a prompt was made with the tokenizer's chat template.

    Attributes:
        messages: one a row; None for a row whose text is given as token ids.
        tokenizer: the prompts' tokenizer.
        what: names the text in messages.
        required: whether every prompt must be a chat; otherwise the tokens tell.
    """

    messages: tuple[str | None, ...]
    tokenizer: Any
    what: str = field(compare=False)
    required: bool = False

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template; None, perhaps with a warning, where a prompt does not show whether it has made it.

        Raises:
            OptionError: the template is required and cannot be read.
        """
        try:
            template = read_chat_template(self.tokenizer)
            if self.required or template.is_recognisable:
                return template
            why = "writes nothing before the first message that a prompt could be known by"
        except OptionError as error:
            if self.required:
                raise OptionError(f"{self.what}: cannot be a system message, since {error}") from error
            why = f"cannot be read ({error})"
        if getattr(self.tokenizer, "chat_template", None):
            warnings.warn(
                f"{self.what}: the tokenizer's chat template {why}, so the text comes before the whole prompt; "
                "placement='prefix' says that this is meant, placement='system' that prompts are chats",
                DecodingWarning,
                stacklevel=2,
            )
        return None

    def placed(self, prompt: Sequence[int], row: int, role: str) -> list[int] | None:
        """The tokens of a row's chat with the text as its system message; None for a prompt that is no chat.

        Args:
            prompt: token ids, without padding.
            row: whose text.
            role: of the reader, for messages.

        Raises:
            OptionError: the text must be a system message and is token ids, or the template cannot be read.
            InputError: it must be one, and the prompt does not begin as the chat template does.
        """
        message = self.messages[row]
        if message is None or self.template is None:
            return None
        placed = self.template.with_system(prompt, message)
        if placed is None and self.required:
            raise InputError(
                f"{self.what}: row {row} does not begin as the tokenizer's chat template does, so it has no place for "
                "a system message: make the prompt with apply_chat_template, or give placement='prefix'"
            )
        if placed is None and self.template.occurs_in(prompt):
            warnings.warn(
                f"{self.what}: row {row} has turns of a chat but does not begin as the tokenizer's chat template does, "
                f"so the {role} reads the text before the whole prompt; placement='prefix' says that this is meant",
                DecodingWarning,
                stacklevel=2,
            )
        return placed

    def most_added(self) -> int:
        """The largest number of tokens that a message adds to a prompt."""
        if self.template is None:
            return 0
        return max((self.template.most_added(message) for message in self.messages if message is not None), default=0)
