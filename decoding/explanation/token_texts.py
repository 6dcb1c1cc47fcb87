"""The text that tokens add to a text, where a character may be several tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["TokenTexts"]

BYTE = re.compile("<0x[0-9A-F]{2}>")
BROKEN = "\ufffd"  # what a decoder writes for a part of a character
# Tokens that are decoded before a new one, and the rest of the character that they begin in: many tokenizers drop the
# space before a first word.
BEFORE = 4


def _byte_letters() -> dict[str, int]:
    """The byte of each letter with which byte-level tokenizers (GPT-2's) write the bytes of their tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()


class TokenTexts:
    """The texts of the tokens of one row, and of tokens that could stand in the place of each.

    Args:
        tokenizer: of the text.
        tokens: ids of the row, without padding.

    Attributes:
        texts: what each token adds; "" where it ends within a character. The token that completes the character has
            all of it, and so has the last token of a text that ends within one.
    """

    def __init__(self, tokenizer: Any, tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(tokens)
        self._known: dict[tuple[int, ...], str] = {}
        self._whole: list[int] = [0]  # how many tokens come before the character that is open at each place
        self.texts: list[str] = []
        for index in range(len(self._tokens)):
            start = self._whole[-1]
            added = self._added(start, self._tokens[start : index + 1])
            is_open = added.endswith(BROKEN) and index + 1 - start < 4  # no character has more than four bytes
            self.texts.append("" if is_open else added)
            self._whole.append(start if is_open else index + 1)
        if self.texts and not self.texts[-1] and self._whole[-1] < len(self._tokens):
            self.texts[-1] = self._added(self._whole[-1], self._tokens[self._whole[-1] :])

    def at(self, index: int, token: int) -> str:
        """What a token adds where it comes after the first ``index`` tokens; its name where that is a part of a
        character, or nothing.
        """
        start = self._whole[index]
        added = self._added(start, [*self._tokens[start:index], token])
        return added if added and BROKEN not in added else self._name(token)

    def _added(self, start: int, tokens: Sequence[int]) -> str:
        """What tokens add after the first ``start`` of the row."""
        before = self._tokens[self._whole[max(start - BEFORE, 0)] : start]
        text, whole = self._decoded(before), self._decoded([*before, *tokens])
        return whole[len(text) :] if whole.startswith(text) else self._decoded(tokens)

    def _decoded(self, tokens: Sequence[int]) -> str:
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = str(self._tokenizer.decode(list(key), clean_up_tokenization_spaces=False)) if key else ""
        return self._known[key]

    def _name(self, token: int) -> str:
        """The name of a token; of parts of characters the bytes, as ``<0xE4><0xBD>``, the way of sentencepiece."""
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        in_bytes = (
            not BYTE.fullmatch(name)
            and all(letter in BYTE_LETTERS for letter in name)
            and BROKEN in self._decoded([token])
        )
        return "".join(f"<0x{BYTE_LETTERS[letter]:02X}>" for letter in name) if in_bytes else name
