"""The place of a system message in a prompt of token ids that a tokenizer's chat template has made."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from decoding.errors import OptionError, one_line

__all__ = ["ChatTemplate", "message_content", "read_chat_template"]

# Contents of messages while a template is read: words that no template writes by itself, in letters of any vocabulary.
_SYSTEM, _FIRST, _ANSWER, _SECOND = "qsystemq", "qfirstq", "qanswerq", "qsecondq"

SEPARATOR = "\n\n"  # between a text and the message that it is put in front of


@dataclass(frozen=True)
class ChatTemplate:
    """The beginning of the prompts that a tokenizer's chat template makes.

    Attributes:
        tokenizer: whose template it is.
        plain: the text before the first user's message where no system message is given; the default system message
            of some templates is part of it.
        before: the text before a system message.
        after: the text between a system message and the first user's message.
        has_system: False where the template takes no system message, or places it elsewhere than in front: ``before``
            is then ``plain``, and the text becomes part of the first user's message.
    """

    tokenizer: Any
    plain: str
    before: str
    after: str
    has_system: bool

    @property
    def is_recognisable(self) -> bool:
        """True where prompts of the template begin with more than a bos token, so that others do not begin so."""
        bos = self.tokenizer.bos_token or ""
        return all(text.strip().removeprefix(bos).strip() for text in (self.plain, self.before))

    def with_system(self, prompt: Sequence[int], message: str) -> list[int] | None:
        """The tokens of a prompt with a text as its system message.

        A system message that the prompt has already follows the text after a blank line; a template's default message
        gives way, as it does where the template is given a system message. Where the template has none, the text stands
        in front of the first user's message, which follows after a blank line.

        Tokens from the second word of the message after the text on are the prompt's own.

        Args:
            prompt: token ids, without padding.
            message: spaces and line ends around it are left out; empty, the prompt stays as it is.

        Returns:
            Token ids; None where the prompt does not begin as the template does, or not with the tokens that the
            tokenizer makes of its text.
        """
        message = message.strip()
        beginnings = [
            (self.plain, f"{self.before}{message}{self.after}"),
            (self.before, f"{self.before}{message}{SEPARATOR}"),
        ]
        beginnings.sort(key=lambda pair: -len(pair[0]))  # one may begin with the other
        # Some callers put a bos token in front of the template's own.
        for skipped in (0, 1) if prompt and prompt[0] == self.tokenizer.bos_token_id else (0,):
            rest = list(prompt[skipped:])
            text = self._decoded(rest)
            for old, new in beginnings:
                read = self._decoded(self._encoded(old))  # some tokenizers decode a space after a special token
                if text.startswith(read):
                    replaced = self._replaced(rest, len(read), old, new) if message else rest
                    return None if replaced is None else [*prompt[:skipped], *replaced]
        return None

    def most_added(self, message: str) -> int:
        """The largest number of tokens that a system message adds to a prompt."""
        return len(self._encoded(f"{self.before}{message.strip()}{self.after}"))

    def occurs_in(self, prompt: Sequence[int]) -> bool:
        """True where a prompt has the special token that the template begins its turns with."""
        special = self._special_tokens() - {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        heads = (self._encoded(text) for text in (self.plain, self.before))
        begins = {next((token for token in head if token in special), None) for head in heads} - {None}
        return not begins.isdisjoint(prompt)

    def _replaced(self, prompt: list[int], length: int, old: str, new: str) -> list[int] | None:
        """The tokens of a prompt with another text in the place of its first ``length`` characters, which are ``old``;
        None where no part of the prompt is what the tokenizer makes of its text.
        """
        for border in self._borders(prompt, length):
            rest = self._decoded(prompt[:border])[length:]
            if self._encoded(old + rest) == prompt[:border]:
                return [*self._encoded(new + rest), *prompt[border:]]
        return None

    def _borders(self, prompt: list[int], length: int) -> Iterator[int]:
        """Positions after a prompt's first ``length`` characters at which no tokenizer joins what is before with what
        is after: before a special token, before a word's space, and at the end.
        """
        special = self._special_tokens()
        start = bisect.bisect_left(range(len(prompt)), length, key=lambda end: len(self._decoded(prompt[:end])))
        has_word = ends_in_space = False
        for position in range(start, len(prompt)):
            # Tokens are decoded with the one before: many tokenizers drop the space before a first word.
            last = self._decoded(prompt[position - 1 : position]) if position else ""
            piece = self._decoded(prompt[max(0, position - 1) : position + 1])[len(last) :]
            if prompt[position] in special or (has_word and not ends_in_space and piece[:1].isspace()):
                yield position
            has_word = has_word or bool(piece.strip())
            ends_in_space = piece[-1:].isspace() if piece else ends_in_space
        yield len(prompt)

    def _special_tokens(self) -> set[int]:
        """Special tokens that take no space before them."""
        added = self.tokenizer.added_tokens_decoder
        return {number for number, token in added.items() if token.special and not token.lstrip}

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def read_chat_template(tokenizer: Any) -> ChatTemplate:
    """The chat template of a tokenizer, found out by letting it write two conversations.

    Raises:
        OptionError: there is no template, it fails, or it does not write a user's message as it is.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError("the tokenizer has no chat template")
    turns = [("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)]
    try:
        plain, found, rest = _written(tokenizer, turns).partition(_FIRST)
    except Exception as error:  # of any kind, from the template
        raise OptionError(f"the chat template fails ({one_line(error)})") from error
    if not found:
        raise OptionError("the chat template does not write a user's message as it is")
    try:
        before, found, tail = _written(tokenizer, [("system", _SYSTEM), *turns]).partition(_SYSTEM)
    except Exception:  # many templates raise where there is a system message
        found = tail = ""
    after, first, rest_with_system = tail.partition(_FIRST)
    if found and first and rest_with_system == rest:
        return ChatTemplate(tokenizer, plain, before, after, has_system=True)
    return ChatTemplate(tokenizer, plain, plain, SEPARATOR, has_system=False)


def message_content(tokenizer: Any, text: str) -> Any:
    """The content of a message that a tokenizer's chat template writes: the text, or a list of parts, which is what the
    templates of models of images take. Some of those write nothing of a text, and raise no error.
    """
    try:
        if _FIRST in _rendered(tokenizer, [{"role": "user", "content": _FIRST}]):
            return text
    except Exception:  # of any kind, from the template
        pass
    return [{"type": "text", "text": text}]


def _written(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": message_content(tokenizer, text)} for role, text in turns]
    return _rendered(tokenizer, messages)


def _rendered(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
